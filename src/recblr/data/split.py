"""The k-core filter, and the split into training, validation and test events."""

from dataclasses import dataclass

import numpy as np

from recblr.errors import InputError

SPLITS = ("leave-one-out", "time", "time-last")
TOO_FEW = "too few distinct timestamps to split by time; use leave-one-out"


def check_split(name: str) -> str:
    """The name of a split; InputError for an unknown one."""
    if name not in SPLITS:
        raise InputError(f"unknown split {name!r}; choose one of {', '.join(SPLITS)}")
    return name


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the array of all histories, for each of U users.

    Attributes:
        name: one of :data:`SPLITS`.
        train_end: (U,) a user's rows before this one are for training.
        validation, test: (U,) the row to predict from all earlier rows of the user; -1 for none.
    """

    name: str
    train_end: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __repr__(self) -> str:
        counts = ((part, (getattr(self, part) >= 0).sum()) for part in ("validation", "test"))
        return f"Split({self.name!r}, {', '.join(f'{n:,} {part} users' for part, n in counts)})"


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Mask (N,) of the events that remain.

    Users and items with fewer than ``k`` events are removed until every one left has ``k``.
    """
    kept = np.ones(len(users), bool)
    while True:
        enough_users = np.bincount(users[kept], minlength=users.max(initial=-1) + 1) >= k
        enough_items = np.bincount(items[kept], minlength=items.max(initial=-1) + 1) >= k
        still_kept = kept & enough_users[users] & enough_items[items]
        if still_kept.sum() == kept.sum():
            return kept
        kept = still_kept


def time_cuts(timestamps: np.ndarray | None, last: bool = False) -> tuple[float, float]:
    """The times at which validation and test begin.

    By default after 80% and 90% of all events. With ``last``, test begins after the 0.9 quantile of
    the times, and validation after the 0.9 quantile of the times before the test.

    Raises:
        InputError: there are no times, or too few distinct ones.
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
    # method="lower" is exact, and no time is between it and the interpolated quantile.
    later = timestamps[timestamps > np.quantile(timestamps, 0.9, method="lower")]
    if not len(later):
        raise InputError(TOO_FEW)
    first: float = later.min()
    return first


def leave_one_out(offsets: np.ndarray) -> Split:
    """The last event of each user is for test, the one before for validation, as in the paper.

    All events of users with fewer than three events are for training.
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
    """Events before the first cut are for training, and no training event is later than a target.

    The targets are a user's first event between the cuts (validation) and first event after the
    second cut (test); with ``last``, the last event there (arXiv 2507.16289). A user needs an event
    before the target.
    """
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
