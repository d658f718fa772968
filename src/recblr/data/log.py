"""Read a log of events: ids become codes as the file streams by, mistakes are told with place.

Here are the columns and the typed sources; text files are cut and checked in text.py.
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

from recblr.data.text import DELIMITERS, Batch, read_text, short
from recblr.errors import InputError
from recblr.progress import progress

if TYPE_CHECKING:
    import polars as pl

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}

BATCH_ROWS = 1 << 20  # of typed columns are encoded at a time
MAX_EXACT = 2**53 - 1  # float64 tells every whole number up to here from the next

# What others call our columns, in small letters and digits only.
ALIASES = {
    "user_id": "userid user uid customerid customer visitorid reviewerid memberid sessionid",
    "item_id": "itemid item iid movieid movie productid product asin bookid songid trackid",
    "timestamp": "timestamp time ts date datetime eventtime unixreviewtime createdat",
}


@dataclass(frozen=True, eq=False)
class Interactions:
    """A log with its ids replaced by codes: 16 bytes an event, whatever the ids are.

    ``users`` and ``items`` index ``user_ids`` and ``item_ids``, which hold every id once, just as
    the log has it, in the order of first appearance. The events keep the order of the log.
    """

    users: NDArray[np.int32]  # (N,)
    items: NDArray[np.int32]  # (N,)
    timestamps: NDArray[Any] | None  # (N,) int64 or float64; None: the log's order is the order
    user_ids: pa.Array  # string or int64
    item_ids: pa.Array
    source: str  # what messages call the log
    dates: bool = False  # whether the times were dates, and are microseconds since 1970

    def __len__(self) -> int:
        return len(self.users)

    def to_polars(self) -> "pl.DataFrame":
        """The log with its ids: user_id, item_id and, if it has one, timestamp."""
        import polars as pl

        coded = {"user_id": (self.user_ids, self.users), "item_id": (self.item_ids, self.items)}
        frame = {name: pl.Series(ids).gather(codes) for name, (ids, codes) in coded.items()}
        if self.timestamps is not None:
            frame["timestamp"] = pl.Series(self.timestamps)
        return pl.DataFrame(frame)


def read_log(source: Any, *, columns: Mapping[str, str] | None = None) -> Interactions:
    """Read the user_id, item_id and, if there is one, timestamp of every event, in order.

    ``source`` is a path or a Polars or pandas frame; docs/data-formats.md lists what is read.
    ``columns`` says what our columns are called there: ``{"user_id": "userId"}``. Dates become
    microseconds since 1970, UTC. Raises InputError, one line with the place, for whatever is
    missing, ambiguous or damaged: nothing is repaired.
    """
    is_path = isinstance(source, str | Path)
    name = str(source) if is_path else "<frame>"
    users, items, times = _Ids(), _Ids(), _Times()
    parts: dict[str, _Ids | _Times] = {"user_id": users, "item_id": items, "timestamp": times}
    try:
        batches = _read_path(Path(source), columns) if is_path else _read_frame(source, columns)
        for arrays, place in batches:
            for ours, array in arrays.items():
                try:
                    parts[ours].add(array)
                except _Unfit as unfit:
                    raise InputError(f"{place(ours, unfit.row)}: {unfit}") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{name}: cannot be read to its end ({short(str(error), 120)}): damaged, cut short or "
            "not what its ending says; fetch or write it again"
        ) from error
    if users.ids is None or items.ids is None:
        raise InputError(f"{name}: has columns but no events; give a log with at least one event")
    # One column at a time is held twice, and not beside what Arrow keeps for its next batch.
    pa.default_memory_pool().release_unused()
    codes = users.finish(), items.finish()
    dates = times.form.startswith("date")
    return Interactions(*codes, times.finish(), users.ids, items.ids, name, dates)


# ---- columns to codes and times ------------------------------------------------------------------


class _Unfit(Exception):
    """A value that cannot be taken; the reader of the file knows the row's place."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row


