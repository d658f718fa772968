"""The memory of transitions: which item followed which in the training part of a log, counted.

It belongs to no model: it adds to the score s that any model gives an item after a history,

    score = s + w · log(1 + c · m) + r · [the item is in the history]            (1)
    m     = Σ over the last K items of the history, decay^age · B[item, ·]       (2)
    B     = C / (row sum ^ row_power) / (column sum ^ column_power)              (3)

C[a, b] is a sum over all pairs of events of one user at most K events apart: lag^-lag_power where b
came ``lag`` events after a, ``backward`` times as much where b came before a. Related work: the
transition term of FPMC (Rendle et al., WWW 2010), item-to-item neighbours, kNN-LM (arXiv 1911.00172).

One more event reads one more row of a sparse matrix, however long the history is.

Axes: B histories, T events of a history, V items, N events of all histories laid end to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recblr.config import expect_sizes
from recblr.data.batches import PackedBatch, ranges
from recblr.data.sequences import Sequences
from recblr.errors import InputError

NEVER = -20.0  # r where no user ever came back to an item; below what (1) can add otherwise
_EVENTS = 1 << 18  # whose pairs are counted at a time, to bound what is held


@dataclass(frozen=True)
class MemoryConfig:
    """What the memory of transitions counts and how it adds to a score."""

    enabled: bool = True
    reach: int = (
        8  # K: two events at most this far apart are a pair; so many last items are looked up
    )
    lag_power: float = 0.7  # a pair weighs lag^-lag_power
    backward: float = 0.3  # weight of a pair read against time
    row_power: float = 0.3  # scales down the transitions from frequent items
    column_power: float = 0.1  # scales down the transitions to frequent items
    decay: float = 0.7  # weight of an item of the history relative to the item after it
    pairs: int = 1024  # entries kept of each row, those with the largest values
    # Of (1). None: chosen on validation once the model is trained. The repeat term is the exception
    # where no training event is a repeat: it is then -20, which no other term outweighs.
    weight: float | None = None  # w
    scale: float | None = None  # c
    repeat: float | None = None  # r

    def __post_init__(self) -> None:
        expect_sizes(self, "memory", "reach", "pairs")
        for name in (
            "lag_power",
            "backward",
            "row_power",
            "column_power",
            "decay",
            "weight",
            "scale",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise InputError(f"memory.{name} = {value}: must be at least 0 and finite")
        if self.repeat is not None and not np.isfinite(self.repeat):
            raise InputError(f"memory.repeat = {self.repeat}: must be finite")


@dataclass(frozen=True, eq=False)
class Memory:
    """A fitted memory. ``matrix`` (V, V) float32 is B of (3); w, c and r of (1) are numbers."""

    config: MemoryConfig
    matrix: sparse.csr_array
    weight: float
    scale: float
    repeat: float

    def add_to(self, scores: Tensor, batch: PackedBatch) -> Tensor:
        """Add both terms of (1) to ``scores`` (B, V) of a batch of histories, in place.

        ``batch.seen`` names the items of each history; the batch may lie on another device.
        """
        added = self.transitions(batch.items.cpu().numpy(), batch.offsets.cpu().numpy()).tocoo()
        row, item = (torch.from_numpy(each.astype(np.int64)) for each in added.coords)
        values = torch.from_numpy(added.data).to(scores.device, scores.dtype)
        where = (row.to(scores.device), item.to(scores.device))
        scores.index_put_(where, values, accumulate=True)
        if self.repeat:
            if batch.seen is None:
                raise ValueError("a batch without `seen` does not say which items are repeats")
            row, item = batch.seen.to(scores.device)
            scores[row, item] = scores[row, item] + self.repeat  # a pair listed twice counts once
        return scores

    def transitions(self, items: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
        """w · log(1 + c · m) of (1) after each of B histories, (B, V); no value is negative.

        Args:
            items: (N,) the histories, oldest event first.
            offsets: (B + 1,) history b has the rows offsets[b] .. offsets[b+1]-1.
        """
        found = self.recall(items, offsets)
        found.data = np.float32(self.weight) * np.log1p(np.float32(self.scale) * found.data)
        return found

    def recall(self, items: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
        """m of (2), (B, V), of histories as in :meth:`transitions`."""
        lengths = np.minimum(np.diff(offsets), self.config.reach)
        rows = ranges(offsets[1:] - lengths, lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        age = offsets[1:][owner] - 1 - rows
        weights = (self.config.decay**age).astype(np.float32)
        shape = (len(lengths), self.matrix.shape[0])
        return sparse.csr_array((weights, (owner, items[rows])), shape) @ self.matrix

    def after(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of :meth:`transitions` of one history (T,); its cost does not grow with T or V.

        Returns:
            The items (A,) it names, rising, and the values (A,) float32.
        """
        latest = history[-self.config.reach :]
        rows = [slice(*self.matrix.indptr[item : item + 2]) for item in latest.tolist()]
        weights = self.config.decay ** np.arange(len(latest))[::-1]
        items = np.concatenate([self.matrix.indices[row] for row in rows])
        terms = [weight * self.matrix.data[row] for weight, row in zip(weights, rows, strict=True)]
        if len(items) < (size := self.matrix.shape[0]):
            items, place = np.unique(items, return_inverse=True)
            m = np.bincount(place, np.concatenate(terms), len(items))
        else:  # of a small catalogue a sum over all items takes less than sorting
            m = np.bincount(items, np.concatenate(terms), size)
            items = np.flatnonzero(m)
            m = m[items]
        return items, (self.weight * np.log1p(self.scale * m)).astype(np.float32)

    def parts(self, history: np.ndarray, item: int) -> np.ndarray:
        """(T,) what each event of a history adds to the score of ``item``; exact, 0 before the last K.

        The events share w · log(1 + c · m) in proportion to their terms of (2).
        """
        parts = np.zeros(len(history))
        latest = history[-self.config.reach :]
        column = self.matrix[latest, np.full(len(latest), item)]
        terms = self.config.decay ** np.arange(len(latest))[::-1] * column
        if (m := terms.sum()) > 0:
            parts[-len(latest) :] = terms / m * self.weight * np.log1p(self.scale * m)
        return parts


