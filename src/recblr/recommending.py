"""Recommend items for many histories, scored in blocks.

Axes: B histories, V items.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from recblr.artifact import Artifact
from recblr.config import check_count, check_value
from recblr.data.batches import PackedBatch, pack_latest
from recblr.data.sequences import Sequences
from recblr.data.vocabulary import Vocabulary, as_ids, as_list
from recblr.errors import InputError
from recblr.evaluation.ranking import Scorer, block_size, expect_finite, mask_seen
from recblr.files import check_writable, exclusive_lock, write_errors
from recblr.parts import Parts
from recblr.progress import Advance, progress

Unknown = Literal["error", "skip", "popular"]
"""What to do about ids that the model does not know: see :meth:`Recommender.recommend`."""

SKIP = "pass unknown='skip' (command line: --unknown skip)"
SKIP_OR_POPULAR = "pass unknown='skip' or 'popular' (command line: --unknown)"
EFFECTS = {"skip": "left out of the result", "popular": "recommending the most popular items"}
NONE_LEFT = "allow, deny and hide_seen leave none"
_PART_USERS = 4096  # about, in a part of the file; a killed call loses at most one part


@dataclass(frozen=True, eq=False)
class Selection:
    """Which items may be recommended, and how many.

    Attributes:
        k: the number of items.
        excluded: (V,) mask of the items that are never recommended.
        hide_seen: whether to exclude the items of the history.
    """

    k: int
    excluded: np.ndarray
    hide_seen: bool

    @staticmethod
    def from_ids(
        items: Vocabulary, k: Any, allow: Any, deny: Any, hide_seen: Any, unknown: Unknown
    ) -> "Selection":
        """Allow only the items ``allow``, if given, and none of the items ``deny``.

        Raises:
            InputError: a value has the wrong type, ``k`` is below 1, an item is unknown and ``unknown``
                is "error", or no known item is allowed.
        """
        k, unknown = check_count(k, "k"), check_value(unknown, Unknown, "unknown")
        hide_seen = check_value(hide_seen, bool, "hide_seen")
        excluded = np.zeros(len(items.ids), bool)
        for name, values in (("allow", allow), ("deny", deny)):
            if values is None:
                continue
            ids = as_ids(values, name)
            rows = items.rows(ids)
            if missing := [item for item, row in zip(ids, rows, strict=True) if row < 0]:
                message = f"{name}: {items.describe_unknown(missing)}"
                if unknown == "error":
                    raise InputError(f"{message}; correct it, or {SKIP}")
                warnings.warn(f"{message}; ignored", stacklevel=3)
            if name == "allow":
                excluded[:] = True
            excluded[rows[rows >= 0]] = name == "deny"
        if excluded.all():
            raise InputError("allow and deny leave no item that the model knows")
        return Selection(k, excluded, hide_seen)


@dataclass(frozen=True, eq=False)
class Audience:
    """B histories to recommend for.

    Attributes:
        ids: (B,) the user_id of each in the result.
        users: (B,) the row of each user in the log; -1 for others.
        histories: item rows, oldest first. An empty history gets the most popular items.
    """

    ids: pa.Array
    users: np.ndarray
    histories: list[np.ndarray]

    @staticmethod
    def of_users(data: Sequences, users: Any, unknown: Unknown) -> "Audience":
        """Users of the log by their ids; arguments as for :meth:`Recommender.recommend`."""
        known = data.user_vocabulary
        names = as_ids(users, "users")
        rows = known.rows(names)
        missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
        message = known.describe_unknown(missing) if missing else ""
        if unknown == "skip":
            names, rows = [names[place] for place in np.flatnonzero(rows >= 0)], rows[rows >= 0]
        elif unknown == "error" and missing:
            raise InputError(f"{message}; give histories, or {SKIP_OR_POPULAR}")
        try:
            ids = pa.array(names, data.user_ids.type)
        except (pa.ArrowException, TypeError, OverflowError):
            raise InputError(f"{message}; a user in the result needs an id of that type") from None
        if missing:
            warnings.warn(f"{message}; {EFFECTS[unknown]}", stacklevel=3)
        offsets = data.offsets
        histories = [
            data.items[offsets[row] : offsets[row + 1]] if row >= 0 else data.items[:0]
            for row in rows
        ]
        return Audience(ids, rows, histories)

    @staticmethod
    def of_histories(known: Vocabulary, histories: Any, unknown: Unknown) -> "Audience":
        """Histories of item ids; arguments as for :meth:`Recommender.recommend`."""
        named = [
            as_ids(history, f"histories[{number}]", ordered=True)
            for number, history in enumerate(as_list(histories, "histories", ordered=True))
        ]
        rows = [known.rows(names) for names in named]
        kept = [history[history >= 0] for history in rows]
        numbers = np.arange(len(kept))
        if nothing := [number for number in numbers if not len(kept[number])]:
            first = named[nothing[0]]
            others = f" ({len(nothing):,} of {len(kept):,} histories)" * (len(nothing) > 1)
            reason = known.describe_unknown(first) if first else "it is empty"
            message = f"history {nothing[0]} has no item that the model knows{others}: {reason}"
            if unknown == "error":
                raise InputError(f"{message}; correct it, or {SKIP_OR_POPULAR}")
            warnings.warn(f"{message}; {EFFECTS[unknown]}", stacklevel=3)
            if unknown == "skip":
                numbers = np.array([number for number in numbers if len(kept[number])], np.int64)
        if missing := [
            name
            for number in numbers if len(kept[number]) < len(named[number])
            for name, row in zip(named[number], rows[number], strict=True) if row < 0
        ]:  # fmt: skip
            warnings.warn(f"histories: {known.describe_unknown(missing)}; ignored", stacklevel=3)
        users = np.full(len(numbers), -1)
        return Audience(pa.array(numbers), users, [kept[number] for number in numbers])

    def warn_if_unserved(self, table: pa.Table) -> None:
        """Warn of users or histories that have no row in the result."""
        unserved = self.ids.filter(pc.invert(pc.is_in(self.ids, table["user_id"])))
        if len(unserved):
            warnings.warn(
                f"{len(unserved):,} of {len(self.ids):,} users or histories get no item, such as "
                f"{unserved[0].as_py()!r}: {NONE_LEFT}",
                stacklevel=3,
            )


@dataclass(frozen=True)
class BatchRecommender:
    """Recommends to many users, in blocks.

    Attributes:
        score: the scores of histories, on ``device``.
        data: the log.
        max_length: how many events of a history, the latest, are scored.
        device: the device of the scores.
    """

    score: Scorer
    data: Sequences
    max_length: int
    device: torch.device

    @property
    def block(self) -> int:
        """The number of users to score at a time."""
        return block_size(len(self.data.item_ids), self.max_length)

    def table(self, audience: Audience, selection: Selection, advance: Advance) -> pa.Table:
        """Recommend to B histories.

        Args:
            audience: the histories.
            selection: which items to recommend.
            advance: called with the number of histories done.

        Returns:
            The columns user_id, item_id, score and rank.

        Raises:
            DivergedError: a score is not finite.
        """
        excluded = torch.from_numpy(selection.excluded).to(self.device)
        k = min(selection.k, len(excluded))
        # Preallocated, as many small arrays would fragment the heap.
        shape = len(audience.ids), k
        best, items = np.empty(shape, np.float32), np.empty(shape, np.int64)
        lengths = np.array([len(history) for history in audience.histories], np.int64)
        with_items, without = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        if len(without):
            best[without], items[without] = self._most_popular(selection, k)
            advance(len(without))
        for first in range(0, len(with_items), self.block):
            block = with_items[first : first + self.block]
            histories = [audience.histories[row] for row in block]
            batch = self._batch(histories, audience.users[block])
            scores = self.score(batch)
            expect_finite(scores.isfinite())
            scores.masked_fill_(excluded, -torch.inf)
            if selection.hide_seen:
                mask_seen(scores, batch)
            top = scores.topk(k, dim=1)
            best[block], items[block] = (tensor.cpu().numpy() for tensor in top)
            advance(len(scores))
        row, column = np.nonzero(best > -np.inf)
        return pa.table(
            {
                "user_id": audience.ids.take(pa.array(row)),
                "item_id": self.data.item_ids.take(pa.array(items[row, column])),
                "score": pa.array(best[row, column]),
                "rank": pa.array(column + 1),
            }
        )

    def write_all(self, out: Path, model: Artifact, selection: Selection) -> None:
        """Write :meth:`table` for every user of the log to a Parquet file.

        Finished parts are kept in ``<out>.parts`` until the file is complete, so that a repeated call
        continues one that was killed.

        Args:
            out: the file.
            model: what scores; finished parts of another model are not used.
            selection: which items to recommend.

        Raises:
            InputError: the file cannot be written, or another process is writing it.
        """
        check_writable(out)
        parts = Parts(out, f"{_content_key(model, selection)}:{self.block}")
        offsets, users = self.data.offsets, self.data.users
        size = max(1, _PART_USERS // self.block) * self.block
        firsts = range(0, users, size)
        locked = exclusive_lock(parts.folder)
        with write_errors(out), locked, progress("recommending", users) as advance:
            for number, first in enumerate(firsts):
                rows = np.arange(first, min(first + size, users))
                if number in parts:
                    advance(len(rows))
                    continue
                histories = [self.data.items[offsets[row] : offsets[row + 1]] for row in rows]
                ids = self.data.user_ids.slice(first, size)
                audience = Audience(ids, rows, histories)
                parts.add(number, self.table(audience, selection, advance))
            parts.join(len(firsts))
        shutil.rmtree(parts.folder)
        with pq.ParquetFile(out) as file:
            ranks = (batch["rank"].to_numpy() for batch in file.iter_batches(columns=["rank"]))
            served = sum(int((rank == 1).sum()) for rank in ranks)
        if served < users:
            warnings.warn(
                f"{users - served:,} of {users:,} users get no item: {NONE_LEFT}", stacklevel=3
            )

    def _most_popular(self, selection: Selection, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The training counts and the rows of the most frequent items."""
        counts = np.where(selection.excluded, -np.inf, self.data.item_counts).astype(np.float32)
        order = np.argsort(-counts, kind="stable")[:k]
        return counts[order], order

    def _batch(self, histories: list[np.ndarray], users: np.ndarray) -> PackedBatch:
        stops = np.cumsum([len(items) for items in histories])
        starts = np.concatenate([[0], stops[:-1]])
        batch = pack_latest(np.concatenate(histories), starts, stops, self.max_length, "none")
        return replace(batch, users=torch.from_numpy(users))


def _content_key(model: Artifact, selection: Selection) -> str:
    """A hash of a model, its log and a selection."""
    configs = (model.config, model.training, model.memory_config)
    settings = (
        model.model, *map(asdict, configs), model.data.fingerprint, selection.k, selection.hide_seen
    )  # fmt: skip
    weights = [tensor.cpu().numpy() for tensor in model.network.state_dict().values()]
    arrays = [selection.excluded, *weights]
    if (memory := model.memory) is not None:
        numbers = np.array([memory.weight, memory.scale, memory.repeat])
        arrays += [numbers, memory.matrix.indices, memory.matrix.data]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
