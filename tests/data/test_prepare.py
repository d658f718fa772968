"""Filter, sort and split a log, against plain loops."""

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.builders import Event, held_out, histories, log_of
from recblr.data.preparing import prepare
from recblr.errors import InputError

EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(10, 15), st.integers(0, 9)), min_size=1, max_size=40
)

A: list[Event] = [("a", f"i{time % 4}", time) for time in range(9)]


def core_of(events: list[Event], k: int) -> list[Event]:
    """The events that a naive k-core filter keeps."""
    while True:
        users, items = (Counter(event[column] for event in events) for column in (0, 1))
        kept = [event for event in events if users[event[0]] >= k and items[event[1]] >= k]
        if kept == events:
            return kept
        events = kept


@settings(deadline=None)
@given(EVENTS, st.booleans(), st.integers(1, 3))
def test_prepare_equals_a_plain_loop(events: list[Event], timed: bool, core: int) -> None:
    left = core_of(events, core)
    truth = defaultdict(list)
    for user, item, _ in sorted(left, key=lambda event: event[2]) if timed else left:  # stable
        truth[user].append(item)
    long = {user: len(items) for user, items in truth.items() if len(items) >= 3}
    trains = any(len(items) - 2 * (user in long) >= 2 for user, items in truth.items())
    if not (trains and long):
        expected = (
            "no user has an event to predict" if trains else "no user is left with two events"
        )
        with pytest.raises(InputError, match=expected):
            prepare(log_of(events, timed), core)
        return
    data = prepare(log_of(events, timed), core)
    assert histories(data) == truth
    assert (data.core, data.split.name) == (core, "leave-one-out")
    assert held_out(data, "validation") == {user: length - 2 for user, length in long.items()}
    assert held_out(data, "test") == {user: length - 1 for user, length in long.items()}

    training = Counter(
        item for items in truth.values() for item in items[: len(items) - 2 * (len(items) >= 3)]
    )
    assert data.item_counts.tolist() == [training[item] for item in data.item_ids.to_pylist()]
    assert data.summary["read"]["interactions"] == len(events)
    assert data.summary["kept"] == {
        "users": len(truth),
        "items": len({event[1] for event in left}),
        "interactions": len(left),
    }
    assert data.summary["duplicate_rows_kept"] == (len(left) - len(set(left)) if timed else None)
    assert data.summary["training_interactions"] == training.total()
    assert data.summary["validation_users"] == data.summary["test_users"] == len(long)


def test_prepare_of_a_small_log() -> None:
    log = log_of(
        [("b", "x", 5), ("a", "z", 2), ("b", "y", 1), ("a", "y", 2), ("a", "x", 2), ("a", "x", 0),
         ("b", "y", 1), ("b", "x", 1)]
    )  # fmt: skip
    data = prepare(log)
    assert histories(data) == {"b": ["y", "y", "x", "x"], "a": ["x", "z", "y", "x"]}
    assert data.summary["duplicate_rows_kept"] == 1
    untimed = prepare(replace(log, timestamps=None))
    assert histories(untimed) == {"b": ["x", "y", "y", "x"], "a": ["z", "y", "x", "x"]}


def test_duplicates_are_counted_in_any_order() -> None:
    events: list[Event] = [("a", item, 1) for item in "xyxyx"]
    data = prepare(log_of([*events, ("a", "x", 2), ("b", "x", 1), ("b", "x", 1)]))
    assert data.summary["duplicate_rows_kept"] == 4


