"""Cross entropy over the whole catalogue, without the logits of a whole batch in memory.

The gradient is formed in the forward pass, chunk by chunk while the logits are still in the cache,
so that backward only scales it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits at once. On a CPU 8 MB of float32, so that a chunk stays in the cache; on a GPU 256 MB, which
# is a whole batch over a few thousand items.
_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
_ROWS = 64  # at least: a chunk adds to the gradient of every item, which is much for a few rows


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    seen: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean of -log softmax(hidden · weightᵀ)[target], equation (2) of arXiv 2406.12580.

    Args:
        hidden: (M, D).
        weight: (V, D) item embeddings.
        targets: (M,) item indices.
        seen: (2, P) rows of ``hidden``, rising, and for each an item to be left out of that row's
            softmax, unless it is the row's target.
        smoothing: this share of each target is spread evenly over the catalogue (label smoothing,
            arXiv 1512.00567); not together with ``seen``.

    The products are formed in bfloat16 under ``torch.autocast``, the sums in float32.
    """
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, seen, smoothing
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None,
        smoothing: float,
    ) -> Tensor:  # fmt: skip
        device = hidden.device.type
        rows = max(_ROWS, _CHUNK[device] // len(weight))
        narrow = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if narrow else weight.dtype
        items = weight.to(dtype)
        dhidden = torch.empty_like(hidden, dtype=weight.dtype)
        dweight = torch.zeros_like(weight)
        loss = torch.zeros((), dtype=weight.dtype, device=weight.device)
        hide = None if seen is None else _by_chunk(seen, len(hidden), rows)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(hidden), rows):
                chunk = slice(begin, begin + rows)
                h, target = hidden[chunk].to(dtype), targets[chunk].unsqueeze(1)
                logits = (h @ items.t()).to(weight.dtype)
                right = logits.gather(1, target)
                if hide is not None:
                    row, item = hide[begin // rows]
                    # Not by logits[...] =, which sends the value from the host and waits for a GPU.
                    logits.index_put_((row - begin, item), logits.new_full((), -torch.inf))
                    logits.scatter_(1, target, right)
                greatest = logits.amax(1, keepdim=True)
                probabilities = torch.softmax(logits, 1, out=logits)
                # By way of the greatest probability, as that of the target can be too small a number.
                log_sum_exp = greatest - probabilities.amax(1, keepdim=True).log()
                loss += (log_sum_exp - (1 - smoothing) * right).sum()
                share = torch.full_like(right, smoothing - 1)
                dlogits = probabilities.scatter_add_(1, target, share).to(dtype)
                dhidden[chunk] = dlogits @ items
                dweight += dlogits.t() @ h
                del logits, probabilities, dlogits  # before there are others beside them
            if smoothing:  # the even part of the targets, without another pass over the logits
                even = smoothing / len(weight)
                total, items_total = hidden.to(weight.dtype).sum(0), weight.sum(0)
                loss -= even * (total @ items_total)
                dhidden -= even * items_total
                dweight -= even * total
        ctx.save_for_backward(dhidden, dweight)
        ctx.count, ctx.dtype = max(1, len(hidden)), hidden.dtype
        return loss / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return (dhidden * scale).to(ctx.dtype), dweight * scale, None, None, None


def _by_chunk(seen: Tensor, count: int, rows: int) -> tuple[Tensor, ...]:
    """The pairs of each ``rows`` of ``count`` rows. The host waits for a GPU if they are several."""
    if count <= rows:
        return (seen,)
    begins = torch.arange(rows, count, rows, device=seen.device)
    return seen.tensor_split(torch.searchsorted(seen[0].contiguous(), begins).tolist(), 1)
