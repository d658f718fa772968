"""Layer norm of a sum, with dropout: one pass over memory on a GPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recblr import ops
from recblr.ops import cpu, registry


def dropout_add_norm(
    x: Tensor, residual: Tensor | None, norm: nn.LayerNorm, p: float, training: bool
) -> Tensor:
    """norm(dropout(x) + residual), or norm(dropout(x)) without a residual.

    On a GPU the result is in float32, as that of a layer norm under autocast, and dropout draws its
    mask from a seed of torch's generator for that GPU.

    Args:
        x, residual: (…, D).
        norm: over D.
        p: the probability that dropout sets an element of ``x`` to zero, while ``training``.
    """
    if registry.fused_kernels(x) in (cpu, None):
        dropped = ops.dropout(x, p, training)
        result: Tensor = norm(dropped if residual is None else dropped + residual)
        return result
    seed = torch.randint(2**31, (1,), device=x.device) if training and p else None
    keep = 1 - p if seed is not None else 1.0
    rows = x.flatten(0, -2)
    added = None if residual is None else residual.flatten(0, -2)
    fused: Tensor = _DropoutAddNorm.apply(rows, added, norm.weight, norm.bias, seed, keep, norm.eps)  # type: ignore[no-untyped-call]
    return fused.view(x.shape)


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor,
        seed: Tensor | None, keep: float, eps: float,
    ) -> Tensor:  # fmt: skip
        from recblr.ops import gpu

        y, means, inverses = gpu.dropout_add_norm(x, residual, weight, bias, seed, keep, eps)
        ctx.save_for_backward(x, residual, weight, seed, means, inverses)
        ctx.keep = keep
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from recblr.ops import gpu

        x, residual, weight, seed, means, inverses = ctx.saved_tensors
        gradients = gpu.dropout_add_norm_backward(
            x, residual, weight, seed, means, inverses, dy, ctx.keep
        )
        return *gradients, None, None, None
