"""Read text files of events in blocks of whole records, each parsed by pyarrow.

pyarrow accepts some malformed text. A block that has quotes, or that pyarrow cannot parse into one row
per record, is therefore checked byte by byte; the error names the line and the column.
"""

import csv
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from recblr.data.columns import name_by_position
from recblr.data.table import HEAD_ROWS, Batch, Name, Table
from recblr.data.values import shorten
from recblr.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".dat": "::"}
BOM = b"\xef\xbb\xbf"  # a byte order mark at the start of a file is not part of it
UNIT = "\x1f"  # replaces a separator that is not one byte, as pyarrow takes no other
BLOCK_BYTES = 1 << 24  # parsed at a time
MAX_RECORD_BYTES = 1 << 24  # bounds the memory that a quote left open can take
HEAD_BYTES = 1 << 16  # of the first block that are looked at
DAT_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]


@dataclass(frozen=True)
class Dialect:
    """How the fields of a line are separated, and whether they may be in double quotes."""

    separator: str
    quoting: bool = True

    @property
    def byte(self) -> str:
        """The separator that pyarrow sees."""
        return self.separator if len(self.separator.encode()) == 1 else UNIT

    def encode(self, body: bytes) -> bytes:
        return body if self.byte != UNIT else body.replace(self.separator.encode(), UNIT.encode())

    def decode(self, text: str) -> str:
        return text if self.byte != UNIT else text.replace(UNIT, self.separator)


def check_separator(separator: str) -> str:
    """A separator given by hand, in which ``\\t`` stands for a tab. InputError if it cannot be one."""
    text = separator.replace("\\t", "\t") if isinstance(separator, str) else ""
    if not text or any(mark in text for mark in '"\r\n\0' + UNIT):
        raise InputError(
            f"separator {separator!r}: give one or more characters, such as ';' or '\\t', without "
            "quotes and line ends"
        )
    return text


def text_table(
    stream: Any, source: str, ending: str, dialect: Dialect | None, by_position: bool
) -> Table:
    """A text file of separated fields.

    Args:
        stream: the bytes of the file.
        source: its name in messages.
        ending: a key of ``DELIMITERS``, which says what to expect.
        dialect: what to expect instead.
        by_position: whether the file has no line of names, and columns are known by position.
    """
    given = dialect is not None
    dialect = dialect or Dialect(DELIMITERS[ending], quoting=ending != ".dat")
    blocks = split_into_blocks(stream, source, dialect.quoting)
    line, body = next(blocks, (1, b""))
    if not body:
        raise InputError(f"{source}: holds only blank lines or nothing; download or write it again")
    first, _, rest = body.partition(b"\n")
    fields = _read_fields(first.decode().removesuffix("\r"), source, ending, dialect, given)
    has_names = not by_position and (given or ending != ".dat")
    names: list[Name]
    if has_names:
        line, body = (line + 1, rest) if rest else next(blocks, (2, b""))
        second = body.partition(b"\n")[0].decode()
        names = [*_strip_names(fields, second, source, dialect.separator)]
        if ending == ".inter":
            names = [str(name).split(":")[0] for name in names]
    elif by_position:
        names = [*range(1, len(fields) + 1)]
    else:
        names = [*DAT_COLUMNS]
        if len(fields) != len(names):
            raise InputError(
                f"{source}: line 1 has {len(fields)} fields, .dat files have "
                f"{'::'.join(DAT_COLUMNS)}; {name_by_position(fields)}"
            )

    def head() -> dict[Name, pa.Array]:
        if not body:
            return {}
        end = _end_of_records(body[:HEAD_BYTES], dialect.quoting) or len(body)
        lines = body[:end].removesuffix(b"\n").removesuffix(b"\r")
        block = _Block(source, names, {str(name): name for name in names}, line, dialect, lines)
        arrays = block.parse()
        return {name: arrays[str(name)][:HEAD_ROWS] for name in names}

    def read(chosen: dict[str, Name]) -> Iterator[Batch]:
        for start, lines in chain([(line, body)] if body else [], blocks):
            block = _Block(source, names, chosen, start, dialect, lines)
            yield block.parse(), block.location

    return Table(source, f"{source}: line 1", names, head, read, tuple(fields), has_names)


