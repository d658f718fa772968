"""Recommend items for many histories, scored in blocks.

Axes: B histories, V items.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recblr.artifact import Artifact
from recblr.audience import NONE_LEFT, Audience, Selection, at
from recblr.errors import InputError
from recblr.evaluation.ranking import Scorer, block_size, expect_finite, mask_seen
from recblr.files import check_writable, exclusive_lock, write_errors
from recblr.parts import Parts
from recblr.progress import Advance, progress
from recblr.retrieval import Exact

_PART_USERS = 4096  # about, in a part of the file; a killed call loses at most one part
# From so many items, and for so many histories, a scan by int8 is faster than all scores on a CPU.
_SCAN_ITEMS, _SCAN_HISTORIES = 50_000, 256
_SCAN_BLOCK = 64  # histories of one scan


@dataclass(frozen=True)
class BatchRecommender:
    """Recommends to many users, in blocks.

    Attributes:
        model: the fitted model.
        score: its scores, with those of its memory.
    """

    model: Artifact
    score: Scorer

    def block(self, histories: int) -> int:
        """How many of some histories are recommended for at a time."""
        if self.scans(histories):
            return _SCAN_BLOCK
        return block_size(len(self.model.data.item_ids), self.model.training.max_length)

    def scans(self, histories: int) -> bool:
        """Whether the items are scanned, which is faster for many items and histories on a CPU."""
        network, memory = self.model.network, self.model.memory
        # With fewer events than the memory looks back, its terms would depend on the length.
        reach = 0 if memory is None else memory.config.reach
        return (
            histories >= _SCAN_HISTORIES and len(self.model.data.item_ids) >= _SCAN_ITEMS
            and network.device.type == "cpu" and self.model.training.max_length >= reach
        )  # fmt: skip

    @cached_property
    def index(self) -> Exact:
        """What scans the items."""
        return Exact(self.model.network.item_embeddings.detach())

    def table(
        self, audience: Audience, selection: Selection, advance: Advance, of: int | None = None
    ) -> pa.Table:
        """Recommend to B histories.

        Args:
            audience: the histories.
            selection: which items to recommend.
            advance: called with the number of histories done.
            of: the number of histories to recommend to in several calls; B if there is only one.

        Returns:
            The columns user_id, item_id, score and rank.

        Raises:
            DivergedError: a score is not finite.
        """
        lists = audience.candidates
        most = len(selection.excluded) if lists is None else max(map(len, lists), default=0)
        k = min(selection.k, most)
        # Preallocated, as many small arrays would fragment the heap.
        shape = len(audience.ids), k
        best, items = np.full(shape, -np.inf, np.float32), np.empty(shape, np.int64)
        lengths = np.array([len(history) for history in audience.histories], np.int64)
        with_items, without = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        if len(without):
            counts = np.where(selection.excluded, -np.inf, self.model.data.item_counts)
            order = np.argsort(-counts, kind="stable")[:k]
            for place in without:
                if lists is not None:
                    order = lists[place][np.argsort(-counts[lists[place]], kind="stable")[:k]]
                best[place, : len(order)], items[place, : len(order)] = counts[order], order
            advance(len(without))
        of = len(audience.ids) if of is None else of
        find, size = self._scan if self.scans(of) else self._score_all, self.block(of)
        for first in range(0, len(with_items) if k else 0, size):
            block = with_items[first : first + size]
            best[block], items[block] = find(audience, block, selection, k)
            advance(len(block))
        row, column = np.nonzero(best > -np.inf)
        return pa.table(
            {
                "user_id": audience.ids.take(pa.array(row)),
                "item_id": self.model.data.item_ids.take(pa.array(items[row, column])),
                "score": pa.array(best[row, column]),
                "rank": pa.array(column + 1),
            }
        )

    def write_all(
        self, out: Path, selection: Selection, shard: tuple[int, int] | None = None
    ) -> None:
        """Write :meth:`table` for every user of the log to a Parquet file.

        Finished parts are kept in ``<out>.parts`` until the file is complete, so that a repeated call
        continues one that was killed.

        Args:
            out: the file.
            selection: which items to recommend.
            shard: (i, n) writes the i-th of n files with about the same number of users each, which
                together have the rows of one file, in the same order. The folder is made if it does not
                exist.

        Raises:
            InputError: the file cannot be written, or another process is writing it.
        """
        data, (number, count) = self.model.data, shard or (1, 1)
        block = self.block(data.users)
        blocks = -(-data.users // block)
        if blocks < count:
            raise InputError(
                f"shard {number}/{count}: the log has {data.users:,} users, enough for {blocks:,} "
                "shards; give at most so many"
            )
        if shard is not None:
            with write_errors(out.parent):
                out.parent.mkdir(exist_ok=True)
        check_writable(out)
        first, last = (min(data.users, block * (blocks * n // count)) for n in (number - 1, number))
        firsts = range(first, last, max(1, _PART_USERS // block) * block)
        parts = Parts(out, f"{_content_key(self.model, selection)}:{block}:{number}/{count}")
        locked = exclusive_lock(parts.folder)
        with write_errors(out), locked, progress("recommending", last - first) as advance:
            for part, begin in enumerate(firsts):
                rows = np.arange(begin, min(begin + firsts.step, last))
                if part in parts:
                    advance(len(rows))
                    continue
                audience = Audience.of_rows(data, rows, data.user_ids.slice(begin, len(rows)))
                parts.add(part, self.table(audience, selection, advance, data.users))
            parts.join(len(firsts))
        shutil.rmtree(parts.folder)
        with pq.ParquetFile(out, pre_buffer=False) as file:
            ranks = (batch["rank"].to_numpy() for batch in file.iter_batches(columns=["rank"]))
            served = sum(int((rank == 1).sum()) for rank in ranks)
        if (users := last - first) > served:
            warnings.warn(
                f"{users - served:,} of {users:,} users get no item: {NONE_LEFT}", stacklevel=3
            )

    def _score_all(
        self, audience: Audience, rows: np.ndarray, selection: Selection, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores and the rows (B, k) of the best items of some histories, by all scores."""
        batch = audience.batch(rows, self.model.training.max_length, selection.kind)
        scores = self.score(batch)
        expect_finite(scores.isfinite())
        scores.masked_fill_(torch.from_numpy(selection.excluded).to(scores.device), -torch.inf)
        if selection.hide_seen:
            mask_seen(scores, batch)
        if audience.candidates is not None:
            lists = at(rows, audience.candidates)
            owner = np.repeat(np.arange(len(rows)), [len(each) for each in lists])
            listed = torch.zeros_like(scores, dtype=torch.bool)
            listed[torch.from_numpy(owner), torch.from_numpy(np.concatenate(lists))] = True
            scores.masked_fill_(~listed, -torch.inf)
        best, items = scores.topk(k, dim=1)
        return best.cpu().numpy(), items.cpu().numpy()

    def _scan(
        self, audience: Audience, rows: np.ndarray, selection: Selection, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same by a scan of the items."""
        histories, memory = at(rows, audience.histories), self.model.memory
        vectors = self.model.network.history_vectors(
            audience.batch(rows, self.model.training.max_length, selection.kind)
        )
        seen = histories if selection.hide_seen else [history[:0] for history in histories]
        excluded = np.flatnonzero(selection.excluded)
        lists = None if audience.candidates is None else at(rows, audience.candidates)
        if 2 * len(excluded) > len(selection.excluded):  # few are allowed
            allowed = np.flatnonzero(~selection.excluded)
            lists = [
                allowed if lists is None else np.intersect1d(each, allowed)
                for each in lists or rows
            ]
        elif len(excluded):
            seen = [np.concatenate([history, excluded]) for history in seen]
        terms = None
        if memory is not None:
            terms = [memory.terms_after(history, not selection.hide_seen) for history in histories]
        return self.index.search(vectors, k, seen, lists, terms)


def _content_key(model: Artifact, selection: Selection) -> str:
    """A hash of a model, its log and a selection."""
    configs = (model.config, model.training, model.memory_config)
    settings = (
        model.model, *map(asdict, configs), model.data.fingerprint, selection.k, selection.hide_seen,
        *[selection.kind] * (selection.kind > 0),
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
