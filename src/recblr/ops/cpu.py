"""The fused kernels of kernels.c on torch tensors, on as many threads as torch uses."""

import ctypes
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recblr.ops.library import LIBRARY

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_BLOCK = 16  # channels: 64 bytes of float32, so two threads never write to the same cache line
_ROWS = 32  # events between two states kept for the gradient; ROWS in kernels.c
_USERS = 64  # of a thread, at least: waking a thread for fewer takes longer than their steps


def available() -> bool:
    """Whether the kernels were compiled when the package was built."""
    return LIBRARY is not None


@cache
def warn_if_missing() -> None:
    """Warn once per process if the kernels are not compiled."""
    if not available():
        warnings.warn(
            "the CPU kernels are not compiled, so training on a CPU takes about 3 times as long; "
            "install a C compiler, then reinstall recblr",
            stacklevel=2,
        )


def supports(x: Tensor) -> bool:
    """Whether the kernels support ``x``: on a CPU, float32 or bfloat16."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and available()


@cache
def native_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 matrices."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in torch 2.11
    capabilities: Mapping[str, object] = get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="recblr")


def _call(name: str, dtype: torch.dtype, size: int, block: int, *arguments: object) -> None:
    """Run the C function ``name`` over 0 .. size-1, a range of whole blocks on each thread."""
    function = getattr(LIBRARY, f"{name}_{_DTYPES[dtype]}")
    function.restype = None
    values = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_int64(value)
        if isinstance(value, int)
        else value
        for value in arguments
    ]

    def run(first: int, end: int) -> None:
        function(*values, ctypes.c_int64(first), ctypes.c_int64(end))

    _parallel(size, block, run)


def _parallel(size: int, block: int, run: Callable[[int, int], Any]) -> list[Any]:
    """Call ``run(first, end)`` on each thread, for ranges of whole blocks that cover 0 .. size-1."""
    threads = min(torch.get_num_threads(), max(1, size // block))
    if threads == 1:
        return [run(0, size)]
    step = -(-size // (threads * block)) * block
    firsts = range(0, size, step)
    return list(_pool(threads).map(run, firsts, [*firsts[1:], size]))


def _check(
    offsets: Tensor, events: int, *expected: tuple[Tensor, tuple[int, ...], torch.dtype]
) -> None:
    """The kernels check no bounds: given a wrong shape they would read past the end of a tensor."""
    for tensor, shape, dtype in (*expected, (offsets, (len(offsets),), torch.int64)):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            found = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"a tensor must be {shape} {dtype}, found {found}")
    bounds = offsets.numpy()
    if bounds[0] != 0 or bounds[-1] != events or (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"offsets must rise from 0 to {events}, found {bounds}")


def kept_states(x: Tensor, start: Tensor) -> Tensor:
    """An empty tensor for the states that :func:`bd_lru` keeps for its gradient, every few events."""
    return start.new_empty(len(x) // _ROWS + len(start), x.shape[1])


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """States (N, C) in the dtype of u, and last states (B, C) in float32."""
    alpha, u, offsets, start = (t.contiguous() for t in (alpha, u, offsets, start))
    rows, states = tuple(u.shape), (len(offsets) - 1, u.shape[1])
    _check(offsets, len(u), (alpha, rows, u.dtype), (start, states, torch.float32))
    h, last = torch.empty_like(u), torch.empty_like(start)
    _call(
        "linear_scan_forward", u.dtype, u.shape[1], _BLOCK,
        alpha, u, offsets, start, h, last, len(offsets) - 1, u.shape[1],
    )  # fmt: skip
    return h, last


def linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of alpha, u (N, C) and start (B, C)."""
    alpha, offsets, start, h, dh = (t.contiguous() for t in (alpha, offsets, start, h, dh))
    dalpha, du = torch.empty_like(alpha), torch.empty_like(h)
    dstart = dlast.contiguous().clone()
    _call(
        "linear_scan_backward", h.dtype, h.shape[1], _BLOCK,
        alpha, offsets, start, h, dh, dalpha, du, dstart, len(offsets) - 1, h.shape[1],
    )  # fmt: skip
    return dalpha, du, dstart


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, C), the states kept for the gradient (:func:`kept_states`), last states (B, C)."""
    x, r, i, z, decay, offsets, start = (
        t.contiguous() for t in (x, r, i, z, decay, offsets, start)
    )
    rows, channels, float32 = tuple(x.shape), (x.shape[1],), torch.float32
    _check(
        offsets, len(x), (r, rows, x.dtype), (i, rows, x.dtype), (z, rows, x.dtype),
        (decay, channels, float32), (start, (len(offsets) - 1, *channels), float32),
    )  # fmt: skip
    y, kept, last = torch.empty_like(x), kept_states(x, start), torch.empty_like(start)
    _call(
        "bd_lru_forward", x.dtype, x.shape[1], _BLOCK,
        x, r, i, z, decay, offsets, start, y, kept, last, len(offsets) - 1, x.shape[1],
    )  # fmt: skip
    return y, kept, last


def bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    kept: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, r, i, z (N, C), decay (C,) and start (B, C)."""
    x, r, i, z, decay, offsets, kept, dy = (
        t.contiguous() for t in (x, r, i, z, decay, offsets, kept, dy)
    )
    dx, dr, di, dz = (torch.empty_like(x) for _ in range(4))
    dstart = dlast.contiguous().clone()
    dlog_decay = torch.zeros(x.shape[1], dtype=torch.float64)
    _call(
        "bd_lru_backward", x.dtype, x.shape[1], _BLOCK,
        x, r, i, z, decay, offsets, kept, dy, dx, dr, di, dz, dlog_decay, dstart,
        len(offsets) - 1, x.shape[1],
    )  # fmt: skip
    return dx, dr, di, dz, (dlog_decay / decay).to(decay.dtype), dstart


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """Outputs (N, C)."""
    x, bias, offsets, before = (t.contiguous() for t in (x, bias, offsets, before))
    channels, width = weight.shape
    _check(
        offsets, len(x), (x, (len(x), channels), x.dtype), (weight, (channels, width), torch.float32),
        (bias, (channels,), torch.float32), (before, (len(offsets) - 1, width - 1, channels), x.dtype),
    )  # fmt: skip
    y = torch.empty_like(x)
    _call(
        "conv_silu_forward", x.dtype, x.shape[1], _BLOCK,
        x, weight.t().contiguous(), bias, offsets, before, y,
        len(offsets) - 1, x.shape[1], weight.shape[1],
    )  # fmt: skip
    return y


def conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (N, C), weight (C, W), bias (C,) and before (B, W-1, C)."""
    x, bias, offsets, before, dy = (t.contiguous() for t in (x, bias, offsets, before, dy))
    dx, dbefore = torch.empty_like(x), torch.empty_like(before)
    dweight = torch.zeros(weight.shape[::-1], dtype=torch.float64)
    dbias = torch.zeros(len(bias), dtype=torch.float64)
    _call(
        "conv_silu_backward", x.dtype, x.shape[1], _BLOCK,
        x, weight.t().contiguous(), bias, offsets, before, dy, dx, dweight, dbias, dbefore,
        len(offsets) - 1, x.shape[1], weight.shape[1],
    )  # fmt: skip
    return dx, dweight.t().to(weight.dtype), dbias.to(bias.dtype), dbefore


def dropout(x: Tensor, seed: int, keep: float, before: int = 0) -> Tensor:
    """x / keep where the number drawn from (seed, position) is below ``keep``, else 0.

    Positions count from ``before``, the number of elements that other processes have before these.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    threshold = ctypes.c_uint32(min(int(keep * 2**32), 2**32 - 1))
    _call(
        "dropout", x.dtype, x.numel(), 1 << 14,
        x, y, ctypes.c_uint32(seed), threshold, ctypes.c_float(1 / keep), before,
    )  # fmt: skip
    return y


@cache
def _recblr_step() -> Any:
    """The C function with its argument types, which make each call faster."""
    assert LIBRARY is not None
    function = LIBRARY.recblr_step
    function.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 7
    function.restype = ctypes.c_int64
    return function


def recblr_step(
    weights: Tensor, sizes: tuple[int, int, int, int, int], items: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One more event of each user by the whole model: hidden vectors (B, D), states (B, L, W, C).

    Args:
        weights: the weights in the order of :mod:`recblr.models.fused_step`.
        sizes: V, D, C, W, L.
        items: (B,) int64 in 0 .. V-1.
        state: (B, L, W, C) float32.

    Raises:
        ValueError: a tensor has another shape or dtype, or an item is not in 0 .. V-1.
    """
    V, D, C, W, L = sizes
    users = items.numel()
    for tensor, shape, dtype in (
        (items, (users,), torch.int64), (state, (users, L, W, C), torch.float32),
    ):  # fmt: skip
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            found = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ValueError(f"a tensor must be {shape} {dtype} on cpu, found {found}")
    items, state = items.contiguous(), state.contiguous()
    hidden, next_state = torch.empty(users, D), torch.empty_like(state)
    function = _recblr_step()
    pointers = [tensor.data_ptr() for tensor in (weights, items, state, hidden, next_state)]
    invalid = max(
        _parallel(users, _USERS, lambda first, end: function(*pointers, *sizes, first, end))
    )
    if invalid >= 0:
        raise ValueError(f"items must be 0 .. {V - 1}, found {items[invalid].item()}")
    return hidden, next_state
