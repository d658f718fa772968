"""HR, NDCG and MRR at k of each user, from the rank of the user's single target.

``ranks`` (U,) count from 1, the best. With a single target the ideal DCG is 1, so NDCG@k is
1 / log2(rank + 1), as in RecBole and the paper (arXiv 2406.12580, section 4.1).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from recblr.config import check_value, plain_value
from recblr.data.vocabulary import as_list
from recblr.errors import InputError

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


def as_cutoffs(k: Any) -> tuple[int, ...]:
    """One cutoff or several, as a user gives them.

    Raises:
        InputError: there is none, or one is not a whole number from 1.
    """
    k = plain_value(k)
    values = [k] if isinstance(k, int | float | str) else as_list(k, "k")
    cutoffs = tuple(dict.fromkeys(check_value(value, int, "k") for value in values))
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"k must be one or more whole numbers from 1, found {list(cutoffs)}")
    return cutoffs


def headline(names: Iterable[str]) -> tuple[str, str]:
    """Of the names of metrics, HR and NDCG at the first cutoff."""
    k = next(iter(names)).partition("@")[2]
    return f"HR@{k}", f"NDCG@{k}"


def per_user(ranks: np.ndarray, cutoffs: Iterable[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """Every metric at every cutoff, ``{"HR@10": (U,), …}``."""
    return {f"{name}@{k}": metric(ranks, k) for k in cutoffs for name, metric in METRICS.items()}


def means(ranks: np.ndarray, cutoffs: Iterable[int] = CUTOFFS) -> dict[str, float]:
    """Every metric at every cutoff, averaged over users."""
    return {name: float(values.mean()) for name, values in per_user(ranks, cutoffs).items()}


def intervals(
    ranks: np.ndarray, cutoffs: Iterable[int] = CUTOFFS
) -> dict[str, tuple[float, float]]:
    """The :func:`mean_interval` of every metric."""
    return {name: mean_interval(values) for name, values in per_user(ranks, cutoffs).items()}


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of values (U,) over users (percentile, 1,000 resamples).

    Resamples draw how often each distinct value occurs: the same as drawing users, but faster.
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    means = [rng.multinomial(len(values), counts / len(values)) @ distinct for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5]) / len(values)
    return float(low), float(high)
