"""Small logs and histories, and their parts by id."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from recblr.data.log import Interactions
from recblr.data.sequences import Part, Sequences
from recblr.data.split import leave_one_out

Event = tuple[str | int, str | int, int]  # user, item, time


def log_of(events: list[Event], timed: bool = True) -> Interactions:
    """Interactions as read_log returns them: codes in order of first appearance."""
    users = list(dict.fromkeys(user for user, _, _ in events))
    items = list(dict.fromkeys(item for _, item, _ in events))
    return Interactions(
        np.array([users.index(user) for user, _, _ in events], np.int32),
        np.array([items.index(item) for _, item, _ in events], np.int32),
        np.array([time for _, _, time in events]) if timed else None,
        pa.array(users),
        pa.array(items),
        source="<test>",
    )


def histories(data: Sequences) -> dict[Any, list[Any]]:
    """The items of each user, by id."""
    names = [*data.item_ids.to_pylist(), None]  # index V: not in the vocabulary
    return {
        user: [names[item] for item in data.items[data.offsets[row] : data.offsets[row + 1]]]
        for row, user in enumerate(data.user_ids.to_pylist())
    }


def held_out(data: Sequences, part: Part) -> dict[Any, int]:
    """The position of the target in the history of each user that has one."""
    rows = getattr(data.split, part)
    users = data.user_ids.to_pylist()
    return {users[u]: int(rows[u] - data.offsets[u]) for u in np.flatnonzero(rows >= 0)}


def sequences(lists: list[list[int]], item_ids: list[Any], **changes: Any) -> Sequences:
    """Histories of item indices under the leave-one-out split."""
    offsets = np.cumsum([0, *map(len, lists)])
    items = np.array([item for items in lists for item in items], np.int32)
    users = pa.array([f"u{number}" for number in range(len(lists))])
    data = Sequences(items, offsets, users, pa.array(item_ids), leave_one_out(offsets), 1)
    return replace(data, **changes)
