"""Where a log may lie: a file, a folder or several files of one format, standard input, a frame."""

import bz2
import io
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recblr.data.histories import history_table
from recblr.data.jsonl import json_table
from recblr.data.log_files import STDIN, LogFile, find_files, name_of
from recblr.data.table import HEAD_ROWS, Batch, Name, Table
from recblr.data.text import Dialect, check_separator, text_table
from recblr.data.values import shorten
from recblr.errors import InputError
from recblr.progress import progress

# Formats by the endings of files.
ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".data": "tsv",
    ".inter": "inter", ".dat": "dat", ".txt": "histories", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "jsonl",
}  # fmt: skip
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
MAGIC = {
    b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip",
} | {b"BZh%d1AY&" % level: "bzip2" for level in range(1, 10)}  # fmt: skip
DAMAGED = (OSError, EOFError, pa.ArrowException, UnicodeDecodeError, lzma.LZMAError)
BATCH_ROWS = 1 << 20  # rows of typed columns that are encoded at a time

Opener = Callable[[], Any]  # a context manager with the Table


def open_tables(
    source: Any, format: str | None, separator: str | None, by_position: bool
) -> Iterator[tuple[str, Opener]]:
    """The name of each file or frame of a source, and how to open its table.

    Args:
        source: a path, a pattern such as ``clicks/*.csv``, "-" for standard input, or a frame.
        format: one of ``FORMATS``, instead of that of the file's ending.
        separator: what separates the fields of text.
        by_position: whether text has no line of names.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"format {format!r}: choose one of {', '.join(FORMATS)}")
    if not isinstance(source, str | Path):
        if format is not None or separator is not None:
            raise InputError(
                "format= and separator= are for files, not for a frame; leave them out"
            )
        yield "<frame>", lambda: _frame(source)
        return
    given = None if separator is None else check_separator(separator)
    stdin = LogFile(PurePath(STDIN), "<stdin>", 0)
    files = [stdin] if str(source) == STDIN else find_files(str(source))
    endings = {_format_of(file.path): file.path.name for file in files}
    if len(endings) > 1:
        first, second = sorted(endings.values())[:2]
        raise InputError(
            f"{name_of(source)}: holds files of several formats, such as {first} and {second}; give a "
            "pattern such as 'folder/*.csv'"
        )
    for file in files:
        yield file.name, partial(_open, file, format, given, by_position)


def _format_of(path: PurePath) -> str:
    """The format by the ending, after that of a compression; "" if it is unknown."""
    packed = path.suffix.lower() in COMPRESSIONS
    return ENDINGS.get(Path(path.stem if packed else path.name).suffix.lower(), "")


@contextmanager
def _open(
    source: LogFile, format: str | None, separator: str | None, by_position: bool
) -> Iterator[Table]:
    """The table of one file, with a column for each of its folders named ``key=value``."""
    path, name, stdin = source.path, source.name, str(source.path) == STDIN
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    kind = format or _format_of(path)
    if not kind and separator is not None:
        kind = "csv"
    if stdin and not kind:
        raise InputError(
            "<stdin>: pass the format of standard input, format='csv' (command line: --format csv) or "
            f"another of {', '.join(FORMATS)}"
        )
    if not kind or (kind == "parquet" and compression):
        raise InputError(
            f"{name}: unknown file extension; use {', '.join(ENDINGS)}, with {', '.join(COMPRESSIONS)} "
            f"behind those of text, or pass format= (command line: --format) {'|'.join(FORMATS)}"
        )
    if separator is not None and kind in ("parquet", "jsonl"):
        raise InputError(f"{name}: {kind} has no separator; leave out separator= (--separator)")
    with ExitStack() as stack:
        if stdin:
            file: Any = io.BufferedReader(cast("io.RawIOBase", sys.stdin.buffer))
            stack.callback(file.detach)  # so that standard input stays open
        else:
            file = stack.enter_context(source.open())
        _check_first_bytes(file.peek(8)[:8], name, kind, compression)
        if kind == "parquet":
            data = pa.BufferReader(file.read()) if stdin else path if source.store is None else file
            # Buffered ahead, the whole file would stay in memory.
            opened = pq.ParquetFile(data, pre_buffer=False, page_checksum_verification=True)
            table = _parquet(stack.enter_context(opened), name)
        else:
            stream = _unpacked(file, compression)
            table = _text(stream, name, kind, format is not None, separator, by_position)
            if source.size:
                bar = progress(f"reading {path.name}", source.size)
                table = _with_progress(table, file, stack.enter_context(bar))
        yield _with_folders(table, source.folders)


def _text(
    stream: Any, source: str, kind: str, asked_for: bool, separator: str | None, by_position: bool
) -> Table:
    if kind == "jsonl":
        return json_table(stream, source)
    if kind == "histories" and (asked_for or separator is None) and not by_position:
        return history_table(stream, source, separator, asked_for)
    dialect = None if separator is None else Dialect(separator)
    if kind == "histories":  # a .txt file that is a table
        kind, dialect = "csv", dialect or Dialect(" ")
    return text_table(stream, source, f".{kind}", dialect, by_position)


def _check_first_bytes(head: bytes, source: str, kind: str, compression: str) -> None:
    if not head:
        raise InputError(f"{source}: is empty (0 bytes); download or write it again")
    is_parquet = kind == "parquet"
    expected = "Parquet" if is_parquet else compression or "text"
    detected = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if detected not in ("", expected) or (is_parquet and not detected):
        raise InputError(
            f"{source}: the extension says {expected}, the first bytes say "
            f"{detected or 'something else'} ({head!r}); rename the file"
        )


def _unpacked(file: BinaryIO, compression: str) -> Any:
    if compression == "bzip2":
        return bz2.BZ2File(file)
    if compression == "xz":
        return lzma.LZMAFile(file)
    return pa.CompressedInputStream(file, compression) if compression else file


def _with_progress(table: Table, file: BinaryIO, advance: Callable[[float], None]) -> Table:
    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        done = 0
        for batch in table.read(chosen):
            yield batch
            advance(file.tell() - done)
            done = file.tell()

    return replace(table, read=read)


def _with_folders(table: Table, parts: Iterable[str]) -> Table:
    """The table with a column of text for each folder whose name is ``key=value``."""
    pairs = [part.split("=", 1) for part in parts if "=" in part]
    folders: dict[Name, str] = {key: unquote(value) for key, value in pairs}

    def head() -> dict[Name, pa.Array]:
        arrays = table.head()
        rows = max(map(len, arrays.values()), default=1)
        return arrays | {key: pa.repeat(value, rows) for key, value in folders.items()}

    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        own = {name: column for name, column in chosen.items() if column in table.names}
        others = {name: column for name, column in chosen.items() if name not in own}
        for arrays, location in table.read(own):
            rows = len(next(iter(arrays.values())))
            values = {name: pa.repeat(folders[column], rows) for name, column in others.items()}
            yield arrays | values, partial(_locate, location, others)

    def _locate(
        location: Callable[[str, int], str], others: Mapping[str, Name], name: str, row: int
    ) -> str:
        return f"{table.source}: folder {others[name]!r}" if name in others else location(name, row)

    return (
        replace(table, names=[*table.names, *folders], head=head, read=read) if folders else table
    )


def _parquet(file: pq.ParquetFile, source: str) -> Table:
    def head() -> dict[Name, pa.Array]:
        for batch in file.iter_batches(HEAD_ROWS):
            return dict(zip(batch.schema.names, batch.columns, strict=True))
        return {}

    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        batches = file.iter_batches(BATCH_ROWS, columns=list(chosen.values()))
        with progress(f"reading {Path(source).name}", file.metadata.num_rows) as advance:
            for arrays, location in _rename(batches, source, chosen):
                yield arrays, location
                advance(len(next(iter(arrays.values()))))

    return Table(source, source, file.schema_arrow.names, head, read)


@contextmanager
def _frame(frame: Any) -> Iterator[Table]:
    """The table of a Polars or pandas frame, or of an object that Arrow reads as a table."""
    try:
        if hasattr(frame, "collect_schema"):  # Polars, lazy or not
            names = frame.collect_schema().names()
        elif hasattr(frame, "iloc"):
            names = [label for label in frame.columns if isinstance(label, str | int)]
        else:
            frame = pa.table(frame) if hasattr(frame, "__arrow_c_stream__") else frame
            names = frame.column_names
    except Exception as error:
        raise _unreadable(frame, error) from error

    def head() -> dict[Name, pa.Array]:
        arrays = {}
        for name in names:
            with suppress(Exception):  # a column that Arrow cannot represent holds no times
                arrays[name] = _columns(frame, [name], HEAD_ROWS).column(0).combine_chunks()
        return arrays

    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        try:
            table = _columns(frame, list(chosen.values()))
        except Exception as error:  # each library of frames has its own
            raise _unreadable(frame, error) from error
        return _rename(table.to_batches(BATCH_ROWS), "<frame>", chosen)

    yield Table("<frame>", "<frame>", names, head, read)


def _columns(frame: Any, names: list[Name], rows: int | None = None) -> pa.Table:
    """Some columns of a frame, in the order of ``names``."""
    if hasattr(frame, "collect_schema"):
        chosen = frame.lazy().select(names)
        return pa.table((chosen if rows is None else chosen.head(rows)).collect())
    if isinstance(frame, pa.Table):
        return frame.select(names).slice(0, rows)
    part = frame[names] if rows is None else frame[names].head(rows)
    arrays = [pa.array(_plain_objects(part[name]), from_pandas=True) for name in names]
    return pa.table(arrays, names=[str(name) for name in names])


def _plain_objects(series: Any) -> Any:
    """A column of objects with dates as ISO text, and scalars of NumPy as Python numbers.

    Arrow would drop the zones and nanoseconds of such dates, and can crash on mixed scalars of NumPy.
    """
    if series.dtype != object or not len(series) or isinstance(series.iloc[0], str):
        return series
    return [_plain_object(value) for value in series]


def _plain_object(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return str(value)
    # Times of float32 keep their type, of which a warning says that it rounds them.
    if isinstance(value, np.generic) and not isinstance(value, np.float16 | np.float32):
        return value.item()
    return value.isoformat() if hasattr(value, "isoformat") else value


def _unreadable(frame: Any, error: Exception) -> InputError:
    return InputError(
        f"<frame>: cannot read this {type(frame).__name__} ({shorten(str(error), 120)}); "
        "give a path, or a Polars or pandas frame with one type in each column"
    )


def _rename(
    batches: Iterable[pa.RecordBatch], source: str, chosen: dict[str, Name]
) -> Iterator[Batch]:
    """The batches under our column names, with the location of each value."""

    def location(rows_before: int, name: str, row: int) -> str:
        return f"{source}: row {rows_before + row + 1}, column {chosen[name]!r}"

    rows = 0
    for batch in batches:
        if len(batch):
            arrays = {name: batch.column(str(column)) for name, column in chosen.items()}
            yield arrays, partial(location, rows)
            rows += len(batch)
