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
from recblr.ops import library, ranking
from recblr.ops.candidates import Candidates
from recblr.ops.ranking import BestItems

_CHUNK = 1 << 20  # values in memory at a time, so that they fit into the cache
_SCORE_ALL = 8_192  # up to this many items times queries, Exact scores all items without a scan
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
        self._best = BestItems(self._vectors) if self.is_small and library.AVAILABLE else None

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
        results: Sequence[np.ndarray | None] = []
        if searched:
            filters = [hide[b] for b in searched], [values[b] for b in searched]
            results = self._candidates(query_vectors[searched], min(k, size), *filters)
        by_query = dict(zip(searched, results, strict=True))
        scores = np.full((B, k), -np.inf, np.float32)
        items = np.full((B, k), -1)
        for b, query in enumerate(query_vectors):
            rows = only[b]
            candidates = by_query[b] if rows is None else np.setdiff1d(rows, hide[b])
            found = self._best_of(candidates, query, k, hide[b], values[b])
            count = len(found[1])
            scores[b, :count], items[b, :count] = found
        return scores, items

    def search_one(
        self, query: np.ndarray, k: int, hidden: np.ndarray, added: Added | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`search` for one query (D,) without ``allowed``; only the results that there are.

        In C for a small catalogue, where a call of NumPy takes longer than its work.
        """
        added = added or _NONE_ADDED
        if self._best is None:
            hidden, values = self._items(hidden), self._values(*added)
            limit = min(k, len(self._vectors))
            (candidates,) = self._candidates(_finite(query[None]), limit, [hidden], [values])
            return self._best_of(candidates, query, k, hidden, values)
        found = self._best.of(query, k, *added, hidden)
        if found is None:
            raise DivergedError(NOT_FINITE)
        return found

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> Sequence[np.ndarray | None]:
        """For each query ascending items that include the best k that are not hidden; None for all."""
        raise NotImplementedError

    def _best_of(
        self, candidates: np.ndarray | None, query: np.ndarray, k: int, hidden: np.ndarray,
        added: Added,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """At most ``k`` of some candidates, ascending, or of all items that are not hidden."""
        if candidates is None:
            candidates = np.delete(np.arange(len(self._vectors)), hidden)
        if library.AVAILABLE:
            found = ranking.best_of(self._vectors, query, k, candidates, *added)
            if found is None:
                raise DivergedError(NOT_FINITE)
            return found
        scores = _add(self._scores(query, candidates), candidates, *added)
        if len(scores) > 4 * k:  # select before sorting
            selected = scores >= np.partition(scores, -k)[-k]
            scores, candidates = scores[selected], candidates[selected]
        # The sort is stable, so equal scores stay in the order of items.
        order = np.argsort(-scores, kind="stable")[:k]
        return scores[order], candidates[order]

    def _values(self, rows: ArrayLike, values: ArrayLike) -> Added:
        items, floats = np.asarray(rows, np.int64), _finite(np.asarray(values, np.float32))
        if floats.shape != items.shape or not (items[1:] > items[:-1]).all():
            raise ValueError("added values need distinct, ascending items, one for each value")
        self._items(items[[0, -1]] if len(items) else items)
        return items, floats

    def _items(self, rows: ArrayLike) -> np.ndarray:
        items = np.asarray(rows, np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < len(self._vectors):
            raise ValueError(f"items must be 0 .. {len(self._vectors) - 1}, found {items}")
        return items

    def _scores(self, query: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores (n,), row by row, so a score does not depend on the other items."""
        step = _CHUNK // len(query)
        scores = np.empty(len(items), np.float32)
        for first in range(0, len(items), step):
            chunk = slice(first, first + step)
            np.einsum("nd,d->n", self._vectors[items[chunk]], query, out=scores[chunk])
        return _finite(scores)


class Exact(Index):
    """An exact search: :class:`Candidates` finds some items in int8, which are scored in float32.

    Without compiled functions all items are scored in float32.
    """

    kind = "exact"

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(vectors)
        self._scan = Candidates(self._vectors) if Candidates.can_scan(self._vectors) else None

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray | None]:
        if self._scan is None or len(self._vectors) * len(queries) <= _SCORE_ALL:
            return [None] * len(queries)
        return self._scan.find(queries, k, [np.unique(rows) for rows in hidden], added)


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


def _to_numpy(vectors: Tensor) -> np.ndarray:
    return _finite(vectors.detach().to("cpu", torch.float32).contiguous().numpy())


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DivergedError(NOT_FINITE)
    return values
