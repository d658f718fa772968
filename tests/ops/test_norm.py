"""Dropout, residual and layer norm in one kernel, against torch in float64 with the same mask."""

import pytest
import torch
from torch import nn

from ops.tools import CUDA, compare, cpu, interpreted, leaves
from recblr.ops import dropout, norm

DEVICES = [CUDA, pytest.param("triton", marks=interpreted)]


@pytest.mark.skipif(not cpu.available(), reason="the mask comes from the CPU kernel")
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize(("rows", "dim"), [(1, 16), (70, 64), (5, 100), (3, 512), (0, 64)])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_one_kernel_equals_the_three_operations(
    device: str, rows: int, dim: int, p: float, dtype: torch.dtype, residual: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(rows)
    x, r = (torch.randn(rows, dim).to(dtype).double().requires_grad_() for _ in range(2))
    layer = nn.LayerNorm(dim, 1e-12)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    truth = [x, r, *(t.detach().double().requires_grad_() for t in (layer.weight, layer.bias))]
    ours = leaves(truth, dtype, device, 3)  # the residual is in float32
    layer.to(device)
    layer.weight, layer.bias = (nn.Parameter(t) for t in ours[2:])
    ours[2:] = [layer.weight, layer.bias]
    seed = torch.tensor([123456789])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: seed.to(device))
    results = [norm.dropout_add_norm(ours[0], ours[1] if residual else None, layer, p, True)]
    mask = cpu.dropout(torch.ones(rows, dim), int(seed), 1 - p).double()
    total = x * mask + (r if residual else 0)
    slow = nn.functional.layer_norm(total, (dim,), truth[2], truth[3], 1e-12)
    compare((slow,), truth, (results[0],), ours)
    results.append(norm.dropout_add_norm(ours[0], ours[1] if residual else None, layer, p, True))
    assert results[0].equal(results[1]), "two runs must give identical bits"


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_further_axes(device: str) -> None:
    x, r = (torch.randn(2, 3, 16, device=device, requires_grad=True) for _ in range(2))
    layer = nn.LayerNorm(16).to(device)
    whole = norm.dropout_add_norm(x, r, layer, 0.0, True)
    torch.testing.assert_close(whole, layer(x + r))
    (ours,), (theirs,) = (torch.autograd.grad(y.sin().sum(), x) for y in (whole, layer(x + r)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_cpu_runs_the_three_operations() -> None:
    x, residual, layer = torch.randn(5, 8), torch.randn(5, 8), nn.LayerNorm(8)
    torch.manual_seed(1)
    ours = norm.dropout_add_norm(x, residual, layer, 0.3, True)
    torch.manual_seed(1)
    assert ours.equal(layer(dropout(x, 0.3, True) + residual))
    assert norm.dropout_add_norm(x, None, layer, 0.3, False).equal(layer(x))
