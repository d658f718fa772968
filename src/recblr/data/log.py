"""Read a log of events from a file or a frame.

A file is read in blocks, whose ids become codes at once. Errors name the file, line or row, and column.
Text formats are in text.py.
"""

import re
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recblr.data.text import DELIMITERS, Batch, read_text, shorten
from recblr.errors import InputError
from recblr.progress import progress

if TYPE_CHECKING:
    import polars as pl

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}

BATCH_ROWS = 1 << 20  # rows of typed columns that are encoded at a time
MAX_EXACT = 2**53 - 1  # float64 represents every whole number up to here exactly
TIME_FORMAT = (
    "write every time as a whole number, a finite decimal or an ISO 8601 date, exact in 64 bits"
)

# Common names of our columns, in lower case, without punctuation.
ALIASES = {
    "user_id": "userid user uid customerid customer visitorid reviewerid memberid sessionid",
    "item_id": "itemid item iid movieid movie productid product asin bookid songid trackid",
    "timestamp": "timestamp time ts date datetime eventtime unixreviewtime createdat",
}


@dataclass(frozen=True, eq=False)
class Interactions:
    """N events with codes instead of ids, in 16 bytes per event.

    Attributes:
        users, items: (N,) int32 indices into ``user_ids`` and ``item_ids``, in the order of the log.
        timestamps: (N,) int64 or float64; None if the log has no times and is in order of time.
        user_ids, item_ids: every id once, string or int64, unchanged, in order of first appearance.
        source: the name of the log in messages.
        dates: whether the times were dates, and are now microseconds since 1970.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[Any] | None
    user_ids: pa.Array
    item_ids: pa.Array
    source: str
    dates: bool = False

    def __len__(self) -> int:
        return len(self.users)

    def to_polars(self) -> "pl.DataFrame":
        """The events with their ids: user_id, item_id and, if the log has times, timestamp."""
        import polars as pl

        coded = {"user_id": (self.user_ids, self.users), "item_id": (self.item_ids, self.items)}
        frame = {name: pl.Series(ids).gather(codes) for name, (ids, codes) in coded.items()}
        if self.timestamps is not None:
            frame["timestamp"] = pl.Series(self.timestamps)
        return pl.DataFrame(frame)


def read_log(source: Any, *, columns: Mapping[str, str] | None = None) -> Interactions:
    """Read the user_id, item_id and, if there is one, timestamp of every event, in order.

    Dates become microseconds since 1970, UTC.

    Args:
        source: a path, or a Polars or pandas frame. docs/data-formats.md lists the formats.
        columns: our column names to those of the log: ``{"user_id": "userId"}``.

    Raises:
        InputError: a value or column is missing, ambiguous or damaged; nothing is repaired.
    """
    is_path = isinstance(source, str | Path)
    name = str(source) if is_path else "<frame>"
    users, items, times = _IdColumn(), _IdColumn(), _TimeColumn()
    encoders: dict[str, Any] = {"user_id": users, "item_id": items, "timestamp": times}
    try:
        batches = _read_path(Path(source), columns) if is_path else _read_frame(source, columns)
        for arrays, location in batches:
            for column, array in arrays.items():
                try:
                    encoders[column].add(array)
                except _BadValue as error:
                    raise InputError(f"{location(column, error.row)}: {error}") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{name}: cannot be read to its end ({shorten(str(error), 120)}); the file is damaged, "
            "truncated or has the wrong extension: download or write it again"
        ) from error
    if users.ids is None or items.ids is None:
        raise InputError(f"{name}: has columns but no events; give a log with at least one event")
    # Joining the blocks of a column needs twice its memory, so Arrow's unused memory goes first.
    pa.default_memory_pool().release_unused()
    codes = users.finish(), items.finish()
    dates = times.form.startswith("date")
    return Interactions(*codes, times.finish(), users.ids, items.ids, name, dates)


# ---- columns to codes and times ------------------------------------------------------------------


class _BadValue(Exception):
    """A value in a row of the current batch that cannot be read."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


class _IdColumn:
    """Encodes the blocks of a column of ids; the vocabulary grows with every new id."""

    def __init__(self) -> None:
        self.ids: pa.Array | None = None
        self.codes: list[NDArray[np.int32]] = []

    def add(self, column: pa.Array) -> None:
        local = _check_ids(column).dictionary_encode()
        known = local.dictionary[:0] if self.ids is None else self.ids
        known_codes = pc.index_in(local.dictionary, value_set=known)
        self.ids = pa.concat_arrays([known, local.dictionary.filter(known_codes.is_null())])
        codes = known_codes.fill_null(-1).to_numpy().copy()
        codes[codes < 0] = np.arange(len(known), len(self.ids), dtype=np.int32)
        self.codes.append(codes[local.indices.to_numpy()])

    def finish(self) -> NDArray[np.int32]:
        codes, self.codes = np.concatenate(self.codes), []
        return codes


