"""Histories: one row or line for all events of a user, turned into one row for each event."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recblr.data.columns import ALIASES, OPTIONAL, name_by_position
from recblr.data.table import Batch, Name, Table
from recblr.data.text import split_into_blocks
from recblr.data.values import BadValue, plain, shorten
from recblr.errors import InputError


def is_list(column: pa.Array) -> bool:
    types, kind = pa.types, column.type
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def explode(arrays: dict[str, pa.Array]) -> tuple[dict[str, pa.Array], np.ndarray]:
    """One row for each item, and the row that each comes from.

    Args:
        arrays: by our names; ``item_id`` is a list of items, and a ``timestamp``, ``weight`` or
            ``kind`` that is no list is that of all of them.

    Raises:
        BadValue: a list is null, or there are more or fewer times, weights or kinds than items.
    """
    items = arrays["item_id"]
    for name, column in arrays.items():
        if is_list(column) and column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            raise BadValue(row, f"the list in {name} is null; write a list, which may be empty")
    sizes = pc.list_value_length(items).to_numpy()
    rows = np.repeat(np.arange(len(items)), sizes)
    exploded = {"item_id": items.flatten()}
    for name, column in arrays.items():
        if name in OPTIONAL and is_list(column):
            values = pc.list_value_length(column).to_numpy()
            for row in np.flatnonzero(values != sizes)[:1]:
                noun = "times" if name == "timestamp" else f"{name}s"
                raise BadValue(
                    int(row),
                    f"found {values[row]} {noun} for {sizes[row]} items; write one for each item",
                )
            exploded[name] = column.flatten()
        elif name != "item_id":
            exploded[name] = plain(column).take(pa.array(rows))
    return exploded, rows


def history_table(stream: Any, source: str, separator: str | None, asked_for: bool) -> Table:
    """Lines of a user and that user's items, oldest first; a user may have several lines.

    Args:
        separator: what stands between the fields; None for blanks and tabs.
        asked_for: whether the format was given by hand. Otherwise lines that look like a table are
            refused.
    """
    blocks = split_into_blocks(stream, source, quoting=False)
    line, body = next(blocks, (1, b""))
    if not body:
        raise InputError(f"{source}: holds only blank lines or nothing; download or write it again")
    if not asked_for:
        _refuse_tables(body, source)

    def read(_: dict[str, Name]) -> Iterator[Batch]:
        start, content = line, body
        while content:
            yield _parse(content, source, separator, start)
            start, content = next(blocks, (0, b""))

    return Table(source, f"{source}: line {line}", ["user_id", "item_id"], dict, read)


def _parse(body: bytes, source: str, separator: str | None, start: int) -> Batch:
    users, items, sizes = [], [], []
    for number, text in enumerate(body.decode().split("\n"), start):
        user, *history = text.removesuffix("\r").split(separator) if text.strip() else [""]
        if not history:
            raise InputError(
                f"{source}: line {number}: expected a user and at least one item, found "
                f"{shorten(repr(text))}; correct or remove the line"
            )
        users.append(user)
        items += history
        sizes.append(len(history))
    offsets = pa.array(np.cumsum([0, *sizes]), pa.int64())
    arrays = {
        "user_id": pa.array(users, pa.string()),
        "item_id": pa.LargeListArray.from_arrays(offsets, pa.array(items, pa.string())),
    }
    return arrays, lambda name, row: f"{source}: line {start + row}, column {name!r}"


def _refuse_tables(body: bytes, source: str) -> None:
    """InputError if the lines look like rows of a table rather than like histories."""
    lines = [line.split() for line in body[: 1 << 16].decode(errors="ignore").splitlines()[:1000]]
    first = body.partition(b"\n")[0].decode().removesuffix("\r")
    for separator in ("\t", ",", "::", ";", "|"):
        if separator in first:
            shown = separator.replace("\t", "\\t")
            raise InputError(
                f"{source}: line 1 has the delimiter {separator!r}, but histories have blanks between "
                f"their items; pass separator={separator!r} (command line: --separator '{shown}')"
            )
    names = {alias for aliases in ALIASES.values() for alias in aliases.split()}
    if lines and {"".join(filter(str.isalnum, word.lower())) for word in lines[0]} & names:
        raise InputError(
            f"{source}: line 1 has the names of columns; pass separator=' ' (command line: "
            "--separator ' ')"
        )
    sizes = {len(fields) for fields in lines}
    (size, *others) = sizes
    if not others and size > 2:
        raise InputError(
            f"{source}: every line has {size} fields; if each is a user and the user's items, pass "
            "format='histories' (command line: --format histories); if each is an event, pass "
            f"separator=' ' (command line: --separator ' ') and {name_by_position(lines[0])}"
        )
