"""The kernels of triton_kernels.py on torch tensors: grids, buffers, and the split over time.

Nothing here looks at a value on the GPU, so that a CUDA graph can hold it and the host runs ahead.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recblr.ops import triton_kernels as kernels

_ROWS = 8  # events of a sequence whose loads are under way together
_CHANNELS = 64  # at most, of a program: two to a lane
_CONV_ROWS = 32  # rows of a tile of the convolution
_FEW = 256  # sequences; with fewer than this and long ones, the GPU would stand idle
_SEGMENT = 256  # events of a segment of a long sequence


def kept_states(events: int, sequences: int) -> int:
    """How many states :func:`bd_lru` keeps for its gradient: one every few events."""
    if _few_and_long(events, sequences):
        sequences = _segment_count(events, sequences)
    return events // _ROWS + sequences


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """States (N, C) and last states (B, C)."""
    alpha, u, offsets, start = _contiguous(alpha, u, offsets, start)
    _expect(u.shape, alpha)
    _expect((len(offsets) - 1, u.shape[1]), start)
    last = None
    if _few_and_long(len(u), len(start)):
        cut = _cut(offsets, len(u))
        sums = _scan(alpha, u, cut.offsets, start.new_zeros(cut.shape(start)))[1]
        start, last = cut.carry(_product(alpha, cut, start), sums, start)
        offsets = cut.offsets
    h, ends = _scan(alpha, u, offsets, start)
    return h, ends if last is None else last


def linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of alpha, u (N, C) and start (B, C)."""
    alpha, offsets, start, h, dh, dlast = _contiguous(alpha, offsets, start, h, dh, dlast)
    dstart = None
    if _few_and_long(len(h), len(start)):
        cut = _cut(offsets, len(h))
        start = torch.where(cut.first, start[cut.owner], h[cut.offsets[:-1] - 1].to(start))
        nothing = dlast.new_zeros(cut.shape(dlast))
        sums = _scan_backward(alpha, cut.offsets, start, h, dh, nothing)[2]
        dlast, dstart = cut.carry_back(_product(alpha, cut, dlast), sums, dlast)
        offsets = cut.offsets
    dalpha, du, begins = _scan_backward(alpha, offsets, start, h, dh, dlast)
    return dalpha, du, begins if dstart is None else dstart


def _scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    h, last = torch.empty_like(u), torch.empty_like(start)
    _march(kernels.linear_scan, u, offsets, alpha, u, offsets, start, h, last)
    return h, last


def _scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dalpha, du, dstart = torch.empty_like(alpha), torch.empty_like(h), torch.empty_like(start)
    _march(
        kernels.linear_scan_backward, h, offsets,
        alpha, offsets, start, h, dh, dlast, dalpha, du, dstart,
    )  # fmt: skip
    return dalpha, du, dstart


def _product(alpha: Tensor, cut: "_Cut", like: Tensor) -> Tensor:
    """The product of α over each segment (S, C): what it makes of the state 1."""
    ones = like.new_ones(cut.shape(like))
    return _scan(alpha, torch.zeros_like(alpha), cut.offsets, ones)[1]


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, C), the states kept for the gradient (:func:`kept_states`, C), last states (B, C)."""
    x, r, i, z, decay, offsets, start = _contiguous(x, r, i, z, decay, offsets, start)
    (events, channels), sequences = x.shape, len(offsets) - 1
    _expect(x.shape, r, i, z)
    _expect((channels,), decay)
    _expect((sequences, channels), start)
    last = None
    if _few_and_long(events, sequences):
        cut = _cut(offsets, events)
        start, last = cut.carry(*_summary(x, x, r, i, decay, cut.offsets, reverse=False), start)
        offsets = cut.offsets
    y, ends = torch.empty_like(x), torch.empty_like(start)
    states = start.new_empty(kept_states(events, sequences), channels)
    _march(kernels.bd_lru, x, offsets, x, r, i, z, decay, offsets, start, y, states, ends)
    return y, states, ends if last is None else last


def bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    states: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, r, i, z (N, C), decay (C,) and start (B, C)."""
    x, r, i, z, decay, offsets, dy, dlast = _contiguous(x, r, i, z, decay, offsets, dy, dlast)
    dstart = None
    if _few_and_long(len(x), len(start)):
        cut = _cut(offsets, len(x))
        dlast, dstart = cut.carry_back(
            *_summary(dy, z, r, i, decay, cut.offsets, reverse=True), dlast
        )
        offsets = cut.offsets
    dx, dr, di, dz = (torch.empty_like(x) for _ in range(4))
    slopes, begins = torch.empty_like(dlast), torch.empty_like(dlast)
    _march(
        kernels.bd_lru_backward, x, offsets,
        x, r, i, z, decay, offsets, states, dy, dlast, dx, dr, di, dz, slopes, begins,
    )  # fmt: skip
    return dx, dr, di, dz, slopes.sum(0) / decay, begins if dstart is None else dstart


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """Outputs (N, C)."""
    x, weight, bias, offsets, before = _contiguous(x, weight, bias, offsets, before)
    channels, width = weight.shape
    _expect((len(x), channels), x)
    _expect((channels,), bias)
    _expect((len(offsets) - 1, width - 1, channels), before)
    y = torch.empty_like(x)
    owners = _owners(offsets, len(x))
    _sweep(kernels.conv_silu, x, width, x, weight, bias, offsets, owners, before, y)
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
    _sweep(
        kernels.conv_silu_backward_sum, x, width,
        x, weight, bias, offsets, owners, before, dy, dsum, dweight, dbias,
    )  # fmt: skip
    dx, dbefore = torch.empty_like(x), torch.empty_like(before)
    _sweep(kernels.conv_silu_backward_inputs, x, width, weight, offsets, owners, dsum, dx)
    _launch(
        kernels.conv_silu_backward_before, len(before), x,
        weight, offsets, dsum, dbefore, channels, W=width, num_warps=1,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dbefore


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)