class _Ids:
    """A column of ids on its way to codes; the vocabulary grows as new ids appear."""

    def __init__(self) -> None:
        self.ids: pa.Array | None = None
        self.codes: list[NDArray[np.int32]] = []

    def add(self, column: pa.Array) -> None:
        local = _plain_ids(column).dictionary_encode()
        known = local.dictionary[:0] if self.ids is None else self.ids
        found = pc.index_in(local.dictionary, value_set=known)
        self.ids = pa.concat_arrays([known, local.dictionary.filter(found.is_null())])
        codes = found.fill_null(-1).to_numpy().copy()
        codes[codes < 0] = np.arange(len(known), len(self.ids), dtype=np.int32)
        self.codes.append(codes[local.indices.to_numpy()])

    def finish(self) -> NDArray[np.int32]:
        codes, self.codes = np.concatenate(self.codes), []
        return codes


def _plain_ids(column: pa.Array) -> pa.Array:
    """The ids as string or int64, none of them null or empty."""
    if pa.types.is_dictionary(column.type):
        words = column.dictionary
        column = (words.cast(pa.string()) if _is_text(words) else words).take(column.indices)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise _Unfit(row, "the id is null; give it one or drop the row")
    if not _is_text(column) and not pa.types.is_integer(column.type):
        raise _Unfit(0, f"ids of type {column.type}; cast the column to string or int64")
    to = pa.string() if _is_text(column) else pa.int64()
    plain = _cast(column, to)
    if plain is None:
        row = _first_unfit(column, lambda part: _cast(part, to))
        found = "text that is not UTF-8" if _is_text(column) else f"{column[row]}, beyond int64"
        raise _Unfit(row, f"found {found}; write the ids as UTF-8 text")
    if _is_text(column) and (row := pc.index(plain, "").as_py()) >= 0:
        raise _Unfit(row, "the id is empty; give it one or drop the row")
    return plain


class _Times:
    """A column of times on its way to int64 or float64, all of one form."""

    def __init__(self) -> None:
        self.form = ""
        self.parts: list[NDArray[Any]] = []

    def add(self, column: pa.Array) -> None:
        if _is_text(column):
            column = column.cast(pa.string())
        if not _possible_forms(column):
            raise _Unfit(0, f"times of type {column.type}; cast them to int64, float64 or datetime")
        read = self.read(column)
        if read is None:
            row = _first_unfit(column, self.read)
            before = self.read(column[:row]) if row else None
            form = before[0] if before else self.form
            found = short(repr(column[row : row + 1].cast(pa.string())[0].as_py()))
            raise _Unfit(
                row,
                f"found {found}{f' after a {form}' if form else ''}; write every time as a whole "
                "number, or a finite decimal, or an ISO 8601 date, exact in 64 bits",
            )
        self.form, values = read
        self.parts.append(values)

    def read(self, column: pa.Array) -> tuple[str, NDArray[Any]] | None:
        """Form and values of a column that goes on from those before; None where it cannot."""
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
    # Arrow would also read 0x1F.
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
    """The column as another type; None where that would change a value."""
    try:
        values = column.cast(to)
        values.validate(full=True)  # text out of a Parquet file need not be UTF-8
    except pa.ArrowInvalid:
        return None
    return values


def _first_unfit(column: pa.Array, read: Callable[[pa.Array], Any]) -> int:
    """The first row that ``read`` refuses: it also refuses every longer beginning."""
    return bisect_left(range(len(column)), True, key=lambda row: read(column[: row + 1]) is None)


# ---- columns, files and frames -------------------------------------------------------------------


