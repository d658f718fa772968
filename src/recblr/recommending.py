"""Recommend items for many histories, scored in blocks.

Axes: B histories, V items.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recblr.data.batches import PackedBatch, pack_latest
from recblr.data.sequences import Sequences
from recblr.data.vocabulary import Id, Vocabulary
from recblr.errors import InputError
from recblr.evaluation.ranking import Scorer, block_size, expect_finite, mask_seen
from recblr.files import exclusive_lock
from recblr.parts import Parts
from recblr.progress import Advance, progress

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
        items: Vocabulary, k: int, allow: Iterable[Id] | None, deny: Iterable[Id] | None,
        hide_seen: bool,
    ) -> "Selection":  # fmt: skip
        """Allow only the items ``allow``, if given, and none of the items ``deny``.

        Raises:
            InputError: ``k`` is below 1, or no known item is allowed.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        excluded = np.zeros(len(items.ids), bool)
        if allow is not None:
            excluded[:] = True
            excluded[items.known_rows(allow)] = False
        if deny is not None:
            excluded[items.known_rows(deny)] = True
        if excluded.all():
            raise InputError("allow and deny leave no item that the model knows")
        return Selection(k, excluded, hide_seen)


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

    def table(
        self, ids: pa.Array, users: np.ndarray, histories: list[np.ndarray], selection: Selection,
        advance: Advance,
    ) -> pa.Table:  # fmt: skip
        """Recommend to B histories of at least one event each.

        Args:
            ids: (B,) the user_id of each history in the result.
            users: (B,) the row of each user in the log, -1 for an unknown user.
            histories: the items of each history.
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
        best, items = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
        for first in range(0, len(ids), self.block):
            block = slice(first, first + self.block)
            batch = self._batch(histories[block], users[block])
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
                "user_id": ids.take(pa.array(row)),
                "item_id": self.data.item_ids.take(pa.array(items[row, column])),
                "score": pa.array(best[row, column]),
                "rank": pa.array(column + 1),
            }
        )

    def write_all(self, out: Path, key: str, selection: Selection) -> None:
        """Write :meth:`table` for every user of the log to a Parquet file.

        Finished parts are kept in ``<out>.parts`` until the file is complete, so that a repeated call
        continues one that was killed.

        Args:
            out: the file.
            key: the :func:`content_key` of model, log and arguments; parts of another are not used.
            selection: which items to recommend.

        Raises:
            InputError: the file cannot be written, or another process is writing it.
        """
        parts = Parts(out, f"{key}:{self.block}")
        offsets, users = self.data.offsets, self.data.users
        size = max(1, _PART_USERS // self.block) * self.block
        firsts = range(0, users, size)
        with exclusive_lock(parts.folder), progress("recommending", users) as advance:
            for number, first in enumerate(firsts):
                rows = np.arange(first, min(first + size, users))
                if number in parts:
                    advance(len(rows))
                    continue
                histories = [self.data.items[offsets[row] : offsets[row + 1]] for row in rows]
                ids = self.data.user_ids.slice(first, size)
                parts.add(number, self.table(ids, rows, histories, selection, advance))
            parts.join(len(firsts))
        shutil.rmtree(parts.folder)

    def _batch(self, histories: list[np.ndarray], users: np.ndarray) -> PackedBatch:
        stops = np.cumsum([len(items) for items in histories])
        starts = np.concatenate([[0], stops[:-1]])
        batch = pack_latest(np.concatenate(histories), starts, stops, self.max_length, "none")
        return replace(batch, users=torch.from_numpy(users))


def content_key(settings: object, arrays: Iterable[np.ndarray]) -> str:
    """A hash of settings as JSON values and of arrays."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
