"""The kernels of a GPU where they cut sequences into segments, and with approximate functions."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from ops.tools import CUDA, compare, inputs, interpreted, leaves, offsets_of
from recblr import ops
from recblr.ops import reference

if find_spec("triton"):
    import triton
    import triton.language as tl

    from recblr.ops import gpu, triton_functions

    exact_tanh = triton_functions.tanh

    @triton.jit
    def rounded_tanh(x: Any) -> Any:
        """11 bits of the fraction remain."""
        bits = exact_tanh(x).to(tl.int32, bitcast=True) & -4096
        return bits.to(tl.float32, bitcast=True)


DEVICES = [CUDA, pytest.param("triton", marks=interpreted)]
# Few and small cases: the interpreter takes a second for 20 events.
CASES = [
    ([19], 4, torch.bfloat16), ([0, 17, 0, 1], 3, torch.bfloat16), ([0, 8, 20], 4, torch.float32),
    ([9, 2], 3, torch.float32),
]  # fmt: skip


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most 8 events, of at most 16 in the convolution."""
    monkeypatch.setattr(gpu, "_SHORTEST", 8)
    for name in ("_RECURRENCES", "_CONVOLUTIONS"):
        monkeypatch.setattr(gpu, name, 1 << 20)


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize(("lengths", "channels", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.usefixtures("short_segments")
def test_bd_lru_cut_into_segments(
    device: str, lengths: list[int], channels: int, dtype: torch.dtype, busy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu, "_BUSY", 0 if busy else 1 << 20)
    truth = [t.requires_grad_() for t in inputs(lengths, channels, dtype)]
    ours, offsets = leaves(truth, dtype, device, 2), offsets_of(lengths)
    slow = reference.bd_lru(*truth[:5], offsets, truth[5])
    compare(slow, truth, ops.bd_lru(*ours[:5], offsets.to(device), ours[5]), ours)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.usefixtures("short_segments")
def test_two_runs_give_identical_bits(device: str) -> None:
    tensors = leaves(inputs([17, 3], 2), torch.bfloat16, device, 2)
    runs = []
    for _ in range(2):
        y, last = ops.bd_lru(*tensors[:5], offsets_of([17, 3]).to(device), tensors[5])
        runs.append([y, last, *torch.autograd.grad(y.sum() + last.sum(), tensors)])
    assert all(one.equal(other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize(("lengths", "channels", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.usefixtures("short_segments")
def test_scan_and_convolution_cut_into_segments(
    device: str, lengths: list[int], channels: int, dtype: torch.dtype
) -> None:
    x, alpha, r, *_, start = inputs(lengths, channels, dtype)
    offsets = offsets_of(lengths)
    truth = [t.requires_grad_() for t in (alpha.sigmoid().to(dtype).double(), x, start)]
    ours = leaves(truth, dtype, device, 1)
    slow = reference.linear_scan(truth[0], truth[1], offsets, truth[2])
    fast = ops.linear_scan(ours[0], ours[1], offsets.to(device), ours[2])
    compare(slow, truth, fast, ours)
    torch.manual_seed(0)
    weight, bias = torch.randn(channels, 4).double(), torch.randn(channels).double()
    before = torch.randn(len(lengths), 3, channels).to(dtype).double()
    truth = [t.detach().requires_grad_() for t in (r, before, weight, bias)]
    ours = leaves(truth, dtype, device, 2)
    slow = (reference.conv_silu(truth[0], truth[2], truth[3], offsets, truth[1]),)
    fast = (ops.conv_silu(ours[0], ours[2], ours[3], offsets.to(device), ours[1]),)
    compare(slow, truth, fast, ours)


@interpreted
@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_the_error_of_the_tanh_of_a_gpu_is_within_the_tolerance(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTX documents a relative error of 2^-11 for tanh.approx; here every tanh is too small by up to
    that.
    """
    for module in ("triton_functions", "triton_kernels"):
        monkeypatch.setattr(f"recblr.ops.{module}.tanh", rounded_tanh)
    lengths = [30, 7]
    truth = [t.requires_grad_() for t in inputs(lengths, 4, torch.bfloat16)]
    offsets = offsets_of(lengths)
    ours = leaves(truth, torch.bfloat16, device, 2)
    slow = reference.bd_lru(*truth[:5], offsets, truth[5])
    compare(slow, truth, ops.bd_lru(*ours[:5], offsets, ours[5]), ours)


def programs(lengths: list[int], channels: int) -> tuple[int, int]:
    """The programs that have rows, and the most rows of one."""
    segments = gpu._segments(sum(lengths), len(lengths), channels, gpu._RECURRENCES)
    pieces = [-(-length >> segments.shift) for length in lengths]
    assert sum(pieces) <= segments.numbers
    return segments.blocks * sum(pieces), min(max(lengths), 1 << segments.shift)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_segments_follow_from_the_work() -> None:
    ragged = [1000, 700] + [100] * 23 + [96]  # 4,096 events
    assert programs(ragged, 128) == (298, 32), "25 histories alone are 52 programs"
    assert programs([200] * 2048, 128) == (4096, 200), "enough sequences are not cut"
    assert programs([1000] * 410, 128) == (820, 1000)
    assert programs([10_000] * 41, 128) == (820, 1024)
    assert programs([100_000] * 4, 128) == (784, 1024)
    mixed, longest = programs([100_000] + [100] * 600, 128)
    assert (mixed, longest) == (2 * (391 + 600), 256), "one long sequence among many is cut"
    assert programs([1_000_000], 128) == (2 * 489, 2048)
