"""Every fast path against the float64 loop: values, all gradients, ragged lengths, carried state."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from recblr import ops
from recblr.ops import cpu, reference

LENGTHS = [[1], [2], [3], [63, 64, 65], [5, 0, 1, 17, 0], [200, 257, 3], [2275, 1], []]
CHANNELS = [1, 3, 64, 128, 257]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}

compiled = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels on this machine")


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(lengths: list[int], channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, r, i, z, decay, start; rounded to ``dtype`` so that both sides see the same numbers."""
    generator = torch.Generator().manual_seed(sum(lengths) * 1000 + channels)
    n, b = sum(lengths), len(lengths)
    shapes = [(n, channels)] * 4 + [(channels,), (b, channels)]
    x, r, i, z, decay, start = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    decay = 10 ** (decay.tanh() * 2 - 1)  # 0.001 ... 10: memories of a step and of thousands
    rounded = [t.to(dtype).double() for t in (x, r * 2, i, z)]
    return [*rounded, decay.float().double(), start.float().double()]


def difference(fast: Tensor, slow: Tensor) -> float:
    """Largest error against the size of what is compared; NaN is no agreement."""
    if slow.numel() == 0:
        assert fast.shape == slow.shape
        return 0.0
    error = (fast.double() - slow).abs().max().item() / max(1.0, slow.abs().max().item())
    return math.inf if math.isnan(error) else error


def gradient(t: Tensor) -> Tensor:
    return torch.zeros_like(t) if t.grad is None else t.grad


def loop(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Slow and obvious: one event after another."""
    h, last = torch.zeros_like(u), start.clone()
    for b, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for t in range(begin, end):
            last[b] = alpha[t] * last[b] + u[t]
            h[t] = last[b]
    return h, last


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_reference_scan_is_the_loop(lengths: list[int]) -> None:
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


@compiled
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_fused_recurrence(lengths: list[int], channels: int, dtype: torch.dtype) -> None:
    truth = [t.requires_grad_() for t in inputs(lengths, channels, dtype)]
    offsets = offsets_of(lengths)
    fast = [t.detach().to(dtype).requires_grad_() for t in truth[:4]]
    fast += [t.detach().float().requires_grad_() for t in truth[4:]]
    torch.manual_seed(0)
    y, last = reference.bd_lru(*truth[:5], offsets, truth[5])
    fast_y, fast_last = ops.bd_lru(*fast[:5], offsets, fast[5])
    assert difference(fast_y, y) < TOLERANCE[dtype]
    assert difference(fast_last, last) < TOLERANCE[dtype]

    dy = torch.randn_like(y).to(dtype)
    dlast = torch.randn_like(last).float()
    torch.autograd.backward([y, last], [dy.double(), dlast.double()])
    torch.autograd.backward([fast_y, fast_last], [dy, dlast])
    for name, slow_input, fast_input in zip(
        ["x", "r", "i", "z", "decay", "start"], truth, fast, strict=True
    ):
        assert difference(gradient(fast_input), gradient(slow_input)) < TOLERANCE[dtype], name


@compiled
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("channels", [1, 3, 128, 257])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_fused_convolution(
    lengths: list[int], channels: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(width)
    offsets = offsets_of(lengths)
    shapes = [(sum(lengths), channels), (channels, width), (channels,)]
    shapes.append((len(lengths), width - 1, channels))
    truth = [
        torch.randn(shape, generator=generator).to(dtype).double().requires_grad_()
        for shape in shapes
    ]
    x, weight, bias, before = (t.detach().float().requires_grad_() for t in truth)
    y = reference.conv_silu(*truth[:3], offsets, truth[3])
    fast_y = ops.conv_silu(x.to(dtype), weight, bias, offsets, before)
    assert fast_y.dtype == dtype
    assert difference(fast_y, y) < TOLERANCE[dtype]
    torch.manual_seed(0)
    dy = torch.randn_like(y).to(dtype)
    y.backward(dy.double())
    fast_y.backward(dy)
    for slow_input, fast_input in zip(truth, (x, weight, bias, before), strict=True):
        assert difference(gradient(fast_input), gradient(slow_input)) < TOLERANCE[dtype]


@compiled
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 40, 70])
def test_a_history_in_pieces(cut: int) -> None:
    """State and last inputs carried over a cut give what one pass gives."""
    x, r, i, z, decay, start = (t.float() for t in inputs([70], 5))
    weight, bias, before = torch.randn(5, 4), torch.randn(5), torch.randn(1, 3, 5)

    def run(piece: slice, start: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = x[piece]
        offsets = torch.tensor([0, len(rows)])
        convolved = ops.conv_silu(rows, weight, bias, offsets, before)
        y, last = ops.bd_lru(convolved, r[piece], i[piece], z[piece], decay, offsets, start)
        return y, last, ops.last_inputs(rows, offsets, before)

    whole = run(slice(0, 70), start, before)
    head, middle, kept = run(slice(0, cut), start, before)
    tail, last, kept = run(slice(cut, 70), middle, kept)
    for ours, truth in zip((torch.cat([head, tail]), last, kept), whole, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-6)


@compiled
@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("decay", [1e-7, 1e-3, 1.0, 50.0])
def test_gradients_stay_finite_where_alpha_is_0_or_1(logit: float, decay: float) -> None:
    x = torch.ones(4, 1, requires_grad=True)
    gates = [torch.full((4, 1), logit, requires_grad=True) for _ in range(3)]
    rate = torch.tensor([decay], requires_grad=True)
    y, _ = ops.bd_lru(x, *gates, rate, torch.tensor([0, 4]), torch.ones(1, 1))
    y.sum().backward()
    assert y.isfinite().all()
    for tensor in (x, *gates, rate):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@compiled
def test_the_operators_keep_the_rules_of_torch() -> None:
    x, r, i, z, decay, start = (t.float().requires_grad_() for t in inputs([3, 2], 4))
    offsets = offsets_of([3, 2])
    torch.library.opcheck(torch.ops.recblr.bd_lru, (x, r, i, z, decay, offsets, start))
    weight, bias, before = (torch.randn(s, requires_grad=True) for s in [(4, 4), (4,), (2, 3, 4)])
    torch.library.opcheck(torch.ops.recblr.conv_silu, (x, weight, bias, offsets, before))
    torch.library.opcheck(torch.ops.recblr.dropout, (x, 5, 0.8))


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
def test_what_does_not_fit_is_refused_not_read() -> None:
    """The kernels are C: a wrong shape would be read past its end."""
    tensors = [t.float() for t in inputs([3, 2], 4)]
    good, offsets = [*tensors[:5]], offsets_of([3, 2])
    for number, wrong in (
        (1, tensors[1][:-1]), (2, tensors[2].bfloat16()), (3, tensors[3][:, :2]), (4, tensors[4][:2]),
    ):  # fmt: skip
        bad = [wrong if place == number else tensor for place, tensor in enumerate(good)]
        with pytest.raises(ValueError, match="a tensor must be"):
            ops.bd_lru(*bad, offsets, tensors[5])
    for bounds in ([0, 3, 6], [1, 3, 5], [0, 6, 5]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to 5"):
            ops.bd_lru(*good, torch.tensor(bounds), tensors[5])
    with pytest.raises(ValueError, match="a tensor must be"):
        ops.conv_silu(tensors[0], torch.ones(3, 4), torch.ones(4), offsets, torch.zeros(2, 3, 4))
