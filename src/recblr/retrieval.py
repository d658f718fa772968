"""The best items of a query among millions, by dot product, with filters applied inside the search.

The score of some items may have a value added to the dot product.

Axes: V items, D the width of a vector, B queries, k results of each, A items with a value added.
"""

import importlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recblr.errors import DivergedError, InputError

_EXACT = 4_000_000  # items, scanned in some 10 ms
_NUMBERS = 1 << 20  # in memory at once, so that they also stay in the cache
_FEW = 8_192  # items; for a query or two Exact scores all of so many
_BLOCK = 128  # products of which only the largest is looked at, at first
_LEVELS = 127  # of int8
_HIDDEN = -(2**31)  # below any product of vectors of such numbers
_MOST_ADDED = 2**28  # to such a product, so that none comes near _HIDDEN
_FLOAT32 = np.finfo(np.float32)
_BEST, _RECALL = 20, 0.99  # an inverted file finds this share of the best 20,
_QUERIES = 256  # measured by at most so many queries
_RERANKED = 4  # times k

Added = tuple[np.ndarray, np.ndarray]
"""Items (A,), distinct and in rising order, and the values (A,) added to their scores."""


class Index:
    """Items to search. Whatever finds them, the scores of those found are computed in float32.

    Args:
        vectors: (V, D), V at least 1. Not copied where they are float32 on the CPU; they must not
            change afterwards.

    Attributes:
        kind: how it searches.
        recall: the share of the true best 20 that it finds without filters.

    Raises:
        DivergedError: a vector is not finite.
    """

    kind: ClassVar[str]
    recall = 1.0

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = _numbers(vectors)

    def search(
        self,
        queries: Tensor,
        k: int,
        hidden: Sequence[ArrayLike] | None = None,
        allowed: Sequence[ArrayLike | None] | None = None,
        added: Sequence[Added | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` items of each query. Threads may search at the same time.

        The score of an item is its dot product with the query plus the value added to it, if any.

        Args:
            queries: (B, D).
            hidden: for each query the items, 0 .. V-1, that are not to be found.
            allowed: for each query the items that alone may be found, or None for all. They are
                all scored, so that the answer is exact.
            added: for each query values of some items, or None for no values.

        Returns:
            Scores (B, k) float32 and items (B, k) int64, best first, equal scores by item. Where
            fewer than k are left, the rest is -∞ and -1.

        Raises:
            DivergedError: a query or a score is not finite.
            InputError: k is below 1.
            ValueError: queries, filters or values of a wrong shape, no such item, or items with a
                value that are not in rising order.
        """
        size, width = self._vectors.shape
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f"queries must be (B, {width}), found {tuple(queries.shape)}")
        B, wanted = len(queries), _numbers(queries)
        hide = [self._items(rows) for rows in (hidden if hidden is not None else [()] * B)]
        keep = [
            rows if rows is None else self._items(rows)
            for rows in (allowed if allowed is not None else [None] * B)
        ]
        values = [
            self._values(*(pair or ((), ())))
            for pair in (added if added is not None else [None] * B)
        ]
        if not len(hide) == len(keep) == len(values) == B:
            raise ValueError(f"there must be a filter for each of {B} queries")
        free = [b for b, rows in enumerate(keep) if rows is None]
        near: list[np.ndarray] = []
        if free:
            filters = [hide[b] for b in free], [values[b] for b in free]
            near = self._candidates(wanted[free], min(k, size), *filters)
        found = dict(zip(free, near, strict=True))
        scores = np.full((B, k), -np.inf, np.float32)
        items = np.full((B, k), -1)
        for b, query in enumerate(wanted):
            rows = keep[b]
            candidates = found[b] if rows is None else np.setdiff1d(rows, hide[b])
            best = _add(self._scores(query, candidates), candidates, *values[b])
            if len(best) > 4 * k:  # too many to sort
                likely = best >= np.partition(best, -k)[-k]
                best, candidates = best[likely], candidates[likely]
            # Candidates come in order of item, and the sort is stable: equal scores stay in it.
            order = np.argsort(-best, kind="stable")[:k]
            scores[b, : len(order)], items[b, : len(order)] = best[order], candidates[order]
        return scores, items

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        """For each query items in rising order, among them the best k that are not hidden."""
        raise NotImplementedError

    def _values(self, rows: ArrayLike, values: ArrayLike) -> Added:
        items, numbers = self._items(rows), _finite(np.asarray(values, np.float32))
        if numbers.shape != items.shape or (np.diff(items) <= 0).any():
            raise ValueError("values are added to distinct items in rising order, one to each")
        return items, numbers

    def _items(self, rows: ArrayLike) -> np.ndarray:
        items = np.asarray(rows, np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < len(self._vectors):
            raise ValueError(f"items must be 0 .. {len(self._vectors) - 1}, found {items}")
        return items

    def _scores(self, query: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Row by row, so that a score does not depend on what else is scored."""
        if len(self._vectors) <= _FEW and 2 * len(items) > len(self._vectors):  # no copy of them
            return _finite(np.einsum("nd,d->n", self._vectors, query)[items])
        step = _NUMBERS // len(query)
        scores = np.empty(len(items), np.float32)
        for first in range(0, len(items), step):
            some = slice(first, first + step)
            np.einsum("nd,d->n", self._vectors[items[some]], query, out=scores[some])
        return _finite(scores)


class Exact(Index):
    """A scan of all items in int8 that loses none of the best.

    Added values are rounded too. Rounding changes a score by at most some e. The k-th best score is
    then at least the k-th best rounded score less e, and an item whose rounded score lies more than
    2e below the k-th best one is not among the best. The others, a few times k, are scored in
    float32. Where a few items dwarf the rest, e is large and the search slow, but no less exact.
    """

    kind = "exact"

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(vectors)
        size, width = self._vectors.shape
        # Without these instructions torch multiplies int8 in a plain loop, slower than float32. The
        # product of vectors of one number it leaves unset (pytorch issue 195066).
        self._int8 = torch.cpu._is_vnni_supported() and width > 1
        largest = np.maximum(self._vectors.max(0), -self._vectors.min(0))
        self._scale = np.maximum(largest / _LEVELS, _FLOAT32.tiny)
        kind = torch.int8 if self._int8 else torch.float32
        self._rounded = torch.zeros(-(-size // _BLOCK) * _BLOCK, width, dtype=kind)
        error = length = 0.0
        for first in range(0, size, _NUMBERS // width):
            scaled = self._vectors[first : first + _NUMBERS // width] / self._scale
            rounded = self._round(scaled)
            self._rounded.numpy()[first : first + len(rounded)] = rounded
            error = max(error, _lengths(scaled - rounded).max())
            length = max(length, _lengths(scaled).max())
        # On top comes what float32 rounds, in these numbers and in the scores.
        self._error = error + 2 * (width + 4) * _FLOAT32.eps * length
        self._length = length + error

    def _round(self, scaled: np.ndarray) -> np.ndarray:
        return np.rint(scaled).astype(np.int8) if self._int8 else scaled.astype(np.float32)

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        size, B = len(self._vectors), len(queries)
        if size * B <= _FEW:  # to score all takes less than to find the likely
            return [np.delete(np.arange(size), rows) for rows in hidden]
        scaled = queries * self._scale.astype(np.float64)
        most = np.array([np.abs(values).max(initial=0) for _, values in added], np.float64)
        unit = _LEVELS / np.maximum(np.abs(scaled).max(1), 1e-300)
        unit = np.minimum(unit, _MOST_ADDED / np.maximum(most, _FLOAT32.tiny))
        scaled *= unit[:, None]
        rounded = self._round(scaled)
        errors = _lengths(scaled) * self._error + _lengths(scaled - rounded) * self._length
        errors += (most > 0) * (1 + 4 * _FLOAT32.eps * unit * most)
        multiply = torch._int_mm if self._int8 else torch.mm
        owner, rows, _ = _by_item(hidden)
        gaining, gainers, order = _by_item([items for items, _ in added])
        gains = [values * of for (_, values), of in zip(added, unit, strict=True)]
        gain = np.rint(np.concatenate(gains))[order].astype(np.int32)
        block = _BLOCK
        while block > 1 and size < 4 * k * block:
            block //= 2
        tile = max(1, _NUMBERS // B // _BLOCK) * _BLOCK
        best = np.full((B, k), float(_HIDDEN))
        found = []
        for first in range(0, size, tile):
            products = multiply(torch.from_numpy(rounded), self._rounded[first : first + tile].t())
            blocks = products.view(B, -1, block)
            values = products.numpy()
            some = slice(*np.searchsorted(gainers, (first, first + tile)))
            values[gaining[some], gainers[some] - first] += gain[some]
            values[:, size - first :] = _HIDDEN
            some = slice(*np.searchsorted(rows, (first, first + tile)))
            values[owner[some], rows[some] - first] = _HIDDEN
            maxima = blocks.amax(-1).numpy()
            # k blocks hold k items, so their k-th largest is no more than the k-th best product.
            best = np.partition(np.concatenate([best, maxima], 1), -k, axis=1)[:, -k:]
            low = np.floor(np.maximum(best.min(1) - 2 * errors, _HIDDEN / 2)).astype(values.dtype)
            chosen = np.flatnonzero(maxima >= low[:, None])
            query = chosen // maxima.shape[1]
            near = values.reshape(-1, block)[chosen]
            which, offset = divmod(np.flatnonzero(near >= low[query, None]), block)
            item = first + chosen[which] % maxima.shape[1] * block + offset
            found.append((query[which], item, near[which, offset]))
        query, item, product = (np.concatenate(parts) for parts in zip(*found, strict=True))
        likely = product >= low[query]  # later items have raised the bar
        return [item[likely & (query == b)] for b in range(B)]


class InvertedFile(Index):
    """A scan of those lists of items whose centres lie towards the query, by faiss.

    Of as many lists as find 0.99 of the true best 20 of the queries that it is measured by; of more
    where filters leave fewer than k.

    Args:
        vectors: as in :class:`Index`.
        queries: (Q, D) to measure by, such as hidden vectors of histories; the items if None.

    Raises:
        InputError: faiss is not installed.
    """

    kind = "inverted file"

    def __init__(self, vectors: Tensor, queries: Tensor | None = None) -> None:
        super().__init__(vectors)
        try:
            self._faiss = importlib.import_module("faiss")
        except ImportError as error:
            raise InputError(
                "a catalogue this large needs faiss; install it with pip install 'recblr[serve]'"
            ) from error
        self._faiss.omp_set_num_threads(torch.get_num_threads())  # of this thread
        size, width = self._vectors.shape
        self._lists = min(size, int(2 * size**0.5))
        self._index = self._faiss.IndexIVFScalarQuantizer(
            self._faiss.IndexFlatIP(width), width, self._lists,
            self._faiss.ScalarQuantizer.QT_8bit, self._faiss.METRIC_INNER_PRODUCT,
        )  # fmt: skip
        self._index.cp.spherical = True
        self._index.cp.min_points_per_centroid = 1  # do not warn
        self._index.cp.max_points_per_centroid = 64
        self._index.train(self._vectors)
        self._index.add(self._vectors)
        queries = vectors if queries is None else queries
        some = np.random.default_rng(0).permutation(len(queries))[:_QUERIES]
        queries = queries[torch.from_numpy(some)]
        truth = Exact(vectors).search(queries, _BEST)[1]
        self._probes, self.recall = 1, 0.0
        while True:
            found = self.search(queries, _BEST)[1]
            self.recall = float((found[:, :, None] == truth[:, None]).any(1).mean())
            if self.recall >= _RECALL or self._probes >= self._lists:
                break
            self._probes *= 2

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        found = []
        for query, rows, (items, values) in zip(queries, hidden, added, strict=True):
            if len(items) == 0:
                found.append(self._probe(query, k, rows))
                continue
            # All with a value are candidates. With a negative one they take no place of another.
            near = self._probe(query, k, np.concatenate([rows, items[values < 0]]))
            found.append(np.union1d(near, items[~np.isin(items, rows)]))
        return found

    def _probe(self, query: np.ndarray, k: int, hidden: np.ndarray) -> np.ndarray:
        faiss, probes = self._faiss, self._probes
        left = min(k, len(self._vectors) - len(np.unique(hidden)))
        shown = faiss.IDSelectorNot(faiss.IDSelectorBatch(hidden)) if len(hidden) else None
        while True:
            parameters = faiss.SearchParametersIVF(sel=shown, nprobe=probes)
            items = self._index.search(query[None], _RERANKED * k, params=parameters)[1][0]
            items = np.sort(items[items >= 0])
            if len(items) >= left or probes >= self._lists:
                return items
            probes *= 2


def build(vectors: Tensor, queries: Tensor | None = None) -> Index:
    """The index for so many items: exact up to 4 million, an inverted file above.

    Args:
        vectors: (V, D).
        queries: (Q, D) to measure an inverted file by.
    """
    return Exact(vectors) if len(vectors) <= _EXACT else InvertedFile(vectors, queries)


def _by_item(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items of all lists in rising order: the list of each, the item, its place among all."""
    items = np.concatenate(lists)
    order = np.argsort(items, kind="stable")
    owner = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    return owner[order], items[order], order


def _add(
    scores: np.ndarray, candidates: np.ndarray, items: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """The ``scores`` of candidates with the values of some ``items``, in rising order, added."""
    if len(items) == 0:
        return scores
    place = np.searchsorted(items, candidates)
    place[place == len(items)] = 0
    return _finite(scores + np.where(items[place] == candidates, values[place], 0))


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def _numbers(vectors: Tensor) -> np.ndarray:
    return _finite(vectors.detach().to("cpu", torch.float32).contiguous().numpy())


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DivergedError("a vector or a score is not finite: the model has diverged")
    return values
