"""From a log to histories, to disk and back, and into another vocabulary."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.batches import pack
from recblr.data.log import Interactions
from recblr.data.sequences import Part, Sequences, prepare
from recblr.data.split import leave_one_out
from recblr.errors import InputError

Event = tuple[str | int, str | int, int]  # user, item, time
EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(10, 15), st.integers(0, 9)), min_size=1, max_size=40
)


def log_of(events: list[Event], timed: bool = True) -> Interactions:
    """As a reader makes it: codes in order of first appearance."""
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
    """The items of each user by their own ids."""
    names = [*data.item_ids.to_pylist(), None]  # index V: not in the vocabulary
    return {
        user: [names[item] for item in data.items[data.offsets[row] : data.offsets[row + 1]]]
        for row, user in enumerate(data.user_ids.to_pylist())
    }


def held_out(data: Sequences, part: Part) -> dict[Any, int]:
    """Where in the user's history the target stands, for users that have one."""
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


@pytest.fixture
def data() -> Sequences:
    return sequences([[0, 1, 2, 0], [2], [1, 1, 0]], ["a", "b", "c"])


# ---- prepare -------------------------------------------------------------------------------------


def core_of(events: list[Event], k: int) -> list[Event]:
    """Filter again and again by the counts of what is left."""
    while True:
        users, items = (Counter(event[column] for event in events) for column in (0, 1))
        kept = [event for event in events if users[event[0]] >= k and items[event[1]] >= k]
        if kept == events:
            return kept
        events = kept


@settings(deadline=None)
@given(EVENTS, st.booleans(), st.integers(1, 3))
def test_prepare_is_a_plain_loop(events: list[Event], timed: bool, core: int) -> None:
    left = core_of(events, core)
    truth = defaultdict(list)
    for user, item, _ in sorted(left, key=lambda event: event[2]) if timed else left:  # stable
        truth[user].append(item)
    if not any(len(items) - 2 * (len(items) >= 3) >= 2 for items in truth.values()):
        with pytest.raises(InputError, match="no user is left with two events to train on"):
            prepare(log_of(events, timed), core)
        return
    data = prepare(log_of(events, timed), core)
    assert histories(data) == truth
    assert (data.core, data.split.name) == (core, "leave-one-out")
    long = {user: len(items) for user, items in truth.items() if len(items) >= 3}
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


def test_prepare_by_hand() -> None:
    log = log_of(
        [("b", "x", 5), ("a", "z", 2), ("b", "y", 1), ("a", "y", 2), ("a", "x", 2), ("a", "x", 0),
         ("b", "y", 1), ("b", "x", 1)]
    )  # fmt: skip
    data = prepare(log)
    assert histories(data) == {"b": ["y", "y", "x", "x"], "a": ["x", "z", "y", "x"]}
    assert data.summary["duplicate_rows_kept"] == 1
    untimed = prepare(replace(log, timestamps=None))
    assert histories(untimed) == {"b": ["x", "y", "y", "x"], "a": ["z", "y", "x", "x"]}


def test_duplicates_count_wherever_they_stand_in_a_tie() -> None:
    events: list[Event] = [("a", item, 1) for item in "xyxyx"]
    data = prepare(log_of([*events, ("a", "x", 2), ("b", "x", 1), ("b", "x", 1)]))
    assert data.summary["duplicate_rows_kept"] == 4


def cuts_of(times: list[int], split: str) -> tuple[int, int] | None:
    """Where validation and test begin, the times sorted; None where they cannot be cut."""
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
def test_the_split_by_time_filters_by_the_past_only(
    split: str, events: list[Event], core: int
) -> None:
    cuts = cuts_of(sorted(time for _, _, time in events), split)
    past = [] if cuts is None else core_of([event for event in events if event[2] < cuts[0]], core)
    if cuts is None or not any(n >= 2 for n in Counter(user for user, _, _ in past).values()):
        with pytest.raises(
            InputError, match=r"too few distinct timestamps|no user is left with two"
        ):
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


