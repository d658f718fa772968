"""Add the events of another log to histories.

Axes: U users and N events of the histories, M events of the other log.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from recblr.data.batches import ranges
from recblr.data.kinds import LEAVE_OUT, Kinds, check_number
from recblr.data.log import Interactions
from recblr.data.preparing import sort_events
from recblr.data.sequences import Part, Sequences, index_in
from recblr.data.split import Split
from recblr.data.times import UNITS, to_nanoseconds
from recblr.data.vocabulary import extend
from recblr.errors import InputError


@dataclass(frozen=True)
class Added:
    """What a log has added to the histories of a model."""

    events: int
    known_events: int  # in the histories already, and not added again
    users: int  # new ones
    items: int

    def __str__(self) -> str:
        known = f" ({self.known_events:,} were there already)" if self.known_events else ""
        return (
            f"{self.events:,} new events{known}, {self.users:,} new users, {self.items:,} new items"
        )


def add_events(data: Sequences, log: Interactions) -> tuple[Sequences, Added]:
    """Sort the events of a log into the histories of its users, in order of time.

    An event with the user, item and time of an event that is there already is left out. Without times,
    every event is new, and later than those of the histories. Known users and items keep their rows.

    Returns:
        The longer histories, without held-out events, and how much was added. The training part of a
        user ends before the first event that was not in a training part of ``data``.

    Raises:
        InputError: the times, the ids, the weights or the kinds of the logs do not fit together.
    """
    user_ids, user_of = extend(data.user_ids, log.user_ids, "user")
    item_ids, item_of = extend(data.item_ids, log.item_ids, "item")
    new_users, new_items = user_of[log.users], item_of[log.items]
    times, new_times, unit = _comparable_times(data, log)
    order, new_times, *_ = sort_events(new_users, new_items, new_times)
    new_users, new_items = new_users[order], new_items[order]
    users = np.repeat(np.arange(data.users), np.diff(data.offsets))
    known = np.zeros(len(new_users), bool)
    if times is not None and new_times is not None:
        rows = np.flatnonzero(np.isin(users, new_users))
        known = _known(
            (users[rows], data.items[rows], times[rows]), (new_users, new_items, new_times)
        )
        times = np.concatenate([times, new_times[~known]])
    in_training = np.arange(len(users)) < data.split.train_end[users]
    users = np.concatenate([users, new_users[~known]])
    items = np.concatenate([data.items, new_items[~known].astype(np.int32)])
    weights = _joined_weights(data, log, order[~known])
    kinds = _joined_kinds(data, log, order[~known])
    # Both sorts are stable: of equal times, the new events come last.
    by_user = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    counts = np.bincount(users, minlength=len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    in_training = np.concatenate([in_training, np.zeros(len(items) - len(in_training), bool)])
    untrained = np.append(np.flatnonzero(~in_training[by_user]), len(items))
    first = untrained[np.searchsorted(untrained, offsets[:-1])]
    none = np.full(len(user_ids), -1)
    split = Split(data.split.name, np.minimum(first, offsets[1:]), none, none)
    added = Added(
        len(items) - len(data.items), int(known.sum()), len(user_ids) - data.users,
        len(item_ids) - len(data.item_ids),
    )  # fmt: skip
    longer = Sequences(
        items[by_user], offsets, user_ids, item_ids, split, data.core, {},
        None if times is None else times[by_user], None if weights is None else weights[by_user],
        None if kinds is None else kinds.at(by_user), data.gaps,
    )  # fmt: skip
    longer.summary.update(_summary(longer, data, added), unit=unit)
    return longer, added


def _joined_weights(data: Sequences, log: Interactions, rows: np.ndarray) -> np.ndarray | None:
    """The weights of the histories, followed by those of some rows of the log; None without weights.

    Without weights in the log, its events get the mean of the histories.
    """
    if data.weights is None and log.weights is None:
        return None
    if data.weights is None:
        raise InputError(
            f"{log.source}: has weights, but the log of the model has none; leave them out with "
            "columns={'weight': None} (command line: --columns weight=)"
        )
    if log.weights is not None:
        return np.concatenate([data.weights, log.weights[rows]])
    mean = data.weights.mean(dtype=np.float64)
    warnings.warn(
        f"{log.source}: has no weights, but the log of the model has; the new events get their mean, "
        f"{mean:g}",
        stacklevel=4,
    )
    return np.concatenate([data.weights, np.full(len(rows), mean, np.float32)])


def _joined_kinds(data: Sequences, log: Interactions, rows: np.ndarray) -> Kinds | None:
    """The kinds of the histories, followed by those of some rows of the log; None without kinds.

    Known kinds keep their codes, new ones follow. Without kinds in the log, its events have none.
    """
    if data.kinds is None and log.kinds is None:
        return None
    if data.kinds is None:
        raise InputError(
            f"{log.source}: has kinds, but the log of the model has none; leave them out with "
            f"{LEAVE_OUT}"
        )
    names, codes = data.kinds.names, np.zeros(len(rows), np.uint8)
    if log.kinds is None:
        warnings.warn(
            f"{log.source}: has no kinds, but the log of the model has; the new events have none",
            stacklevel=4,
        )
    else:
        names += tuple(name for name in log.kinds.names if name not in names)
        check_number(names, log.source)
        codes = log.kinds.in_terms_of(names).codes[rows]
    return Kinds(np.concatenate([data.kinds.codes, codes]), names)


def _comparable_times(
    data: Sequences, log: Interactions
) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """The times of both in one unit, and the unit. Both are None if ``data`` has no times."""
    unit, times, new = data.summary.get("unit", ""), data.times, log.timestamps
    if times is None:
        warnings.warn(
            "the log of the model has no times, so all events of the new log are taken for new ones, "
            "later than those of the model",
            stacklevel=4,
        )
        return None, None, unit
    if new is None:
        raise InputError(
            f"{log.source}: has no times, but the log of the model has; give a log with a column of "
            "times"
        )
    if unit == log.unit and (times.dtype == new.dtype or not unit):
        return times, new, unit
    if unit not in UNITS or log.unit not in UNITS:
        names = (name or "numbers in no unit that is known" for name in (log.unit, unit))
        raise InputError(
            "{}: its times are {}, those of the model's log are {}; write them alike".format(
                log.source, *names
            )
        )
    return to_nanoseconds(times, unit), to_nanoseconds(new, log.unit), "nanoseconds"


def _known(
    old: tuple[np.ndarray, np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Mask (M,) of the new events whose user, item and time an old one has."""
    users, items, times = (np.concatenate(pair) for pair in zip(old, new, strict=True))
    is_new = np.arange(len(users)) >= len(old[0])
    order = np.lexsort((is_new, times, items, users))
    keys = [array[order] for array in (users, items, times)]
    differs = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(np.concatenate([[True], differs]))  # of equal events, old ones first
    sizes = np.diff(np.append(starts, len(users)))
    known = np.zeros(len(users), bool)
    known[order] = np.repeat(~is_new[order][starts], sizes)
    return known[len(old[0]) :]


