"""The kernels of triton_kernels.py on torch tensors: grids, buffers, and the split over time.

No function here reads a value from the GPU, so the host does not wait and a CUDA graph can capture the
calls.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recblr.ops import triton_kernels as kernels

_ROWS = 8  # events of a sequence that a program loads at once
_CHANNELS = 64  # most channels of a program: two for each lane of a warp
_CONV_ROWS = 32  # rows of a tile of the convolution
_FEW_SEQUENCES = 256  # fewer than this do not occupy a GPU, so long ones are split over time
_SEGMENT = 256  # events of a segment of a long sequence


def kept_states(events: int, sequences: int) -> int:
    """The number of states that :func:`bd_lru` keeps for its gradient: one every few events."""
    if _few_and_long(events, sequences):
        sequences = _segment_count(events, sequences)
    return events // _ROWS + sequences


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """States (N, C) and last states (B, C)."""
    alpha, u, offsets, start = _contiguous(alpha, u, offsets, start)
    _check_shape(u.shape, alpha)
    _check_shape((len(offsets) - 1, u.shape[1]), start)
    if not _few_and_long(len(u), len(start)):
        return _scan(alpha, u, offsets, start)
    segments = _segment(offsets, len(u))
    sums = _scan(alpha, u, segments.offsets, start.new_zeros(segments.shape(start)))[1]
    starts, last = segments.starts(_segment_alphas(alpha, segments, start), sums, start)
    return _scan(alpha, u, segments.offsets, starts)[0], last


def linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of alpha, u (N, C) and start (B, C)."""
    alpha, offsets, start, h, dh, dlast = _contiguous(alpha, offsets, start, h, dh, dlast)
    if not _few_and_long(len(h), len(start)):
        return _scan_backward(alpha, offsets, start, h, dh, dlast)
    segments = _segment(offsets, len(h))
    bounds = segments.offsets
    starts = torch.where(segments.first, start[segments.owner], h[bounds[:-1] - 1].to(start))
    zeros = dlast.new_zeros(segments.shape(dlast))
    sums = _scan_backward(alpha, bounds, starts, h, dh, zeros)[2]
    alphas = _segment_alphas(alpha, segments, dlast)
    dends, dstart = segments.end_gradients(alphas, sums, dlast)
    dalpha, du, _ = _scan_backward(alpha, bounds, starts, h, dh, dends)
    return dalpha, du, dstart


def _scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    h, last = torch.empty_like(u), torch.empty_like(start)
    _launch_per_sequence(kernels.linear_scan, u, offsets, alpha, u, offsets, start, h, last)
    return h, last