def test_what_is_frequent_only_after_the_cut_is_dropped() -> None:
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
def test_prepare_refuses(events: list[Event], core: int, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(log_of(events), core, split)


@pytest.mark.parametrize("split", ["time", "time-last"])
def test_a_split_by_time_needs_times(split: str) -> None:
    with pytest.raises(InputError, match="needs a timestamp column"):
        prepare(log_of([("a", "x", t) for t in range(20)], timed=False), split=split)


# ---- on disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["leave-one-out", "time", "time-last"])
@pytest.mark.parametrize("text", [True, False], ids=["strings", "integers"])
def test_what_is_saved_comes_back(tmp_path: Path, split: str, text: bool) -> None:
    rng = np.random.default_rng(0)
    ids = ["007", "7", "NA", "é\n", "", " "] if text else [7, -1, 2**62, 0, 5, 10**9]
    events: list[Event] = [
        (ids[u], ids[i], int(t)) for t, (u, i) in enumerate(rng.integers(0, 6, (200, 2)))
    ]
    data = prepare(log_of(events), 2, split)
    data.save(tmp_path / "p")
    found = Sequences.load(tmp_path / "p")
    assert isinstance(found.items, np.memmap)
    assert not found.items.flags.writeable
    for name in ("items", "offsets"):
        ours, theirs = getattr(found, name), getattr(data, name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
    for name in ("train_end", "validation", "test"):
        assert getattr(found.split, name).tolist() == getattr(data.split, name).tolist()
    assert found.user_ids.equals(data.user_ids)
    assert found.item_ids.equals(data.item_ids)
    assert set(found.item_ids.to_pylist()) == set(ids)
    assert (found.core, found.split.name, found.summary) == (2, split, data.summary)
    assert found.fingerprint == data.fingerprint
    assert found.item_counts.tolist() == data.item_counts.tolist()

    starts, stops = found.offsets[:-1], found.split.train_end
    ours, theirs = (pack(items, starts, stops - 1, "all") for items in (found.items, data.items))
    assert ours.items.tolist() == theirs.items.tolist()
    assert ours.targets.tolist() == theirs.targets.tolist()
    ours.items[0] = 99  # a copy of its own
    assert found.items[0] != 99


def test_save_does_not_overwrite_unless_asked(tmp_path: Path, data: Sequences) -> None:
    data.save(tmp_path / "p")
    other = replace(data, core=5)
    with pytest.raises(InputError, match="exists already"):
        other.save(tmp_path / "p")
    assert Sequences.load(tmp_path / "p").core == 1
    other.save(tmp_path / "p", overwrite=True)
    assert Sequences.load(tmp_path / "p").core == 5


FILES = ["items.npy", "offsets.npy", "split.npy", "users.parquet", "items.parquet", "prepared.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_an_error(tmp_path: Path, data: Sequences, name: str) -> None:
    data.save(tmp_path / "p")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted(FILES)
    path = tmp_path / "p" / name
    whole = path.read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"p is (not a whole prepared folder|damaged)"):
            Sequences.load(tmp_path / "p")
    path.unlink()
    with pytest.raises(InputError, match=r"is not a whole prepared folder.*run `recblr prepare`"):
        Sequences.load(tmp_path / "p")


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "split.npy"])
def test_a_changed_number_is_an_error(tmp_path: Path, data: Sequences, name: str) -> None:
    data.save(tmp_path / "p")
    array = np.load(tmp_path / "p" / name)
    array.flat[-1] += 1
    np.save(tmp_path / "p" / name, array)
    with pytest.raises(InputError, match="is damaged: its fingerprint differs"):
        Sequences.load(tmp_path / "p")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"split": "time"}', "{"])
def test_another_prepared_json_is_an_error(tmp_path: Path, data: Sequences, text: str) -> None:
    data.save(tmp_path / "p")
    (tmp_path / "p" / "prepared.json").write_text(text)
    with pytest.raises(InputError, match="is not a whole prepared folder"):
        Sequences.load(tmp_path / "p")


def test_prepared_json_is_for_people(tmp_path: Path) -> None:
    data = prepare(log_of([("a", f"i{t}", t) for t in range(5)]))
    data.save(tmp_path / "p")
    about = json.loads((tmp_path / "p" / "prepared.json").read_text())
    assert about["summary"]["read"] == {"users": 1, "items": 5, "interactions": 5}
    assert about["fingerprint"] == data.fingerprint