def fit(data: Sequences, config: MemoryConfig) -> Memory:
    """Count the transitions of the training part of a log.

    Deterministic, and exact up to the ``pairs`` that are kept of each row. What is None in ``config``
    gets the value that suits a log nobody has tuned for: w = 1.5, c = 10, and r = -20 where no training
    event is a repeat, else 0.
    """
    size = len(data.item_ids)
    items, lengths = data.training_part()
    before = ranges(np.zeros_like(lengths), lengths)  # events of the user before each
    after = np.repeat(lengths, lengths) - 1 - before
    lags = np.array([lag for lag in range(-config.reach, config.reach + 1) if lag])
    weights = np.abs(lags) ** -config.lag_power * np.where(lags > 0, 1.0, config.backward)

    def paired(events: np.ndarray) -> np.ndarray:
        """Which of the lags lead from each event to another one of the same user, (events, lags)."""
        return (lags <= after[events, None]) & (lags >= -before[events, None])

    row_sums, column_sums = np.zeros(size), np.zeros(size)
    for events in np.split(np.arange(len(items)), range(_EVENTS, len(items), _EVENTS)):
        pairs = paired(events)
        row_sums += np.bincount(items[events], pairs @ weights, size)
        partners = items[(events[:, None] + lags)[pairs]]
        column_sums += np.bincount(partners, np.broadcast_to(weights, pairs.shape)[pairs], size)
    by_row = np.where(row_sums > 0, row_sums, 1) ** -config.row_power
    by_column = np.where(column_sums > 0, column_sums, 1) ** -config.column_power

    by_item = np.argsort(items, kind="stable")
    ends = np.cumsum(np.bincount(items, minlength=size))
    blocks = []
    for first, last in _item_ranges(ends):
        start = ends[first - 1] if first else 0
        events = by_item[start : ends[last - 1]]
        pairs = paired(events)
        partners = items[(events[:, None] + lags)[pairs]]
        to_partners = sparse.csr_array(
            (np.broadcast_to(weights, pairs.shape)[pairs], partners, _ends(pairs.sum(1))),
            (len(events), size),
        )
        counts_of = np.diff(ends[first:last], prepend=start)
        to_events = sparse.csr_array(
            (np.ones(len(events)), np.arange(len(events)), _ends(counts_of)),
            (last - first, len(events)),
        )
        counts = to_events @ to_partners
        counts.data *= (
            np.repeat(by_row[first:last], np.diff(counts.indptr)) * by_column[counts.indices]
        )
        counts.sort_indices()
        blocks.append(_largest(counts, config.pairs).astype(np.float32))
    repeat = config.repeat
    if repeat is None:
        repeat = 0.0 if data.has_repeats else NEVER
    return Memory(
        config, sparse.csr_array(sparse.vstack(blocks, format="csr")),
        1.5 if config.weight is None else config.weight,
        10.0 if config.scale is None else config.scale,
        repeat,
    )  # fmt: skip


def _ends(lengths: np.ndarray) -> np.ndarray:
    """0 and the running sums of lengths."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _item_ranges(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of items with about _EVENTS events each; ``ends`` (V,) are the running counts."""
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _EVENTS, side="right")))
        yield first, last
        first = last


def _largest(counts: sparse.csr_array, most: int) -> sparse.csr_array:
    """The ``most`` largest entries of each row; of equal ones those of the first columns."""
    keep = np.ones(counts.nnz, bool)
    for row in np.flatnonzero(np.diff(counts.indptr) > most):
        values = counts.data[counts.indptr[row] : counts.indptr[row + 1]]
        bar = np.partition(values, -most)[-most]
        kept = values > bar
        kept[np.flatnonzero(values == bar)[: most - kept.sum()]] = True
        keep[counts.indptr[row] : counts.indptr[row + 1]] = kept
    ends = np.concatenate([[0], np.cumsum(keep)])[counts.indptr]
    return sparse.csr_array((counts.data[keep], counts.indices[keep], ends), counts.shape)