def _choose(name: str, found: list[str], columns: Mapping[str, str] | None) -> dict[str, str]:
    """What our columns are called in the log; timestamp only where there is one."""
    given = dict(columns or {})
    listed = f"found: {short(', '.join(map(repr, found)) or 'none', 200)}"
    for ours, theirs in given.items():
        if ours not in ALIASES:
            raise InputError(f"{name}: columns= knows {', '.join(ALIASES)}, not {ours!r}")
        if theirs not in found:
            raise InputError(f"{name}: no column {theirs!r}, which columns= names; {listed}")
    chosen = {ours: ours for ours in ALIASES if ours in found} | given
    if "datetime" in found and "timestamp" not in given:
        if "timestamp" in found:
            which = "columns={'timestamp': 'timestamp'} or columns={'timestamp': 'datetime'}"
            raise InputError(f"{name}: has timestamp and datetime; take one by {which}")
        chosen["timestamp"] = "datetime"
    for theirs in chosen.values():
        if list(chosen.values()).count(theirs) > 1:
            raise InputError(f"{name}: {theirs!r} is taken for two of our columns; mend columns=")
        if found.count(theirs) > 1:
            raise InputError(f"{name}: two columns are called {theirs!r}; rename one; {listed}")

    near = {
        ours: theirs
        for ours in ALIASES
        for theirs in reversed(found)
        if ours not in chosen and re.sub("[^a-z0-9]", "", theirs.lower()) in ALIASES[ours].split()
    }
    missing = [ours for ours in ("user_id", "item_id") if ours not in chosen]
    if missing:
        say = given | dict.fromkeys(missing, "...") | near
        option = ",".join(f"{ours}={theirs}" for ours, theirs in say.items())
        raise InputError(
            f"{name}: no column {' and no column '.join(missing)}; {listed}; say which it is by "
            f"columns={say} (command line: --columns {option})"
        )
    if near:
        warnings.warn(
            f"{name}: no column timestamp, so the order of the rows is taken as the order in time; "
            f"if {near['timestamp']!r} is the time, say columns={given | near}",
            stacklevel=4,  # whoever called read_log
        )
    return chosen


def _read_path(path: Path, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give one file")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    ending = Path(path.stem if compression else path.name).suffix.lower()
    is_parquet = ending in (".parquet", ".pq") and not compression
    if not is_parquet and ending not in DELIMITERS:
        text = f"{', '.join(DELIMITERS)}, these also with {', '.join(COMPRESSIONS)} behind"
        raise InputError(f"{path}: cannot read this ending; give a file in .parquet, .pq, {text}")
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise InputError(f"{path}: is empty (0 bytes); fetch or write it again")
    said = "Parquet" if is_parquet else compression or "text"
    is_in_fact = [kind for magic, kind in MAGIC.items() if head.startswith(magic)]
    if is_in_fact not in ([], [said]) or (is_parquet and not is_in_fact):
        fact = is_in_fact[0] if is_in_fact else "something else"
        raise InputError(
            f"{path}: {said} by its ending, {fact} by its first bytes {head!r}; rename it"
        )
    return (
        _read_parquet(path, columns)
        if is_parquet
        else read_text(path, compression, ending, partial(_choose, columns=columns))
    )


def _read_parquet(path: Path, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        chosen = _choose(str(path), file.schema_arrow.names, columns)
        batches = file.iter_batches(BATCH_ROWS, columns=list(chosen.values()))
        with progress(f"reading {path.name}", file.metadata.num_rows) as advance:
            for arrays, place in _typed(batches, str(path), chosen):
                yield arrays, place
                advance(len(arrays["user_id"]))


def _read_frame(frame: Any, columns: Mapping[str, str] | None) -> Iterator[Batch]:
    name = "<frame>"
    try:
        if hasattr(frame, "collect_schema"):  # Polars, lazy or not
            chosen = _choose(name, frame.collect_schema().names(), columns)
            table = pa.table(frame.lazy().select(list(chosen.values())).collect())
        else:
            names = [label for label in frame.columns if isinstance(label, str)]
            chosen = _choose(name, names, columns)
            table = pa.table(frame[list(chosen.values())])
    except (InputError, Warning):  # ours
        raise
    except Exception as error:  # of whatever library the frame is from
        raise InputError(
            f"{name}: a {type(frame).__name__} that cannot be read ({short(str(error), 120)}); "
            "give a path, or a Polars or pandas frame with one type in each column"
        ) from error
    return _typed(table.to_batches(BATCH_ROWS), name, chosen)


def _typed(batches: Iterable[pa.RecordBatch], name: str, chosen: dict[str, str]) -> Iterator[Batch]:
    def place(done: int, ours: str, row: int) -> str:
        return f"{name}: row {done + row + 1}, column {chosen[ours]!r}"

    done = 0
    for batch in batches:
        if len(batch):
            arrays = {ours: batch.column(theirs) for ours, theirs in chosen.items()}
            yield arrays, partial(place, done)
            done += len(batch)
