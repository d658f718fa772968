"""Sequences: the users' histories as one flat array with offsets, the vocabularies and the split."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recblr.data import split as splits
from recblr.data.batches import ranges
from recblr.data.log import Interactions
from recblr.data.split import Split
from recblr.errors import InputError
from recblr.files import new_folder

Part = Literal["validation", "test"]
MARK = "prepared.json"  # what a prepared folder is known by


@dataclass(frozen=True, eq=False)
class Sequences:
    """U users, V items, N events.

    Attributes:
        items: (N,) int32 item indices in 0 .. V-1, users one after another, each in order of time.
        offsets: (U + 1,) int64; user u has the rows offsets[u] .. offsets[u+1]-1.
        user_ids, item_ids: (U,) and (V,) the ids as they came, strings or int64.
        split: which rows train, validate and test.
        core: the k of the k-core filter they went through.
        summary: what was read, kept and dropped, for people to see.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    split: Split
    core: int
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def training_part(self) -> tuple[np.ndarray, np.ndarray]:
        """The items of the training events, users one after another, and their number (U,) per user."""
        starts = self.offsets[:-1]
        lengths = self.split.train_end - starts
        return self.items[ranges(starts, lengths)], lengths

    @cached_property
    def item_counts(self) -> np.ndarray:
        """(V,) how often each item occurs in the training part."""
        return np.bincount(self.training_part()[0], minlength=len(self.item_ids))

    @cached_property
    def has_repeats(self) -> bool:
        """Whether a user has an item twice in the training part."""
        items, lengths = self.training_part()
        pairs = np.sort(np.repeat(np.arange(self.users), lengths) * len(self.item_ids) + items)
        return bool(np.any(pairs[1:] == pairs[:-1]))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the histories, the ids and the split: equal exactly where results compare."""
        digest = hashlib.sha256()
        for array in (self.items, self.offsets, self.split.train_end, self.split.validation,
                      self.split.test):  # fmt: skip
            digest.update(np.ascontiguousarray(array).tobytes())
        for ids in (self.user_ids, self.item_ids):
            digest.update(json.dumps(ids.to_pylist()).encode())
        return digest.hexdigest()[:16]

    def with_items(self, item_ids: pa.Array, part: Part) -> "Sequences":
        """The same histories in the indices of another vocabulary.

        Events of items that are not in it leave the histories. A target of ``part`` that is not
        in it stays, with the index V of ``item_ids``, which no model can score.
        """
        if self.item_ids.equals(item_ids):
            return self
        code = index_in(self.item_ids, item_ids)
        code[code < 0] = len(item_ids)
        items = code[self.items].astype(np.int32)
        keep = items < len(item_ids)
        targets = getattr(self.split, part)
        keep[targets[targets >= 0]] = True
        row = np.concatenate([[0], np.cumsum(keep)])

        def moved(targets: np.ndarray) -> np.ndarray:
            return np.where((targets >= 0) & keep[targets], row[targets], -1)

        split = Split(
            self.split.name, row[self.split.train_end], moved(self.split.validation),
            moved(self.split.test),
        )  # fmt: skip
        return Sequences(items[keep], row[self.offsets], self.user_ids, item_ids, split, self.core)

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write the prepared folder: arrays that map into memory, vocabularies, summary."""
        with new_folder(folder, overwrite, MARK) as new:
            np.save(new / "items.npy", self.items)
            np.save(new / "offsets.npy", self.offsets)
            np.save(
                new / "split.npy",
                np.stack([self.split.train_end, self.split.validation, self.split.test]),
            )
            pq.write_table(pa.table({"user_id": self.user_ids}), new / "users.parquet")
            pq.write_table(pa.table({"item_id": self.item_ids}), new / "items.parquet")
            about = {
                "split": self.split.name, "core": self.core, "fingerprint": self.fingerprint,
                "summary": self.summary,
            }  # fmt: skip
            (new / MARK).write_text(json.dumps(about, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> "Sequences":
        """Read a prepared folder; nothing but its vocabulary and split is taken into memory."""
        try:
            about = json.loads((folder / MARK).read_text())
            train_end, validation, test = np.load(folder / "split.npy")
            sequences = Sequences(
                items=np.load(folder / "items.npy", mmap_mode="r"),
                offsets=np.load(folder / "offsets.npy"),
                user_ids=pq.read_table(folder / "users.parquet")["user_id"].combine_chunks(),
                item_ids=pq.read_table(folder / "items.parquet")["item_id"].combine_chunks(),
                split=Split(about["split"], train_end, validation, test),
                core=about["core"],
                summary=about["summary"],
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{folder} is not a whole prepared folder ({error}); run `recblr prepare` again"
            ) from error
        if sequences.fingerprint != about["fingerprint"]:
            raise InputError(f"{folder} is damaged: its fingerprint differs; prepare it again")
        return sequences


def index_in(ids: pa.Array, known: pa.Array) -> np.ndarray:
    """Where each id (M,) stands among the known ones, -1 where it does not.

    Where one log has numbers as ids and the other text, 7 is "7" and not "007".
    """
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    found: np.ndarray = pc.index_in(ids, known).fill_null(-1).to_numpy(zero_copy_only=False)
    return found.astype(np.int64)


def prepare(log: Interactions, core: int = 1, split: str = "leave-one-out") -> Sequences:
    """Filter, sort and split a log.

    Args:
        log: the events.
        core: keep users and items with at least this many events. Under a split by time only
            events before the first cut count, so that the filter does not look ahead.
        split: "leave-one-out", "time" or "time-last".

    Raises:
        InputError: nothing is left to train on.
    """
    if split not in splits.SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(splits.SPLITS)}")
    if core < 1:
        raise InputError(f"core must be at least 1, found {core}")
    last = split == "time-last"
    cuts = None if split == "leave-one-out" else splits.time_cuts(log.timestamps, last)
    counted = np.ones(len(log), bool) if cuts is None else log.timestamps < cuts[0]  # type: ignore[operator]
    keep = np.zeros(len(log), bool)
    keep[counted] = splits.k_core(log.users[counted], log.items[counted], core)
    known_user = np.zeros(len(log.user_ids), bool)
    known_item = np.zeros(len(log.item_ids), bool)
    known_user[log.users[keep]] = True
    known_item[log.items[keep]] = True
    if cuts is not None:
        keep |= ~counted & known_user[log.users] & known_item[log.items]

    users = (np.cumsum(known_user) - 1).astype(np.int32)[log.users[keep]]
    items = (np.cumsum(known_item) - 1).astype(np.int32)[log.items[keep]]
    times = None if log.timestamps is None else log.timestamps[keep]
    # Stable: events of one user at the same time stay in file order.
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    duplicates = None if times is None else _duplicates(users[order], items[order], times[order])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=known_user.sum()))])
    offsets = offsets.astype(np.int64)
    parts = (
        splits.leave_one_out(offsets)
        if cuts is None
        else splits.by_time(offsets, times[order], cuts, last)  # type: ignore[index]
    )
    if not np.any(parts.train_end - offsets[:-1] >= 2):
        smaller = " or a smaller core" * (core > 1)
        raise InputError(
            f"{log.source}: no user is left with two events to train on "
            f"({len(log):,} events, {core}-core, {split}); give a longer log{smaller}"
        )
    summary = {
        "source": log.source,
        "read": {"users": len(log.user_ids), "items": len(log.item_ids), "interactions": len(log)},
        "kept": {
            "users": len(offsets) - 1, "items": int(known_item.sum()), "interactions": len(items),
        },
        "duplicate_rows_kept": duplicates,
        "training_interactions": int((parts.train_end - offsets[:-1]).sum()),
        "validation_users": int((parts.validation >= 0).sum()),
        "test_users": int((parts.test >= 0).sum()),
    }  # fmt: skip
    return Sequences(
        items[order],
        offsets,
        log.user_ids.filter(pa.array(known_user)),
        log.item_ids.filter(pa.array(known_item)),
        parts,
        core,
        summary,
    )


def _duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> int:
    """How many rows repeat another in user, item and time; the rows are sorted by user and time."""
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    rows = np.flatnonzero(np.concatenate([[False], tied]) | np.concatenate([tied, [False]]))
    users, items, times = users[rows], items[rows], times[rows]
    order = np.lexsort((items, times, users))
    users, items, times = users[order], items[order], times[order]
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (items[1:] == items[:-1])
    return int(same.sum())
