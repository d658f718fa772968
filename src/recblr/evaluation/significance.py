"""Whether two models differ by more than the draw of the users explains.

Free functions of one value a user (U,), such as those of `metrics.per_user`. The users are
the same and in the same order for both models. They say nothing of how much training depends on its
seed.
"""

import numpy as np
from scipy import stats

from recblr.evaluation.metrics import mean_interval

_BLOCK = 1 << 20  # signs in memory at once, so that they also stay in the cache
_FEW = 10  # extreme flips, too few to tell how rare they are
_MANY = 1000  # users, so that the sum over them is as good as normal
_ROUNDING = 1e-12  # of a sum of floats, as a share of the sum of their sizes


def paired_test(ours: np.ndarray, theirs: np.ndarray, flips: int = 10_000, seed: int = 0) -> float:
    """The two-sided p of a paired randomisation test of the mean difference, in (0, 1].

    If the models were alike, every user's difference could as well have had the other sign: p is the
    share of such flips whose mean is at least as far from 0 as the one found. Users of equal values
    change nothing and are not flipped. All flips are gone through where they are no more than
    ``flips``; else so many are drawn and the one found counts among them, so that p is never 0. A p
    that is too small for the draws to tell is, of many users, that of the normal distribution which
    the mean of the flips has in the limit.

    Raises:
        ValueError: not one value for each user of both, or a value is not finite.
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
        sums = 2 * (kept @ differences) - total  # kept with their sign, the others turned
        extreme += int((np.abs(sums) >= limit).sum())
    if exact:
        return extreme / count
    if extreme < _FEW and users >= _MANY:
        p = 2 * stats.norm.sf(abs(total) / np.sqrt((differences**2).sum()))
        return max(float(p), np.finfo(float).tiny)
    return (1 + extreme) / (1 + count)


def holm(p: np.ndarray) -> np.ndarray:
    """The p (M,) of a family of comparisons, raised so that any error among them is as rare as one.

    The k-th smallest is multiplied by M - k + 1; none falls below a smaller one or exceeds 1 (Holm,
    "A simple sequentially rejective multiple test procedure", 1979).
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(raised, 1)
    return adjusted


def difference_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of ours - theirs, see `metrics.mean_interval`.

    Raises:
        ValueError: not one value for each user of both, no user, or a value is not finite.
    """
    differences = _differences(ours, theirs)
    if not len(differences):
        raise ValueError("a mean needs at least one user")
    return mean_interval(differences, seed)


def _differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"one value a user of both: found {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a value is not finite")
    return ours.astype(float) - theirs.astype(float)
