"""Cross entropy over the whole catalogue, without the logits of a whole batch in memory.

The forward pass computes the gradient as well, part by part while the logits are in the cache;
backward only scales it. A part has all items for some positions. In a large catalogue that would be so
few positions that adding to the gradient of every item for each part takes most of the time; there, a
part has some items for all positions, and the logits are computed twice: first for the sums of the
softmax, then for the gradient, which is complete for the items of a part.

Axes: M positions, K targets of a position, V items, D the width of a vector, P pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ranks import ALONE, Ranks

# Logits of a part. On a CPU 8 MB of float32, which fit into the cache; on a GPU 256 MB, a whole batch
# over a few thousand items.
_PART = {"cpu": 1 << 21, "cuda": 1 << 26}
_MIN_ROWS = 64  # positions of a part that has all items; for fewer a part has some items


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    seen: Tensor | None = None,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Mean of -log softmax(hidden · weightᵀ)[target], equation (2) of arXiv 2406.12580. With several
    targets, the loss of a position is the sum over them.

    Args:
        hidden: (M, D).
        weight: (V, D) item embeddings.
        targets: (M,) or (M, K) item indices.
        seen: (2, P) rows of ``hidden``, in ascending order, and for each an item to exclude from the
            softmax of the row, unless it is a target of the row.
        smoothing: label smoothing, the share of each target that is spread evenly over the catalogue
            (arXiv 1512.00567). Cannot be combined with ``seen``.
        weights: the factor of each target, of the shape of ``targets``; None if all are 1.
        ranks: the processes that divide the items. ``weight`` has the items of this process; all other
            arguments are the same in each, as is the result. The gradient of ``hidden`` is the part
            that this process's items have in it.

    Under ``torch.autocast`` the products are in bfloat16 and the sums in float32.
    """
    several = targets.dim() == 2
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight,
        targets if several else targets.unsqueeze(1),
        seen, smoothing,
        weights if several or weights is None else weights.unsqueeze(1),
        ranks,
    )  # fmt: skip
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None,
        smoothing: float, weights: Tensor | None, ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        arguments = hidden, weight, targets, seen, smoothing, weights, dtype
        with torch.autocast(device, enabled=False):
            if ranks.alone and len(weight) * _MIN_ROWS <= _PART[device]:
                loss, dhidden, dweight = _all_items_at_once(*arguments)
            else:
                loss, dhidden, dweight = _some_items_at_once(*arguments, ranks)
        ctx.save_for_backward(dhidden, dweight)
        ctx.count, ctx.dtype = max(1, len(hidden)), hidden.dtype
        return loss / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        # In place, as another table of gradients may not fit: a second call finds changed tensors.
        dhidden, dweight = dhidden.mul_(scale).to(ctx.dtype), dweight.mul_(scale)
        return dhidden, dweight, None, None, None, None, None


