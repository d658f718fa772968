"""What the ranks of several seeds say of a published figure, and of one model against another.

Axes: S seeds, U users; a user's value is the mean over the seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from recblr.evaluation import metrics

MAIN = "NDCG@10"  # the metric that rows are compared by
ALPHA = 0.01  # of the paper's star
WITH_MEMORY = " + memory"  # ends the name of a row whose scores the memory of transitions adds to


def per_user(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric (U,) of ranks (S, U), averaged over the seeds."""
    return {name: values.mean(0) for name, values in metrics.per_user(ranks).items()}


def judge(mean: float, interval: tuple[float, float], published: float) -> str:
    """Ours is "reproduced" where the published value lies in the interval, else "better" or "worse"."""
    low, high = interval
    if low <= published <= high:
        return "reproduced"
    return "better" if mean > published else "worse"


def judged(ranks: np.ndarray, published: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Of every metric the mean, the deviation over seeds (None of one), the interval, the verdict.

    Args:
        ranks: (S, U).
        published: the paper's value of some of the metrics; "difference" is ours less that.
    """
    seeds = [metrics.means(of_seed) for of_seed in ranks]
    found: dict[str, dict[str, Any]] = {}
    for name, of_users in per_user(ranks).items():
        values, interval = [of_seed[name] for of_seed in seeds], metrics.mean_interval(of_users)
        mean = float(np.mean(values))
        found[name] = {
            "mean": mean,
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "interval": list(interval),
        }
        if name in published:
            found[name] |= {
                "published": published[name],
                "difference": mean - published[name],
                "percent": 100 * (mean / published[name] - 1),
                "verdict": judge(mean, interval, published[name]),
            }
    return found


def best(values: Mapping[str, np.ndarray]) -> str:
    """The row of the greatest mean."""
    return max(values, key=lambda row: values[row].mean())


def order(ours: Mapping[str, float], published: Mapping[str, float]) -> float | None:
    """Kendall's tau of two orders of the same rows, 1 where they are equal; None below two rows."""
    rows = [row for row in published if row in ours]
    if len(rows) < 2:
        return None
    tau = stats.kendalltau([ours[row] for row in rows], [published[row] for row in rows]).statistic
    return None if np.isnan(tau) else float(tau)


def contradictions(
    ours: Mapping[str, float], published: Mapping[str, float]
) -> list[tuple[str, str]]:
    """The pairs (better, worse) of our order which the published one has the other way."""
    rows = [row for row in published if row in ours]
    return [
        (first, second)
        for first in rows
        for second in rows
        if ours[first] > ours[second] and published[first] < published[second]
    ]
