"""Add the events of another log to histories."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.builders import Event, histories, log_of
from recblr.data.merge import add_events, count_trained
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import InputError

OLD: list[Event] = [
    ("u", "a", 1_000_000_000), ("u", "b", 1_000_000_010), ("u", "c", 1_000_000_020),
    ("v", "a", 1_000_000_005), ("v", "c", 1_000_000_015), ("v", "d", 1_000_000_025),
    ("v", "b", 1_000_000_028),
]  # fmt: skip


def timed(events: list[Event], **changes: Any) -> Any:
    return replace(log_of(events), unit="seconds", **changes)


def oracle(old: list[Event], new: list[Event]) -> dict[Any, list[Any]]:
    """The histories of both logs together, by sorting lists."""
    kept = old + [event for event in new if event not in old]
    users = dict.fromkeys(user for user, _, _ in kept)
    return {
        user: [item for _, item, _ in sorted((e for e in kept if e[0] == user), key=lambda e: e[2])]
        for user in users
    }


def test_new_events_users_and_items_are_added_and_known_events_are_not() -> None:
    data = prepare(timed(OLD))
    new: list[Event] = [
        OLD[2], ("u", "e", 1_000_000_030), ("w", "e", 1_000_000_000), ("v", "a", 1_000_000_030)
    ]  # fmt: skip
    longer, added = add_events(data, timed(new))
    assert histories(longer) == oracle(OLD, new) == {
        "u": ["a", "b", "c", "e"], "v": ["a", "c", "d", "b", "a"], "w": ["e"],
    }  # fmt: skip
    assert (added.events, added.known_events, added.users, added.items) == (3, 1, 1, 1)
    assert str(added) == "3 new events (1 were there already), 1 new users, 1 new items"
    assert longer.user_ids.to_pylist() == ["u", "v", "w"], "known users keep their rows"
    assert longer.item_ids.to_pylist() == ["a", "b", "c", "d", "e"]
    assert (longer.split.train_end - longer.offsets[:-1]).tolist() == [1, 2, 0], "as in `data`"
    assert (longer.split.validation == -1).all()
    assert (longer.split.test == -1).all()
    assert longer.summary["kept"] == {"users": 3, "items": 5, "interactions": 10}
    again, added = add_events(longer, timed(new))
    assert (added.events, added.known_events) == (0, 4)
    assert again.fingerprint == longer.fingerprint


def test_any_two_logs_give_the_histories_of_both_sorted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        events = [
            (f"u{rng.integers(4)}", f"i{rng.integers(5)}", int(1_000_000_000 + rng.integers(9)))
            for _ in range(rng.integers(1, 40))
        ]
        old = [*(("x", "i0", time) for time in range(4)), *events]
        new = [
            events[rng.integers(len(events))] if rng.integers(2) else
            (f"u{rng.integers(6)}", f"i{rng.integers(7)}", int(1_000_000_000 + rng.integers(9)))
            for _ in range(rng.integers(1, 20))
        ]  # fmt: skip
        data = prepare(timed(old))
        longer, added = add_events(data, timed(new))
        assert histories(longer) == oracle(old, new)
        assert added.known_events == sum(event in old for event in new)
        trained = {
            user: list(zip(items[: n - s], times[: n - s], strict=True))
            for user, (items, times, n, s) in _parts(data).items()
        }
        for user, (items, times, end, start) in _parts(longer).items():
            seen = list(zip(items, times, strict=True))[: end - start]
            assert all(pair in trained.get(user, []) for pair in seen)


def _parts(data: Sequences) -> dict[Any, Any]:
    assert data.times is not None
    lists = histories(data)
    return {
        user: (
            lists[user], data.times[data.offsets[row] : data.offsets[row + 1]].tolist(),
            int(data.split.train_end[row]), int(data.offsets[row]),
        )
        for row, user in enumerate(data.user_ids.to_pylist())
    }  # fmt: skip


def test_a_late_event_ends_the_training_part_before_it() -> None:
    data = prepare(timed(OLD)).all_for_training()
    longer, _ = add_events(data, timed([("u", "d", 1_000_000_005)]))
    assert histories(longer)["u"] == ["a", "d", "b", "c"]
    assert (longer.split.train_end - longer.offsets[:-1]).tolist() == [1, 4]


def test_units_of_times_are_converted() -> None:
    data = prepare(timed(OLD))
    new = [(user, item, time * 1000) for user, item, time in [OLD[0], ("u", "e", 1_000_000_030)]]
    longer, added = add_events(data, replace(log_of(new), unit="milliseconds"))
    assert (added.events, added.known_events) == (1, 1)
    assert longer.summary["unit"] == "nanoseconds"
    assert longer.times is not None
    assert longer.times.max() == 1_000_000_030 * 10**9
    with pytest.raises(InputError, match=r"numbers in no unit.*are seconds; write them alike"):
        add_events(data, log_of(new))


def test_logs_without_times() -> None:
    new: list[Event] = [("u", "c", 0), ("u", "e", 0)]
    with pytest.raises(InputError, match="has no times, but the log of the model has"):
        add_events(prepare(timed(OLD)), log_of(new, timed=False))
    with pytest.warns(UserWarning, match="all events of the new log are taken for new ones"):
        longer, added = add_events(prepare(log_of(OLD, timed=False)), log_of(new, timed=False))
    assert histories(longer)["u"] == ["a", "b", "c", "c", "e"]
    assert (added.events, added.known_events, longer.times) == (2, 0, None)


def test_ids_take_the_type_of_the_model() -> None:
    numbers = prepare(timed([(int(u == "u"), ord(i), t) for u, i, t in OLD]))
    texts: list[Event] = [("1", str(ord("a")), OLD[0][2]), ("1", "7", 1_000_000_030)]
    longer, added = add_events(numbers, timed(texts))
    assert (added.events, added.known_events, added.users, added.items) == (1, 1, 0, 1)
    assert longer.item_ids.type == pa.int64()
    assert longer.item_ids.to_pylist()[-1] == 7
    with pytest.raises(InputError, match="item '07' is text, and the items of the model's log are"):
        add_events(numbers, timed([("1", "07", 1_000_000_030)]))
    with pytest.raises(InputError, match="whole numbers"):
        add_events(numbers, timed([("1", str(2**63), 1_000_000_030)]))
    longer, _ = add_events(prepare(timed(OLD)), timed([(1, 2, 1_000_000_030)]))
    assert longer.item_ids.to_pylist()[-1] == "2"


@pytest.mark.parametrize("with_times", [True, False])
def test_events_that_were_trained_on_are_counted(with_times: bool) -> None:
    data = prepare(timed(OLD))
    assert count_trained(data, data, "test") == 0
    everything = data.all_for_training()
    other = data if with_times else replace(data, times=None)
    assert count_trained(everything, other, "test") == 2
    later, _ = add_events(data, timed([("v", "d", 1_000_000_030)]))
    later = replace(later, split=replace(later.split, test=later.offsets[1:] - 1))
    assert count_trained(everything, later.with_items(data.item_ids, "test"), "test") == 1