def _expect(shape: tuple[int, ...], *tensors: Tensor) -> None:
    """The kernels trust what they are given and would read past the end of a wrong shape."""
    for tensor in tensors:
        if tensor.shape != shape:
            raise ValueError(f"a tensor must be {tuple(shape)}, found {tuple(tensor.shape)}")


def _launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """So many programs for each block of the channels of ``x``, on its device."""
    channels = x.shape[1]
    block = min(_CHANNELS, 1 << (channels - 1).bit_length())
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs, -(-channels // block))](*arguments, **constants, CHANNELS=block)


def _march(kernel: Any, x: Tensor, offsets: Tensor, *arguments: Any, **constants: Any) -> None:
    """A program for each sequence."""
    sequences, channels = len(offsets) - 1, x.shape[1]
    _launch(kernel, sequences, x, *arguments, channels, **constants, ROWS=_ROWS, num_warps=1)


def _sweep(kernel: Any, x: Tensor, width: int, *arguments: Any) -> None:
    """A program for each tile of rows, whose ever they are."""
    events, channels = x.shape
    tiles = -(-events // _CONV_ROWS)
    _launch(kernel, tiles, x, *arguments, events, channels, W=width, ROWS=_CONV_ROWS, num_warps=4)


def _owners(offsets: Tensor, events: int) -> Tensor:
    """Whose each row is, (N,) int32."""
    sequences = torch.arange(len(offsets) - 1, dtype=torch.int32, device=offsets.device)
    return torch.repeat_interleave(sequences, offsets.diff(), output_size=events)


def _few_and_long(events: int, sequences: int) -> bool:
    """Whether to split time. Decided by shapes alone: lengths are on the GPU."""
    return 0 < sequences < _FEW and events >= 4 * _SEGMENT * sequences


def _segment_count(events: int, sequences: int) -> int:
    """At most so many segments, whatever the lengths."""
    return events // _SEGMENT + sequences


class _Cut(NamedTuple):
    """Sequences cut into S segments, so that all of them can be processed at once.

    First each segment becomes one event (:func:`_summary`), then a scan over these gives the state
    before each segment, then the segments are sequences of their own.
    """

    offsets: Tensor  # (S + 1,) where the segments lie; the ones at the end may hold no event
    bounds: Tensor  # (B + 1,) the segments of each sequence
    owner: Tensor  # (S,) whose each segment is
    first: Tensor  # (S, 1) whether it is the first of its sequence, or the last
    last: Tensor

    def shape(self, state: Tensor) -> tuple[int, int]:
        """Of the states of all segments, (S, C)."""
        return len(self.owner), state.shape[1]

    def carry(self, alphas: Tensor, sums: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The state before each segment (S, C) and after each sequence (B, C)."""
        after, last = linear_scan(alphas, sums, self.bounds, start)
        return torch.where(self.first, start[self.owner], after.roll(1, 0)), last

    def carry_back(self, alphas: Tensor, sums: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the state after each segment (S, C) and before each sequence (B, C)."""
        bounds = len(alphas) - self.bounds.flip(0)
        before, dstart = linear_scan(alphas.flip(0), sums.flip(0), bounds, dlast.flip(0))
        after = torch.where(self.last, dlast[self.owner], before.flip(0).roll(-1, 0))
        return after, dstart.flip(0)


def _cut(offsets: Tensor, events: int) -> _Cut:
    sequences = len(offsets) - 1
    pieces = (offsets.diff() + _SEGMENT - 1) // _SEGMENT
    ends = pieces.cumsum(0)
    number = torch.arange(_segment_count(events, sequences), device=offsets.device)
    owner = torch.searchsorted(ends, number, right=True).clamp(max=sequences - 1)
    nth = number - (ends - pieces)[owner]
    begins = torch.minimum(offsets[owner] + nth * _SEGMENT, offsets[owner + 1])
    return _Cut(
        torch.cat([begins, offsets[-1:]]),
        torch.cat([torch.zeros_like(ends[:1]), ends]),
        owner,
        (nth == 0).unsqueeze(1),
        (nth == pieces[owner] - 1).unsqueeze(1),
    )


def _summary(
    first: Tensor, second: Tensor, r: Tensor, i: Tensor, decay: Tensor, offsets: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each sequence as one event, α (B, C) and the state it leaves from zero (B, C)."""
    alphas = torch.empty(len(offsets) - 1, r.shape[1], device=r.device)
    sums = torch.empty_like(alphas)
    _march(
        kernels.bd_lru_summary, r, offsets, first, second, r, i, decay, offsets, alphas, sums,
        REVERSE=reverse,
    )  # fmt: skip
    return alphas, sums
