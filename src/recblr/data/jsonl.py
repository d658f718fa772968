"""JSON lines: one object for each event, or for each user with lists of items and times."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from recblr.data.table import HEAD_ROWS, Batch, Name, Table
from recblr.data.text import split_into_blocks
from recblr.data.values import BadValue, shorten
from recblr.errors import InputError


class _Decimal(str):
    """A number with a fraction, as it is written: float64 would round it."""

    __slots__ = ()


def json_table(stream: Any, source: str) -> Table:
    """A text file with one JSON object on each line; those of the first are the columns."""
    blocks = split_into_blocks(stream, source, quoting=False)
    line, body = next(blocks, (1, b""))
    if not body:
        raise InputError(f"{source}: holds only blank lines or nothing; download or write it again")
    if body.lstrip().startswith(b"["):
        raise InputError(
            f"{source}: is one JSON array; write one object on each line, without commas"
        )
    (first,) = _objects(body.partition(b"\n")[0], source, line)

    def head() -> dict[Name, pa.Array]:
        lines = b"\n".join(body.split(b"\n", HEAD_ROWS)[:HEAD_ROWS])
        objects = _objects(lines, source, line)
        arrays: dict[Name, pa.Array] = {}
        for name in first:
            try:
                arrays[name] = _array([each.get(name) for each in objects], name)
            except BadValue:
                continue
        return arrays

    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        start, content = line, body
        while content:
            yield _parse(content, source, start, chosen)
            start, content = next(blocks, (0, b""))

    return Table(source, f"{source}: line {line}", list(first), head, read)


def _parse(body: bytes, source: str, start: int, chosen: dict[str, Name]) -> Batch:
    def location(name: str, row: int) -> str:
        return f"{source}: line {start + row}, column {chosen[name]!r}"

    objects = _objects(body, source, start)
    arrays = {}
    for name, column in chosen.items():
        try:
            arrays[name] = _array([each.get(str(column)) for each in objects], name)
        except BadValue as error:
            raise InputError(f"{location(name, error.row)}: {error}") from None
    return arrays, location


def _objects(body: bytes, source: str, start: int) -> list[dict[str, Any]]:
    objects = []
    for number, text in enumerate(body.decode().split("\n"), start):
        try:
            value = DECODER.decode(text)
            if not isinstance(value, dict):
                raise ValueError("expected an object in braces")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{source}: line {number}: {_problem(error)} in {shorten(repr(text))}; write one JSON "
                "object on each line"
            ) from None
        objects.append(value)
    return objects


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else shorten(str(error), 80)


def _array(values: list[Any], name: str) -> pa.Array:
    """An Arrow array of one column. BadValue at the first value of another type than those before."""
    if isinstance(values[0], list):
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, list):
                raise BadValue(
                    row, f"found {shorten(repr(value))} after a list; write a list in each row"
                )
        flat = [each for value in values for each in value or ()]
        offsets = np.cumsum([0, *(len(value or ()) for value in values)])
        try:
            items = _array(flat, name) if flat else pa.array([], pa.string())
        except BadValue as error:
            row = int(np.searchsorted(offsets, error.row, "right")) - 1
            raise BadValue(row, str(error)) from None
        missing = np.array([value is None for value in values])
        return pa.LargeListArray.from_arrays(
            pa.array(offsets, pa.int64()), items, mask=pa.array(missing)
        )
    kinds = set(map(type, values)) - {type(None)}
    if name == "timestamp" and kinds <= {int, str, _Decimal} and kinds != {int}:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if name in ("vector", "weight") and kinds == {int, _Decimal}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    first = next((type(value) for value in values if value is not None), type(None))
    for row, value in enumerate(values):
        if value is not None and type(value) is not first:
            raise BadValue(
                row,
                f"found {shorten(repr(value))} after a value of type {first.__name__}; write one type",
            )
    if first is _Decimal:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    try:
        return pa.array(values)
    except OverflowError:
        row = next(n for n, value in enumerate(values) if value is not None and abs(value) >= 2**63)
        raise BadValue(row, f"found {values[row]}, beyond int64; write it as text") from None
    except UnicodeEncodeError as error:
        row = values.index(error.object)
        raise BadValue(row, "contains an unpaired surrogate; write valid Unicode") from None
    except pa.ArrowException as error:
        raise BadValue(0, f"{shorten(str(error), 80)}; write text or numbers") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("the same key twice")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_Decimal, parse_constant=_refuse)
