"""The fused kernels as ``torch.library`` operators, ``torch.ops.recblr.<name>``, with their gradients.

Operators work with autograd, torch.compile and fake tensors. The public functions below are the
registered operators; :mod:`cpu` and :mod:`gpu` describe their shapes.
"""

from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from recblr.ops import cpu

R = TypeVar("R")
_TRITON = find_spec("triton") is not None


def fused_kernels(x: Tensor) -> ModuleType | None:
    """The module with kernels for ``x``: :mod:`gpu`, :mod:`cpu`, or None."""
    if x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and _TRITON:
        from recblr.ops import gpu

        return gpu
    return cpu if cpu.supports(x) else None


def _kernels(x: Tensor) -> ModuleType:
    kernels = fused_kernels(x)
    assert kernels is not None, "no fused kernels for this tensor"
    return kernels


def _operator(*like: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Register a function as ``torch.ops.recblr.<its name>`` and return that operator.

    Result k has the shape and dtype of the argument named ``like[k]``; without ``like`` the caller
    registers the shapes. ``torch.library.custom_op`` would do the same, but its first call imports
    torch's compiler, which takes longer than most commands.
    """

    def register(function: Callable[..., R]) -> Callable[..., R]:
        name, arguments = f"recblr::{function.__name__}", list(signature(function).parameters)
        positions = [arguments.index(argument) for argument in like]

        def empty_results(*inputs: Any) -> Tensor | tuple[Tensor, ...]:
            results = tuple(torch.empty_like(inputs[position]) for position in positions)
            return results if len(results) > 1 else results[0]

        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, "default", function)
        if like:
            torch.library.register_fake(name, empty_results)
        operator: Callable[..., R] = getattr(torch.ops.recblr, function.__name__)
        return operator

    return register


@_operator("u", "start")
def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return _kernels(u).linear_scan(alpha, u, offsets, start)


@_operator("alpha", "h", "start")
def linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(h).linear_scan_backward(alpha, offsets, start, h, dh, dlast)


def _save_linear_scan(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    alpha, _, offsets, start = inputs
    ctx.save_for_backward(alpha, offsets, start, output[0])


def _differentiate_linear_scan(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    dalpha, du, dstart = linear_scan_backward(*ctx.saved_tensors, dh, dlast)
    return dalpha, du, None, dstart


torch.library.register_autograd(
    "recblr::linear_scan", _differentiate_linear_scan, setup_context=_save_linear_scan
)


@_operator()
def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(x).bd_lru(x, r, i, z, decay, offsets, start)


def _empty_bd_lru_results(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _kernels(x).kept_states(x, start), torch.empty_like(start)


torch.library.register_fake("recblr::bd_lru", _empty_bd_lru_results)


@_operator("x", "x", "x", "x", "decay", "start")
def bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    kept: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _kernels(x).bd_lru_backward(x, r, i, z, decay, offsets, start, kept, dy, dlast)


def _save_bd_lru(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_bd_lru(
    ctx: Any, dy: Tensor, _: Tensor, dlast: Tensor
) -> tuple[Tensor | None, ...]:
    dx, dr, di, dz, ddecay, dstart = bd_lru_backward(*ctx.saved_tensors, dy, dlast)
    return dx, dr, di, dz, ddecay, None, dstart


torch.library.register_autograd("recblr::bd_lru", _differentiate_bd_lru, setup_context=_save_bd_lru)


@_operator("x")
def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    return _kernels(x).conv_silu(x, weight, bias, offsets, before)


@_operator("x", "weight", "bias", "before")
def conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels(x).conv_silu_backward(x, weight, bias, offsets, before, dy)


def _save_conv_silu(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_conv_silu(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, dbefore = conv_silu_backward(*ctx.saved_tensors, dy)
    return dx, dweight, dbias, None, dbefore


torch.library.register_autograd(
    "recblr::conv_silu", _differentiate_conv_silu, setup_context=_save_conv_silu
)


@_operator("x")
def dropout(x: Tensor, seed: Tensor, keep: float, before: int) -> Tensor:
    return cpu.dropout(x, int(seed), keep, before)


def _save_dropout(ctx: Any, inputs: tuple[Tensor, Tensor, float, int], output: Tensor) -> None:
    _, seed, *ctx.numbers = inputs
    ctx.save_for_backward(seed)


def _differentiate_dropout(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return dropout(dy, *ctx.saved_tensors, *ctx.numbers), None, None, None


torch.library.register_autograd(
    "recblr::dropout", _differentiate_dropout, setup_context=_save_dropout
)
