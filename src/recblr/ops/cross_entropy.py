"""Cross entropy over the whole catalogue, without the logits of a whole batch in memory.

The gradient is formed in the forward pass, chunk by chunk while the logits are still in the cache,
so that backward only scales it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 21  # logits at once: 8 MB of float32, so that a chunk stays in the cache


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Mean of -log softmax(hidden · weightᵀ)[target], equation (2) of arXiv 2406.12580.

    Args:
        hidden: (M, D).
        weight: (V, D) item embeddings.
        targets: (M,) item indices.
        seen: (P, 2) pairs of a row of ``hidden``, rising, and an item to be left out of that row's
            softmax; never the target of the row.

    The products are formed in bfloat16 under ``torch.autocast``, the sums in float32.
    """
    loss: Tensor = _CrossEntropy.apply(hidden, weight, targets, seen)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None
    ) -> Tensor:
        rows = max(1, _CHUNK // len(weight))
        device = hidden.device.type
        narrow = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if narrow else weight.dtype
        items = weight.to(dtype)
        dhidden = torch.empty_like(hidden, dtype=weight.dtype)
        dweight = torch.zeros_like(weight)
        loss = torch.zeros((), dtype=weight.dtype, device=weight.device)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(hidden), rows):
                chunk = slice(begin, begin + rows)
                h, target = hidden[chunk].to(dtype), targets[chunk].unsqueeze(1)
                logits = (h @ items.t()).to(weight.dtype)
                if seen is not None:
                    ends = torch.tensor([begin, begin + len(h)], device=seen.device)
                    first, last = torch.searchsorted(seen[:, 0].contiguous(), ends).tolist()
                    logits[seen[first:last, 0] - begin, seen[first:last, 1]] = -torch.inf
                # log p[target] from the greatest p, as p[target] itself can be too small a number.
                below = logits.gather(1, target) - logits.amax(1, keepdim=True)
                probabilities = torch.softmax(logits, 1, out=logits)
                loss -= (probabilities.amax(1, keepdim=True).log() + below).sum()
                probabilities.scatter_add_(1, target, -torch.ones_like(target, dtype=loss.dtype))
                dlogits = probabilities.to(dtype)
                dhidden[chunk] = dlogits @ items
                dweight += dlogits.t() @ h
        ctx.save_for_backward(dhidden, dweight)
        ctx.count, ctx.dtype = max(1, len(hidden)), hidden.dtype
        return loss / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return (dhidden * scale).to(ctx.dtype), dweight * scale, None, None
