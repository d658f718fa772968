"""Which events train, which one validates, which one tests; and the k-core filter before it."""

from dataclasses import dataclass

import numpy as np

from recblr.errors import InputError

SPLITS = ("leave-one-out", "time")


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


def time_cuts(timestamps: np.ndarray | None) -> tuple[float, float]:
    """The times at which validation and test begin: after 80% and 90% of all events."""
    if timestamps is None:
        raise InputError("a split by time needs a timestamp column; use the leave-one-out split")
    validation, test = np.quantile(timestamps, [0.8, 0.9], method="higher")
    if not timestamps.min() < validation < test:
        raise InputError("too few distinct timestamps to split by time; use leave-one-out")
    return validation, test


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


def by_time(offsets: np.ndarray, timestamps: np.ndarray, cuts: tuple[float, float]) -> Split:
    """Events before the first cut train; the first event of a user after it validates, and the first
    after the second cut tests, each from everything the user did before. No training event is later
    than an event that is predicted."""
    starts, ends = offsets[:-1], offsets[1:]

    def first_from(cut: float) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(timestamps < cut)])
        return starts + before[ends] - before[starts]

    train_end, later = first_from(cuts[0]), first_from(cuts[1])
    return Split(
        "time",
        train_end=train_end,
        validation=np.where((train_end > starts) & (train_end < later), train_end, -1),
        test=np.where((later > starts) & (later < ends), later, -1),
    )
