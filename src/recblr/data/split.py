"""Which events train, which one validates, which one tests; and the k-core filter before it."""

from dataclasses import dataclass

import numpy as np

from recblr.errors import InputError

SPLITS = ("leave-one-out", "time", "time-last")
TOO_FEW = "too few distinct timestamps to split by time; use leave-one-out"


@dataclass(frozen=True, eq=False)
class Split:
    """For each of U users, rows of the flat array of histories.

    ``train_end`` (U,): the user's rows before it train. ``validation`` and ``test`` (U,): the row
    that is to be predicted from the user's rows before it, or -1 where the user has none.
    """

    name: str
    train_end: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Mask (N,) of the events left when users and items with fewer than ``k`` events are removed,
    again and again until none is left to remove."""
    alive = np.ones(len(users), bool)
    while True:
        enough_users = np.bincount(users[alive], minlength=users.max(initial=-1) + 1) >= k
        enough_items = np.bincount(items[alive], minlength=items.max(initial=-1) + 1) >= k
        keep = alive & enough_users[users] & enough_items[items]
        if keep.sum() == alive.sum():
            return alive
        alive = keep


def time_cuts(timestamps: np.ndarray | None, last: bool = False) -> tuple[float, float]:
    """The times at which validation and test begin.

    After 80% and 90% of all events; or, for ``last``, just after the 0.9 quantile of the times for
    the test, and of those before it just after their 0.9 quantile, the 0.81 of all, for validation.
    """
    if timestamps is None:
        raise InputError("a split by time needs a timestamp column; use the leave-one-out split")
    if last:
        test = _after_quantile(timestamps)
        return _after_quantile(timestamps[timestamps < test]), test
    validation, test = np.quantile(timestamps, [0.8, 0.9], method="higher")
    if not timestamps.min() < validation < test:
        raise InputError(TOO_FEW)
    return validation, test


def _after_quantile(timestamps: np.ndarray) -> float:
    """The first time that is greater than the 0.9 quantile."""
    # No time lies between the two it may be interpolated from, so the lower one is enough; and exact.
    later = timestamps[timestamps > np.quantile(timestamps, 0.9, method="lower")]
    if not len(later):
        raise InputError(TOO_FEW)
    first: float = later.min()
    return first


def leave_one_out(offsets: np.ndarray) -> Split:
    """The last event of each user tests, the one before validates (the paper's way).

    Users of fewer than three events only train.
    """
    ends = offsets[1:]
    held = np.diff(offsets) >= 3
    return Split(
        "leave-one-out",
        train_end=np.where(held, ends - 2, ends),
        validation=np.where(held, ends - 2, -1),
        test=np.where(held, ends - 1, -1),
    )


def by_time(
    offsets: np.ndarray, timestamps: np.ndarray, cuts: tuple[float, float], last: bool = False
) -> Split:
    """Events before the first cut train; the first event of a user between the cuts validates, and
    the first after the second cut tests. With ``last`` it is the last event there (arXiv 2507.16289).
    Each is predicted from everything the user did before. No training event is later than an event
    that is predicted."""
    starts, ends = offsets[:-1], offsets[1:]

    def first_from(cut: float) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(timestamps < cut)])
        return starts + before[ends] - before[starts]

    train_end, later = first_from(cuts[0]), first_from(cuts[1])
    validation, test = (later - 1, ends - 1) if last else (train_end, later)
    return Split(
        "time-last" if last else "time",
        train_end=train_end,
        validation=np.where((validation > starts) & (train_end < later), validation, -1),
        test=np.where((test > starts) & (later < ends), test, -1),
    )