def _check_ids(column: pa.Array) -> pa.Array:
    """The ids as string or int64, none of them null or empty."""
    if pa.types.is_dictionary(column.type):
        words = column.dictionary
        column = (words.cast(pa.string()) if _is_text(words) else words).take(column.indices)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise _BadValue(row, "the id is null; write an id or remove the row")
    if not _is_text(column) and not pa.types.is_integer(column.type):
        raise _BadValue(0, f"ids of type {column.type}; cast the column to string or int64")
    to = pa.string() if _is_text(column) else pa.int64()
    ids = _cast(column, to)
    if ids is None:
        row = _first_bad_row(column, lambda part: _cast(part, to))
        value = "text that is not UTF-8" if _is_text(column) else f"{column[row]}, beyond int64"
        raise _BadValue(row, f"found {value}; write the ids as UTF-8 text")
    if _is_text(column) and (row := pc.index(ids, "").as_py()) >= 0:
        raise _BadValue(row, "the id is empty; write an id or remove the row")
    return ids


class _TimeColumn:
    """Converts the blocks of a column of times, all of one form, to int64 or float64."""

    def __init__(self) -> None:
        self.form = ""
        self.parts: list[NDArray[Any]] = []

    def add(self, column: pa.Array) -> None:
        if _is_text(column):
            column = column.cast(pa.string())
        if not _possible_forms(column):
            raise _BadValue(0, f"times of type {column.type}; cast to int64, float64 or datetime")
        parsed = self.parse(column)
        if parsed is None:
            row = _first_bad_row(column, self.parse)
            before = self.parse(column[:row]) if row else None
            form = before[0] if before else self.form
            value = shorten(repr(column[row : row + 1].cast(pa.string())[0].as_py()))
            found = f"found {value} after a {form}" if form else f"found {value}"
            raise _BadValue(row, f"{found}; {TIME_FORMAT}")
        self.form, values = parsed
        self.parts.append(values)

    def parse(self, column: pa.Array) -> tuple[str, NDArray[Any]] | None:
        """Form and values of the next block; None if its form differs from that of earlier blocks."""
        for form in _possible_forms(column):
            widens = (self.form, form) == ("whole number", "decimal")
            if self.form in ("", form) or (widens and all(map(_is_exact, self.parts))):
                values = FORMS[form](column)
                if values is not None:
                    return form, values
        return None

    def finish(self) -> NDArray[Any] | None:
        times, self.parts = np.concatenate(self.parts) if self.parts else None, []
        return times


def _possible_forms(column: pa.Array) -> list[str]:
    types, kind = pa.types, column.type
    if _is_text(column):
        return list(FORMS)
    if types.is_integer(kind):
        return ["whole number"]
    if types.is_floating(kind):
        return ["decimal"]
    if types.is_timestamp(kind):
        return ["date with zone" if kind.tz else "date"]
    return ["date"] if types.is_date(kind) else []


def _whole(column: pa.Array) -> NDArray[Any] | None:
    # Arrow also accepts hexadecimal numbers such as 0x1F.
    if _is_text(column) and pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
        return None
    return _numbers(column, pa.int64())


def _decimal(column: pa.Array) -> NDArray[Any] | None:
    values = _numbers(column, pa.float64())
    if values is None or not np.isfinite(values).all():
        return None
    return values if not _is_text(column) or _is_exact(values) else None


FORMS: dict[str, Callable[[pa.Array], NDArray[Any] | None]] = {
    "whole number": _whole,
    "decimal": _decimal,
    "date": lambda column: _numbers(column, pa.timestamp("us")),
    "date with zone": lambda column: _numbers(column, pa.timestamp("us", "UTC")),
}


def _numbers(column: pa.Array, to: pa.DataType) -> NDArray[Any] | None:
    values = None if column.null_count else _cast(column, to)
    if values is not None and pa.types.is_timestamp(to):
        values = values.cast(pa.int64())
    return None if values is None else values.to_numpy()


def _is_exact(values: NDArray[Any]) -> bool:
    return bool(values.min() >= -MAX_EXACT and values.max() <= MAX_EXACT)


def _is_text(column: pa.Array) -> bool:
    types, kind = pa.types, column.type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _cast(column: pa.Array, to: pa.DataType) -> pa.Array | None:
    """The column as another type; None if that would change a value."""
    try:
        values = column.cast(to)
        values.validate(full=True)  # strings in a Parquet file may be invalid UTF-8
    except pa.ArrowInvalid:
        return None
    return values


def _first_bad_row(column: pa.Array, parse: Callable[[pa.Array], Any]) -> int:
    """The first row at which ``parse`` fails; it then fails for every longer prefix, too."""
    return bisect_left(range(len(column)), True, key=lambda row: parse(column[: row + 1]) is None)


