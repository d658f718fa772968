"""Tests of the compiled kernels alone; test_recurrence.py compares them with the float64 loop."""

import math

import pytest
import torch
from torch import Tensor

from recblr import ops
from recblr.ops import cpu, reference

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels on this machine")


def unit(count: int, **gates: Tensor | float) -> Tensor:
    """y (count,) of sequences of one event and one channel. By default α = 1 and the input gate is
    closed: y is the start, 1, times SiLU(z)."""
    inputs = {"x": 1.0, "r": -200.0, "i": -200.0, "z": 1.0, "start": 1.0, "decay": 1.0, **gates}
    *values, decay = (torch.as_tensor(value) for value in inputs.values())
    x, r, i, z, start = (value.expand(count).unsqueeze(1) for value in values)
    offsets = torch.arange(count + 1)
    return ops.bd_lru(x, r, i, z, decay.unsqueeze(0), offsets, start)[0].squeeze(1)


def test_silu_is_exact_to_the_last_bits_of_its_argument() -> None:
    z = torch.linspace(-80, 80, 100_001)
    exact = z.double() * z.double().sigmoid()
    error = ((unit(len(z), z=z) - exact) / exact).abs().nan_to_num()
    assert (error < 1e-7 * (4 + z.abs())).all()


@pytest.mark.parametrize("decay", [1e-7, 1e-3, 0.1, 1.0, 10.0, 80.0])
def test_the_input_is_exact_where_alpha_is_near_1(decay: float) -> None:
    """√(1 - α²) must not be computed from a rounded α."""
    r = torch.linspace(-30, 30, 1001)
    y = unit(len(r), r=r, i=200.0, start=0.0, decay=decay)
    rate = torch.tensor(decay).double() * r.double().sigmoid()
    exact = (-torch.expm1(-2 * rate)).sqrt() * torch.tensor(1.0).double().sigmoid()
    torch.testing.assert_close(y.double(), exact, rtol=4e-6, atol=0)


@pytest.mark.parametrize("name", ["x", "r", "i", "z", "start"])
def test_a_nan_reaches_the_output(name: str) -> None:
    assert unit(3, **{name: math.nan}).isnan().all()


@pytest.mark.parametrize("channels", [1, 129])
def test_the_state_before_every_32nd_event_is_kept(channels: int) -> None:
    lengths = [31, 32, 0, 33, 1, 64, 97]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    torch.manual_seed(0)
    x, r, i, z = torch.randn(4, sum(lengths), channels)
    decay, start = torch.rand(channels), torch.randn(len(lengths), channels)
    _, kept, _ = cpu.bd_lru(x, r, i, z, decay, offsets, start)
    assert kept.shape == cpu.kept_states(x, start).shape
    alpha = torch.exp(-decay * r.sigmoid())
    h, _ = reference.linear_scan(alpha, torch.sqrt(1 - alpha**2) * i.sigmoid() * x, offsets, start)
    for b, length in enumerate(lengths):
        for k, event in enumerate(range(0, length, 32)):
            before = h[offsets[b] + event - 1] if event else start[b]
            row = int(offsets[b]) // 32 + b + k
            torch.testing.assert_close(kept[row], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cut", [0, 1, 2, 63, 65])
def test_a_scan_in_two_pieces(cut: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    alpha, u, start = torch.rand(65, 5).to(dtype), torch.randn(65, 5).to(dtype), torch.randn(1, 5)
    whole, end = cpu.linear_scan(alpha, u, torch.tensor([0, 65]), start)
    head, state = cpu.linear_scan(alpha[:cut], u[:cut], torch.tensor([0, cut]), start)
    tail, last = cpu.linear_scan(alpha[cut:], u[cut:], torch.tensor([0, 65 - cut]), state)
    assert torch.cat([head, tail]).equal(whole)
    assert last.equal(end)


def test_rounding_to_bfloat16_does_not_accumulate() -> None:
    """In bfloat16, 1 + 1/512 is 1."""
    ones = torch.ones(512, 1, dtype=torch.bfloat16)
    h, last = cpu.linear_scan(ones, ones / 512, torch.tensor([0, 512]), torch.ones(1, 1))
    assert last.item() == 2.0
    assert h[-1].item() == 2.0


def test_a_scan_refuses_wrong_shapes_dtypes_and_offsets() -> None:
    alpha, u, start, offsets = torch.rand(5, 3), torch.rand(5, 3), torch.rand(2, 3), [0, 2, 5]
    for wrong in (
        (alpha[:4], u, offsets, start), (alpha.bfloat16(), u, offsets, start),
        (alpha, u, offsets, start[:1]), (alpha, u, offsets, start[:, :2]),
        (alpha, u, offsets, start.double()), (alpha, u, [0, 2, 6], start),
        (alpha, u, [0, 6, 5], start),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"a tensor must be|offsets must rise"):
            cpu.linear_scan(*wrong[:2], torch.tensor(wrong[2]), wrong[3])


def test_dropout_of_an_empty_tensor() -> None:
    assert cpu.dropout(torch.empty(0, 4), seed=1, keep=0.5).shape == (0, 4)
