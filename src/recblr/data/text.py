"""Read text files of events in blocks of whole records, each parsed by pyarrow.

pyarrow accepts some malformed text. A block that has quotes, or that pyarrow cannot parse into one row
per record, is therefore checked byte by byte; the error names the line and the column.
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
UNIT = "\x1f"  # replaces "::", as pyarrow takes only delimiters of one character
BLOCK_BYTES = 1 << 24  # parsed at a time
MAX_RECORD_BYTES = 1 << 24  # bounds the memory that a quote left open can take

# The arrays of some rows by our column names, and the location of a value: (column name, row) -> text.
Batch = tuple[dict[str, pa.Array], Callable[[str, int], str]]
# (location of the header, columns of the file) -> our column names to those of the file.
ChooseColumns = Callable[[str, list[str]], dict[str, str]]


def read_text(
    path: Path, compression: str, extension: str, choose_columns: ChooseColumns
) -> Iterator[Batch]:
    """The records of a text file, a block at a time."""
    name, delimiter = str(path), DELIMITERS[extension]
    names: list[str] = []
    done = 0
    with path.open("rb") as raw, progress(f"reading {path.name}", path.stat().st_size) as advance:
        stream = pa.CompressedInputStream(raw, compression) if compression else raw
        for line, body in _split_into_blocks(stream, name, quoting=extension != ".dat"):
            if not names:
                first, _, rest = body.partition(b"\n")
                names = _read_header(first.decode().removesuffix("\r"), extension, name)
                chosen = choose_columns(f"{name}: line 1", names)
                if extension != ".dat":
                    line, body = line + 1, rest
            if extension == ".dat":
                delimiter, body = UNIT, body.replace(b"::", UNIT.encode())
            if body:
                block = _Block(name, names, chosen, line, body, delimiter)
                yield block.parse(), block.location
            advance(raw.tell() - done)
            done = raw.tell()
    if not names:
        raise InputError(f"{name}: holds only blank lines or nothing; download or write it again")


def _read_header(first: str, extension: str, name: str) -> list[str]:
    """The columns of the file; a .dat file has no header, and always the same columns."""
    delimiter = DELIMITERS[extension]
    others = [other for other in ("::", "\t", ";", "|", ",") if other in first]
    if delimiter not in first and others:
        raise InputError(
            f"{name}: line 1 has the delimiter {others[0]!r}, {extension} files have {delimiter!r}; "
            "rewrite the file, or rename it to match (',' .csv, '\\t' .tsv, '::' .dat)"
        )
    if extension == ".dat":
        return ["user_id", "item_id", "rating", "timestamp"]
    if "\r" in first:
        raise InputError(f"{name}: line 1: contains a carriage return; end lines with \\n")
    try:
        names = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{name}: line 1: {error} in {shorten(repr(first))}; correct its quotes"
        ) from error
    return [column.split(":")[0] for column in names] if extension == ".inter" else names


def _split_into_blocks(stream: Any, name: str, quoting: bool) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole records: the number of the first line, from 1, and the bytes.

    The line end of the last record is left out, and so are blank lines at the end of the file.
    """
    buffer, line, offset = b"", 1, 0
    while True:
        chunk = stream.read(BLOCK_BYTES)
        buffer += chunk
        if offset == 0 and buffer.startswith(b"\xef\xbb\xbf"):
            buffer, offset = buffer[3:], 3
        end = _end_of_records(buffer, quoting) if chunk else len(buffer)
        while buffer.endswith(b"\n", 0, end):
            end -= 2 if buffer.endswith(b"\r\n", 0, end) else 1
        if end:
            body, rest = buffer[:end], buffer[end:].removeprefix(b"\r").removeprefix(b"\n")
            _check_characters(body, name, line, offset)
            yield line, body
            line += buffer.count(b"\n", 0, len(buffer) - len(rest))
            offset, buffer = offset + len(buffer) - len(rest), rest
        if not chunk:
            return
        if len(buffer) > MAX_RECORD_BYTES:
            raise InputError(
                f"{name}: line {line}: the record that starts here is longer than "
                f"{MAX_RECORD_BYTES} bytes; close its quote or break the line"
            )


def _end_of_records(buffer: bytes, quoting: bool) -> int:
    """The position after the last line end that is not inside quotes; 0 if there is none."""
    inside, end = quoting and buffer.count(b'"') % 2 == 1, len(buffer)
    while (newline := buffer.rfind(b"\n", 0, end)) >= 0:
        inside ^= quoting and buffer.count(b'"', newline, end) % 2 == 1
        if not inside:
            return newline + 1
        end = newline
    return 0