def test_the_fingerprint_tells_histories_ids_and_splits_apart(data: Sequences) -> None:
    split = data.split
    others = [
        sequences([[0, 1, 2, 1], [2], [1, 1, 0]], ["a", "b", "c"]),
        sequences([[1, 0, 2, 0], [2], [1, 1, 0]], ["a", "b", "c"]),
        replace(data, offsets=np.array([0, 3, 5, 8])),
        replace(data, item_ids=pa.array(["a", "b", "d"])),
        replace(data, user_ids=pa.array(["u0", "u1", "x"])),
        replace(data, split=replace(split, train_end=split.train_end - [1, 0, 0])),
        replace(data, split=replace(split, validation=np.array([-1, -1, 6]))),
        replace(data, split=replace(split, test=np.array([3, -1, -1]))),
    ]
    assert len({other.fingerprint for other in [data, *others]}) == len(others) + 1
    again = replace(data, items=data.items.copy(), summary={"source": "elsewhere"})
    assert again.fingerprint == data.fingerprint


# ---- another vocabulary --------------------------------------------------------------------------


def test_its_own_vocabulary_changes_nothing(data: Sequences) -> None:
    assert data.with_items(pa.array(["a", "b", "c"]), "test") is data


def test_another_order_is_another_index(data: Sequences) -> None:
    found = data.with_items(pa.array(["c", "new", "a", "b"]), "test")
    assert found.items.tolist() == [2, 3, 0, 2, 0, 3, 3, 2]
    assert found.items.dtype == np.int32
    assert found.offsets.tolist() == data.offsets.tolist()
    assert histories(found) == histories(data)
    for name in ("train_end", "validation", "test"):
        assert getattr(found.split, name).tolist() == getattr(data.split, name).tolist()
    assert found.item_counts.tolist() == [1, 0, 1, 2]
    assert len(found.item_ids) == 4


def test_unknown_items_leave_histories_and_stay_as_targets(data: Sequences) -> None:
    """[a b c a] [c] [b b a], where the last two of the long ones validate and test."""
    tested = data.with_items(pa.array(["b"]), "test")
    assert tested.items.tolist() == [0, 1, 0, 0, 1]
    assert tested.offsets.tolist() == [0, 2, 2, 5]
    assert tested.split.train_end.tolist() == [1, 2, 3]
    assert tested.split.validation.tolist() == [-1, -1, 3]
    assert tested.split.test.tolist() == [1, -1, 4]
    validated = data.with_items(pa.array(["b"]), "validation")
    assert validated.items.tolist() == [0, 1, 0, 0]
    assert validated.offsets.tolist() == [0, 2, 2, 4]
    assert validated.split.train_end.tolist() == [1, 2, 3]
    assert validated.split.validation.tolist() == [1, -1, 3]
    assert validated.split.test.tolist() == [-1, -1, -1]
    assert tested.item_counts.tolist() == validated.item_counts.tolist() == [2]


@pytest.mark.parametrize("part", ["validation", "test"])
@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=6).filter(any),
    st.permutations(range(8)),
    st.integers(1, 8),
)
def test_with_items_is_a_plain_loop(
    part: Part, lists: list[list[int]], order: list[int], size: int
) -> None:
    names = [f"i{number}" for number in range(8)]
    vocabulary = [names[number] for number in order[:size]]
    data = sequences(lists, names[:6])
    found = data.with_items(pa.array(vocabulary), part)
    truth, ends = {}, {}
    targets: dict[Part, dict[Any, int]] = {"validation": {}, "test": {}}
    for user, items in histories(data).items():
        parts: dict[int, Part] = {}
        if len(items) >= 3:
            parts = {len(items) - 2: "validation", len(items) - 1: "test"}
        truth[user], ends[user] = [], 0
        for place, name in enumerate(items):
            known = name in vocabulary
            if known or parts.get(place) == part:
                if place in parts:
                    targets[parts[place]][user] = len(truth[user])
                truth[user].append(name if known else None)
                ends[user] += place not in parts
    assert histories(found) == truth
    train_ends = (found.split.train_end - found.offsets[:-1]).tolist()
    assert dict(zip(ends, train_ends, strict=True)) == ends
    for name, places in targets.items():
        assert held_out(found, name) == places


@pytest.mark.parametrize("turned", [False, True])
def test_numbers_meet_the_same_numbers_as_text_and_no_others(turned: bool) -> None:
    numbers, texts = pa.array([7, 12, 3]), pa.array(["x", "12", "007", "7"])
    ours, theirs = (texts, numbers) if turned else (numbers, texts)
    data = sequences([list(range(len(ours))) * 2], ours.to_pylist())
    found = data.with_items(theirs, "test")
    names = found.item_ids.to_pylist()
    history = [str(names[item]) for item in found.items[: found.split.train_end[0]]]
    assert history == (["12", "7", "12"] if turned else ["7", "12", "7"])
    assert found.item_ids.type == theirs.type
