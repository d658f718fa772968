"""Sequences: the histories of all users in one array with offsets, the vocabularies and the split."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recblr.config import check_count
from recblr.data import split as splits
from recblr.data.batches import ranges
from recblr.data.log import Interactions
from recblr.data.split import Split
from recblr.data.values import shorten
from recblr.data.vocabulary import Vocabulary
from recblr.errors import InputError
from recblr.files import new_folder

Part = Literal["validation", "test"]
SURE = 20  # pairs of events that must run backwards before a log counts as newest first
NEWEST_FIRST = "; newest first, so equal times are in order from the last row"
MARKER = "prepared.json"  # the file that identifies a prepared folder


@dataclass(frozen=True, eq=False)
class Sequences:
    """The histories of U users with V items and N events.

    Attributes:
        items: (N,) int32 item indices in 0 .. V-1, user by user, each history in order of time.
        offsets: (U + 1,) int64; user u has the rows offsets[u] .. offsets[u+1]-1.
        user_ids, item_ids: (U,) and (V,) the ids of the log, strings or int64.
        split: the rows for training, validation and test.
        core: the k of the k-core filter.
        summary: how much was read and kept, as JSON values.
        times: (N,) the time of each event, in the unit of ``summary["unit"]``; None if not known.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    split: Split
    core: int
    summary: dict[str, Any] = field(default_factory=dict)
    times: np.ndarray | None = None

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def user_vocabulary(self) -> Vocabulary:
        """The ids of the users."""
        return Vocabulary(self.user_ids, "user")

    @cached_property
    def item_vocabulary(self) -> Vocabulary:
        """The ids of the items."""
        return Vocabulary(self.item_ids, "item")

    @property
    def training_events(self) -> int:
        """The number of events in the training part."""
        return int((self.split.train_end - self.offsets[:-1]).sum())

    def __repr__(self) -> str:
        source = shorten(Path(self.summary.get("source", "")).name, 28)
        return (
            f"Sequences({source}: {len(self.items):,} events, {self.users:,} users, "
            f"{len(self.item_ids):,} items, {self.core}-core, {self.split.name})"
        )

    def training_part(self) -> tuple[np.ndarray, np.ndarray]:
        """The items of the training events, user by user, and the number of events (U,) per user."""
        starts = self.offsets[:-1]
        lengths = self.split.train_end - starts
        return self.items[ranges(starts, lengths)], lengths

    @cached_property
    def item_counts(self) -> np.ndarray:
        """(V,) the number of training events of each item."""
        return np.bincount(self.training_part()[0], minlength=len(self.item_ids))

    @cached_property
    def has_repeats(self) -> bool:
        """Whether any user has an item more than once in the training part."""
        items, lengths = self.training_part()
        pairs = np.sort(np.repeat(np.arange(self.users), lengths) * len(self.item_ids) + items)
        return bool(np.any(pairs[1:] == pairs[:-1]))

    def expect_targets(self, *parts: Part) -> None:
        """InputError if a part has no event to predict."""
        for part in parts:
            if not np.any(getattr(self.split, part) >= 0):
                raise InputError(
                    f"no user has an event to predict in the {part} part; give a longer log"
                )

    def all_for_training(self) -> "Sequences":
        """The same histories with every event in the training part and none held out."""
        none = np.full(self.users, -1)
        counts = {
            "training_interactions": len(self.items), "validation_users": 0, "test_users": 0
        }  # fmt: skip
        return replace(
            self, split=Split(self.split.name, self.offsets[1:], none, none),
            summary={**self.summary, **counts},
        )  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the histories, the ids and the split; results compare only if it is equal."""
        return self._hash([np.ascontiguousarray(self.items).data])

    def _hash(self, items: Iterable[Any]) -> str:
        """The fingerprint, from the bytes of ``items`` in blocks."""
        digest = hashlib.sha256()
        split = self.split
        for block in items:
            digest.update(block)
        for array in (self.offsets, split.train_end, split.validation, split.test):
            digest.update(np.ascontiguousarray(array).data)
        for ids in (self.user_ids, self.item_ids):
            for block in _json_blocks(ids):
                digest.update(block)
        return digest.hexdigest()[:16]

    def with_items(self, item_ids: pa.Array, part: Part) -> "Sequences":
        """The same histories with indices into another vocabulary.

        Events of items that are not in it are removed. Only a target of ``part`` stays, with the
        index V = len(item_ids), which no model can score.
        """
        if self.item_ids.equals(item_ids):
            return self
        new_index = index_in(self.item_ids, item_ids)
        new_index[new_index < 0] = len(item_ids)
        items = new_index[self.items].astype(np.int32)
        keep = items < len(item_ids)
        targets = getattr(self.split, part)
        keep[targets[targets >= 0]] = True
        new_row = np.concatenate([[0], np.cumsum(keep)])

        def move(targets: np.ndarray) -> np.ndarray:
            return np.where((targets >= 0) & keep[targets], new_row[targets], -1)

        split = Split(
            self.split.name, new_row[self.split.train_end], move(self.split.validation),
            move(self.split.test),
        )  # fmt: skip
        offsets = new_row[self.offsets]
        times = None if self.times is None else self.times[keep]
        return Sequences(
            items[keep], offsets, self.user_ids, item_ids, split, self.core, self.summary, times
        )

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write a prepared folder: arrays that can be memory-mapped, vocabularies, summary.

        Raises:
            InputError: the folder exists, unless it is a prepared folder and ``overwrite`` is true.
        """
        with new_folder(folder, overwrite, MARKER) as new:
            np.save(new / "items.npy", self.items)
            np.save(new / "offsets.npy", self.offsets)
            if self.times is not None:
                np.save(new / "times.npy", self.times)
            np.save(
                new / "split.npy",
                np.stack([self.split.train_end, self.split.validation, self.split.test]),
            )
            pq.write_table(pa.table({"user_id": self.user_ids}), new / "users.parquet")
            pq.write_table(pa.table({"item_id": self.item_ids}), new / "items.parquet")
            metadata = {
                "split": self.split.name, "core": self.core, "fingerprint": self.fingerprint,
                "summary": self.summary,
            }  # fmt: skip
            (new / MARKER).write_text(json.dumps(metadata, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> "Sequences":
        """Read a prepared folder; the events are memory-mapped, and read once to check them.

        Raises:
            InputError: a file is missing or damaged.
        """
        try:
            metadata = json.loads((folder / MARKER).read_text())
            train_end, validation, test = np.load(folder / "split.npy")
            times = folder / "times.npy"  # absent if not known, and in folders of version 0.1.0
            sequences = Sequences(
                items=np.load(folder / "items.npy", mmap_mode="r"),
                offsets=np.load(folder / "offsets.npy"),
                user_ids=pq.read_table(folder / "users.parquet")["user_id"].combine_chunks(),
                item_ids=pq.read_table(folder / "items.parquet")["item_id"].combine_chunks(),
                split=Split(metadata["split"], train_end, validation, test),
                core=metadata["core"],
                summary=metadata["summary"],
                times=np.load(times, mmap_mode="r") if times.exists() else None,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{folder} is not a whole prepared folder ({error}); run `recblr prepare` again"
            ) from error
        # Read from the file, as pages of a memory map would stay in memory.
        found = sequences._hash(_blocks(folder / "items.npy", sequences.items.nbytes))
        if found != metadata["fingerprint"]:
            raise InputError(
                f"{folder} is damaged: its fingerprint differs; run `recblr prepare` again"
            )
        sequences.__dict__["fingerprint"] = found  # the cached property
        return sequences


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The last ``size`` bytes of a file."""
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        while block := file.read(1 << 20):
            yield block


def _json_blocks(ids: pa.Array) -> Iterator[bytes]:
    """The ids as a JSON list, in blocks."""
    for start in range(0, max(len(ids), 1), 1 << 16):
        text = json.dumps(ids[start : start + (1 << 16)].to_pylist())[1:-1]
        yield (("[" if start == 0 else ", ") + text).encode()
    yield b"]"


def index_in(ids: pa.Array, known: pa.Array) -> np.ndarray:
    """The index of each id (M,) in ``known``; -1 for an unknown id.

    If only one of the two holds numbers, the number 7 equals the text "7", not "007".
    """
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    index: np.ndarray = pc.index_in(ids, known).fill_null(-1).to_numpy(zero_copy_only=False)
    return index.astype(np.int64)


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
    if split not in splits.SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(splits.SPLITS)}")
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
    if not np.any(parts.train_end - offsets[:-1] >= 2):
        smaller = " or a smaller core" * (core > 1)
        raise InputError(
            f"{log.source}: no user is left with two events to train on "
            f"({len(log):,} events, {core}-core, {split}); give a longer log{smaller}"
        )
    if not np.any(parts.test >= 0):
        part = "test" if np.any(parts.validation >= 0) else "validation"
        needs = "with events before and in that part" if cuts else "with three events"
        raise InputError(
            f"{log.source}: no user has an event to predict in the {part} part ({len(log):,} events, "
            f"{core}-core, {split}); give a log that has users {needs}, or another split"
        )
    summary = {
        "source": log.source,
        "order": log.order + NEWEST_FIRST * newest_first,
        "unit": log.unit,
        "read": {"users": len(log.user_ids), "items": len(log.item_ids), "interactions": len(log)},
        "kept": {
            "users": len(offsets) - 1, "items": int(kept_items.sum()), "interactions": len(items),
        },
        "duplicate_rows_kept": duplicates,
        "training_interactions": int((parts.train_end - offsets[:-1]).sum()),
        "validation_users": int((parts.validation >= 0).sum()),
        "test_users": int((parts.test >= 0).sum()),
    }  # fmt: skip
    return Sequences(
        items[order],
        offsets,
        log.user_ids.filter(pa.array(kept_users)),
        log.item_ids.filter(pa.array(kept_items)),
        parts,
        core,
        summary,
        times,
    )


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
    newest_first = _is_newest_first(order, sorted_users, sorted_times)
    if newest_first:
        order = len(users) - 1 - np.lexsort((times[::-1], users[::-1]))
    duplicates = _duplicates(sorted_users, items[order], sorted_times)
    return order, sorted_times, newest_first, duplicates


def _is_newest_first(order: np.ndarray, users: np.ndarray, times: np.ndarray) -> bool:
    """Whether the later event of a user always stands in an earlier row.

    Args:
        order: the rows, sorted by user and time, as are ``users`` and ``times``.
    """
    later = (users[1:] == users[:-1]) & (times[1:] > times[:-1])
    return bool(later.sum() >= SURE and not np.any(later & (order[1:] > order[:-1])))


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


def _duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> int:
    """The number of rows that repeat an earlier row; the rows are sorted by user and time."""
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    rows = np.flatnonzero(np.concatenate([[False], tied]) | np.concatenate([tied, [False]]))
    users, items, times = users[rows], items[rows], times[rows]
    order = np.lexsort((items, times, users))
    users, items, times = users[order], items[order], times[order]
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (items[1:] == items[:-1])
    return int(same.sum())
