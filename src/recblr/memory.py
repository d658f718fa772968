"""The memory of transitions: counts of which item followed which in the training part of a log.

It is independent of the model, and adds to the score s that a model gives an item after a history,

    score = s + w · log(1 + c · m) + r · [the item is in the history]            (1)
    m     = Σ over the last K items of the history, decay^age · B[item, ·]       (2)
    B     = C / (row sum ^ row_power) / (column sum ^ column_power)              (3)

C[a, b] is a sum over all pairs of events of one user at most K events apart: lag^-lag_power if b came
``lag`` events after a, ``backward`` times as much if b came before a. Related work: the transition
term of FPMC (Rendle et al., WWW 2010), item-to-item neighbours, kNN-LM (arXiv 1911.00172).

A score reads K rows of a sparse matrix, whatever the length of the history.

Axes: B histories, T events of a history, V items, N events of all histories laid end to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recblr.config import changed_settings, check, expect_sizes
from recblr.data.batches import PackedBatch, ranges
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.ops.library import AVAILABLE
from recblr.ops.ranking import TransitionTerms
from recblr.ranks import ALONE, Ranks

EXCLUDE_REPEATS = -20.0  # r for a log without repeats; outweighs every other term of (1)
_BLOCK_EVENTS = 1 << 18  # events whose pairs are counted at a time, to bound the memory


@dataclass(frozen=True)
class MemoryConfig:
    """How the memory of transitions counts, and how it adds to a score."""

    __repr__ = changed_settings

    enabled: bool = True
    reach: int = 8  # K: the greatest distance of a pair, and the number of last items looked up
    lag_power: float = 0.7  # a pair counts lag^-lag_power
    backward: float = 0.3  # factor of a pair in reverse order of time
    row_power: float = 0.3  # scales down the transitions from frequent items
    column_power: float = 0.1  # scales down the transitions to frequent items
    decay: float = 0.7  # weight of an item of the history relative to the item after it
    pairs: int = 1024  # the number of largest entries kept in each row
    # The numbers of (1). None: chosen on validation after training; but if no training event is a
    # repeat, r is -20, which outweighs every other term.
    weight: float | None = None  # w
    scale: float | None = None  # c
    repeat: float | None = None  # r

    def __post_init__(self) -> None:
        check(self, "memory")
        expect_sizes(self, "memory", "reach", at_most=1000)
        expect_sizes(self, "memory", "pairs")
        for names, low, high in (
            (("lag_power", "backward", "row_power", "column_power", "decay"), 0, 10),
            (("weight", "scale"), 0, 1e6),
            (("repeat",), -1e6, 1e6),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not low <= value <= high:
                    raise InputError(f"memory.{name} = {value}: must be in {low:g} .. {high:g}")


@dataclass(frozen=True, eq=False)
class Memory:
    """A fitted memory. ``matrix`` (V, V) float32 is B of (3); w, c and r of (1) are its numbers."""

    config: MemoryConfig
    matrix: sparse.csr_array
    weight: float
    scale: float
    repeat: float
    _tensors: dict[torch.device, tuple[Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False
    )  # the matrix on devices

    @cached_property
    def _after(self) -> TransitionTerms | None:
        if not AVAILABLE:
            return None
        return TransitionTerms(self.matrix, self._weights, self.weight, self.scale)

    @cached_property
    def _weights(self) -> np.ndarray:
        weights: np.ndarray = self.config.decay ** np.arange(self.config.reach)[::-1]
        return weights

    def __repr__(self) -> str:
        return (
            f"Memory({self.matrix.shape[0]:,} items, {self.matrix.nnz:,} transitions, weight "
            f"{self.weight:g}, scale {self.scale:g}, repeat {self.repeat:g})"
        )

    def add_to(self, scores: Tensor, batch: PackedBatch) -> Tensor:
        """Add both terms of (1) to ``scores`` (B, V) of a batch of histories, in place.

        ``batch.seen`` must hold the items of each history. The batch may be on another device.
        """
        if scores.device.type == "cpu":
            items, offsets = batch.items.cpu().numpy(), batch.offsets.cpu().numpy()
            terms = self.transition_terms(items, offsets).tocoo()
            coordinates = tuple(torch.from_numpy(axis.astype(np.int64)) for axis in terms.coords)
            values = torch.from_numpy(terms.data).to(scores.dtype)
            scores.index_put_(coordinates, values, accumulate=True)
        else:
            on_device = batch.items.to(scores.device), batch.offsets.to(scores.device)
            m = self.transition_sums_on_device(*on_device)
            scores += self.weight * torch.log1p(self.scale * m)
        if self.repeat:
            if batch.seen is None:
                raise ValueError("the batch needs `seen`, the items of each history")
            row, item = batch.seen.to(scores.device)
            scores[row, item] = scores[row, item] + self.repeat  # duplicate pairs count once
        return scores

    def transition_terms(self, items: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
        """w · log(1 + c · m) of (1) after each of B histories, (B, V); no value is negative.

        Args:
            items: (N,) the histories, oldest event first.
            offsets: (B + 1,) history b has the rows offsets[b] .. offsets[b+1]-1.
        """
        terms = self.transition_sums(items, offsets)
        terms.data = np.float32(self.weight) * np.log1p(np.float32(self.scale) * terms.data)
        return terms

    def transition_sums(self, items: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
        """m of (2), (B, V), after histories as in :meth:`transition_terms`."""
        lengths = np.minimum(np.diff(offsets), self.config.reach)
        rows = ranges(offsets[1:] - lengths, lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        age = offsets[1:][owner] - 1 - rows
        weights = (self.config.decay**age).astype(np.float32)
        shape = (len(lengths), self.matrix.shape[0])
        return sparse.csr_array((weights, (owner, items[rows])), shape) @ self.matrix

    def transition_sums_on_device(self, items: Tensor, offsets: Tensor) -> Tensor:
        """:meth:`transition_sums` as a dense tensor on the device of ``items`` (N,), offsets (B + 1,).

        The host does not wait for the device: no shape depends on a value there. The columns of a row
        of the matrix differ, so each sum has a fixed order.
        """
        device, (histories, size) = items.device, (len(offsets) - 1, self.matrix.shape[0])
        m = torch.zeros(histories, size, device=device)
        if not len(items) or not self.matrix.nnz:
            return m
        if device not in self._tensors:
            matrix = (self.matrix.indptr, self.matrix.indices, self.matrix.data)
            self._tensors[device] = tuple(torch.from_numpy(part).to(device) for part in matrix)
        ends, columns, values = self._tensors[device]
        entries = torch.arange(int(np.diff(self.matrix.indptr).max()), device=device)
        for age in range(self.config.reach):
            event = offsets[1:] - 1 - age
            item = items[event.clamp(min=0)].long()
            at = ends[item, None] + entries
            valid = (event >= offsets[:-1])[:, None] & (at < ends[item + 1, None])
            at = at.clamp(max=self.matrix.nnz - 1)
            terms = torch.where(valid, self.config.decay**age * values[at], 0.0)
            m.scatter_add_(1, torch.where(valid, columns[at], 0).long(), terms)
        return m

    def transition_terms_after(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`transition_terms` after one history (T,), at a cost that does not grow with T or V.

        Returns:
            The items (A,) with a value, ascending, and the values (A,) float32.
        """
        latest = history[-self.config.reach :]
        if self._after is not None:
            return self._after.after(latest)
        rows = [slice(*self.matrix.indptr[item : item + 2]) for item in latest.tolist()]
        weights = self._weights[-len(latest) :]
        items = np.concatenate([self.matrix.indices[row] for row in rows])
        terms = [weight * self.matrix.data[row] for weight, row in zip(weights, rows, strict=True)]
        if len(items) < (size := self.matrix.shape[0]):
            items, position = np.unique(items, return_inverse=True)
            m = np.bincount(position, np.concatenate(terms), len(items))
        else:  # for a small catalogue, a sum over all items is faster than sorting
            m = np.bincount(items, np.concatenate(terms), size)
            items = np.flatnonzero(m)
            m = m[items]
        return items, (self.weight * np.log1p(self.scale * m)).astype(np.float32)

    def terms_after(self, history: np.ndarray, repeats: bool) -> tuple[np.ndarray, np.ndarray]:
        """What the memory adds to the scores after one history, as :meth:`transition_terms_after`.

        Args:
            history: (T,) items, T at least 1. Without ``repeats`` the last ``reach`` suffice.
            repeats: whether to add the third term of (1); there is no need to if the items of the
                history are hidden.
        """
        items, values = self.transition_terms_after(history)
        if not repeats or self.repeat == 0:
            return items, values
        seen = np.unique(history)
        values = np.concatenate([values, np.full(len(seen), self.repeat)])
        items, places = np.unique(np.concatenate([items, seen]), return_inverse=True)
        return items, np.bincount(places, values).astype(np.float32)

    def contributions(self, history: np.ndarray, item: int) -> np.ndarray:
        """(T,) the exact contribution of each event of a history to the score of ``item``.

        w · log(1 + c · m) is divided among the last K events in proportion to their terms of (2).
        """
        contributions = np.zeros(len(history))
        latest = history[-self.config.reach :]
        column = self.matrix[latest, np.full(len(latest), item)]
        terms = self.config.decay ** np.arange(len(latest))[::-1] * column
        if (m := terms.sum()) > 0:
            contributions[-len(latest) :] = terms / m * self.weight * np.log1p(self.scale * m)
        return contributions


