"""Filter, sort and split a log of events into histories.

Axes: N events, U users.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recblr.config import check_count
from recblr.data import split as splits
from recblr.data.log import Interactions
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError

SURE = 20  # pairs of events that must run backwards before a log counts as newest first
NEWEST_FIRST = "; newest first, so equal times are in order from the last row"


def prepare(log: Interactions, core: int = 1, split: str = "leave-one-out") -> Sequences:
    """Filter, sort and split a log.

    Args:
        log: the events.
        core: keep users and items with at least this many events (k-core). For a split by time,
            only events before the validation period count, so that the filter does not look ahead.
        split: "leave-one-out", "time" or "time-last".

    Raises:
        InputError: no user is left with two training events, or the log cannot be split by time.
    """
    split = splits.check_split(split)
    if not isinstance(log, Interactions):
        raise InputError(f"prepare takes Interactions, not {type(log).__name__}; use open_log")
    core = check_count(core, "core")
    last = split == "time-last"
    cuts = None if split == "leave-one-out" else splits.time_cuts(log.timestamps, last)
    keep, kept_users, kept_items = _filter(log, core, None if cuts is None else cuts[0])
    rows = slice(None) if keep.all() else keep  # a slice copies nothing
    users = (np.cumsum(kept_users) - 1).astype(np.int32)[log.users[rows]]
    items = (np.cumsum(kept_items) - 1).astype(np.int32)[log.items[rows]]
    times = None if log.timestamps is None else log.timestamps[rows]
    order, times, newest_first, duplicates = sort_events(users, items, times)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=kept_users.sum()))])
    offsets = offsets.astype(np.int64)
    if cuts is None:
        parts = splits.leave_one_out(offsets)
    else:
        assert times is not None
        parts = splits.by_time(offsets, times, cuts, last)
    kept = {"users": len(offsets) - 1, "items": int(kept_items.sum()), "interactions": len(items)}
    read = {"users": len(log.user_ids), "items": len(log.item_ids), "interactions": len(log)}
    counts = PartCounts.of(parts, offsets)
    summary = summarise(log, read, kept, core, split, counts, newest_first, duplicates)
    return Sequences(
        items[order],
        offsets,
        log.user_ids.filter(pa.array(kept_users)),
        log.item_ids.filter(pa.array(kept_items)),
        parts,
        core,
        summary,
        times,
        None if log.weights is None else log.weights[rows][order],
        None if log.kinds is None else log.kinds.at(rows).at(order),
    )


@dataclass(frozen=True)
class PartCounts:
    """The events of the parts of some histories.

    Attributes:
        training: the number of training events. longest: the most of a user.
        validation, test: the number of users with an event to predict.
    """

    training: int = 0
    longest: int = 0
    validation: int = 0
    test: int = 0

    @staticmethod
    def of(parts: Split, offsets: np.ndarray) -> "PartCounts":
        """Count the parts of the histories that begin at ``offsets``, (U + 1,)."""
        lengths = parts.train_end - offsets[:-1]
        return PartCounts(
            int(lengths.sum()), int(lengths.max(initial=0)),
            int((parts.validation >= 0).sum()), int((parts.test >= 0).sum()),
        )  # fmt: skip

    def __add__(self, other: "PartCounts") -> "PartCounts":
        return PartCounts(
            self.training + other.training, max(self.longest, other.longest),
            self.validation + other.validation, self.test + other.test,
        )  # fmt: skip


def summarise(
    log: Interactions, read: Mapping[str, int], kept: Mapping[str, int], core: int, split: str,
    counts: PartCounts, newest_first: bool, duplicates: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The summary of prepared histories.

    Args:
        log: what describes the order of the log; its events are not looked at.
        read, kept: the numbers of users, items and interactions.
        core: the k of the filter.
        split: the name of the split.
        counts: of the parts.
        newest_first: whether the log has its newest events first.
        duplicates: the number of rows that repeat another; None if not known.

    Raises:
        InputError: no user has two events to train on, or none has one to predict.
    """
    described = f"({read['interactions']:,} events, {core}-core, {split})"
    if counts.longest < 2:
        smaller = " or a smaller core" * (core > 1)
        raise InputError(
            f"{log.source}: no user is left with two events to train on {described}; give a longer "
            f"log{smaller}"
        )
    if not counts.test:
        part = "test" if counts.validation else "validation"
        by_time = split != "leave-one-out"
        needs = "with events before and in that part" if by_time else "with three events"
        raise InputError(
            f"{log.source}: no user has an event to predict in the {part} part {described}; give a "
            f"log that has users {needs}, or another split"
        )
    return {
        "source": log.source,
        "order": log.order + NEWEST_FIRST * newest_first,
        "unit": log.unit,
        "read": dict(read),
        "kept": dict(kept),
        "duplicate_rows_kept": duplicates,
        "training_interactions": counts.training,
        "validation_users": counts.validation,
        "test_users": counts.test,
    }


def sort_events(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, bool, int | None]:
    """Sort events by user and time.

    Events of a user at the same time stay in the order of the log, which is reversed if the log has its
    newest events first.

    Returns:
        The rows in the new order, their times, whether the log has its newest events first, and the
        number of rows that repeat another; None without times.
    """
    if times is None:
        return np.argsort(users, kind="stable"), None, False, None
    order = np.lexsort((times, users))
    sorted_users, sorted_times = users[order], times[order]
    later, forward = steps(order, sorted_users, sorted_times)
    newest_first = later >= SURE and not forward
    if newest_first:
        order = len(users) - 1 - np.lexsort((times[::-1], users[::-1]))
    duplicates = count_duplicates(sorted_users, items[order], sorted_times)
    return order, sorted_times, newest_first, duplicates


def steps(order: np.ndarray, users: np.ndarray, times: np.ndarray) -> tuple[int, bool]:
    """The number of events later than the one before of their user, and whether any of them is in a
    later row of the log.

    Args:
        order: the rows, sorted by user and time, as are ``users`` and ``times``.
    """
    later = (users[1:] == users[:-1]) & (times[1:] > times[:-1])
    return int(later.sum()), bool(np.any(later & (order[1:] > order[:-1])))


def _filter(
    log: Interactions, core: int, cut: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of the events (N,), users and items that the k-core filter keeps.

    With a ``cut`` the filter counts only events before that time. Later events are kept if their
    user and item are.
    """
    counted = np.ones(len(log), bool) if cut is None else log.timestamps < cut  # type: ignore[operator]
    events = np.zeros(len(log), bool)
    events[counted] = splits.k_core(log.users[counted], log.items[counted], core)
    users = np.zeros(len(log.user_ids), bool)
    items = np.zeros(len(log.item_ids), bool)
    users[log.users[events]] = True
    items[log.items[events]] = True
    if cut is not None:
        events |= ~counted & users[log.users] & items[log.items]
    return events, users, items


def count_duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> int:
    """The number of rows that repeat an earlier row; the rows are sorted by user and time."""
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    rows = np.flatnonzero(np.concatenate([[False], tied]) | np.concatenate([tied, [False]]))
    users, items, times = users[rows], items[rows], times[rows]
    order = np.lexsort((items, times, users))
    users, items, times = users[order], items[order], times[order]
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (items[1:] == items[:-1])
    return int(same.sum())
