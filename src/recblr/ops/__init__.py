"""The operators of the model. Each fast path is one ``torch.library`` operator beside a plain twin.

Axes: N events of all sequences laid end to end, B sequences, C channels, W width of the convolution.
``offsets`` (B + 1,) int64 rises from 0 to N; sequence b has the rows offsets[b] .. offsets[b+1]-1.
Every form takes the state before each sequence and gives the one after it, so that a sequence may be
processed in pieces.

Which form computes the recurrence is the choice of :func:`implementation`; by itself it is ``auto``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from recblr.ops import cpu, reference, tree

__all__ = ["bd_lru", "conv_silu", "dropout", "implementation", "last_inputs", "linear_scan"]

Implementation = Literal["auto", "serial", "tree"]
_chosen: Implementation = "auto"
_TRITON = find_spec("triton") is not None


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Compute the recurrence inside the block by one of

    - ``auto``: the fused kernels, :mod:`cpu` or :mod:`gpu`, for float32 and bfloat16; what they cannot
      take is done as by ``tree``, or as by ``serial`` where lengths differ so much that padding
      would make it large;
    - ``serial``: one event after another, :mod:`reference`;
    - ``tree``: the paper's two trees, :mod:`tree`.

    The choice is made when an operator runs forward; its gradient follows.
    """
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _kernels(x: Tensor) -> ModuleType | None:
    """The module of the fused kernels that can take ``x``, if one can."""
    if x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and _TRITON:
        from recblr.ops import gpu

        return gpu
    return cpu if cpu.supports(x) else None


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = α_t ⊙ h_{t-1} + u_t within each sequence (arXiv 2406.12580, eq. 5 with u = β ⊙ x).

    Args:
        alpha, u: (N, C); alpha in [0, 1].
        offsets: (B + 1,) where the sequences lie.
        start: (B, C) state before the first event of each.

    Returns:
        h (N, C) and the last state of each sequence (B, C); a sequence of no event keeps its start.
    """
    if _chosen == "auto" and _kernels(u):
        h: Tensor
        last: Tensor
        h, last = torch.ops.recblr.linear_scan(alpha, u, offsets, start)
        return h, last
    return _plain_scan(offsets)(alpha, u, offsets, start)


def _plain_scan(offsets: Tensor) -> reference.Scan:
    if _chosen == "auto":
        sequences, longest = len(offsets) - 1, int(offsets.diff().amax()) if len(offsets) > 1 else 0
        small = sequences * longest <= 4 * int(offsets[-1])
        return tree.linear_scan if small else reference.linear_scan
    return tree.linear_scan if _chosen == "tree" else reference.linear_scan


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The behaviour-dependent linear recurrent unit and its output gate (arXiv 2406.12580, eq. 5-8).

    α = exp(-decay ⊙ σ(r)), h_t = α_t ⊙ h_{t-1} + √(1 - α_t²) ⊙ σ(i_t) ⊙ x_t, y_t = h_t ⊙ SiLU(z_t).

    Args:
        x: (N, C) input of the recurrence.
        r, i, z: (N, C) recurrence gate, input gate and output gate before their nonlinearity.
        decay: (C,) softplus(Λ), positive.
        offsets: (B + 1,) where the sequences lie.
        start: (B, C) state before the first event of each.

    Returns:
        y (N, C) and the last state of each sequence (B, C); a sequence of no event keeps its start.
    """
    if _chosen == "auto" and _kernels(x):
        y, _, last = torch.ops.recblr.bd_lru(x, r, i, z, decay, offsets, start)
        return y, last
    return reference.bd_lru(x, r, i, z, decay, offsets, start, _plain_scan(offsets))


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """SiLU(bias + Σ_k weight_k ⊙ x_{t-W+1+k}) (N, C): depthwise, causal, within each sequence.

    ``weight`` is (C, W); ``before`` (B, W-1, C) holds the inputs that precede each sequence, oldest
    first.
    """
    if not _kernels(x):
        return reference.conv_silu(x, weight, bias, offsets, before)
    y: Tensor = torch.ops.recblr.conv_silu(x, weight, bias, offsets, before.to(x.dtype))
    return y