def _read_fields(first: str, source: str, ending: str, dialect: Dialect, given: bool) -> list[str]:
    """The fields of line 1."""
    if dialect.separator not in first:
        if given:
            raise InputError(
                f"{source}: line 1 does not contain the separator {dialect.separator!r}: "
                f"{shorten(repr(first))}; correct separator= (command line: --separator)"
            )
        others = [other for other in ("::", "\t", ";", "|", ",") if other in first]
        if others:
            shown = shlex.quote(others[0].replace("\t", "\\t"))
            raise InputError(
                f"{source}: line 1 has the delimiter {others[0]!r}, {ending} files have "
                f"{dialect.separator!r}; pass separator={others[0]!r} (command line: --separator "
                f"{shown})"
            )
    if "\r" in first:
        raise InputError(f"{source}: line 1: contains a carriage return; end lines with \\n")
    if not dialect.quoting:
        return first.split(dialect.separator)
    encoded = dialect.encode(first.encode()).decode()
    try:
        fields = next(csv.reader([encoded], delimiter=dialect.byte, strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{source}: line 1: {shorten(str(error), 80)} in {shorten(repr(first))}; correct its quotes"
        ) from error
    return [dialect.decode(field) for field in fields]


def _strip_names(fields: list[str], second: str, source: str, separator: str) -> list[str]:
    """The names without blanks around them, unless the fields of line 2 have blanks, too."""
    names = [field.strip(" ") for field in fields]
    padded = [field for field in second.split(separator)[1:] if field.startswith(" ")]
    if names != fields and padded:
        raise InputError(
            f"{source}: lines 1 and 2 have a blank after {separator!r}, which would be part of the "
            f"ids; pass separator={separator + ' '!r} (command line: --separator "
            f"{shlex.quote(separator.replace(chr(9), chr(92) + 't') + ' ')})"
        )
    return names


def split_into_blocks(stream: Any, name: str, quoting: bool) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole records: the number of the first line, from 1, and the bytes.

    The line end of the last record is left out, and so are blank lines at the end of the file.
    """
    buffer, line, offset = b"", 1, 0
    while True:
        chunk = stream.read(BLOCK_BYTES)
        buffer += chunk
        if offset == 0 and buffer.startswith(BOM):
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


class _Block:
    """Some whole records of a text file."""

    def __init__(
        self, source: str, names: list[Name], chosen: dict[str, Name], line: int,
        dialect: Dialect, body: bytes,
    ) -> None:  # fmt: skip
        self.source, self.names, self.chosen, self.dialect = source, names, chosen, dialect
        self.line = line  # of the first record
        self.body = dialect.encode(body)
        if self.body is not body and (position := body.find(UNIT.encode())) >= 0:
            raise InputError(
                f"{source}: line {line + body[:position].count(10)}: contains the control character "
                f"{UNIT!r}, which a file with the separator {dialect.separator!r} cannot have"
            )

    def parse(self) -> dict[str, pa.Array]:
        """The chosen columns as strings, by our names."""
        numbers = [str(number) for number in range(len(self.names))]  # other names may repeat
        taken = {name: str(self.names.index(column)) for name, column in self.chosen.items()}
        table, problem = None, "the line ends are ambiguous"
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(BOM * self.body.startswith(BOM) + self.body),  # Arrow removes one
                pyarrow.csv.ReadOptions(column_names=numbers, block_size=len(self.body) + 1),
                pyarrow.csv.ParseOptions(
                    delimiter=self.dialect.byte,
                    quote_char='"' if self.dialect.quoting else False,
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
        quoted = self.dialect.quoting and b'"' in self.body
        suspect = table is None or quoted or self.body.endswith(b"\r")
        rows = len(self.record_starts()) if suspect else self.body.count(b"\n") + 1
        if table is None or len(table) != rows:
            self.record_starts()
            raise InputError(f"{self.location_at(0)} and after: {problem}; correct the file")
        columns = {name: table[number].combine_chunks() for name, number in taken.items()}
        if quoted and self.dialect.byte == UNIT:  # a separator inside quotes
            separator = self.dialect.separator
            columns = {
                name: pc.replace_substring(column, UNIT, separator)
                for name, column in columns.items()
            }
        return columns

    def location(self, name: str, row: int) -> str:
        """The location of a value. The line is exact, as all records of the block are checked."""
        return self.location_at(self.record_starts()[row], self.chosen[name])

    def location_at(self, position: int, column: Name = "") -> str:
        line = self.line + self.body.count(b"\n", 0, position)
        return f"{self.source}: line {line}" + (f", column {column!r}" if column else "")

    def excerpt(self, begin: int, end: int) -> str:
        text = self.body[begin:end].decode(errors="replace")
        return shorten(repr(self.dialect.decode(text)))

    def record_starts(self) -> NDArray[np.int64]:
        """Where each record begins. InputError if quotes, line ends or field counts are wrong."""
        # With a line end in front and behind, every byte of the body has two neighbours.
        data = np.frombuffer(b"\n" + self.body + b"\n", np.uint8)
        is_quote = (data == ord('"')) & self.dialect.quoting
        outside = ~np.logical_xor.accumulate(is_quote)
        ends = np.flatnonzero((data == ord("\n")) & outside)
        delimiters = np.flatnonzero((data == ord(self.dialect.byte)) & outside)
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
        borders = [ord('"'), ord(self.dialect.byte), ord("\n")]
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
