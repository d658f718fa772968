"""Whether the choice of users explains the difference between two models.

The functions take one value per user (U,), such as those of `metrics.per_user`, for the same users in
the same order. They do not measure how much a result depends on the seed of training.
"""

import numpy as np
from scipy import stats

from recblr.evaluation.metrics import mean_interval

_BLOCK = 1 << 20  # signs in memory at a time, so that they stay in the cache
_MIN_EXTREME = 10  # extreme flips; from fewer, p cannot be estimated
_NORMAL_USERS = 1000  # from this many, the sum over users is practically normal
_ROUNDING = 1e-12  # error of a sum of floats, relative to the sum of their absolute values


def paired_test(ours: np.ndarray, theirs: np.ndarray, flips: int = 10_000, seed: int = 0) -> float:
    """The two-sided p of a paired randomisation test of the mean difference, in (0, 1].

    If the models were equal, the difference of each user could have had the other sign as well. p is
    the share of sign flips whose mean is at least as far from 0 as the observed mean. Users with equal
    values are not flipped. If there are at most ``flips`` flips, all are counted; otherwise ``flips``
    are drawn, and the observed one counts as well, so that p is never 0. If too few drawn flips are
    extreme and users are many, p is that of the normal distribution, the limit of the mean.

    Raises:
        ValueError: the two do not have one value per user each, or a value is not finite.
    """
    differences = _differences(ours, theirs)
    differences = differences[differences != 0]
    users, total = len(differences), differences.sum()
    exact = 2**users <= flips
    count = 2**users if exact else flips
    bytes_each = -(-users // 8)
    rng = np.random.default_rng(seed)
    limit = abs(total) - _ROUNDING * np.abs(differences).sum()
    extreme = 0
    block = max(1, _BLOCK // max(1, users))
    for first in range(0, count, block):
        rows = min(block, count - first)
        if exact:
            numbers = np.arange(first, first + rows, dtype="<u8")
            packed = numbers.view(np.uint8).reshape(rows, 8)[:, :bytes_each]
        else:
            packed = rng.integers(0, 256, (rows, bytes_each), np.uint8)
        kept = np.unpackbits(packed, axis=1, count=users, bitorder="little")
        sums = 2 * (kept @ differences) - total  # the others are flipped
        extreme += int((np.abs(sums) >= limit).sum())
    if exact:
        return extreme / count
    if extreme < _MIN_EXTREME and users >= _NORMAL_USERS:
        p = 2 * stats.norm.sf(abs(total) / np.sqrt((differences**2).sum()))
        return max(float(p), np.finfo(float).tiny)
    return (1 + extreme) / (1 + count)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct the p (M,) of several comparisons by the step-down method of Holm.

    The k-th smallest p is multiplied by M - k + 1, is at least as large as the smaller ones, and is at
    most 1. The probability of any false positive is then at most the level (Holm, "A simple
    sequentially rejective multiple test procedure", 1979).
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(raised, 1)
    return adjusted


def difference_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of ours - theirs, see `metrics.mean_interval`.

    Raises:
        ValueError: the two do not have one value per user each, there is no user, or a value is not
            finite.
    """
    differences = _differences(ours, theirs)
    if not len(differences):
        raise ValueError("a mean needs at least one user")
    return mean_interval(differences, seed)


def _differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"expected one value per user of both: found {ours.shape}, {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a value is not finite")
    return ours.astype(float) - theirs.astype(float)
