"""Content of items: vectors and categories, from tables with one row for each item.

Axes: V items, F numbers of a vector, K categories, C pairs of an item and a category.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recblr.data.histories import is_list
from recblr.data.ids import IdChecker
from recblr.data.sources import DAMAGED, open_tables
from recblr.data.table import Name, Table
from recblr.data.values import BadValue, cast, first_bad_row, is_text, shorten
from recblr.data.vocabulary import extend
from recblr.errors import InputError

_CONSTANT = 1e-6  # a column whose deviation is below this share of its largest number is constant


@dataclass(frozen=True, eq=False)
class ItemContent:
    """The content of the V items of a vocabulary.

    Attributes:
        vectors: (V, F) float32: (given vector - mean) / scale, 0 for an item without a vector.
        mean, scale: (F,) float64. Over the vectors of the first training, a column has the mean 0 and
            the variance 1 / F, so that a vector has a length of about 1.
        names: the K categories, each "column=value".
        codes: (C,) int64 categories, item by item.
        offsets: (V + 1,) int64; item v has the categories codes[offsets[v]] .. codes[offsets[v+1]-1].
    """

    vectors: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    names: list[str]
    codes: np.ndarray
    offsets: np.ndarray

    def __repr__(self) -> str:
        return (
            f"ItemContent({self.given.sum():,} of {len(self.given):,} items, vectors of "
            f"{len(self.mean):,} numbers, {len(self.names):,} categories)"
        )

    @cached_property
    def given(self) -> np.ndarray:
        """(V,) whether an item has a vector or a category."""
        given: np.ndarray = self.vectors.any(1) | (np.diff(self.offsets) > 0)
        return given

    @cached_property
    def digest(self) -> str:
        """A hash of the content."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for array in (self.vectors, self.mean, self.scale, self.codes, self.offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def read_content(
    vectors: Any, categories: Any, item_ids: pa.Array, known: ItemContent | None = None
) -> tuple[pa.Array, ItemContent]:
    """Read the content of items.

    Args:
        vectors: a table with ``item_id`` and ``vector``, a list of numbers: a file or a frame as for
            :func:`recblr.read_log`. None if there is none.
        categories: a table with ``item_id`` and columns of categories, a text or a list of texts in
            each cell. None if there is none.
        item_ids: the ids of the log.
        known: content of the first of ``item_ids``. Items keep what they have, and new vectors are
            scaled as the known ones were.

    Returns:
        The ids of the log, followed by those that only the tables have, and the content of all.

    Raises:
        InputError: a table cannot be read, a value is wrong, an item has two rows, or the tables have
            something that ``known`` has not.
    """
    no_rows = np.zeros(0, np.int64)
    vector_rows, values = no_rows, np.zeros((0, 0), np.float32)
    category_rows, cells, names = no_rows, no_rows, pa.array([], pa.string())
    if vectors is not None:
        ids, values = _read_vectors(vectors, None if known is None else len(known.mean))
        item_ids, vector_rows = extend(item_ids, ids, "item")
    if categories is not None:
        if known is not None and not known.names:
            raise InputError("the model was trained without categories of items; train it anew")
        ids, cells, names = _read_categories(categories)
        item_ids, category_rows = extend(item_ids, ids, "item")
    if known is None:
        known = _unknown(values)
    size = len(item_ids)
    given = np.zeros(size, bool)
    given[: len(known.given)] = known.given
    matrix = np.zeros((size, len(known.mean)), np.float32)
    matrix[: len(known.vectors)] = known.vectors
    if vectors is not None:
        new = ~given[vector_rows]
        matrix[vector_rows[new]] = (values[new] - known.mean) / known.scale
    rows = category_rows[cells]
    new = ~given[rows]
    coded = _add_categories(known, rows[new], names.filter(pa.array(new)), size)
    return item_ids, ItemContent(matrix, known.mean, known.scale, *coded)


def _unknown(values: np.ndarray) -> ItemContent:
    """Content of no items, that scales vectors by the moments of ``values`` (…, F)."""
    width = values.shape[1]
    mean, scale = np.zeros(width), np.ones(width)
    if len(values):
        mean, deviation = values.mean(0, np.float64), values.std(0, np.float64)
        constant = deviation <= _CONSTANT * np.abs(values).max(0)
        scale = np.where(constant, 1, deviation) * np.sqrt(width)
    none = np.zeros(0, np.int64)
    return ItemContent(np.zeros((0, width), np.float32), mean, scale, [], none, np.append(none, 0))


