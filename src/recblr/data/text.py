"""Text files of events: cut into blocks of whole records, each parsed by pyarrow.

pyarrow forgives much, so whatever is quoted, fails or does not add up is checked byte by byte before
it is believed, and named with its line and column.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from recblr.errors import InputError
from recblr.progress import progress

DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".dat": "::"}
UNIT = "\x1f"  # stands in for "::", as pyarrow splits by one character only
BLOCK_BYTES = 1 << 24  # are parsed at a time
MAX_RECORD_BYTES = 1 << 24  # so that a quote left open does not swallow the file

# Some rows: their columns by our names, and the place in words of (our name, row).
Batch = tuple[dict[str, pa.Array], Callable[[str, int], str]]
# From the place of the header and the columns found to theirs by our names.
Choose = Callable[[str, list[str]], dict[str, str]]


def read_text(path: Path, compression: str, ending: str, choose: Choose) -> Iterator[Batch]:
    """Whole records of a text file, a block at a time."""
    name, delimiter = str(path), DELIMITERS[ending]
    names: list[str] = []
    done = 0
    with path.open("rb") as raw, progress(f"reading {path.name}", path.stat().st_size) as advance:
        stream = pa.CompressedInputStream(raw, compression) if compression else raw
        for line, body in _cut(stream, name, quoting=ending != ".dat"):
            if not names:
                first, _, rest = body.partition(b"\n")
                names = _header(first.decode().removesuffix("\r"), ending, name)
                chosen = choose(f"{name}: line 1", names)
                if ending != ".dat":
                    line, body = line + 1, rest
            if ending == ".dat":
                delimiter, body = UNIT, body.replace(b"::", UNIT.encode())
            if body:
                block = _Block(name, names, chosen, line, body, delimiter)
                yield block.columns(), block.place
            advance(raw.tell() - done)
            done = raw.tell()
    if not names:
        raise InputError(f"{name}: holds only blank lines or nothing; fetch or write it again")


def _header(first: str, ending: str, name: str) -> list[str]:
    """The columns, from the first line; a .dat names none and always has the same."""
    delimiter = DELIMITERS[ending]
    others = [other for other in ("::", "\t", ";", "|", ",") if other in first]
    if delimiter not in first and others:
        raise InputError(
            f"{name}: line 1 is divided by {others[0]!r}, a {ending} file by {delimiter!r}; "
            "rewrite it, or give it the ending of what it is (',' .csv, '\\t' .tsv, '::' .dat)"
        )
    if ending == ".dat":
        return ["user_id", "item_id", "rating", "timestamp"]
    if "\r" in first:
        raise InputError(f"{name}: line 1: a carriage return in it; end lines by \\n")
    try:
        names = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{name}: line 1: {error} in {short(repr(first))}; mend its quotes"
        ) from error
    return [column.split(":")[0] for column in names] if ending == ".inter" else names


def _cut(stream: Any, name: str, quoting: bool) -> Iterator[tuple[int, bytes]]:
    """Whole records, a block at a time: the line of the first, from 1, and the bytes of all.

    The end of the last line is left off, and so are blank lines at the end of the file.
    """
    held, line, offset = b"", 1, 0
    while True:
        chunk = stream.read(BLOCK_BYTES)
        held += chunk
        if offset == 0 and held.startswith(b"\xef\xbb\xbf"):
            held, offset = held[3:], 3
        end = _end_of_records(held, quoting) if chunk else len(held)
        while held.endswith(b"\n", 0, end):
            end -= 2 if held.endswith(b"\r\n", 0, end) else 1
        if end:
            body, rest = held[:end], held[end:].removeprefix(b"\r").removeprefix(b"\n")
            _check_characters(body, name, line, offset)
            yield line, body
            line += held.count(b"\n", 0, len(held) - len(rest))
            offset, held = offset + len(held) - len(rest), rest
        if not chunk:
            return
        if len(held) > MAX_RECORD_BYTES:
            what = f"what begins here does not end within {MAX_RECORD_BYTES} bytes"
            raise InputError(f"{name}: line {line}: {what}; close its quote or break the line")


def _end_of_records(held: bytes, quoting: bool) -> int:
    """The place after the last line end that is not inside quotes; 0 if there is none."""
    inside, end = quoting and held.count(b'"') % 2 == 1, len(held)
    while (newline := held.rfind(b"\n", 0, end)) >= 0:
        inside ^= quoting and held.count(b'"', newline, end) % 2 == 1
        if not inside:
            return newline + 1
        end = newline
    return 0


def _check_characters(body: bytes, name: str, line: int, offset: int) -> None:
    at, what = body.find(b"\0"), "a NUL byte"
    if at < 0 and not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            at, what = error.start, f"{body[error.start : error.start + 1]!r}, which is not UTF-8"
    if at >= 0:
        line += body.count(b"\n", 0, at)
        place = f"{name}: line {line}, byte {offset + at}"
        raise InputError(f"{place}: found {what}; save the file as text in UTF-8")


@dataclass(frozen=True)
class _Block:
    """Some whole records of a text file."""

    file: str
    names: list[str]
    chosen: dict[str, str]
    line: int  # of the first record
    body: bytes
    delimiter: str

    @property
    def quoting(self) -> bool:
        return self.delimiter != UNIT

    def columns(self) -> dict[str, pa.Array]:
        """The chosen columns as strings, by our names."""
        numbers = [str(number) for number in range(len(self.names))]  # names we skip may repeat
        taken = {ours: str(self.names.index(theirs)) for ours, theirs in self.chosen.items()}
        table, trouble = None, "its line ends are unclear"
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(self.body),
                pyarrow.csv.ReadOptions(column_names=numbers, block_size=len(self.body) + 1),
                pyarrow.csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char='"' if self.quoting else False,
                    newlines_in_values=True,
                    ignore_empty_lines=False,
                ),
                pyarrow.csv.ConvertOptions(
                    check_utf8=False,  # as it was above
                    column_types=dict.fromkeys(numbers, pa.string()),
                    include_columns=list(taken.values()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            trouble = short(str(error), 160)
        quoted = self.quoting and b'"' in self.body
        suspect = table is None or quoted or self.body.endswith(b"\r")
        rows = len(self.records()) if suspect else self.body.count(b"\n") + 1
        if table is None or len(table) != rows:
            self.records()
            raise InputError(f"{self.where(0)} and after: {trouble}; mend the file")
        return {ours: table[number].combine_chunks() for ours, number in taken.items()}

    def place(self, ours: str, row: int) -> str:
        """The place of a value; its line is sure, as the records before are checked first."""
        return self.where(self.records()[row], self.chosen[ours])

    def where(self, at: int, column: str = "") -> str:
        line = self.line + self.body.count(b"\n", 0, at)
        return f"{self.file}: line {line}" + (f", column {column!r}" if column else "")

    def shown(self, begin: int, end: int) -> str:
        text = self.body[begin:end].decode(errors="replace")
        return short(repr(text.replace(UNIT, "::")))

    def records(self) -> NDArray[np.int64]:
        """Where each record begins. InputError if quotes, line ends or field counts are wrong."""
        # With a line end in front and behind, every byte of the body has two neighbours.
        data = np.frombuffer(b"\n" + self.body + b"\n", np.uint8)
        is_quote = (data == ord('"')) & self.quoting
        outside = ~np.logical_xor.accumulate(is_quote)
        ends = np.flatnonzero((data == ord("\n")) & outside)
        delimiters = np.flatnonzero((data == ord(self.delimiter)) & outside)

        quotes = np.flatnonzero(is_quote)
        opening, closing = quotes[::2], quotes[1::2]
        borders = [ord('"'), ord(self.delimiter), ord("\n")]
        stray = opening[~np.isin(data[opening - 1], borders)]
        torn = closing[~np.isin(data[closing + 1], [*borders, ord("\r")])]
        unclosed = quotes[len(quotes) // 2 * 2 :]
        # The first of them, if any: what follows it is not sure.
        for at in np.sort(np.concatenate([stray, torn, unclosed]))[:1]:
            what = "a quote inside a field; put the field in quotes and"
            if at not in stray:
                begins = opening[data[opening - 1] != ord('"')]
                at = begins[begins <= at][-1]
                what = "the quote that opens this field is not closed at its end; close it and"
            record = ends[np.searchsorted(ends, at) - 1]
            number = np.searchsorted(delimiters, at) - np.searchsorted(delimiters, record)
            where = self.where(at - 1, self.names[min(number, len(self.names) - 1)])
            found = self.shown(at - 1, at + 160)
            raise InputError(f"{where}: found {found}: {what} double the quotes within")

        returns = np.flatnonzero((data == ord("\r")) & outside)
        ends_line = (data[returns + 1] == ord("\n")) & (returns < len(self.body))
        for at in returns[~ends_line][:1]:
            raise InputError(f"{self.where(at - 1)}: a carriage return in it; end lines by \\n")
        fields = np.diff(np.searchsorted(delimiters, ends)) + 1
        for row in np.flatnonzero(fields != len(self.names))[:1]:
            expected = f"expected {len(self.names)} fields, found {fields[row]}"
            found = self.shown(ends[row], ends[row + 1] - 1)
            raise InputError(
                f"{self.where(ends[row])}: {expected} in {found}; mend or drop the line"
            )
        return ends[:-1]


def short(text: str, width: int = 40) -> str:
    """One line of at most ``width`` characters."""
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