def _summary(longer: Sequences, data: Sequences, added: Added) -> dict[str, object]:
    """The summary of ``data`` with the counts of the longer histories."""
    kept = {
        "users": longer.users, "items": len(longer.item_ids), "interactions": len(longer.items)
    }  # fmt: skip
    more = {"users": added.users, "items": added.items, "interactions": added.events}
    read = data.summary.get("read", data.summary.get("kept", {}))
    return {
        **data.summary,
        "kept": kept,
        "read": {name: number + more[name] for name, number in read.items()},
        "training_interactions": longer.training_events,
        "validation_users": 0,
        "test_users": 0,
    }


def count_trained(data: Sequences, other: Sequences, part: Part) -> int:
    """The number of events to predict in a part of another log that the training part of ``data`` has.

    An event is the same if user, item and time are; if the times do not compare, the place in the
    history instead of the time. Both logs have the same item ids.
    """
    targets = getattr(other.split, part)
    chosen = np.flatnonzero(targets >= 0)
    rows, users = targets[chosen], index_in(other.user_ids, data.user_ids)[chosen]
    items, size = other.items[rows], len(data.item_ids) + 1  # 1 for the items that are not known
    lengths = data.split.train_end - data.offsets[:-1]
    old_users = np.repeat(np.arange(data.users), lengths)
    old_rows = ranges(data.offsets[:-1], lengths)
    # Only few events have the user and the item of a target.
    pairs, wanted = old_users * size + data.items[old_rows], np.sort(users * size + items)
    places = np.searchsorted(wanted, pairs).clip(max=len(wanted) - 1)
    same = wanted[places] == pairs if len(wanted) else np.zeros(len(pairs), bool)
    old_users, old_rows = old_users[same], old_rows[same]
    same_unit = data.summary.get("unit") == other.summary.get("unit")
    if data.times is not None and other.times is not None and same_unit:
        old_times, times = data.times[old_rows], other.times[rows]
    else:
        old_times, times = old_rows - data.offsets[old_users], rows - other.offsets[chosen]
    old = (old_users, data.items[old_rows], old_times)
    return int(_known(old, (users, items, times)).sum())
