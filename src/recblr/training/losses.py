"""Losses over sampled items, those of some baselines' papers. The full softmax is ops.cross_entropy.

Axes: M predicted positions, D the width of a vector, V items.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log σ(target - other), one random other item each (arXiv 1205.2618).

    Args:
        hidden: (M, D). items: (V, D). targets: (M,) item indices.
    """
    right, wrong = _scores(hidden, items, targets)
    return -F.logsigmoid(right - wrong).sum() / max(1, len(targets))


def binary_cross_entropy(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log σ(target) - log σ(-other), one random other item each (arXiv 1808.09781, eq. 7)."""
    right, wrong = _scores(hidden, items, targets)
    return -(F.logsigmoid(right) + F.logsigmoid(-wrong)).sum() / max(1, len(targets))


def top1(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of σ(other - target) + σ(other²) over the batch's targets as others (arXiv 1511.06939)."""
    scores = (hidden @ items[targets].t()).float()  # (M, M)
    right = scores.diagonal().unsqueeze(1)
    others = targets.unsqueeze(1) != targets
    each = torch.sigmoid(scores - right) + torch.sigmoid(scores**2)
    return (each * others).sum() / others.sum().clamp(min=1)


def _scores(hidden: Tensor, items: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (M,) of the targets and of one random other item each."""
    shift = torch.randint(1, max(2, len(items)), targets.shape, device=targets.device)
    others = (targets + shift) % len(items)
    return (hidden * items[targets]).sum(1).float(), (hidden * items[others]).sum(1).float()