def fit(data: Sequences, config: MemoryConfig, ranks: Ranks = ALONE) -> Memory:
    """Count the transitions of the training part of a log.

    Deterministic, and exact for the ``pairs`` kept in each row. If a number is None in ``config``, it
    gets a default: w = 1.5, c = 10, and r = -20 if no training event is a repeat, else 0. Each of
    ``ranks`` counts a part of the rows, and gets all of them.
    """
    size = len(data.item_ids)
    items, lengths = data.training_part()
    before = ranges(np.zeros_like(lengths), lengths)  # number of earlier events of the same user
    after = np.repeat(lengths, lengths) - 1 - before
    lags = np.array([lag for lag in range(-config.reach, config.reach + 1) if lag])
    weights = np.abs(lags) ** -config.lag_power * np.where(lags > 0, 1.0, config.backward)

    def find_pairs(events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether each lag leads to an event of the same user (events, lags); the items there, and the
        weights of these lags, one for each pair."""
        valid = (lags <= after[events, None]) & (lags >= -before[events, None])
        partners = items[(events[:, None] + lags)[valid]]
        return valid, partners, np.broadcast_to(weights, valid.shape)[valid]

    row_sums, column_sums = np.zeros(size), np.zeros(size)
    blocks = range(_BLOCK_EVENTS, len(items), _BLOCK_EVENTS)
    for events in np.split(np.arange(len(items)), blocks):
        valid, partners, pair_weights = find_pairs(events)
        row_sums += np.bincount(items[events], valid @ weights, size)
        column_sums += np.bincount(partners, pair_weights, size)
    by_row = np.where(row_sums > 0, row_sums, 1) ** -config.row_power
    by_column = np.where(column_sums > 0, column_sums, 1) ** -config.column_power

    by_item = np.argsort(items, kind="stable")
    ends = np.cumsum(np.bincount(items, minlength=size))
    item_ranges = list(_item_ranges(ends))
    rows = [sparse.csr_array((0, size), dtype=np.float32)]
    for first, last in item_ranges[ranks.rows(len(item_ranges))]:
        start = ends[first - 1] if first else 0
        events = by_item[start : ends[last - 1]]
        valid, partners, pair_weights = find_pairs(events)
        to_partners = sparse.csr_array(
            (pair_weights, partners, _offsets(valid.sum(1))), (len(events), size)
        )
        item_events = np.diff(ends[first:last], prepend=start)
        to_events = sparse.csr_array(
            (np.ones(len(events)), np.arange(len(events)), _offsets(item_events)),
            (last - first, len(events)),
        )
        counts = to_events @ to_partners
        counts.data *= (
            np.repeat(by_row[first:last], np.diff(counts.indptr)) * by_column[counts.indices]
        )
        counts.sort_indices()
        rows.append(largest(counts, config.pairs).astype(np.float32))
    matrix = _gather_rows(sparse.csr_array(sparse.vstack(rows, format="csr")), ranks)
    if not np.isfinite(matrix.data).all():
        raise InputError(
            "the memory of transitions is not finite; lower memory.row_power and memory.column_power"
        )
    repeat = config.repeat
    if repeat is None:
        repeat = 0.0 if data.has_repeats else EXCLUDE_REPEATS
    return Memory(
        config, matrix,
        1.5 if config.weight is None else config.weight,
        10.0 if config.scale is None else config.scale,
        repeat,
    )  # fmt: skip


def _gather_rows(part: sparse.csr_array, ranks: Ranks) -> sparse.csr_array:
    """The rows of all ``ranks``, from those of this one."""
    if ranks.alone:
        return part
    lengths, columns, values = (
        ranks.gather(torch.from_numpy(own), ranks.bounds(len(own))).numpy()
        for own in (np.diff(part.indptr).astype(np.int64), part.indices.astype(np.int32), part.data)
    )
    return sparse.csr_array((values, columns, _offsets(lengths)), (len(lengths), part.shape[1]))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """0 and the cumulative sums of ``lengths``."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _item_ranges(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of items with about _BLOCK_EVENTS events each; ``ends`` (V,) are cumulative counts."""
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_EVENTS, side="right")))
        yield first, last
        first = last


def largest(counts: sparse.csr_array, n: int) -> sparse.csr_array:
    """The ``n`` largest entries of each row; of equal ones those of the first columns."""
    keep = np.ones(counts.nnz, bool)
    for row in np.flatnonzero(np.diff(counts.indptr) > n):
        values = counts.data[counts.indptr[row] : counts.indptr[row + 1]]
        threshold = np.partition(values, -n)[-n]
        kept = values > threshold
        kept[np.flatnonzero(values == threshold)[: n - kept.sum()]] = True
        keep[counts.indptr[row] : counts.indptr[row + 1]] = kept
    offsets = _offsets(keep)[counts.indptr]
    return sparse.csr_array((counts.data[keep], counts.indices[keep], offsets), counts.shape)
