"""Search for the best items of a query by dot product, among millions, with filters.

The score of an item is its dot product with the query, plus a value for some items.

Axes: V items, D the width of a vector, B queries, k results per query, A items with an added value.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recblr.errors import DivergedError, InputError
from recblr.ops import ranking
from recblr.ops.ranking import BestItems

_CHUNK = 1 << 20  # values in memory at a time, so that they fit into the cache
_SCORE_ALL = 8_192  # up to this many items times queries, Exact scores all items without a scan
_BLOCK = 128  # products of which first only the maximum is compared
_LEVELS = 127  # of int8
_HIDDEN = -(2**31)  # the product of a hidden item, below any product of int8 vectors
_MAX_ADDED = 2**28  # largest added value in units of the int8 products, far from _HIDDEN
_FLOAT32 = np.finfo(np.float32)
NOT_FINITE = "a vector or a score is not finite: the model has diverged"

Added = tuple[np.ndarray, np.ndarray]
"""Items (A,), distinct and ascending, and the values (A,) added to their scores."""
_NONE_ADDED: Added = (np.zeros(0, np.int64), np.zeros(0, np.float32))


class Index:
    """An index of items. The scores of the results are computed in float32.

    Args:
        vectors: (V, D), V at least 1. Float32 tensors on the CPU are not copied, and must not change
            afterwards.

    Attributes:
        kind: the search algorithm.
        recall: the share of the true best 20 items that a search without filters returns.

    Raises:
        DivergedError: a vector is not finite.
    """

    kind: ClassVar[str]
    recall = 1.0

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = _to_numpy(vectors)
        self._best = BestItems(self._vectors) if self.is_small and ranking.AVAILABLE else None

    def __str__(self) -> str:
        share = "" if self.recall == 1 else f" (recall@20 {self.recall:.3f})"
        return f"{self.kind}{share}"

    @property
    def is_small(self) -> bool:
        """Whether all items are scored for a query, in less than 0.1 ms."""
        return len(self._vectors) <= _SCORE_ALL

    def search(
        self,
        queries: Tensor,
        k: int,
        hidden: Sequence[ArrayLike] | None = None,
        allowed: Sequence[ArrayLike | None] | None = None,
        added: Sequence[Added | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` items of each query. Several threads may search at the same time.

        Args:
            queries: (B, D).
            k: the number of results per query.
            hidden: for each query the items, 0 .. V-1, to exclude.
            allowed: for each query the only items to consider, or None for all items. They are all
                scored, so the result is exact.
            added: for each query the values to add to the scores of some items, or None.

        Returns:
            Scores (B, k) float32 and items (B, k) int64, best first, equal scores by item. If fewer
            than k items remain, the last scores are -∞ and the last items -1.

        Raises:
            DivergedError: a query or a score is not finite.
            InputError: k is below 1.
            ValueError: queries, filters or values have a wrong shape, an item is not in 0 .. V-1, or
                the items of added values are not ascending.
        """
        size, width = self._vectors.shape
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f"queries must be (B, {width}), found {tuple(queries.shape)}")
        B, query_vectors = len(queries), _to_numpy(queries)
        hide = [self._items(rows) for rows in (hidden if hidden is not None else [()] * B)]
        only = [
            rows if rows is None else self._items(rows)
            for rows in (allowed if allowed is not None else [None] * B)
        ]
        values = [
            self._values(*(pair or ((), ())))
            for pair in (added if added is not None else [None] * B)
        ]
        if not len(hide) == len(only) == len(values) == B:
            raise ValueError(f"pass one filter for each of the {B} queries")
        searched = [b for b, rows in enumerate(only) if rows is None]
        results: list[np.ndarray] = []
        if searched:
            filters = [hide[b] for b in searched], [values[b] for b in searched]
            results = self._candidates(query_vectors[searched], min(k, size), *filters)
        by_query = dict(zip(searched, results, strict=True))
        scores = np.full((B, k), -np.inf, np.float32)
        items = np.full((B, k), -1)
        for b, query in enumerate(query_vectors):
            rows = only[b]
            candidates = by_query[b] if rows is None else np.setdiff1d(rows, hide[b])
            best = _add(self._scores(query, candidates), candidates, *values[b])
            if len(best) > 4 * k:  # select before sorting
                selected = best >= np.partition(best, -k)[-k]
                best, candidates = best[selected], candidates[selected]
            # Candidates are in order of item and the sort is stable, so equal scores stay in order.
            order = np.argsort(-best, kind="stable")[:k]
            scores[b, : len(order)], items[b, : len(order)] = best[order], candidates[order]
        return scores, items

    def search_one(
        self, query: np.ndarray, k: int, hidden: np.ndarray, added: Added | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`search` for one query (D,) without ``allowed``; only the results that there are.

        In C for a small catalogue, where a call of NumPy takes longer than its work.
        """
        if self._best is None:
            scores, items = self.search(torch.from_numpy(query[None]), k, [hidden], None, [added])
            count = int((items >= 0).sum())
            return scores[0, :count], items[0, :count]
        found = self._best.of(query, k, *(added or _NONE_ADDED), hidden)
        if found is None:
            raise DivergedError(NOT_FINITE)
        return found

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        """For each query ascending items that include the best k that are not hidden."""
        raise NotImplementedError

    def _values(self, rows: ArrayLike, values: ArrayLike) -> Added:
        items, floats = self._items(rows), _finite(np.asarray(values, np.float32))
        if floats.shape != items.shape or (np.diff(items) <= 0).any():
            raise ValueError("added values need distinct, ascending items, one for each value")
        return items, floats

    def _items(self, rows: ArrayLike) -> np.ndarray:
        items = np.asarray(rows, np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < len(self._vectors):
            raise ValueError(f"items must be 0 .. {len(self._vectors) - 1}, found {items}")
        return items

    def _scores(self, query: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores (n,), row by row, so a score does not depend on the other items."""
        if len(self._vectors) <= _SCORE_ALL and 2 * len(items) > len(self._vectors):  # no copy
            return _finite(np.einsum("nd,d->n", self._vectors, query)[items])
        step = _CHUNK // len(query)
        scores = np.empty(len(items), np.float32)
        for first in range(0, len(items), step):
            chunk = slice(first, first + step)
            np.einsum("nd,d->n", self._vectors[items[chunk]], query, out=scores[chunk])
        return _finite(scores)


class Exact(Index):
    """An exact search by a scan of all items in int8.

    Rounding changes a score, added value included, by at most an error e. The k-th best score is then
    at least the k-th best rounded score minus e. So an item whose rounded score is more than 2e below
    the k-th best rounded score is not among the best. The other items, a few times k, are scored in
    float32. A few very long vectors make e large and the search slow, but it stays exact.
    """

    kind = "exact"

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(vectors)
        size, width = self._vectors.shape
        # Without VNNI torch multiplies int8 in a plain loop, slower than float32. For width 1 it leaves
        # the product unset (pytorch issue 195066).
        self._int8 = torch.cpu._is_vnni_supported() and width > 1
        largest = np.maximum(self._vectors.max(0), -self._vectors.min(0))
        self._scale = np.maximum(largest / _LEVELS, _FLOAT32.tiny)
        kind = torch.int8 if self._int8 else torch.float32
        self._rounded = torch.zeros(-(-size // _BLOCK) * _BLOCK, width, dtype=kind)
        error = length = 0.0
        for first in range(0, size, _CHUNK // width):
            scaled = self._vectors[first : first + _CHUNK // width] / self._scale
            rounded = self._round(scaled)
            self._rounded.numpy()[first : first + len(rounded)] = rounded
            error = max(error, _lengths(scaled - rounded).max())
            length = max(length, _lengths(scaled).max())
        # Plus the rounding of float32, here and in the scores.
        self._error = error + 2 * (width + 4) * _FLOAT32.eps * length
        self._length = length + error

    def _round(self, scaled: np.ndarray) -> np.ndarray:
        return np.rint(scaled).astype(np.int8) if self._int8 else scaled.astype(np.float32)

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        size, B = len(self._vectors), len(queries)
        if size * B <= _SCORE_ALL:
            return [np.delete(np.arange(size), rows) for rows in hidden]
        scaled = queries * self._scale.astype(np.float64)
        largest = np.array([np.abs(values).max(initial=0) for _, values in added], np.float64)
        units = _LEVELS / np.maximum(np.abs(scaled).max(1), 1e-300)  # of the rounded scores
        units = np.minimum(units, _MAX_ADDED / np.maximum(largest, _FLOAT32.tiny))
        scaled *= units[:, None]
        rounded = self._round(scaled)
        errors = _lengths(scaled) * self._error + _lengths(scaled - rounded) * self._length
        errors += (largest > 0) * (1 + 4 * _FLOAT32.eps * units * largest)
        multiply = torch._int_mm if self._int8 else torch.mm
        hidden_query, hidden_item, _ = _by_item(hidden)
        added_query, added_item, order = _by_item([items for items, _ in added])
        scaled_values = [values * unit for (_, values), unit in zip(added, units, strict=True)]
        added_value = np.rint(np.concatenate(scaled_values))[order].astype(np.int32)
        block = _BLOCK
        while block > 1 and size < 4 * k * block:
            block //= 2
        tile = max(1, _CHUNK // B // _BLOCK) * _BLOCK
        best = np.full((B, k), float(_HIDDEN))
        candidates = []
        for first in range(0, size, tile):
            products = multiply(torch.from_numpy(rounded), self._rounded[first : first + tile].t())
            blocks = products.view(B, -1, block)
            values = products.numpy()
            part = slice(*np.searchsorted(added_item, (first, first + tile)))
            values[added_query[part], added_item[part] - first] += added_value[part]
            values[:, size - first :] = _HIDDEN
            part = slice(*np.searchsorted(hidden_item, (first, first + tile)))
            values[hidden_query[part], hidden_item[part] - first] = _HIDDEN
            maxima = blocks.amax(-1).numpy()
            # The k-th largest maximum of the blocks is at most the k-th best product.
            best = np.partition(np.concatenate([best, maxima], 1), -k, axis=1)[:, -k:]
            low = np.floor(np.maximum(best.min(1) - 2 * errors, _HIDDEN / 2)).astype(values.dtype)
            selected = np.flatnonzero(maxima >= low[:, None])  # blocks
            query = selected // maxima.shape[1]
            products_in = values.reshape(-1, block)[selected]
            row, offset = divmod(np.flatnonzero(products_in >= low[query, None]), block)
            item = first + selected[row] % maxima.shape[1] * block + offset
            candidates.append((query[row], item, products_in[row, offset]))
        query, item, product = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
        kept = product >= low[query]  # later tiles have raised the limit
        return [item[kept & (query == b)] for b in range(B)]


def _by_item(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items of all lists, sorted: the list of each, the item, and its position before sorting."""
    items = np.concatenate(lists)
    order = np.argsort(items, kind="stable")
    number = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    return number[order], items[order], order


def _add(
    scores: np.ndarray, candidates: np.ndarray, items: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """The ``scores`` of candidates plus the values of ``items``; both are ascending."""
    if len(items) == 0 or len(candidates) == 0:
        return scores
    size = max(candidates[-1], items[-1]) + 1
    if size < 8 * len(candidates):  # most items are candidates: no need to search for each
        by_item = np.zeros(size, np.float32)
        by_item[items] = values
        return _finite(scores + by_item[candidates])
    position = np.searchsorted(items, candidates)
    position[position == len(items)] = 0
    return _finite(scores + np.where(items[position] == candidates, values[position], 0))


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def _to_numpy(vectors: Tensor) -> np.ndarray:
    return _finite(vectors.detach().to("cpu", torch.float32).contiguous().numpy())


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DivergedError(NOT_FINITE)
    return values