def _check_characters(body: bytes, name: str, line: int, offset: int) -> None:
    position, found = body.find(b"\0"), "a NUL byte"
    if position < 0 and not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            position = error.start
            found = f"{body[position : position + 1]!r}, which is not UTF-8"
    if position >= 0:
        line += body.count(b"\n", 0, position)
        raise InputError(
            f"{name}: line {line}, byte {offset + position}: found {found}; save the file as UTF-8 text"
        )


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

    def parse(self) -> dict[str, pa.Array]:
        """The chosen columns as strings, by our names."""
        numbers = [str(number) for number in range(len(self.names))]  # other names may repeat
        taken = {name: str(self.names.index(column)) for name, column in self.chosen.items()}
        table, problem = None, "the line ends are ambiguous"
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
                    check_utf8=False,  # done by _check_characters
                    column_types=dict.fromkeys(numbers, pa.string()),
                    include_columns=list(taken.values()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            problem = shorten(str(error), 160)
        quoted = self.quoting and b'"' in self.body
        suspect = table is None or quoted or self.body.endswith(b"\r")
        rows = len(self.record_starts()) if suspect else self.body.count(b"\n") + 1
        if table is None or len(table) != rows:
            self.record_starts()
            raise InputError(f"{self.location_at(0)} and after: {problem}; correct the file")
        return {name: table[number].combine_chunks() for name, number in taken.items()}

    def location(self, name: str, row: int) -> str:
        """The location of a value. The line is exact, as all records of the block are checked."""
        return self.location_at(self.record_starts()[row], self.chosen[name])

    def location_at(self, position: int, column: str = "") -> str:
        line = self.line + self.body.count(b"\n", 0, position)
        return f"{self.file}: line {line}" + (f", column {column!r}" if column else "")

    def excerpt(self, begin: int, end: int) -> str:
        text = self.body[begin:end].decode(errors="replace")
        return shorten(repr(text.replace(UNIT, "::")))

    def record_starts(self) -> NDArray[np.int64]:
        """Where each record begins. InputError if quotes, line ends or field counts are wrong."""
        # With a line end in front and behind, every byte of the body has two neighbours.
        data = np.frombuffer(b"\n" + self.body + b"\n", np.uint8)
        is_quote = (data == ord('"')) & self.quoting
        outside = ~np.logical_xor.accumulate(is_quote)
        ends = np.flatnonzero((data == ord("\n")) & outside)
        delimiters = np.flatnonzero((data == ord(self.delimiter)) & outside)
        self._check_quotes(data, np.flatnonzero(is_quote), ends, delimiters)
        returns = np.flatnonzero((data == ord("\r")) & outside)
        ends_line = (data[returns + 1] == ord("\n")) & (returns < len(self.body))
        for position in returns[~ends_line][:1]:
            where = self.location_at(position - 1)
            raise InputError(f"{where}: contains a carriage return; end lines with \\n")
        fields = np.diff(np.searchsorted(delimiters, ends)) + 1
        for row in np.flatnonzero(fields != len(self.names))[:1]:
            raise InputError(
                f"{self.location_at(ends[row])}: expected {len(self.names)} fields, found "
                f"{fields[row]} in {self.excerpt(ends[row], ends[row + 1] - 1)}; "
                "correct or remove the line"
            )
        return ends[:-1]

    def _check_quotes(
        self, data: NDArray[np.uint8], quotes: NDArray[np.int64], ends: NDArray[np.int64],
        delimiters: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """InputError at the first wrong quote, as what follows it may be inside or outside quotes.

        The positions of quotes, of line ends and of delimiters count from the line end before the body.
        """
        opening, closing = quotes[::2], quotes[1::2]
        borders = [ord('"'), ord(self.delimiter), ord("\n")]
        stray = opening[~np.isin(data[opening - 1], borders)]
        torn = closing[~np.isin(data[closing + 1], [*borders, ord("\r")])]
        unclosed = quotes[len(quotes) // 2 * 2 :]
        for position in np.sort(np.concatenate([stray, torn, unclosed]))[:1]:
            problem = "a quote inside a field; put the field in quotes and"
            if position not in stray:
                begins = opening[data[opening - 1] != ord('"')]
                position = begins[begins <= position][-1]
                problem = "the quote that opens this field is not closed at its end; close it and"
            record = ends[np.searchsorted(ends, position) - 1]
            number = np.searchsorted(delimiters, position) - np.searchsorted(delimiters, record)
            where = self.location_at(position - 1, self.names[min(number, len(self.names) - 1)])
            excerpt = self.excerpt(position - 1, position + 160)
            raise InputError(f"{where}: found {excerpt}: {problem} double the quotes inside")


def shorten(text: str, width: int = 40) -> str:
    """One line of at most ``width`` characters."""
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
