"""HR, NDCG and MRR at k of each user, from the rank of the user's single target.

``ranks`` (U,) count from 1, the best. With a single target the ideal DCG is 1, so NDCG@k is
1 / log2(rank + 1), as in RecBole and the paper (arXiv 2406.12580, section 4.1).
"""

from collections.abc import Callable

import numpy as np

CUTOFFS = (10, 20)


def hit_rate(ranks: np.ndarray, k: int) -> np.ndarray:
    """(U,) 1 if the target is among the first k, else 0."""
    return (ranks <= k).astype(float)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """(U,) 1 / log2(rank + 1) if the target is among the first k, else 0."""
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def reciprocal_rank(ranks: np.ndarray, k: int) -> np.ndarray:
    """(U,) 1 / rank if the target is among the first k, else 0; its mean is MRR@k."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


METRICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "HR": hit_rate,
    "NDCG": ndcg,
    "MRR": reciprocal_rank,
}


def per_user(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric at every cutoff, ``{"HR@10": (U,), …}``."""
    return {f"{name}@{k}": metric(ranks, k) for k in CUTOFFS for name, metric in METRICS.items()}


def means(ranks: np.ndarray) -> dict[str, float]:
    """Every metric at every cutoff, averaged over users."""
    return {name: float(values.mean()) for name, values in per_user(ranks).items()}


def intervals(ranks: np.ndarray) -> dict[str, tuple[float, float]]:
    """The :func:`mean_interval` of every metric."""
    return {name: mean_interval(values) for name, values in per_user(ranks).items()}


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of values (U,) over users (percentile, 1,000 resamples).

    Resamples draw how often each distinct value occurs: the same as drawing users, but faster.
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    means = [rng.multinomial(len(values), counts / len(values)) @ distinct for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5]) / len(values)
    return float(low), float(high)
