"""Every fast implementation against the float64 loop: values, gradients, ragged lengths, states.

The same tests run on the compiled kernels on a CPU, the Triton kernels in Triton's interpreter (few and
small cases, as it takes about 0.1 ms per element), and the Triton kernels on a GPU.
"""

import math
import subprocess
import sys
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from ops.tools import (
    DEVICES,
    TOLERANCE,
    compare,
    compiled,
    difference,
    gradient,
    inputs,
    interpreted,
    leaves,
    offsets_of,
)  # fmt: skip
from recblr import ops
from recblr.models import MODELS
from recblr.models.model import LinearRecurrence, recurrence_by
from recblr.ops import cpu, reference

LENGTHS = [
    [1], [2], [3], [63, 64, 65], [5, 0, 1, 17, 0], [200, 257, 3], [500], [2275, 1], []
]  # fmt: skip
CHANNELS = [1, 3, 64, 128, 257]
SMALL = [([1], 65), ([9], 64), ([5, 0, 1, 17, 0], 3), ([63, 2], 1), ([], 3)]
CASES = [
    pytest.param(device, lengths, channels, marks=marks, id=f"{device}-{lengths}-{channels}")
    for device, marks in (("cpu", compiled), ("cuda", pytest.mark.gpu))
    for lengths in LENGTHS
    for channels in (CHANNELS if sum(lengths) < 2000 else [3, 128])  # the loop takes seconds there
] + [
    pytest.param("triton", lengths, channels, marks=interpreted, id=f"triton-{lengths}-{channels}")
    for lengths, channels in SMALL
]


def loop(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """One event after another."""
    h, last = torch.zeros_like(u), start.clone()
    for b, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for t in range(begin, end):
            last[b] = alpha[t] * last[b] + u[t]
            h[t] = last[b]
    return h, last


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_reference_scan_equals_the_loop(lengths: list[int]) -> None:
    x, r, _, _, _, start = inputs(lengths, 3)
    offsets = offsets_of(lengths)
    for ours, truth in zip(
        reference.linear_scan(r.sigmoid(), x, offsets, start),
        loop(r.sigmoid(), x, offsets, start),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-13)


def test_reference_passes_gradcheck() -> None:
    lengths = [3, 1, 2]
    x, r, i, z, decay, start = (t.requires_grad_() for t in inputs(lengths, 2))
    offsets = offsets_of(lengths)
    assert torch.autograd.gradcheck(
        lambda *a: reference.bd_lru(*a[:5], offsets, a[5]), (x, r, i, z, decay, start)
    )
    weight, bias, before = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 4), (2,), (3, 3, 2)]
    )
    assert torch.autograd.gradcheck(
        lambda x, w, b, e: reference.conv_silu(x, w, b, offsets, e), (x, weight, bias, before)
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("device", "lengths", "channels"), CASES, indirect=["device"])
def test_fused_recurrence(
    device: str, lengths: list[int], channels: int, dtype: torch.dtype
) -> None:
    truth = [t.requires_grad_() for t in inputs(lengths, channels, dtype)]
    offsets = offsets_of(lengths)
    ours = leaves(truth, dtype, device, 2)
    slow = reference.bd_lru(*truth[:5], offsets, truth[5])
    fast = ops.bd_lru(*ours[:5], offsets.to(device), ours[5])
    compare(slow, truth, fast, ours)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("device", "lengths", "channels"), CASES, indirect=["device"])
def test_fused_scan(device: str, lengths: list[int], channels: int, dtype: torch.dtype) -> None:
    u, alpha, *_, start = inputs(lengths, channels)
    truth = [alpha.sigmoid().to(dtype).double(), u.to(dtype).double(), start]
    truth[0][::5], truth[0][1::5] = 0, 1
    truth = [t.requires_grad_() for t in truth]
    offsets = offsets_of(lengths)
    ours = leaves(truth, dtype, device, 1)
    slow = reference.linear_scan(truth[0], truth[1], offsets, truth[2])
    fast = ops.linear_scan(ours[0], ours[1], offsets.to(device), ours[2])
    compare(slow, truth, fast, ours)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize(("device", "lengths", "channels"), CASES, indirect=["device"])
def test_fused_convolution(
    device: str, lengths: list[int], channels: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(width)
    offsets = offsets_of(lengths)
    shapes = [(sum(lengths), channels), (len(lengths), width - 1, channels)]
    shapes += [(channels, width), (channels,)]
    truth = [
        torch.randn(shape, generator=generator).to(dtype).double().requires_grad_()
        for shape in shapes
    ]
    ours = leaves(truth, dtype, device, 2)
    slow = reference.conv_silu(truth[0], truth[2], truth[3], offsets, truth[1])
    fast = ops.conv_silu(ours[0], ours[2], ours[3], offsets.to(device), ours[1])
    assert fast.dtype == dtype
    compare((slow,), truth, (fast,), ours)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[100_000], [60_001, 3, 0, 30_000], [257] * 600], ids=str)
