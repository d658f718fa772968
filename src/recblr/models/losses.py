"""Losses over sampled items, from the papers of the baselines; ops.cross_entropy is the full softmax.

Axes: M predicted positions, D the width of a vector, V items.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr(hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of -log σ(positive - negative), one random negative per target (arXiv 1205.2618).

    Args:
        hidden: (M, D).
        items: (V, D).
        targets: (M,) item indices.
        weights: (M,) the factor of each target; None if all are 1.
    """
    positive, negative = _scores(hidden, items, targets)
    return _mean(-F.logsigmoid(positive - negative), weights)


def binary_cross_entropy(
    hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean of -log σ(positive) - log σ(-negative), one random negative (arXiv 1808.09781, eq. 7)."""
    positive, negative = _scores(hidden, items, targets)
    return _mean(-(F.logsigmoid(positive) + F.logsigmoid(-negative)), weights)


def top1(hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of σ(negative - positive) + σ(negative²); the negatives are the other targets of the batch
    (arXiv 1511.06939)."""
    scores = (hidden @ items[targets].t()).float()  # (M, M)
    positive = scores.diagonal().unsqueeze(1)
    is_negative = targets.unsqueeze(1) != targets
    losses = torch.sigmoid(scores - positive) + torch.sigmoid(scores**2)
    if weights is not None:
        losses = losses * weights.unsqueeze(1)
    return (losses * is_negative).sum() / is_negative.sum().clamp(min=1)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the losses (M,), each times its weight."""
    weighted = losses if weights is None else losses * weights
    return weighted.sum() / max(1, len(losses))


def _scores(hidden: Tensor, items: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (M,) of the targets, and of one random other item for each."""
    shift = torch.randint(1, max(2, len(items)), targets.shape, device=targets.device)
    negatives = (targets + shift) % len(items)
    return (hidden * items[targets]).sum(1).float(), (hidden * items[negatives]).sum(1).float()