def last_inputs(x: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """The last W-1 rows of each sequence with what preceded it, (B, W-1, C): the next ``before``."""
    width = before.shape[1]
    lengths = offsets.diff().unsqueeze(1)
    into = lengths - width + torch.arange(width, device=x.device)
    if len(x) == 0:
        return before
    inside = x[(offsets[:-1, None] + into).clamp(0, len(x) - 1)].to(before.dtype)
    sequence = torch.arange(len(lengths), device=x.device).unsqueeze(1)
    outside = before[sequence, into.clamp(max=-1)]
    return torch.where((into < 0).unsqueeze(2), outside, inside)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p), while training."""
    if p == 0 or not training:
        return x
    if not cpu.supports(x):
        return torch.nn.functional.dropout(x, p)
    y: Tensor = torch.ops.recblr.dropout(x, torch.randint(2**32, ()), 1 - p)
    return y


def _fused(x: Tensor) -> ModuleType:
    kernels = _kernels(x)
    assert kernels is not None, "no fused kernels for this tensor"
    return kernels


def _operator(function: Callable[..., Any]) -> None:
    """Register ``torch.ops.recblr.<name>``, as ``torch.library.custom_op`` would, but without loading
    torch's compiler at the first call: that took longer than most commands run.
    """
    name = f"recblr::{function.__name__.removeprefix('_')}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "default", function)


def _shapes(name: str) -> Callable[[Callable[..., Any]], None]:
    """Register what is below as that which tells the shapes ``torch.ops.recblr.<name>`` gives."""
    return partial(torch.library.register_fake, f"recblr::{name}")


@_operator
def _linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return _fused(u).linear_scan(alpha, u, offsets, start)


@_shapes("linear_scan")
def _(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(start)


@_operator
def _linear_scan_backward(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _fused(h).linear_scan_backward(alpha, offsets, start, h, dh, dlast)


@_shapes("linear_scan_backward")
def _(
    alpha: Tensor, offsets: Tensor, start: Tensor, h: Tensor, dh: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(h), torch.empty_like(start)


def _save_linear_scan(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    alpha, _, offsets, start = inputs
    ctx.save_for_backward(alpha, offsets, start, output[0])


def _differentiate_linear_scan(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    dalpha, du, dstart = torch.ops.recblr.linear_scan_backward(*ctx.saved_tensors, dh, dlast)
    return dalpha, du, None, dstart


torch.library.register_autograd(
    "recblr::linear_scan", _differentiate_linear_scan, setup_context=_save_linear_scan
)


@_operator
def _bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _fused(x).bd_lru(x, r, i, z, decay, offsets, start)


@_shapes("bd_lru")
def _(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _fused(x).kept_states(len(x), len(start))
    return torch.empty_like(x), start.new_empty(kept, x.shape[1]), torch.empty_like(start)


@_operator
def _bd_lru_backward(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    states: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _fused(x).bd_lru_backward(x, r, i, z, decay, offsets, start, states, dy, dlast)


@_shapes("bd_lru_backward")
def _(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    states: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dr, di, dz = (torch.empty_like(x) for _ in range(4))
    return dx, dr, di, dz, torch.empty_like(decay), torch.empty_like(start)


def _save_bd_lru(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_bd_lru(
    ctx: Any, dy: Tensor, _: Tensor, dlast: Tensor
) -> tuple[Tensor | None, ...]:
    dx, dr, di, dz, ddecay, dstart = torch.ops.recblr.bd_lru_backward(*ctx.saved_tensors, dy, dlast)
    return dx, dr, di, dz, ddecay, None, dstart


torch.library.register_autograd("recblr::bd_lru", _differentiate_bd_lru, setup_context=_save_bd_lru)


@_operator
def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    return _fused(x).conv_silu(x, weight, bias, offsets, before)


@_shapes("conv_silu")
def _(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    return torch.empty_like(x)


@_operator
def _conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fused(x).conv_silu_backward(x, weight, bias, offsets, before, dy)


@_shapes("conv_silu_backward")
def _(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(t) for t in (x, weight, bias, before))  # type: ignore[return-value]


def _save_conv_silu(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_conv_silu(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, dbefore = torch.ops.recblr.conv_silu_backward(*ctx.saved_tensors, dy)
    return dx, dweight, dbias, None, dbefore


torch.library.register_autograd(
    "recblr::conv_silu", _differentiate_conv_silu, setup_context=_save_conv_silu
)


@_operator
def _dropout(x: Tensor, seed: Tensor, keep: float) -> Tensor:
    return cpu.dropout(x, int(seed), keep)


@_shapes("dropout")
def _(x: Tensor, seed: Tensor, keep: float) -> Tensor:
    return torch.empty_like(x)


def _save_dropout(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.keep = inputs
    ctx.save_for_backward(seed)


def _differentiate_dropout(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.recblr.dropout(dy, *ctx.saved_tensors, ctx.keep), None, None


torch.library.register_autograd(
    "recblr::dropout", _differentiate_dropout, setup_context=_save_dropout
)
