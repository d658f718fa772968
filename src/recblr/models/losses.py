"""Losses over sampled items, from the papers of the baselines; ops.cross_entropy is the full softmax.

Axes: M predicted positions, D the width of a vector, V items.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log σ(positive - negative), one random negative per target (arXiv 1205.2618).

    Args:
        hidden: (M, D).
        items: (V, D).
        targets: (M,) item indices.
    """
    positive, negative = _scores(hidden, items, targets)
    return -F.logsigmoid(positive - negative).sum() / max(1, len(targets))


def binary_cross_entropy(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log σ(positive) - log σ(-negative), one random negative (arXiv 1808.09781, eq. 7)."""
    positive, negative = _scores(hidden, items, targets)
    return -(F.logsigmoid(positive) + F.logsigmoid(-negative)).sum() / max(1, len(targets))


def top1(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of σ(negative - positive) + σ(negative²); the negatives are the other targets of the batch
    (arXiv 1511.06939)."""
    scores = (hidden @ items[targets].t()).float()  # (M, M)
    positive = scores.diagonal().unsqueeze(1)
    is_negative = targets.unsqueeze(1) != targets
    losses = torch.sigmoid(scores - positive) + torch.sigmoid(scores**2)
    return (losses * is_negative).sum() / is_negative.sum().clamp(min=1)


def _scores(hidden: Tensor, items: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (M,) of the targets, and of one random other item for each."""
    shift = torch.randint(1, max(2, len(items)), targets.shape, device=targets.device)
    negatives = (targets + shift) % len(items)
    return (hidden * items[targets]).sum(1).float(), (hidden * items[negatives]).sum(1).float()
