"""The Triton kernels on torch tensors: grids, buffers, and the split over time.

No function here reads a value from the GPU, so the host does not wait and a CUDA graph can capture the
calls. The number of events and sequences alone decide how long the segments are, so any mixture of
lengths fills the GPU: see :func:`_segments`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recblr.ops import triton_convolution as convolution
from recblr.ops import triton_kernels as kernels
from recblr.ops import triton_norm as norms

_CHANNELS = 64  # most channels of a program: two for each lane of a warp
_KEPT = 4  # events for each state that is kept for the gradient
_SHORTEST = 32  # rows below which a segment is not cut, as launches would take longer
# Programs, one warp each, that the events are cut into; an H100 or H200 has 132 multiprocessors. The
# summary reads the pieces of a recurrence a second time, so five warps for each multiprocessor are a
# compromise; pieces of a convolution cost almost nothing.
_RECURRENCES, _CONVOLUTIONS = 640, 3200
_NORMS = 1056  # programs that add up the gradients of a layer norm
_BUSY = 2640  # programs from which each needs few registers rather than many rows in flight


class _Segments(NamedTuple):
    """Sequences cut into pieces of at most 2^shift rows, see :func:`triton_functions.segment`."""

    sequences: int
    shift: int
    numbers: int  # of segments: the most pieces that sequences of any lengths can have
    blocks: int  # of channels

    @property
    def programs(self) -> int:
        return self.numbers * self.blocks


def _segments(
    events: int, sequences: int, channels: int, programs: int, shortest: int = 0
) -> _Segments:
    """Segments of about the same work, as few as occupy the GPU; a piece has over shortest / 4 rows."""
    blocks = -(-channels // _CHANNELS)
    shift = max(_SHORTEST, shortest, events * blocks // programs).bit_length() - 1
    return _Segments(sequences, shift, (events >> shift) + sequences, blocks)


def _recurrences(x: Tensor, start: Tensor) -> _Segments:
    return _segments(len(x), len(start), x.shape[1], _RECURRENCES)


def _convolutions(x: Tensor, before: Tensor) -> _Segments:
    """No piece is shorter than the inputs that the next one needs."""
    sequences, inputs, channels = before.shape
    return _segments(len(x), sequences, channels, _CONVOLUTIONS, 4 * inputs)


def kept_states(x: Tensor, start: Tensor) -> Tensor:
    """An empty tensor for the states that :func:`bd_lru` keeps for its gradient, every few events.

    They have the dtype of ``x``: each serves only the gradients of the events up to the next one.
    """
    return x.new_empty(len(x) // _KEPT + _recurrences(x, start).numbers, x.shape[1])


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """States (N, C) and last states (B, C)."""
    alpha, u, offsets, start = _contiguous(alpha, u, offsets, start)
    _check_shape(u.shape, alpha)
    _check_shape((len(offsets) - 1, u.shape[1]), start)
    segments = _recurrences(u, start)
    summaries = _summarize(
        kernels.linear_scan_summary, segments, u, alpha, u, offsets, rows=8, reverse=False
    )
    h, last = torch.empty_like(u), torch.empty_like(start)
    _launch(kernels.linear_scan, segments, u, alpha, u, offsets, start, *summaries, h, last, ROWS=8)
    return h, last


def linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of alpha, u (N, C) and start (B, C)."""
    alpha, offsets, start, h, dh, dlast = _contiguous(alpha, offsets, start, h, dh, dlast)
    segments = _recurrences(h, start)
    summaries = _summarize(
        kernels.linear_scan_summary, segments, h, alpha, dh, offsets, rows=8, reverse=True
    )
    dalpha, du, dstart = torch.empty_like(alpha), torch.empty_like(h), torch.empty_like(start)
    _launch(
        kernels.linear_scan_backward, segments, h,
        alpha, offsets, start, h, dh, dlast, *summaries, dalpha, du, dstart, ROWS=8,
    )  # fmt: skip
    return dalpha, du, dstart


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, C), the states kept for the gradient (:func:`kept_states`), last states (B, C)."""
    x, r, i, z, decay, offsets, start = _contiguous(x, r, i, z, decay, offsets, start)
    _check_shape(x.shape, r, i, z)
    _check_shape((x.shape[1],), decay)
    _check_shape((len(offsets) - 1, x.shape[1]), start)
    segments = _recurrences(x, start)
    summaries = _summarize(
        kernels.bd_lru_summary, segments, x, x, z, r, i, decay, offsets,
        rows=_summary_rows(x), reverse=False,
    )  # fmt: skip
    y, kept, last = torch.empty_like(x), kept_states(x, start), torch.empty_like(start)
    _launch(
        kernels.bd_lru, segments, x,
        x, r, i, z, decay, offsets, start, *summaries, y, kept, last,
        KEPT=_KEPT, **_rows_and_registers(segments, x),
    )  # fmt: skip
    return y, kept, last


def bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    kept: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, r, i, z (N, C), decay (C,) and start (B, C)."""
    x, r, i, z, decay, offsets, dy, dlast = _contiguous(x, r, i, z, decay, offsets, dy, dlast)
    segments = _recurrences(x, start)
    summaries = _summarize(
        kernels.bd_lru_summary, segments, dy, dy, z, r, i, decay, offsets,
        rows=_summary_rows(dy), reverse=True,
    )  # fmt: skip
    dx, dr, di, dz = (torch.empty_like(x) for _ in range(4))
    dlog_decay = decay.new_empty(segments.numbers, x.shape[1])
    dstart = torch.empty_like(dlast)
    _launch(
        kernels.bd_lru_backward, segments, x,
        x, r, i, z, decay, offsets, kept, dy, dlast, *summaries,
        dx, dr, di, dz, dlog_decay, dstart, KEPT=_KEPT,
    )  # fmt: skip
    return dx, dr, di, dz, dlog_decay.sum(0) / decay, dstart


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """Outputs (N, C)."""
    x, weight, bias, offsets, before = _contiguous(x, weight, bias, offsets, before)
    channels, width = weight.shape
    _check_shape((len(x), channels), x)
    _check_shape((channels,), bias)
    _check_shape((len(offsets) - 1, width - 1, channels), before)
    y = torch.empty_like(x)
    segments = _convolutions(x, before)
    _launch(
        convolution.conv_silu, segments, x, x, weight, bias, offsets, before, y, W=width, ROWS=8
    )
    return y


def conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (N, C), weight (C, W), bias (C,) and before (B, W-1, C)."""
    x, weight, bias, offsets, before, dy = _contiguous(x, weight, bias, offsets, before, dy)
    channels, width = weight.shape
    segments = _convolutions(x, before)
    dx, dbefore = torch.empty_like(x), torch.empty_like(before)
    dweight = torch.empty(segments.numbers, channels, width, device=x.device)
    dbias = torch.empty(segments.numbers, channels, device=x.device)
    _launch(
        convolution.conv_silu_backward, segments, x,
        x, weight, bias, offsets, before, dy, dx, dweight, dbias, dbefore, W=width, ROWS=4,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dbefore


def dropout_add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor | None,
    keep: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """norm(dropout(x) + residual) (N, D) in the dtype of ``weight``; the mean and the inverse of the
    standard deviation of each row. Without a seed nothing is dropped."""
    x = x.contiguous()
    residual = x if residual is None else residual.contiguous()
    _check_shape(x.shape, residual)
    _check_shape(x.shape[1:], weight, bias)
    y = torch.empty_like(x, dtype=weight.dtype)
    means, inverses = (weight.new_empty(len(x)) for _ in range(2))
    _launch_norm(
        norms.dropout_add_norm, x, residual is not x, seed, keep, None,
        x, residual, weight, bias, seed, y, means, inverses, len(x), eps,
    )  # fmt: skip
    return y, means, inverses


def dropout_add_norm_backward(
    x: Tensor, residual: Tensor | None, weight: Tensor, seed: Tensor | None, means: Tensor,
    inverses: Tensor, dy: Tensor, keep: float,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, residual, weight and bias."""
    x, dy = x.contiguous(), dy.contiguous()
    programs = max(1, min(_NORMS, -(-len(x) // _norm_rows(x))))
    dx = torch.empty_like(x)
    dresidual = dx if residual is None else torch.empty_like(residual.contiguous())
    dweight, dbias = (weight.new_empty(programs, len(weight)) for _ in range(2))
    _launch_norm(
        norms.dropout_add_norm_backward, x, residual is not None, seed, keep, programs,
        x, x if residual is None else residual.contiguous(), weight, seed, means, inverses, dy,
        dx, dresidual, dweight, dbias, len(x),
    )  # fmt: skip
    return dx, None if residual is None else dresidual, dweight.sum(0), dbias.sum(0)


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous tensors, aligned for loads of two channels at once."""
    rows = (t.contiguous() for t in tensors)
    return tuple(t if t.data_ptr() % 8 == 0 else t.clone() for t in rows)


def _check_shape(shape: tuple[int, ...], *tensors: Tensor) -> None:
    """The kernels check no bounds: given a wrong shape they would read past the end of a tensor."""
    for tensor in tensors:
        if tensor.shape != shape:
            raise ValueError(f"a tensor must be {tuple(shape)}, found {tuple(tensor.shape)}")


def _launch(kernel: Any, segments: _Segments, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a program for each segment and block of the channels of ``x``, on its device."""
    channels = x.shape[1]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[segments.numbers, segments.blocks](
            *arguments, segments.sequences, segments.shift, C=channels,
            CHANNELS=min(_CHANNELS, 1 << (channels - 1).bit_length()),
            VECTOR=1 if channels % 2 else 2, num_warps=1, **constants,
        )  # fmt: skip


def _norm_rows(x: Tensor) -> int:
    """Rows of a tile of about 2,048 values: 16 in each lane of four warps."""
    return max(1, 2048 >> (x.shape[1] - 1).bit_length())


def _launch_norm(
    kernel: Any, x: Tensor, residual: bool, seed: Tensor | None, keep: float,
    programs: int | None, *arguments: Any,
) -> None:  # fmt: skip
    """Without ``programs``, one for each tile."""
    rows = _norm_rows(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs or -(-len(x) // rows),)](
            *(x if argument is None else argument for argument in arguments),
            D=x.shape[1], THRESHOLD=min(int(keep * 2**32), 2**32 - 1), SCALE=1 / keep,
            DROPOUT=seed is not None, RESIDUAL=residual,
            ROWS=rows, WIDTH=1 << (x.shape[1] - 1).bit_length(), num_warps=4,
        )  # fmt: skip


def _rows_and_registers(segments: _Segments, x: Tensor) -> dict[str, int]:
    """How the forward kernel hides the time of a load: by other warps, or by more rows in flight."""
    if x.dtype != torch.bfloat16:
        return {"ROWS": 4}
    return {"ROWS": 4, "maxnreg": 64} if segments.programs > _BUSY else {"ROWS": 8}


def _summary_rows(x: Tensor) -> int:
    return 8 if x.dtype == torch.bfloat16 else 4


def _summarize(
    kernel: Any, segments: _Segments, x: Tensor, *arguments: Tensor, rows: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Each segment as one event: the product of α and the state. Empty if no sequence can be cut."""
    number = segments.numbers if len(x) > 1 << segments.shift else 0
    alphas = torch.empty(number, x.shape[1], device=x.device)
    summaries = alphas, torch.empty_like(alphas)
    if alphas.numel():
        _launch(kernel, segments, x, *arguments, *summaries, ROWS=rows, REVERSE=reverse)
    return summaries