# ---- columns, files and frames -------------------------------------------------------------------


def _choose_columns(
    location: str, present: list[str], columns: Mapping[str, str] | None
) -> dict[str, str]:
    """Our column names to those ``present`` in the log; timestamp only if the log has one."""
    given = dict(columns or {})
    listed = f"found: {shorten(', '.join(map(repr, present)) or 'none', 200)}"
    for name, column in given.items():
        if name not in ALIASES:
            raise InputError(f"{location}: columns= accepts {', '.join(ALIASES)}, not {name!r}")
        if column not in present:
            raise InputError(f"{location}: no column {column!r}, given by columns=; {listed}")
    chosen = {name: name for name in ALIASES if name in present} | given
    if "datetime" in present and "timestamp" not in given:
        if "timestamp" in present:
            options = "columns={'timestamp': 'timestamp'} or columns={'timestamp': 'datetime'}"
            raise InputError(f"{location}: has timestamp and datetime; choose one by {options}")
        chosen["timestamp"] = "datetime"
    for column in chosen.values():
        if list(chosen.values()).count(column) > 1:
            raise InputError(f"{location}: columns= uses {column!r} twice; correct columns=")
        if present.count(column) > 1:
            raise InputError(f"{location}: two columns are called {column!r}; rename one; {listed}")

    similar = {
        name: column
        for name in ALIASES
        for column in reversed(present)
        if name not in chosen and re.sub("[^a-z0-9]", "", column.lower()) in ALIASES[name].split()
    }
    missing = [name for name in ("user_id", "item_id") if name not in chosen]
    if missing:
        suggestion = given | dict.fromkeys(missing, "...") | similar
        option = ",".join(f"{name}={column}" for name, column in suggestion.items())
        raise InputError(
            f"{location}: no column {' and no column '.join(missing)}; {listed}; pass "
            f"columns={suggestion} (command line: --columns {option})"
        )
    if similar:
        warnings.warn(
            f"{location}: no column timestamp, so the order of the rows is used as the order in "
            f"time; if {similar['timestamp']!r} is the time, pass columns={given | similar}",
            stacklevel=4,  # the caller of read_log
        )
    return chosen


def _read_path(path: Path, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give one file")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    extension = Path(path.stem if compression else path.name).suffix.lower()
    is_parquet = extension in (".parquet", ".pq") and not compression
    if not is_parquet and extension not in DELIMITERS:
        raise InputError(
            f"{path}: unknown file extension; use .parquet, .pq, {', '.join(DELIMITERS)}, or a "
            "compressed text file such as .csv.gz or .csv.zst"
        )
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise InputError(f"{path}: is empty (0 bytes); download or write it again")
    expected = "Parquet" if is_parquet else compression or "text"
    detected = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if detected not in ("", expected) or (is_parquet and not detected):
        raise InputError(
            f"{path}: the extension says {expected}, the first bytes say "
            f"{detected or 'something else'} ({head!r}); rename the file"
        )
    if is_parquet:
        return _read_parquet(path, columns)
    return read_text(path, compression, extension, partial(_choose_columns, columns=columns))


def _read_parquet(path: Path, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        chosen = _choose_columns(str(path), file.schema_arrow.names, columns)
        batches = file.iter_batches(BATCH_ROWS, columns=list(chosen.values()))
        with progress(f"reading {path.name}", file.metadata.num_rows) as advance:
            for arrays, location in _rename(batches, str(path), chosen):
                yield arrays, location
                advance(len(arrays["user_id"]))


def _read_frame(frame: Any, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    try:
        if hasattr(frame, "collect_schema"):  # Polars, lazy or not
            chosen = _choose_columns("<frame>", frame.collect_schema().names(), columns)
            table = pa.table(frame.lazy().select(list(chosen.values())).collect())
        else:
            names = [label for label in frame.columns if isinstance(label, str)]
            chosen = _choose_columns("<frame>", names, columns)
            table = pa.table(frame[list(chosen.values())])
    except (InputError, Warning):  # from _choose_columns
        raise
    except Exception as error:  # each library of frames has its own
        raise InputError(
            f"<frame>: cannot read this {type(frame).__name__} ({shorten(str(error), 120)}); "
            "give a path, or a Polars or pandas frame with one type in each column"
        ) from error
    return _rename(table.to_batches(BATCH_ROWS), "<frame>", chosen)


def _rename(
    batches: Iterable[pa.RecordBatch], source: str, chosen: dict[str, str]
) -> Iterator[Batch]:
    """The batches under our column names, with the location of each value."""

    def location(rows_before: int, name: str, row: int) -> str:
        return f"{source}: row {rows_before + row + 1}, column {chosen[name]!r}"

    rows = 0
    for batch in batches:
        if len(batch):
            arrays = {name: batch.column(column) for name, column in chosen.items()}
            yield arrays, partial(location, rows)
            rows += len(batch)
