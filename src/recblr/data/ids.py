"""Columns of ids: blocks of a log's ids become codes. What an id may be says vocabulary.py."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recblr.data.values import BadValue, cast, first_bad_row, is_text
from recblr.data.vocabulary import MAX_ID_BYTES, check_id
from recblr.errors import InputError


class IdColumn:
    """Encodes the blocks of a column of ids as int32 codes; ``ids`` grows with every new id."""

    def __init__(self) -> None:
        self.ids: pa.Array | None = None
        self.codes: list[NDArray[np.int32]] = []

    def add(self, column: pa.Array) -> None:
        """Encode the next block. BadValue names the first row whose id is not accepted."""
        column = _as_text_or_int64(column)
        if self.ids is not None and column.type != self.ids.type:
            raise BadValue(
                0, f"ids of type {column.type} after ids of type {self.ids.type}; use one type"
            )
        local = column.dictionary_encode()
        known = local.dictionary[:0] if self.ids is None else self.ids
        known_codes = pc.index_in(local.dictionary, value_set=known)
        new = local.dictionary.filter(known_codes.is_null())
        if is_text(new):
            _check_texts(column, new)
        self.ids = pa.concat_arrays([known, new])
        codes = known_codes.fill_null(-1).to_numpy().copy()
        codes[codes < 0] = np.arange(len(known), len(self.ids), dtype=np.int32)
        self.codes.append(codes[local.indices.to_numpy()])

    def finish(self) -> NDArray[np.int32]:
        """(N,) the codes of all blocks: indices into ``ids``."""
        codes, self.codes = np.concatenate(self.codes), []
        return codes


def _as_text_or_int64(column: pa.Array) -> pa.Array:
    """The ids as string or int64, none of them null."""
    if pa.types.is_dictionary(column.type):
        words = column.dictionary
        column = (words.cast(pa.string()) if is_text(words) else words).take(column.indices)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise BadValue(row, "the id is null; write an id or remove the row")
    if not is_text(column) and not pa.types.is_integer(column.type):
        raise BadValue(0, f"ids of type {column.type}; cast the column to string or int64")
    to = pa.string() if is_text(column) else pa.int64()
    ids = cast(column, to)
    if ids is None:
        row = first_bad_row(column, lambda part: cast(part, to))
        value = "text that is not UTF-8" if is_text(column) else f"{column[row]}, beyond int64"
        raise BadValue(row, f"found {value}; write the ids as UTF-8 text")
    return ids


def _check_texts(column: pa.Array, new: pa.Array) -> None:
    """BadValue if one of the ``new`` ids of a column breaks the rule of :func:`check_id`."""
    sizes = pc.binary_length(new)
    bounds: dict[str, Any] = pc.min_max(sizes).as_py()
    if not len(new) or (
        bounds["min"] > 0
        and bounds["max"] <= MAX_ID_BYTES
        and not pc.any(pc.match_substring(new, "\0")).as_py()
    ):
        return
    for text in new.to_pylist():
        row = pc.index(column, text).as_py()
        if not text:
            raise BadValue(row, "the id is empty; write an id or remove the row")
        try:
            check_id(text, "id")
        except InputError as error:
            problem = str(error).removeprefix("id: ")
            raise BadValue(row, f"the id {problem}; shorten or correct it") from None