def cuts_of(times: list[int], split: str) -> tuple[int, int] | None:
    """The times at which validation and test begin; None for too few distinct times."""
    if split == "time":
        first, second = (times[-(-(len(times) - 1) * tenths // 10)] for tenths in (8, 9))
        return (first, second) if times[0] < first < second else None
    late = [time for time in times if time > times[(len(times) - 1) * 9 // 10]]
    early = times[: len(times) - len(late)]
    middle = [time for time in early if time > early[(len(early) - 1) * 9 // 10]]
    return (middle[0], late[0]) if middle and late else None


@pytest.mark.parametrize("split", ["time", "time-last"])
@settings(deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 4), st.integers(10, 14), st.integers(0, 30)),
        min_size=5,
        max_size=50,
    ),
    core=st.integers(1, 3),
)
def test_a_split_by_time_filters_by_past_events_only(
    split: str, events: list[Event], core: int
) -> None:
    cuts = cuts_of(sorted(time for _, _, time in events), split)
    past = [] if cuts is None else core_of([event for event in events if event[2] < cuts[0]], core)
    trained = Counter(user for user, _, _ in past)
    if cuts is None or max(trained.values(), default=0) < 2:
        with pytest.raises(
            InputError, match=r"too few distinct timestamps|no user is left with two"
        ):
            prepare(log_of(events), core, split)
        return
    kept = {item for _, item, _ in past}
    if not any(user in trained and item in kept and time >= cuts[1] for user, item, time in events):
        with pytest.raises(InputError, match="no user has an event to predict in the"):
            prepare(log_of(events), core, split)
        return
    users, items = ({event[column] for event in past} for column in (0, 1))
    truth: dict[Any, list[Any]] = defaultdict(list)
    at: dict[Any, list[int]] = defaultdict(list)
    for user, item, time in sorted(events, key=lambda event: event[2]):
        if user in users and item in items:
            truth[user].append(item)
            at[user].append(time)
    data = prepare(log_of(events), core, split)
    assert histories(data) == truth
    assert data.split.name == split
    ends = (data.split.train_end - data.offsets[:-1]).tolist()
    validation, test = held_out(data, "validation"), held_out(data, "test")
    for user, end in zip(data.user_ids.to_pylist(), ends, strict=True):
        first, second = (sum(time < cut for time in at[user]) for cut in cuts)
        whole = len(at[user])
        assert end == first
        valid, tested = (second - 1, whole - 1) if split == "time-last" else (first, second)
        assert validation.get(user) == (valid if first < second else None)
        assert test.get(user) == (tested if second < whole else None)


@pytest.mark.parametrize(
    ("events", "split", "part"),
    [
        ([*A[:8], ("u8", "i1", 8), ("u9", "i1", 9)], "time", "validation"),
        ([*A, ("u", "i1", 9)], "time", "test"),
        ([("a", "x", 1), ("a", "y", 2)], "leave-one-out", "validation"),
    ],
)  # fmt: skip
def test_prepare_refuses_a_split_that_leaves_nobody_to_test(
    events: list[Event], split: str, part: str
) -> None:
    with pytest.raises(InputError, match=f"no user has an event to predict in the {part} part"):
        prepare(log_of(events), split=split)


def test_users_and_items_frequent_only_after_the_cut_are_removed() -> None:
    past: list[Event] = [(u, i, t) for t in range(8) for u in ("a", "b") for i in ("x", "y")]
    late: list[Event] = [(u, "new", t) for t in (8, 9, 10) for u in ("a", "b")]
    late += [("late", "x", 8)] * 3 + [("a", "y", 9), ("a", "x", 10)]
    data = prepare(log_of(past + late), core=3, split="time")
    assert data.item_ids.to_pylist() == ["x", "y"]
    assert data.user_ids.to_pylist() == ["a", "b"]
    whole = prepare(log_of(past + late), core=3)
    assert "new" in whole.item_ids.to_pylist()
    assert "late" in whole.user_ids.to_pylist()


@pytest.mark.parametrize(
    ("events", "core", "split", "message"),
    [
        ([("a", "x", 0), ("a", "y", 1)], 1, "random", "unknown split 'random'; choose one of"),
        ([("a", "x", 0), ("a", "y", 1)], 0, "leave-one-out", "core must be at least 1, found 0"),
        ([("a", "x", 0), ("a", "y", 1)], 3, "leave-one-out", "no user is left.*3-core"),
        ([("a", "x", 0), ("b", "y", 1)], 1, "leave-one-out", "no user is left with two events"),
        ([("a", "x", 5)] * 9, 1, "time", "too few distinct timestamps"),
        ([("a", "x", 5)] * 9, 1, "time-last", "too few distinct timestamps"),
        ([(t, "x", t) for t in range(20)], 2, "time", "no user is left with two events"),
    ],
)
def test_prepare_refuses_bad_arguments_and_small_logs(
    events: list[Event], core: int, split: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(log_of(events), core, split)


@pytest.mark.parametrize("split", ["time", "time-last"])
def test_a_split_by_time_refuses_a_log_without_times(split: str) -> None:
    with pytest.raises(InputError, match="needs a timestamp column"):
        prepare(log_of([("a", "x", t) for t in range(20)], timed=False), split=split)