def test_long_and_many_sequences_on_a_gpu(lengths: list[int]) -> None:
    truth = [t.cuda().requires_grad_() for t in inputs(lengths, 128)]
    offsets = offsets_of(lengths).cuda()
    ours = leaves(truth, torch.float32, "cuda", 2)

    def outputs_and_gradients(
        implementation: ops.Implementation, tensors: list[Tensor]
    ) -> list[Tensor]:  # the tree in float64 is the truth: the loop takes minutes
        y, last = ops.bd_lru(*tensors[:5], offsets, tensors[5], implementation)
        return [y, last, *torch.autograd.grad(y.sum() + last.sum(), tensors)]

    fast = outputs_and_gradients("auto", ours)
    for f, t in zip(fast, outputs_and_gradients("tree", truth), strict=True):
        assert difference(f.detach(), t.detach()) < TOLERANCE[torch.float32]
    for one, other in zip(fast, outputs_and_gradients("auto", ours), strict=True):
        assert torch.equal(one, other), "two runs must give identical bits"


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 17])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_history_in_two_pieces(device: str, cut: int) -> None:
    """With the state and last inputs of the first piece, the second gives the result of one pass."""
    x, r, i, z, decay, start = (t.float().to(device) for t in inputs([25], 5))
    weight, bias, before = (torch.randn(s, device=device) for s in [(5, 4), (5,), (1, 3, 5)])

    def run(piece: slice, start: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = x[piece]
        offsets = torch.tensor([0, len(rows)], device=device)
        convolved = ops.conv_silu(rows, weight, bias, offsets, before)
        y, last = ops.bd_lru(convolved, r[piece], i[piece], z[piece], decay, offsets, start)
        return y, last, ops.last_inputs(rows, offsets, before)

    whole = run(slice(0, 25), start, before)
    head, middle, kept = run(slice(0, cut), start, before)
    tail, last, kept = run(slice(cut, 25), middle, kept)
    tolerance = 1e-5 if device == "cuda" else 1e-6  # a GPU compiles a slice separately
    for ours, truth in zip((torch.cat([head, tail]), last, kept), whole, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("decay", [1e-7, 1e-3, 1.0, 50.0])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of NumPy, in the interpreter
def test_gradients_where_alpha_is_0_or_1(device: str, logit: float, decay: float) -> None:
    truth = [torch.ones(4, 1, dtype=torch.float64), *(torch.full((4, 1), logit).double(),) * 3]
    truth += [torch.tensor([decay]).double(), torch.ones(1, 1, dtype=torch.float64)]
    truth = [t.clone().requires_grad_() for t in truth]
    offsets = torch.tensor([0, 4])
    ours = leaves(truth, torch.float32, device, 2)
    slow = reference.bd_lru(*truth[:5], offsets, truth[5])
    fast = ops.bd_lru(*ours[:5], offsets.to(device), ours[5])
    for t, f in zip(slow, fast, strict=True):
        assert difference(f.detach().cpu(), t.detach()) < TOLERANCE[torch.float32]
    torch.autograd.backward(fast, [torch.ones_like(t) for t in fast])
    torch.autograd.backward(slow, [torch.ones_like(t) for t in slow])
    for t, f in zip(truth, ours, strict=True):
        assert gradient(f).isfinite().all()
        if gradient(t).isfinite().all():  # the reference's is not where 1 - α² is 0
            assert difference(gradient(f).cpu(), gradient(t)) < TOLERANCE[torch.float32]


@compiled
def test_the_operators_pass_opcheck() -> None:
    x, r, i, z, decay, start = (t.float().requires_grad_() for t in inputs([3, 2], 4))
    offsets = offsets_of([3, 2])
    torch.library.opcheck(torch.ops.recblr.bd_lru, (x, r, i, z, decay, offsets, start))
    alpha = r.sigmoid().detach().requires_grad_()
    torch.library.opcheck(torch.ops.recblr.linear_scan, (alpha, x, offsets, start))
    weight, bias, before = (torch.randn(s, requires_grad=True) for s in [(4, 4), (4,), (2, 3, 4)])
    torch.library.opcheck(torch.ops.recblr.conv_silu, (x, weight, bias, offsets, before))
    torch.library.opcheck(torch.ops.recblr.dropout, (x, torch.tensor(5), 0.8, 7))


@compiled
def test_an_operator_does_not_import_torchs_compiler() -> None:
    script = """
import sys, torch
from recblr import ops
x = torch.ones(3, 4, requires_grad=True)
weight, bias, before = torch.ones(4, 4), torch.ones(4), torch.zeros(1, 3, 4)
ops.conv_silu(x, weight, bias, torch.tensor([0, 3]), before).sum().backward()
assert x.grad is not None and "torch._dynamo" not in sys.modules
"""  # the import takes longer than most commands
    subprocess.run([sys.executable, "-c", script], check=True)


def test_implementations_agree() -> None:
    lengths = [5, 0, 9, 1]
    offsets = offsets_of(lengths)
    results = {}
    for name in get_args(ops.Implementation):
        tensors = [t.float().requires_grad_() for t in inputs(lengths, 3)]
        y, last = ops.bd_lru(*tensors[:5], offsets, tensors[5], name)
        torch.autograd.backward([y, last], [torch.ones_like(y), torch.ones_like(last)])
        nodes = {type(y.grad_fn).__name__, type(last.grad_fn).__name__}
        results[name] = [y, last, *(gradient(t) for t in tensors)], nodes
    for name in ("serial", "tree"):
        for ours, truth in zip(results[name][0], results["auto"][0], strict=True):
            assert difference(ours.detach(), truth.detach().double()) < TOLERANCE[torch.float32]
    if cpu.available():
        assert results["auto"][1] != results["serial"][1], "auto must use the fused operator"


@pytest.mark.parametrize("name", ["recblr", "lrurec"])
def test_recurrence_by_ends_with_its_block(name: str) -> None:
    network, config = MODELS[name]
    model = network(10, config())
    layers = [layer for layer in model.modules() if isinstance(layer, LinearRecurrence)]
    with recurrence_by(model, "tree"):
        assert [layer.implementation for layer in layers] == ["tree", "tree"]
    assert [layer.implementation for layer in layers] == ["auto", "auto"]


@compiled
def test_threads_do_not_change_the_result() -> None:
    tensors = [t.float().requires_grad_() for t in inputs([300, 7], 64)]
    offsets, before = offsets_of([300, 7]), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y, last = ops.bd_lru(*tensors[:5], offsets, tensors[5])
            results.append([y, *torch.autograd.grad(y.sum() + last.sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@compiled
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout(p: float) -> None:
    torch.manual_seed(1)
    x = torch.full((1000, 301), 2.0, requires_grad=True)
    y = ops.dropout(x, p, training=True)
    y.sum().backward()
    assert x.grad is not None
    dropped = y == 0
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 2 / (1 - p)))
    assert torch.equal(x.grad == 0, dropped), "backward must draw the same mask"
    # Binomial: five standard deviations over all, over rows and over columns.
    for axis in (None, 0, 1):
        share = dropped.double().mean() if axis is None else dropped.double().mean(axis)
        count = dropped.numel() / share.numel()
        assert ((share - p).abs() < 5 * math.sqrt(p * (1 - p) / count)).all()
    assert not torch.equal(dropped, ops.dropout(x, p, training=True) == 0)
    assert ops.dropout(x, p, training=False) is x


@compiled
def test_wrong_shapes_dtypes_and_offsets_are_refused() -> None:
    """The kernels are C: they would read past the end of a wrong shape."""
    tensors = [t.float() for t in inputs([3, 2], 4)]
    good, offsets = [*tensors[:5]], offsets_of([3, 2])
    for number, wrong in (
        (1, tensors[1][:-1]), (2, tensors[2].bfloat16()), (3, tensors[3][:, :2]), (4, tensors[4][:2]),
    ):  # fmt: skip
        bad = [wrong if index == number else tensor for index, tensor in enumerate(good)]
        with pytest.raises(ValueError, match="a tensor must be"):
            ops.bd_lru(*bad, offsets, tensors[5])
    for bounds in ([0, 3, 6], [1, 3, 5], [0, 6, 5]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to 5"):
            ops.bd_lru(*good, torch.tensor(bounds), tensors[5])
    with pytest.raises(ValueError, match="a tensor must be"):
        ops.conv_silu(tensors[0], torch.ones(3, 4), torch.ones(4), offsets, torch.zeros(2, 3, 4))


def test_dropout_of_parts_is_dropout_of_the_whole() -> None:
    """Processes that divide the rows zero the same elements as one process."""
    x = torch.ones(7, 3, requires_grad=True)
    torch.manual_seed(0)
    whole = ops.dropout(x, 0.5, training=True)
    torch.manual_seed(0)
    with ops.rows_before(4):
        part = ops.dropout(x[4:], 0.5, training=True)
    assert torch.equal(part, whole[4:])
    (gradient,) = torch.autograd.grad(part.sum(), x)
    assert torch.equal(gradient[4:] == 0, part == 0)
