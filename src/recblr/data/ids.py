"""Columns of ids: blocks of a log's ids become codes. What an id may be says vocabulary.py."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recblr.data import vocabulary
from recblr.data.values import BadValue, cast, decoded, first_bad_row, is_text
from recblr.data.vocabulary import MAX_ID_BYTES, check_id
from recblr.errors import InputError

_MERGE_IDS = 1 << 20  # at least so many new ids of blocks are merged at a time


class IdChecker:
    """Checks the blocks of a column of ids, and encodes each by a dictionary of its own."""

    def __init__(self) -> None:
        self._type: pa.DataType | None = None

    def check(self, column: pa.Array) -> pa.DictionaryArray:
        """The next block with its ids as string or int64.

        Raises:
            BadValue: the first row whose id is not accepted.
        """
        column = _as_text_or_int64(column)
        if self._type is not None and column.type != self._type:
            raise BadValue(
                0, f"ids of type {column.type} after ids of type {self._type}; use one type"
            )
        self._type = column.type
        local = column.dictionary_encode()
        if is_text(column):
            _check_texts(column, local.dictionary)
        return local


class IdColumn:
    """Encodes the blocks of a column of ids as int32 codes.

    The ids of blocks are merged once they are as many as those before, so that the work grows in
    proportion to the log.

    Attributes:
        ids: every id once, in order of first appearance; known after :meth:`finish`.
    """

    def __init__(self) -> None:
        self.ids: pa.Array | None = None
        self._checker = IdChecker()
        self._codes: list[NDArray[np.int32]] = []
        self._blocks: list[pa.DictionaryArray] = []  # not merged

    def add(self, column: pa.Array) -> None:
        """Encode the next block. BadValue names the first row whose id is not accepted."""
        self._blocks.append(self._checker.check(column))
        new = sum(len(block.dictionary) for block in self._blocks)
        if new > max(_MERGE_IDS, 0 if self.ids is None else len(self.ids)):
            self._merge()

    def finish(self) -> NDArray[np.int32]:
        """(N,) the codes of all blocks: indices into ``ids``."""
        self._merge()
        codes, self._codes = np.concatenate(self._codes), []
        return codes

    def _merge(self) -> None:
        if not self._blocks:
            return
        blocks, self._blocks = self._blocks, []
        known = blocks[0].dictionary[:0] if self.ids is None else self.ids
        parts = [known, *(block.dictionary for block in blocks)]
        if is_text(known) and sum(part.nbytes for part in parts) > vocabulary.MAX_BYTES:
            parts = [part.cast(pa.large_string()) for part in parts]
        merged = pa.chunked_array(parts).dictionary_encode().combine_chunks()
        self.ids = merged.dictionary
        codes = np.split(merged.indices.to_numpy(), np.cumsum([len(part) for part in parts])[:-1])
        for block, new in zip(blocks, codes[1:], strict=True):
            self._codes.append(new[block.indices.to_numpy()])


def _as_text_or_int64(column: pa.Array) -> pa.Array:
    """The ids as string or int64, none of them null."""
    column = decoded(column)
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
    """BadValue if one of the ids of a column, all in ``new``, breaks :func:`check_id`."""
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
