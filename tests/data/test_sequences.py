"""Prepared folders, the fingerprint, and histories in another vocabulary."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.builders import Event, held_out, histories, log_of, sequences
from recblr.data.batches import pack
from recblr.data.preparing import prepare
from recblr.data.sequences import Part, Sequences
from recblr.data.split import leave_one_out
from recblr.errors import InputError


@pytest.fixture
def data() -> Sequences:
    return sequences([[0, 1, 2, 0], [2], [1, 1, 0]], ["a", "b", "c"])


# ---- on disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["leave-one-out", "time", "time-last"])
@pytest.mark.parametrize("text", [True, False], ids=["strings", "integers"])
def test_a_saved_folder_is_loaded_unchanged(tmp_path: Path, split: str, text: bool) -> None:
    rng = np.random.default_rng(0)
    ids = ["007", "7", "NA", "é\n", "", " "] if text else [7, -1, 2**62, 0, 5, 10**9]
    events: list[Event] = [
        (ids[u], ids[i], int(t)) for t, (u, i) in enumerate(rng.integers(0, 6, (200, 2)))
    ]
    data = prepare(log_of(events), 2, split)
    data.save(tmp_path / "p")
    loaded = Sequences.load(tmp_path / "p")
    assert isinstance(loaded.items, np.memmap)
    assert not loaded.items.flags.writeable
    for name in ("items", "offsets"):
        ours, theirs = getattr(loaded, name), getattr(data, name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
    for name in ("train_end", "validation", "test"):
        assert getattr(loaded.split, name).tolist() == getattr(data.split, name).tolist()
    assert loaded.user_ids.equals(data.user_ids)
    assert loaded.item_ids.equals(data.item_ids)
    assert set(loaded.item_ids.to_pylist()) == set(ids)
    assert (loaded.core, loaded.split.name, loaded.summary) == (2, split, data.summary)
    assert loaded.fingerprint == data.fingerprint
    assert loaded.item_counts.tolist() == data.item_counts.tolist()

    starts, stops = loaded.offsets[:-1], loaded.split.train_end
    ours, theirs = (pack(items, starts, stops - 1, "all") for items in (loaded.items, data.items))
    assert ours.items.tolist() == theirs.items.tolist()
    assert ours.targets.tolist() == theirs.targets.tolist()
    ours.items[0] = 99  # a copy of its own
    assert loaded.items[0] != 99


def test_loading_does_not_copy_the_items(tmp_path: Path) -> None:
    offsets = np.array([0, 5, 1 << 24])
    items = np.zeros(offsets[-1], np.int32)  # 64 MiB
    users = pa.array(["a", "b"])
    whole = Sequences(items, offsets, users, pa.array(["x"]), leave_one_out(offsets), 1)
    whole.save(tmp_path / "p")
    code = (
        "import resource, sys; from pathlib import Path; from recblr.data.sequences import Sequences\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); data = Sequences.load(Path(sys.argv[1])); print(peak() - before)\n"
        "print(data.fingerprint)"
    )
    run = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "p")], text=True)
    kibibytes, fingerprint = run.split()
    assert int(kibibytes) < 32 << 10
    assert fingerprint == whole.fingerprint


def test_save_overwrites_only_if_told(tmp_path: Path, data: Sequences) -> None:
    data.save(tmp_path / "p")
    other = replace(data, core=5)
    with pytest.raises(InputError, match="exists already"):
        other.save(tmp_path / "p")
    assert Sequences.load(tmp_path / "p").core == 1
    other.save(tmp_path / "p", overwrite=True)
    assert Sequences.load(tmp_path / "p").core == 5


FILES = ["items.npy", "offsets.npy", "split.npy", "users.parquet", "items.parquet", "prepared.json"]


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_missing_or_truncated_file(
    tmp_path: Path, data: Sequences, name: str
) -> None:
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
def test_load_refuses_a_changed_array(tmp_path: Path, data: Sequences, name: str) -> None:
    data.save(tmp_path / "p")
    array = np.load(tmp_path / "p" / name)
    array.flat[-1] += 1
    np.save(tmp_path / "p" / name, array)
    with pytest.raises(InputError, match="is damaged: its fingerprint differs"):
        Sequences.load(tmp_path / "p")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"split": "time"}', "{"])
def test_load_refuses_another_prepared_json(tmp_path: Path, data: Sequences, text: str) -> None:
    data.save(tmp_path / "p")
    (tmp_path / "p" / "prepared.json").write_text(text)
    with pytest.raises(InputError, match="is not a whole prepared folder"):
        Sequences.load(tmp_path / "p")


def test_prepared_json_has_the_summary_and_the_fingerprint(tmp_path: Path) -> None:
    data = prepare(log_of([("a", f"i{t}", t) for t in range(5)]))
    data.save(tmp_path / "p")
    about = json.loads((tmp_path / "p" / "prepared.json").read_text())
    assert about["summary"]["read"] == {"users": 1, "items": 5, "interactions": 5}
    assert about["fingerprint"] == data.fingerprint


def test_the_fingerprint_depends_on_histories_ids_and_split(data: Sequences) -> None:
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


def test_the_same_vocabulary_changes_nothing(data: Sequences) -> None:
    assert data.with_items(pa.array(["a", "b", "c"]), "test") is data


def test_another_order_of_items_changes_the_indices(data: Sequences) -> None:
    renamed = data.with_items(pa.array(["c", "new", "a", "b"]), "test")
    assert renamed.items.tolist() == [2, 3, 0, 2, 0, 3, 3, 2]
    assert renamed.items.dtype == np.int32
    assert renamed.offsets.tolist() == data.offsets.tolist()
    assert histories(renamed) == histories(data)
    for name in ("train_end", "validation", "test"):
        assert getattr(renamed.split, name).tolist() == getattr(data.split, name).tolist()
    assert renamed.item_counts.tolist() == [1, 0, 1, 2]
    assert len(renamed.item_ids) == 4


def test_unknown_items_are_removed_except_as_targets(data: Sequences) -> None:
    """[a b c a] [c] [b b a]: the last two events of the long histories are held out."""
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
def test_with_items_equals_a_plain_loop(
    part: Part, lists: list[list[int]], order: list[int], size: int
) -> None:
    names = [f"i{number}" for number in range(8)]
    vocabulary = [names[number] for number in order[:size]]
    data = sequences(lists, names[:6])
    renamed = data.with_items(pa.array(vocabulary), part)
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
    assert histories(renamed) == truth
    train_ends = (renamed.split.train_end - renamed.offsets[:-1]).tolist()
    assert dict(zip(ends, train_ends, strict=True)) == ends
    for name, places in targets.items():
        assert held_out(renamed, name) == places


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_match_the_same_numbers_as_text(swapped: bool) -> None:
    numbers, texts = pa.array([7, 12, 3]), pa.array(["x", "12", "007", "7"])
    ours, theirs = (texts, numbers) if swapped else (numbers, texts)
    data = sequences([list(range(len(ours))) * 2], ours.to_pylist())
    renamed = data.with_items(theirs, "test")
    names = renamed.item_ids.to_pylist()
    history = [str(names[item]) for item in renamed.items[: renamed.split.train_end[0]]]
    assert history == (["12", "7", "12"] if swapped else ["7", "12", "7"])
    assert renamed.item_ids.type == theirs.type
