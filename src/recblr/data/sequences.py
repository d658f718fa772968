"""Sequences: the histories of all users in one array with offsets, the vocabularies and the split."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recblr.data.batches import ranges
from recblr.data.features import FeatureSet
from recblr.data.kinds import Kinds
from recblr.data.split import Split
from recblr.data.times import seconds_between
from recblr.data.values import shorten
from recblr.data.vocabulary import Vocabulary
from recblr.errors import InputError
from recblr.files import new_folder

Part = Literal["validation", "test"]
ID_BLOCK = 1 << 16  # ids that are hashed at a time
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
        weights: (N,) float32, how much each event counts as a target of training; None if all count
            alike.
        kinds: what sort of event each is; None if the log has no kinds.
        gaps: whether a model reads the times between the events; see :meth:`with_gaps`.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    split: Split
    core: int
    summary: dict[str, Any] = field(default_factory=dict)
    times: np.ndarray | None = None
    weights: np.ndarray | None = None
    kinds: Kinds | None = None
    gaps: bool = False

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

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of events; none if the log has no kinds."""
        return () if self.kinds is None else self.kinds.names

    @property
    def feature_set(self) -> FeatureSet:
        """What a model of this log reads of an event beside its item."""
        return FeatureSet(len(self.kind_names), self.gaps)

    @cached_property
    def features(self) -> np.ndarray | None:
        """(N, F) the features of all events, rows of their table; None if there are none."""
        if not self.feature_set:
            return None
        gaps = np.full(len(self.items), np.inf)
        if self.gaps and self.times is not None:
            gaps = seconds_between(self.times, self.summary.get("unit", ""))
            gaps[self.offsets[:-1][np.diff(self.offsets) > 0]] = np.inf
        return self.feature_set.encode(None if self.kinds is None else self.kinds.codes, gaps)

    def with_gaps(self, gaps: bool = True) -> "Sequences":
        """The same histories for a model that reads the times between the events, or does not.

        Raises:
            InputError: the log has no times.
        """
        if gaps and self.times is None:
            raise InputError(
                "train.gaps needs times, and the log has none; give a log with a column of times, or "
                "set train.gaps=false"
            )
        return self if gaps == self.gaps else replace(self, gaps=gaps)

    def with_targets_of(self, kind: int, part: Part) -> "Sequences":
        """The same histories with only those events to predict in a part that are of a kind, by its
        code."""
        assert self.kinds is not None
        rows = getattr(self.split, part)
        kept = np.where((rows >= 0) & (self.kinds.codes[rows] == kind), rows, -1)
        changed: dict[str, Any] = {part: kept}
        return replace(self, split=replace(self.split, **changed))

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
        split = self.split
        others = [self.offsets, split.train_end, split.validation, split.test]
        if self.weights is not None:
            others.append(self.weights)
        if self.kinds is not None:
            others += [self.kinds.codes, np.frombuffer(json.dumps(self.kinds.names).encode(), "u1")]
        arrays = chain(items, (np.ascontiguousarray(array).data for array in others))
        return fingerprint(arrays, (_id_blocks(self.user_ids), _id_blocks(self.item_ids)))

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
        times, weights = (
            None if array is None else array[keep] for array in (self.times, self.weights)
        )
        return replace(
            self, items=items[keep], offsets=new_row[self.offsets], item_ids=item_ids, split=split,
            times=times, weights=weights, kinds=None if self.kinds is None else self.kinds.at(keep),
        )  # fmt: skip

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write a prepared folder: arrays that can be memory-mapped, vocabularies, summary.

        Raises:
            InputError: the folder exists, unless it is a prepared folder and ``overwrite`` is true.
        """
        with new_folder(folder, overwrite, MARKER) as new:
            np.save(new / "items.npy", self.items)
            np.save(new / "offsets.npy", self.offsets)
            codes = None if self.kinds is None else self.kinds.codes
            for name, array in (("times", self.times), ("weights", self.weights), ("kinds", codes)):
                if array is not None:
                    np.save(new / f"{name}.npy", array)
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
            if self.kinds is not None:
                metadata["kinds"] = self.kinds.names
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
            times, weights, codes = (  # absent if not known, and in folders of version 0.1.0
                np.load(path, mmap_mode="r") if path.exists() else None
                for path in (folder / f"{name}.npy" for name in ("times", "weights", "kinds"))
            )
            sequences = Sequences(
                items=np.load(folder / "items.npy", mmap_mode="r"),
                offsets=np.load(folder / "offsets.npy"),
                user_ids=pq.read_table(folder / "users.parquet")["user_id"].combine_chunks(),
                item_ids=pq.read_table(folder / "items.parquet")["item_id"].combine_chunks(),
                split=Split(metadata["split"], train_end, validation, test),
                core=metadata["core"],
                summary=metadata["summary"],
                times=times,
                weights=weights,
                kinds=None if codes is None else Kinds(codes, tuple(metadata["kinds"])),
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{folder} is not a whole prepared folder ({error}); run `recblr prepare` again"
            ) from error
        # Read from the file, as pages of a memory map would stay in memory.
        found = sequences._hash(file_blocks(folder / "items.npy", sequences.items.nbytes))
        if found != metadata["fingerprint"]:
            raise InputError(
                f"{folder} is damaged: its fingerprint differs; run `recblr prepare` again"
            )
        sequences.__dict__["fingerprint"] = found  # the cached property
        return sequences


def fingerprint(arrays: Iterable[Any], ids: Iterable[Iterable[pa.Array]]) -> str:
    """The hash of :attr:`Sequences.fingerprint`.

    Args:
        arrays: the bytes of items, offsets, train_end, validation and test, in blocks.
        ids: the ids of the users and of the items, each in blocks that are not empty.
    """
    digest = hashlib.sha256()
    for block in arrays:
        digest.update(block)
    for blocks in ids:  # a JSON list
        before = "["
        for block in blocks:
            digest.update((before + json.dumps(block.to_pylist())[1:-1]).encode())
            before = ", "
        digest.update(b"[]" if before == "[" else b"]")
    return digest.hexdigest()[:16]


def file_blocks(path: Path, size: int) -> Iterator[bytes]:
    """The last ``size`` bytes of a file."""
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        while block := file.read(1 << 20):
            yield block


def _id_blocks(ids: pa.Array) -> Iterator[pa.Array]:
    return (ids[start : start + ID_BLOCK] for start in range(0, len(ids), ID_BLOCK))


def index_in(ids: pa.Array, known: pa.Array) -> np.ndarray:
    """The index of each id (M,) in ``known``; -1 for an unknown id.

    If only one of the two holds numbers, the number 7 equals the text "7", not "007".
    """
    if ids.type != known.type:
        ids, known = ids.cast(pa.large_string()), known.cast(pa.large_string())
    index: np.ndarray = pc.index_in(ids, known).fill_null(-1).to_numpy(zero_copy_only=False)
    return index.astype(np.int64)
