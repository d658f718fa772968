"""The items that may be among the best of some queries, by the functions of candidates.h.

Axes: V items, D the width of a vector, B queries, k results per query.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from recblr.ops import library
from recblr.ops.library import LIBRARY, address

_GROUP = 16  # GROUP in candidates.h
_LOOK = 64  # LOOK there; the arrays of candidates are so much longer
_LEVELS = 127  # of int8
_ZERO = 128  # what a vector has in the place of zero, as its bytes are unsigned
_MAX_ADDED = 2**28  # largest added value in units of the int8 products, far from the ends of int32
_MAX_WIDTH = 1 << 13  # of which the int8 products are as far from there
_PART = 1 << 20  # numbers that are rounded at a time
_FLOAT32 = np.finfo(np.float32)
if LIBRARY is not None:
    _pointer, _integer = ctypes.c_void_p, ctypes.c_int64
    _find_candidates = LIBRARY.find_candidates
    _find_candidates.argtypes = [
        _pointer, *[_integer] * 2, *[_pointer] * 3, *[_integer] * 2, *[_pointer] * 7, _integer,
        *[_pointer] * 3, ctypes.c_int32,
    ]  # fmt: skip
    _find_candidates.restype = None
    HAS_VNNI = bool(LIBRARY.has_vnni())

Rows = np.ndarray
"""Items (n,) int64, ascending."""


class Candidates:
    """A scan of all items in int8.

    Rounding changes a score, added value included, by at most an error e. The k-th best score is then
    at least the k-th best rounded score minus e. So an item whose rounded score is more than 2e below
    the k-th best rounded score is not among the best. The others are the candidates, a few times k.
    A few very long vectors make e large and the candidates many.

    Args:
        vectors: (V, D) float32, finite.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._size, width = vectors.shape
        largest = np.maximum(vectors.max(0), -vectors.min(0))
        self._scale = np.maximum(largest / _LEVELS, _FLOAT32.tiny)
        groups, fours = -(-self._size // _GROUP), -(-width // 4)
        self._items = np.full((groups, fours, _GROUP, 4), _ZERO, np.uint8)
        error = length = 0.0
        step = max(1, _PART // (_GROUP * width))  # groups
        for first in range(0, groups, step):
            scaled = vectors[first * _GROUP : (first + step) * _GROUP] / self._scale
            rounded = np.rint(scaled)
            error = max(error, _lengths(scaled - rounded).max())
            length = max(length, _lengths(scaled).max())
            part = self._items[first : first + step]
            padded = np.full((len(part) * _GROUP, fours * 4), _ZERO, np.uint8)
            padded[: len(rounded), :width] = rounded + _ZERO
            part[:] = padded.reshape(len(part), _GROUP, fours, 4).swapaxes(1, 2)
        # Plus the rounding of float32, here and in the scores.
        self._error = error + 2 * (width + 4) * _FLOAT32.eps * length
        self._length = length + error

    @staticmethod
    def can_scan(vectors: np.ndarray) -> bool:
        """Whether there are compiled functions, and the sums of vectors (V, D) fit into int32."""
        return library.AVAILABLE and vectors.shape[1] <= _MAX_WIDTH and len(vectors) < 2**31

    def find(
        self, queries: np.ndarray, k: int, hidden: Sequence[Rows],
        added: Sequence[tuple[Rows, np.ndarray]],
    ) -> list[np.ndarray | None]:  # fmt: skip
        """For each query, ascending items that include the best ``k`` of those that are not hidden.

        Args:
            queries: (B, D) float32.
            k: 1 .. V.
            hidden: for each query the items to leave out.
            added: for each query distinct items, and the values to add to their scores.

        Returns:
            None for a query with more candidates than 4 k and than an eighth of the items; up to twice
            as many may be found.
        """
        B = len(queries)
        scaled = queries * self._scale.astype(np.float64)
        largest = np.array([np.abs(values).max(initial=0) for _, values in added], np.float64)
        units = _LEVELS / np.maximum(np.abs(scaled).max(1), 1e-300)  # of the rounded scores
        units = np.minimum(units, _MAX_ADDED / np.maximum(largest, _FLOAT32.tiny))
        scaled *= units[:, None]
        rounded = np.zeros((B, 4 * self._items.shape[1]), np.int8)
        rounded[:, : scaled.shape[1]] = np.rint(scaled)
        exact = rounded[:, : scaled.shape[1]]
        errors = _lengths(scaled) * self._error + _lengths(scaled - exact) * self._length
        errors += (largest > 0) * (1 + 4 * _FLOAT32.eps * units * largest)
        margins = np.ceil(np.minimum(2 * errors, 2.0**32)).astype(np.int64)
        bias = -_ZERO * rounded.sum(1, dtype=np.int32)
        capacity = max(8 * k, self._size // 4) + 2 * _LOOK
        found, products = np.empty((2, B, capacity), np.int32)
        number = np.empty(B, np.int64)
        # Their addresses are passed on, so they live until the call has ended.
        added_items = [np.ascontiguousarray(items, np.int64) for items, _ in added]
        values = [np.ascontiguousarray(part, np.float32) for _, part in added]
        hidden = [np.ascontiguousarray(items, np.int64) for items in hidden]
        arrays = (
            _addresses(added_items), _addresses(values), units, _addresses(hidden),
            np.array([*map(len, added_items), *map(len, hidden)], np.int64),
            np.empty(2 * B, np.int64), np.empty(B * k, np.int32),
        )  # fmt: skip
        _find_candidates(
            address(self._items), self._size, self._items.shape[1], address(rounded), address(bias),
            address(margins), B, k, *map(address, arrays), capacity, address(found),
            address(products), address(number), HAS_VNNI,
        )  # fmt: skip
        return [
            None if count < 0 else row[:count].astype(np.int64)
            for count, row in zip(number.tolist(), found, strict=True)
        ]


def _addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([address(array) for array in arrays], np.int64)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