def _all_items_at_once(
    hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None, smoothing: float,
    weights: Tensor | None, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum of the losses, and its gradients of ``hidden`` and ``weight``, by parts of positions."""
    rows = max(1, _PART[hidden.device.type] // len(weight))
    items = weight.to(dtype)
    dhidden = torch.empty_like(hidden, dtype=weight.dtype)
    dweight = torch.zeros_like(weight)
    loss = torch.zeros((), dtype=weight.dtype, device=weight.device)
    seen_by_chunk = None if seen is None else _divided(seen, len(hidden), rows)
    for begin in range(0, len(hidden), rows):
        chunk = slice(begin, begin + rows)
        h, target = hidden[chunk].to(dtype), targets[chunk]
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
        factors = torch.ones_like(target_logits) if weights is None else weights[chunk]
        losses = (log_sum_exp - (1 - smoothing) * target_logits) * factors
        loss += losses.sum()
        if weights is not None:
            probabilities.mul_(factors.sum(1, keepdim=True))
        dlogits = probabilities.scatter_add_(1, target, (smoothing - 1) * factors).to(dtype)
        dhidden[chunk] = dlogits @ items
        dweight += dlogits.t() @ h
        del logits, probabilities, dlogits  # before the next chunk allocates its own
    if smoothing:  # the uniform part of the targets, without another pass over the logits
        uniform = smoothing / len(weight)
        weighted, weight_sum = hidden.to(weight.dtype), weight.sum(0)
        uniform_gradient = weight_sum
        if weights is not None:
            of_position = weights.sum(1, keepdim=True)
            weighted = weighted * of_position
            uniform_gradient = of_position * weight_sum
        hidden_sum = weighted.sum(0)
        loss -= uniform * (hidden_sum @ weight_sum)
        dhidden -= uniform * uniform_gradient
        dweight -= uniform * hidden_sum
    return loss, dhidden, dweight


def _some_items_at_once(
    hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None, smoothing: float,
    weights: Tensor | None, dtype: torch.dtype, ranks: Ranks,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`_all_items_at_once` by parts of items, which the processes may divide."""
    if not len(hidden):
        return hidden.sum().to(weight.dtype), torch.zeros_like(hidden), torch.zeros_like(weight)
    bounds = ranks.bounds(len(weight))
    targets, catalogue = targets - bounds[ranks.number], bounds[-1]
    size = max(1, _PART[hidden.device.type] // len(hidden))
    h, masked = hidden.to(dtype), None
    if seen is not None:
        row, item = seen[0], seen[1] - bounds[ranks.number]
        own = (item >= 0) & (item < len(weight)) & (item[:, None] != targets[row]).all(1)
        item, order = item[own].sort(stable=True)
        masked = _divided(torch.stack([item, row[own][order]]), len(weight), size)

    def logits_of(begin: int) -> tuple[Tensor, Tensor]:
        """The logits (M, part) of the items from ``begin`` on, and their vectors."""
        items = weight[begin : begin + size].to(dtype)
        logits = (h @ items.t()).to(weight.dtype)
        if masked is not None:
            item, row = masked[begin // size]
            logits.index_put_((row, item - begin), logits.new_full((), -torch.inf))
        return logits, items

    def targets_in(begin: int) -> tuple[Tensor, Tensor]:
        """(M, K) the targets counted from ``begin``, and whether they are in the part from there on."""
        places, end = targets - begin, min(size, len(weight) - begin)
        return places.clamp(0, end - 1), (places >= 0) & (places < end)

    factors = torch.ones_like(targets, dtype=weight.dtype) if weights is None else weights
    of_position = factors.sum(1, keepdim=True)
    # The logarithm of the sum of exponentials, the sum over the targets of factor times logit, and the
    # sum of all logits.
    log_sum = hidden.new_full((len(hidden), 1), -torch.inf, dtype=weight.dtype)
    of_target, total = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    for begin in range(0, len(weight), size):
        logits, _ = logits_of(begin)
        places, inside = targets_in(begin)
        of_targets = logits.gather(1, places).where(inside, 0) * factors
        of_target += of_targets.sum(1, keepdim=True)
        if smoothing:
            total += logits.sum(1, keepdim=True)
        log_sum = torch.logaddexp(log_sum, logits.logsumexp(1, keepdim=True))
    if not ranks.alone:
        largest = ranks.max(log_sum.clone())
        sums = ranks.sum(torch.stack([(log_sum - largest).exp(), of_target, total]))
        log_sum, of_target, total = largest + sums[0].log(), sums[1], sums[2]

    uniform = smoothing / catalogue
    losses = of_position * (log_sum - uniform * total) - (1 - smoothing) * of_target
    dhidden = torch.zeros_like(hidden, dtype=weight.dtype)
    dweight = torch.empty_like(weight)
    for begin in range(0, len(weight), size):
        logits, items = logits_of(begin)
        dlogits = logits.sub_(log_sum).exp_().sub_(uniform)
        places, inside = targets_in(begin)
        if weights is not None:
            dlogits.mul_(of_position)
        dlogits.scatter_add_(1, places, (smoothing - 1) * factors * inside)
        narrow = dlogits.to(dtype)
        dhidden += narrow @ items
        dweight[begin : begin + size] = narrow.t() @ h
    return losses.sum(), dhidden, dweight


def _divided(pairs: Tensor, count: int, size: int) -> tuple[Tensor, ...]:
    """``pairs`` (2, P), whose first row ascends in 0 .. count-1, divided by its ranges of ``size``.

    With several parts the host waits for a GPU.
    """
    if count <= size:
        return (pairs,)
    begins = torch.arange(size, count, size, device=pairs.device)
    return pairs.tensor_split(torch.searchsorted(pairs[0].contiguous(), begins).tolist(), 1)
