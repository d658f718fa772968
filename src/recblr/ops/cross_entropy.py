"""Cross entropy over the whole catalogue, without the logits of a whole batch in memory.

The forward pass computes the gradient as well, chunk by chunk while the logits are in the cache;
backward only scales it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of a chunk. On a CPU 8 MB of float32, which fit into the cache; on a GPU 256 MB, a whole batch
# over a few thousand items.
_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
_MIN_ROWS = 64  # of a chunk: each chunk adds to the gradient of every item, slow for few rows


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    seen: Tensor | None = None,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean of -log softmax(hidden · weightᵀ)[target], equation (2) of arXiv 2406.12580.

    Args:
        hidden: (M, D).
        weight: (V, D) item embeddings.
        targets: (M,) item indices.
        seen: (2, P) rows of ``hidden``, in ascending order, and for each an item to exclude from the
            softmax of the row, unless it is the target of the row.
        smoothing: label smoothing, the share of each target that is spread evenly over the catalogue
            (arXiv 1512.00567). Cannot be combined with ``seen``.
        weights: (M,) the factor of each target in the mean; None if all are 1.

    Under ``torch.autocast`` the products are in bfloat16 and the sums in float32.
    """
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, seen, smoothing, weights
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None,
        smoothing: float, weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        device = hidden.device.type
        rows = max(_MIN_ROWS, _CHUNK[device] // len(weight))
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        items = weight.to(dtype)
        dhidden = torch.empty_like(hidden, dtype=weight.dtype)
        dweight = torch.zeros_like(weight)
        loss = torch.zeros((), dtype=weight.dtype, device=weight.device)
        seen_by_chunk = None if seen is None else _by_chunk(seen, len(hidden), rows)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(hidden), rows):
                chunk = slice(begin, begin + rows)
                h, target = hidden[chunk].to(dtype), targets[chunk].unsqueeze(1)
                logits = (h @ items.t()).to(weight.dtype)
                target_logits = logits.gather(1, target)
                if seen_by_chunk is not None:
                    row, item = seen_by_chunk[begin // rows]
                    # logits[...] = would copy the value from the host and wait for the GPU.
                    logits.index_put_((row - begin, item), logits.new_full((), -torch.inf))
                    logits.scatter_(1, target, target_logits)
                largest = logits.amax(1, keepdim=True)
                probabilities = torch.softmax(logits, 1, out=logits)
                # From the largest probability, as that of the target may underflow.
                log_sum_exp = largest - probabilities.amax(1, keepdim=True).log()
                losses = log_sum_exp - (1 - smoothing) * target_logits
                share = torch.full_like(target_logits, smoothing - 1)
                dlogits = probabilities.scatter_add_(1, target, share)
                if weights is not None:
                    factors = weights[chunk].unsqueeze(1)
                    losses, dlogits = losses * factors, dlogits.mul_(factors)
                loss += losses.sum()
                dlogits = dlogits.to(dtype)
                dhidden[chunk] = dlogits @ items
                dweight += dlogits.t() @ h
                del logits, probabilities, dlogits  # before the next chunk allocates its own
            if smoothing:  # the uniform part of the targets, without another pass over the logits
                uniform = smoothing / len(weight)
                weighted, weight_sum = hidden.to(weight.dtype), weight.sum(0)
                uniform_gradient = weight_sum
                if weights is not None:
                    weighted = weighted * weights.unsqueeze(1)
                    uniform_gradient = weights.unsqueeze(1) * weight_sum
                hidden_sum = weighted.sum(0)
                loss -= uniform * (hidden_sum @ weight_sum)
                dhidden -= uniform * uniform_gradient
                dweight -= uniform * hidden_sum
        ctx.save_for_backward(dhidden, dweight)
        ctx.count, ctx.dtype = max(1, len(hidden)), hidden.dtype
        return loss / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return (dhidden * scale).to(ctx.dtype), dweight * scale, None, None, None, None


def _by_chunk(seen: Tensor, count: int, rows: int) -> tuple[Tensor, ...]:
    """``seen`` split into chunks of ``rows`` rows. With several chunks the host waits for the GPU."""
    if count <= rows:
        return (seen,)
    begins = torch.arange(rows, count, rows, device=seen.device)
    return seen.tensor_split(torch.searchsorted(seen[0].contiguous(), begins).tolist(), 1)