def _scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dalpha, du, dstart = torch.empty_like(alpha), torch.empty_like(h), torch.empty_like(start)
    _launch_per_sequence(
        kernels.linear_scan_backward, h, offsets,
        alpha, offsets, start, h, dh, dlast, dalpha, du, dstart,
    )  # fmt: skip
    return dalpha, du, dstart


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, C), the states kept for the gradient (:func:`kept_states`, C), last states (B, C)."""
    x, r, i, z, decay, offsets, start = _contiguous(x, r, i, z, decay, offsets, start)
    (events, channels), sequences = x.shape, len(offsets) - 1
    _check_shape(x.shape, r, i, z)
    _check_shape((channels,), decay)
    _check_shape((sequences, channels), start)
    last = None
    if _few_and_long(events, sequences):
        segments = _segment(offsets, events)
        offsets = segments.offsets
        alphas, sums = _summarize(x, x, r, i, decay, offsets, reverse=False)
        start, last = segments.starts(alphas, sums, start)
    y, ends = torch.empty_like(x), torch.empty_like(start)
    kept = start.new_empty(kept_states(events, sequences), channels)
    _launch_per_sequence(
        kernels.bd_lru, x, offsets, x, r, i, z, decay, offsets, start, y, kept, ends
    )
    return y, kept, ends if last is None else last


def bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    kept: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, r, i, z (N, C), decay (C,) and start (B, C)."""
    x, r, i, z, decay, offsets, dy, dlast = _contiguous(x, r, i, z, decay, offsets, dy, dlast)
    dstart = None
    if _few_and_long(len(x), len(start)):
        segments = _segment(offsets, len(x))
        offsets = segments.offsets
        alphas, sums = _summarize(dy, z, r, i, decay, offsets, reverse=True)
        dlast, dstart = segments.end_gradients(alphas, sums, dlast)
    dx, dr, di, dz = (torch.empty_like(x) for _ in range(4))
    dlog_decay, dstarts = torch.empty_like(dlast), torch.empty_like(dlast)
    _launch_per_sequence(
        kernels.bd_lru_backward, x, offsets,
        x, r, i, z, decay, offsets, kept, dy, dlast, dx, dr, di, dz, dlog_decay, dstarts,
    )  # fmt: skip
    return dx, dr, di, dz, dlog_decay.sum(0) / decay, dstarts if dstart is None else dstart


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """Outputs (N, C)."""
    x, weight, bias, offsets, before = _contiguous(x, weight, bias, offsets, before)
    channels, width = weight.shape
    _check_shape((len(x), channels), x)
    _check_shape((channels,), bias)
    _check_shape((len(offsets) - 1, width - 1, channels), before)
    y = torch.empty_like(x)
    owners = _owners(offsets, len(x))
    _launch_per_tile(kernels.conv_silu, x, width, x, weight, bias, offsets, owners, before, y)
    return y


def conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (N, C), weight (C, W), bias (C,) and before (B, W-1, C)."""
    x, weight, bias, offsets, before, dy = _contiguous(x, weight, bias, offsets, before, dy)
    (events, channels), width = x.shape, weight.shape[1]
    owners = _owners(offsets, events)
    tiles = -(-events // _CONV_ROWS)
    dsum = torch.empty_like(x, dtype=torch.float32)
    dweight = dsum.new_empty(tiles, channels, width)
    dbias = dsum.new_empty(tiles, channels)
    _launch_per_tile(
        kernels.conv_silu_backward_sum, x, width,
        x, weight, bias, offsets, owners, before, dy, dsum, dweight, dbias,
    )  # fmt: skip
    dx, dbefore = torch.empty_like(x), torch.empty_like(before)
    _launch_per_tile(kernels.conv_silu_backward_inputs, x, width, weight, offsets, owners, dsum, dx)
    _launch(
        kernels.conv_silu_backward_before, len(before), x,
        weight, offsets, dsum, dbefore, channels, W=width, num_warps=1,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dbefore


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)


def _check_shape(shape: tuple[int, ...], *tensors: Tensor) -> None:
    """The kernels check no bounds: given a wrong shape they would read past the end of a tensor."""
    for tensor in tensors:
        if tensor.shape != shape:
            raise ValueError(f"a tensor must be {tuple(shape)}, found {tuple(tensor.shape)}")


def _launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch ``programs`` programs for each block of the channels of ``x``, on its device."""
    channels = x.shape[1]
    block = min(_CHANNELS, 1 << (channels - 1).bit_length())
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs, -(-channels // block))](*arguments, **constants, CHANNELS=block)


def _launch_per_sequence(
    kernel: Any, x: Tensor, offsets: Tensor, *arguments: Any, **constants: Any
) -> None:
    sequences, channels = len(offsets) - 1, x.shape[1]
    _launch(kernel, sequences, x, *arguments, channels, **constants, ROWS=_ROWS, num_warps=1)


def _launch_per_tile(kernel: Any, x: Tensor, width: int, *arguments: Any) -> None:
    """A tile is a number of consecutive rows, of one sequence or of several."""
    events, channels = x.shape
    tiles = -(-events // _CONV_ROWS)
    _launch(kernel, tiles, x, *arguments, events, channels, W=width, ROWS=_CONV_ROWS, num_warps=4)


def _owners(offsets: Tensor, events: int) -> Tensor:
    """The sequence of each row, (N,) int32."""
    sequences = torch.arange(len(offsets) - 1, dtype=torch.int32, device=offsets.device)
    return torch.repeat_interleave(sequences, offsets.diff(), output_size=events)


def _few_and_long(events: int, sequences: int) -> bool:
    """Whether to split sequences over time. The shapes decide, as the lengths are on the GPU."""
    return 0 < sequences < _FEW_SEQUENCES and events >= 4 * _SEGMENT * sequences


def _segment_count(events: int, sequences: int) -> int:
    """The most segments that sequences of any lengths can have."""
    return events // _SEGMENT + sequences


class _Segments(NamedTuple):
    """Sequences cut into S segments, so that all segments can be processed at the same time.

    First each segment is reduced to one event (:func:`_summarize`), then a scan over these events gives
    the state before each segment, then each segment is processed as a sequence.
    """

    offsets: Tensor  # (S + 1,) the rows of each segment; segments at the end may be empty
    bounds: Tensor  # (B + 1,) the segments of each sequence
    owner: Tensor  # (S,) the sequence of each segment
    first: Tensor  # (S, 1) whether it is the first segment of its sequence
    last: Tensor  # (S, 1) whether it is the last one

    def shape(self, state: Tensor) -> tuple[int, int]:
        """(S, C), the shape of one state for each segment."""
        return len(self.owner), state.shape[1]

    def starts(self, alphas: Tensor, sums: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The state before each segment (S, C) and after each sequence (B, C)."""
        after, last = linear_scan(alphas, sums, self.bounds, start)
        return torch.where(self.first, start[self.owner], after.roll(1, 0)), last

    def end_gradients(self, alphas: Tensor, sums: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the state after each segment (S, C) and before each sequence (B, C)."""
        bounds = len(alphas) - self.bounds.flip(0)
        before, dstart = linear_scan(alphas.flip(0), sums.flip(0), bounds, dlast.flip(0))
        after = torch.where(self.last, dlast[self.owner], before.flip(0).roll(-1, 0))
        return after, dstart.flip(0)


def _segment(offsets: Tensor, events: int) -> _Segments:
    sequences = len(offsets) - 1
    counts = (offsets.diff() + _SEGMENT - 1) // _SEGMENT
    ends = counts.cumsum(0)
    number = torch.arange(_segment_count(events, sequences), device=offsets.device)
    owner = torch.searchsorted(ends, number, right=True).clamp(max=sequences - 1)
    position = number - (ends - counts)[owner]  # of the segment in its sequence
    begins = torch.minimum(offsets[owner] + position * _SEGMENT, offsets[owner + 1])
    return _Segments(
        torch.cat([begins, offsets[-1:]]),
        torch.cat([torch.zeros_like(ends[:1]), ends]),
        owner,
        (position == 0).unsqueeze(1),
        (position == counts[owner] - 1).unsqueeze(1),
    )


def _segment_alphas(alpha: Tensor, segments: _Segments, like: Tensor) -> Tensor:
    """The product of α over each segment (S, C): the last state of a scan of zeros from state 1."""
    ones = like.new_ones(segments.shape(like))
    return _scan(alpha, torch.zeros_like(alpha), segments.offsets, ones)[1]


def _summarize(
    first: Tensor, second: Tensor, r: Tensor, i: Tensor, decay: Tensor, offsets: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each sequence as one event: its product of α and its last state from state zero, (B, C) each."""
    alphas = torch.empty(len(offsets) - 1, r.shape[1], device=r.device)
    sums = torch.empty_like(alphas)
    _launch_per_sequence(
        kernels.bd_lru_summary, r, offsets, first, second, r, i, decay, offsets, alphas, sums,
        REVERSE=reverse,
    )  # fmt: skip
    return alphas, sums
