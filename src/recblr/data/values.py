"""What the readers of columns share: tests and casts of Arrow arrays, and located errors."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import pyarrow as pa


class BadValue(Exception):
    """A value in a row of the current block that cannot be read."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def is_text(column: pa.Array) -> bool:
    types, kind = pa.types, column.type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def plain(column: pa.Array) -> pa.Array:
    """The column, with text as the type string, for which Arrow has all functions."""
    return column.cast(pa.string()) if is_text(column) else column


def decoded(column: pa.Array) -> pa.Array:
    """The column with its values in place of indices into a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return column
    return plain(column.dictionary).take(column.indices)


def cast(column: pa.Array, to: pa.DataType) -> pa.Array | None:
    """The column as another type; None if that would change a value."""
    try:
        values = column.cast(to)
        values.validate(full=True)  # strings in a Parquet file may be invalid UTF-8
    except pa.ArrowInvalid:
        return None
    return values


def first_bad_row(column: pa.Array, parse: Callable[[pa.Array], Any]) -> int:
    """The first row at which ``parse`` fails; it then fails for every longer prefix, too."""
    return bisect_left(range(len(column)), True, key=lambda row: parse(column[: row + 1]) is None)


def shorten(text: str, width: int = 40) -> str:
    """One line of at most ``width`` characters."""
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