def _add_categories(
    known: ItemContent, rows: np.ndarray, names: pa.Array, size: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The categories of ``size`` items: names, codes and offsets.

    Args:
        known: content of the first items.
        rows, names: (C,) pairs of an item and a category to add; a pair that is there twice counts
            once.
    """
    old = pa.array(known.names, pa.string())
    distinct = names.unique()
    all_names = pa.concat_arrays([old, distinct.filter(pc.invert(pc.is_in(distinct, old)))])
    added = pc.index_in(names, all_names).to_numpy(zero_copy_only=False).astype(np.int64)
    old_rows = np.repeat(np.arange(len(known.offsets) - 1), np.diff(known.offsets))
    rows, codes = np.concatenate([old_rows, rows]), np.concatenate([known.codes, added])
    rows, codes = np.divmod(np.unique(rows * len(all_names) + codes), max(1, len(all_names)))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    return all_names.to_pylist(), codes, offsets.astype(np.int64)


# ---- tables --------------------------------------------------------------------------------------


def _read_vectors(source: Any, width: int | None) -> tuple[pa.Array, np.ndarray]:
    """The ids of a table and the vectors (…, F), which have ``width`` numbers if that is given."""
    if width == 0:
        raise InputError("the model was trained without vectors of items; train it anew")
    blocks: list[np.ndarray] = []

    def choose(table: Table) -> dict[str, Name]:
        return {name: _column(table, name, "vector") for name in ("item_id", "vector")}

    def add(name: str, column: pa.Array, first_row: int) -> None:
        blocks.append(_numbers(column, blocks[0].shape[1] if blocks else width))

    ids = _read(source, choose, add)
    return ids, np.concatenate(blocks)


def _read_categories(source: Any) -> tuple[pa.Array, np.ndarray, pa.Array]:
    """The ids of a table; and its categories by name, with the row of each."""
    rows: list[np.ndarray] = []
    names: list[pa.Array] = []

    def choose(table: Table) -> dict[str, Name]:
        others = [name for name in table.names if name != "item_id"]
        if not others:
            raise InputError(f"{table.where}: no column beside item_id; add columns of categories")
        return {str(name): _column(table, name, "a category") for name in ("item_id", *others)}

    def add(name: str, column: pa.Array, first_row: int) -> None:
        cells, texts = _texts(column)
        rows.append(cells + first_row)
        names.append(pc.binary_join_element_wise(name, texts, "="))

    ids = _read(source, choose, add)
    return ids, np.concatenate(rows), pa.concat_arrays(names)


def _column(table: Table, name: Name, other: str) -> Name:
    if table.names.count(name) == 1:
        return name
    found = shorten(", ".join(map(repr, table.names)), 200)
    problem = f"two columns are called {name!r}" if name in table.names else f"no column {name!r}"
    raise InputError(
        f"{table.where}: {problem}; a row needs item_id and {other}; found: {found}; rename it"
    )


def _read(
    source: Any, choose: Callable[[Table], dict[str, Name]],
    add: Callable[[str, pa.Array, int], None],
) -> pa.Array:  # fmt: skip
    """Read a table with one row for each item, and return the ids.

    Args:
        source: a file or a frame.
        choose: the columns to read, by name.
        add: takes the name of a column other than ``item_id``, a block of it and the number of its
            first row; raises BadValue.
    """
    checker, blocks, rows, where = IdChecker(), list[pa.Array](), 0, str(source)
    locations: list[tuple[int, Callable[[str, int], str]]] = []
    for where, open_table in open_tables(source, None, None, by_position=False):
        try:
            with open_table() as table:
                for arrays, location in table.read(choose(table)):
                    locations.append((rows, location))
                    for name, column in arrays.items():
                        try:
                            if name == "item_id":
                                blocks.append(checker.check(column).dictionary_decode())
                            else:
                                add(name, column, rows)
                        except BadValue as error:
                            raise InputError(f"{location(name, error.row)}: {error}") from None
                    rows += len(arrays["item_id"])
        except DAMAGED as error:
            raise InputError(
                f"{where}: cannot be read ({shorten(str(error), 120)}); write it again"
            ) from error
    if not rows:
        raise InputError(f"{where}: has columns but no rows; give one row for each item")
    ids = pa.concat_arrays(blocks)
    codes = ids.dictionary_encode().indices.to_numpy()
    for row in np.flatnonzero(codes != np.arange(rows))[:1]:
        first, location = [pair for pair in locations if pair[0] <= row][-1]
        raise InputError(
            f"{location('item_id', int(row - first))}: the item {ids[row].as_py()!r} has a row "
            "already; give one row for each item"
        )
    return ids


def _numbers(column: pa.Array, width: int | None) -> np.ndarray:
    """A block of vectors as float32. BadValue at the first that is not ``width`` finite numbers."""
    if not is_list(column):
        raise BadValue(
            0, f"found a value of type {column.type}; write vectors as lists of numbers, in Parquet, "
            "JSON Lines or a frame"
        )  # fmt: skip
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise BadValue(row, "the vector is null; write a list of numbers or remove the row")
    sizes = pc.list_value_length(column).to_numpy()
    width = int(sizes[0]) if width is None else width
    for row in np.flatnonzero((sizes != width) | (sizes == 0))[:1]:
        needed = f"; the others have {width}" if width else ""
        raise BadValue(int(row), f"found a vector of {sizes[row]} numbers{needed}; correct it")
    flat = column.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise BadValue(0, f"found a list of type {flat.type}; write lists of numbers")
    values: np.ndarray = flat.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    values = values.reshape(-1, width)
    for row in np.flatnonzero(~np.isfinite(values).all(1))[:1]:
        raise BadValue(
            int(row), "the vector has a number that is null, NaN, infinite or beyond float32; "
            "correct it or remove the row"
        )  # fmt: skip
    return values


def _texts(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The categories of a block, and the row of each; none for null and for an empty text."""
    rows = np.arange(len(column))
    if is_list(column):
        sizes = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        rows, column = np.repeat(rows, sizes), column.flatten()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if not (
        is_text(column) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    ):  # fmt: skip
        raise BadValue(0, f"found a value of type {kind}; categories are texts or lists of texts")
    texts = cast(column, pa.string())
    if texts is None:
        row = first_bad_row(column, lambda part: cast(part, pa.string()))
        raise BadValue(
            int(rows[row]), "found text that is not UTF-8; write categories as UTF-8 text"
        )
    given = pc.fill_null(pc.not_equal(texts, ""), False)
    return rows[given.to_numpy(zero_copy_only=False)], texts.filter(given)
