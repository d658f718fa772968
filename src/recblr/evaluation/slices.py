"""Groups of users that are measured one by one, as masks (U,) by name."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recblr.data.sequences import Part, Sequences, index_in
from recblr.data.sources import DAMAGED, open_tables
from recblr.data.values import shorten
from recblr.errors import InputError

MOST_VALUES = 100  # of a column


@dataclass(frozen=True, eq=False)
class Column:
    """A column of users or items to slice by.

    Attributes:
        name: that of the column.
        key: "user_id" or "item_id", whose column it is.
        values: the distinct values.
        codes: for each user or item of the log, the number of its value; -1 if it has none.
    """

    name: str
    key: str
    values: list[str]
    codes: np.ndarray


def read_columns(columns: Any, data: Sequences) -> list[Column]:
    """The columns to slice by, from pairs of a table and the name of a column.

    A table is a file or a frame as for :func:`recblr.read_log`, with ``user_id`` or ``item_id`` and one
    row for each user or item. Users and items that the log does not have are ignored.

    Raises:
        InputError: a table cannot be read, lacks the column or an id, has a user or item twice, or the
            column has more than :data:`MOST_VALUES` values.
    """
    pairs = list(columns) if isinstance(columns, Iterable) else [columns]
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], str)):
            raise InputError(
                "slice_by: give pairs of a table and the name of its column, such as "
                '[("users.parquet", "country")]'
            )
    return [_read_column(source, name, data) for source, name in pairs]


def _read_column(source: Any, name: str, data: Sequences) -> Column:
    keys, ids, values, where = [], [], [], str(source)
    for where, open_table in open_tables(source, None, None, by_position=False):
        try:
            with open_table() as table:
                keys = [key for key in ("user_id", "item_id") if key in table.names]
                if len(keys) != 1 or name not in table.names:
                    raise InputError(
                        f"{table.where}: a slice needs the column {name!r} and either user_id or "
                        f"item_id; there are {', '.join(map(str, table.names))}"
                    )
                for arrays, _ in table.read({"id": keys[0], "value": name}):
                    ids.append(pc.cast(arrays["id"], pa.string()))
                    values.append(pc.cast(arrays["value"], pa.string()))
        except DAMAGED as error:
            raise InputError(
                f"{where}: cannot be read ({shorten(str(error), 120)}); write it again"
            ) from error
    if not ids:
        raise InputError(f"{where}: has columns but no rows; give one row for each user or item")
    (key,) = keys
    known = data.user_ids if key == "user_id" else data.item_ids
    index = index_in(pa.concat_arrays(ids), known)
    rows = np.flatnonzero(index >= 0)
    counts = np.bincount(index[rows], minlength=len(known))
    if counts.max(initial=0) > 1:
        raise InputError(
            f"{where}: the {key} {known[int(counts.argmax())]} has several rows; give one row each"
        )
    texts = pa.concat_arrays(values).take(pa.array(rows))
    texts = pc.if_else(pc.equal(texts, ""), None, texts).dictionary_encode()
    if len(texts.dictionary) > MOST_VALUES:
        raise InputError(
            f"{where}: the column {name} has {len(texts.dictionary):,} values; slices need at most "
            f"{MOST_VALUES}, so write fewer groups into it"
        )
    codes = np.full(len(known), -1)
    codes[index[rows]] = texts.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return Column(name, key, texts.dictionary.to_pylist(), codes)


def column_slices(
    column: Column, data: Sequences, part: Part, users: np.ndarray
) -> dict[str, np.ndarray]:
    """The users by their value of a column, or by that of the target; the most frequent value first."""
    if column.key == "user_id":
        codes = column.codes[users]
    else:  # a target that is not in the catalogue has no value
        codes = np.append(column.codes, -1)[data.items[getattr(data.split, part)[users]]]
    order = np.argsort(-np.bincount(codes + 1, minlength=len(column.values) + 1)[1:], kind="stable")
    masks = {f"{column.name} {column.values[code]}": codes == code for code in order}
    return masks | {f"{column.name} (not given)": codes < 0}


def standard_slices(data: Sequences, part: Part, users: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (U,) by name: quarters of the users by history length, targets by popularity and kind."""
    rows = getattr(data.split, part)[users]
    lengths = rows - data.offsets[users]
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="higher"))
    edges = np.repeat(edges, 2) if len(edges) == 1 else edges
    masks = {}
    for low, high in pairwise(edges):
        last = high == edges[-1]
        name = f"history {low}-{high if last else high - 1}"
        masks[name] = (lengths >= low) & ((lengths <= high) if last else (lengths < high))
    counts = np.append(data.item_counts, 0)
    order = np.argsort(-data.item_counts, kind="stable")
    more_popular = np.cumsum(counts[order]) - counts[order]  # events of more popular items
    group = np.full(len(counts), 2)
    group[order] = np.digitize(more_popular / max(1, counts.sum()), [0.5, 0.8])
    names = ("popular items (half of events)", "middle items (next 30%)", "rare items (last 20%)")
    for number, name in enumerate(names):
        masks[name] = group[data.items[rows]] == number
    if data.kinds is not None:
        for code, name in enumerate(data.kind_names, 1):
            masks[f"kind {name}"] = data.kinds.codes[rows] == code
    return masks
