"""The best items after one history by the functions of ranking.h, for serving.

There, a call of NumPy takes longer than its work.

Short calls do not release the lock of the interpreter, which would take longer than to keep it.

Axes: V items, D the width of a vector, K items of a history, A items with an added value, k results,
H hidden items, n candidates.
"""

import ctypes
import threading

import numpy as np
from scipy import sparse

from recblr.ops.library import KEEPING_LOCK, LIBRARY, address

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_TOGETHER = 32  # TOGETHER in ranking.h
_SHORT = 1_000  # candidates of a short call
if LIBRARY is not None and KEEPING_LOCK is not None:
    _transition_terms, _best_items = KEEPING_LOCK.transition_terms, KEEPING_LOCK.best_items
    _transition_terms.argtypes = [
        *[_POINTER] * 5, *[_INTEGER] * 2, *[_FLOAT] * 2, *[_POINTER] * 4
    ]  # fmt: skip
    _best_items.argtypes = [
        *[_POINTER] * 2, *[_INTEGER] * 2, *[_POINTER] * 2, _INTEGER, _POINTER, *[_INTEGER] * 2,
        *[_POINTER] * 3,
    ]  # fmt: skip
    _transition_terms.restype = _best_items.restype = _INTEGER
    _best_of = KEEPING_LOCK.best_of, LIBRARY.best_of
    for _function in _best_of:
        _function.argtypes = [
            *[_POINTER] * 2, _INTEGER, _POINTER, _INTEGER, *[_POINTER] * 2, *[_INTEGER] * 2,
            *[_POINTER] * 2,
        ]  # fmt: skip
        _function.restype = _INTEGER


def best_of(
    vectors: np.ndarray, query: np.ndarray, k: int, candidates: np.ndarray, added: np.ndarray,
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Scores (r,) float32 and items (r,) of the best ``k`` candidates, equal scores by item.

    Args:
        vectors: (V, D) float32 rows.
        query: (D,) float32.
        k: the number of results.
        candidates: (n,) int64 items, ascending.
        added: (A,) int64 items, ascending.
        values: (A,) float32, to add to their scores.

    Returns:
        None if a score is not finite.
    """
    k = min(k, len(candidates))
    scores, items = np.empty(k, np.float32), np.empty(k, np.int64)
    arrays = [
        np.ascontiguousarray(array, kind)
        for array, kind in (
            (vectors, np.float32), (query, np.float32), (candidates, np.int64), (added, np.int64),
            (values, np.float32),
        )
    ]  # fmt: skip
    at = [*map(address, (*arrays, scores, items))]
    count = _best_of[len(candidates) > _SHORT](
        at[0], at[1], len(query), at[2], len(candidates), at[3], at[4], len(added), k, at[5], at[6]
    )
    return None if count < 0 else (scores, items)


class _Buffer:
    """An array whose address is known: copying a few numbers takes less time than asking for it."""

    def __init__(self, size: int, dtype: type[np.generic]) -> None:
        self.array = np.zeros(size, dtype)
        self.at = address(self.array)

    def fill(self, values: np.ndarray) -> int:
        """Copy values to the beginning; their number."""
        count = len(values)
        if count > len(self.array):
            self.array = np.zeros(2 * count, self.array.dtype)
            self.at = address(self.array)
        self.array[:count] = values
        return count


class TransitionTerms:
    """The terms w · log(1 + c · m) of the memory of transitions after one history.

    Args:
        matrix: (V, V) float32, the columns distinct in each row.
        weights: of the last items of a history, the last one at the end.
        w, c: of the terms.
    """

    def __init__(self, matrix: sparse.csr_array, weights: np.ndarray, w: float, c: float) -> None:
        self._lock = threading.Lock()  # of the buffers
        size, reach = matrix.shape[0], len(weights)
        most = min(size, reach * int(np.diff(matrix.indptr).max(initial=0)))
        self._arrays = (
            np.ascontiguousarray(matrix.indptr, np.int64),
            np.ascontiguousarray(matrix.indices, np.int32),
            np.ascontiguousarray(matrix.data, np.float32),
        )
        self._matrix = [address(array) for array in self._arrays]
        self._history, self._weights = _Buffer(reach, np.int64), _Buffer(reach, np.float32)
        self._weights.fill(weights)
        self._m, self._seen = _Buffer(size, np.float32), _Buffer(-(-size // 64), np.uint64)
        self._items, self._terms = _Buffer(most, np.int64), _Buffer(most, np.float32)
        self._numbers = size, w, c, self._m.at, self._seen.at, self._items.at, self._terms.at

    def after(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items (A,) with a term, ascending, and the terms (A,), after the items history (K,)."""
        with self._lock:
            length = self._history.fill(history)
            skipped = len(self._weights.array) - length
            weights = self._weights.at + skipped * self._weights.array.itemsize
            count = _transition_terms(
                *self._matrix, self._history.at, weights, length, *self._numbers
            )
            return self._items.array[:count].copy(), self._terms.array[:count].copy()


class BestItems:
    """The best items of a small catalogue by dot product; vectors (V, D) float32."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._lock = threading.Lock()  # of the buffers
        size, width = vectors.shape
        blocks = -(-size // _TOGETHER)
        padded = np.zeros((blocks * _TOGETHER, width), np.float32)
        padded[:size] = vectors
        self._vectors = _Buffer(padded.size, np.float32)
        self._vectors.fill(padded.reshape(blocks, _TOGETHER, width).transpose(0, 2, 1).ravel())
        self._query, self._all = _Buffer(width, np.float32), _Buffer(len(padded), np.float32)
        self._added, self._values = _Buffer(size, np.int64), _Buffer(size, np.float32)
        self._hidden = _Buffer(size, np.int64)
        self._scores, self._items = _Buffer(size, np.float32), _Buffer(size, np.int64)

    def of(
        self, query: np.ndarray, k: int, added: np.ndarray, values: np.ndarray, hidden: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and items of at most ``k`` results, best first, equal scores by item.

        Args:
            query: (D,).
            k: the number of results.
            added, values: distinct items (A,), and what to add to their scores.
            hidden: items to leave out.

        Returns:
            None if a score is not finite.

        Raises:
            ValueError: an item is not in 0 .. V-1.
        """
        if len(added) != len(values):
            raise ValueError(f"{len(added)} items need {len(added)} values, found {len(values)}")
        size = len(self._scores.array)
        with self._lock:
            for buffer, array in (
                (self._query, query), (self._added, added), (self._values, values),
                (self._hidden, hidden),
            ):  # fmt: skip
                buffer.fill(array)
            count = _best_items(
                self._vectors.at, self._query.at, size, len(query), self._added.at, self._values.at,
                len(added), self._hidden.at, len(hidden), min(k, size), self._all.at,
                self._scores.at, self._items.at,
            )  # fmt: skip
            found = (
                self._scores.array[: max(count, 0)].copy(),
                self._items.array[: max(count, 0)].copy(),
            )
        if count == -2:
            raise ValueError(f"items must be 0 .. {size - 1}")
        return None if count < 0 else found
