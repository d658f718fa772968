"""Which columns of a log are the users, the items and the times, and how to name them in messages.

Known names are ``user_id``, ``item_id``, ``timestamp``, ``datetime``, ``order``, ``weight`` and
``kind``. Of others, a single one that is clearly a time is taken with a warning; nothing else is
guessed.
"""

import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recblr.config import plain_value
from recblr.data.table import Name, Table
from recblr.data.times import TimeColumn
from recblr.data.values import BadValue, is_text, plain, shorten
from recblr.errors import InputError

Columns = Mapping[str, Name | None]

# Common names of our columns, in lower case, without punctuation.
ALIASES = {
    "user_id": "userid user uid customerid customer visitorid reviewerid memberid sessionid",
    "item_id": "itemid item iid movieid movie productid product asin bookid songid trackid",
    "timestamp": "timestamp time ts date datetime eventtime unixreviewtime createdat",
    "weight": "weight",
    "kind": "kind",
}
OPTIONAL = ("timestamp", "weight", "kind")  # None, or nothing on the command line, leaves them out
# Words in the name of a column that holds times; others end in one of them, such as "eventtime".
TIME_WORDS = (
    "time times timestamp timestamps ts date dates datetime dt dat day created when epoch unix at"
)
TIME_ENDINGS = ("time", "timestamp", "datetime", "date")
NO_TIMES = {"update", "candidate", "mandate", "validate", "lifetime", "runtime"}
# Words in the name of a time that is not that of the event.
OTHER_TIMES = (
    "birth birthday release released update updated modified signup registration registered expiry "
    "expires expiration joined publish published publication delivery delivered last first end"
)


@dataclass(frozen=True)
class Choice:
    """The columns to read.

    Attributes:
        columns: our column names to those of the log.
        is_place: whether the timestamp column is ``order``, the place of an event in the history.
        unused: columns that look like times and are not read.
    """

    columns: dict[str, Name]
    is_place: bool = False
    unused: tuple[Name, ...] = ()


def check_columns(columns: Any) -> dict[str, Name | None]:
    """The columns that a caller gives, with positions as Python numbers. InputError for others."""
    if not isinstance(columns, Mapping | None):
        raise InputError(
            f"columns = {columns!r}: write a dictionary such as {{'user_id': 'userId'}}"
        )
    checked = {name: plain_value(column) for name, column in (columns or {}).items()}
    for name, column in checked.items():
        if not isinstance(column, str | int | None) or isinstance(column, bool):
            raise InputError(
                f"columns: the column of {name} is {column!r}; write its name, or its position from 1"
            )
    return checked


def choose_columns(table: Table, columns: Columns) -> Choice:
    """Choose the columns to read, and warn of columns that look like times.

    Raises:
        InputError: a column is missing, ambiguous or given twice.
    """
    given = {name: column for name, column in columns.items() if column is not None}
    where, present = table.where, table.names
    listed = f"found: {shorten(', '.join(map(repr, present)) or 'none', 200)}"
    for name in columns:
        if name not in ALIASES:
            raise InputError(f"{where}: columns= accepts {', '.join(ALIASES)}, not {name!r}")
    if table.first_line and 0 in given.values():
        raise InputError(f"{where}: columns= has the position 0; positions count from 1")
    _check_line_1(table, given)
    for column in given.values():
        if column not in present:
            raise InputError(f"{where}: no column {column!r}, given by columns=; {listed}")
    asked_for_rows = "timestamp" in columns and "timestamp" not in given
    chosen: dict[str, Name] = {name: name for name in ALIASES if name in present}
    chosen |= given
    for name in OPTIONAL:
        if columns.get(name, "") is None:
            chosen.pop(name, None)
    if not asked_for_rows and "datetime" in present and "timestamp" not in given:
        if "timestamp" in present:
            options = "columns={'timestamp': 'timestamp'} or columns={'timestamp': 'datetime'}"
            raise InputError(f"{where}: has timestamp and datetime; choose one by {options}")
        chosen["timestamp"] = "datetime"
    for column in chosen.values():
        if list(chosen.values()).count(column) > 1:
            raise InputError(f"{where}: columns= uses {column!r} twice; correct columns=")
        if present.count(column) > 1:
            raise InputError(f"{where}: two columns are called {column!r}; rename one; {listed}")
    missing = [name for name in ("user_id", "item_id") if name not in chosen]
    if missing:
        suggestion = given | dict.fromkeys(missing, "...") | _similar(present, chosen)
        no_names = len(table.first_line) > 1 and set(suggestion.values()) | {*chosen} == {"..."}
        by_position = f"; if line 1 is an event, {name_by_position(table.first_line)}" * no_names
        raise InputError(
            f"{where}: no column {' and no column '.join(missing)}; {listed}; pass "
            f"{_option(suggestion)}{by_position}"
        )
    if "timestamp" in chosen or asked_for_rows:
        return Choice(chosen)
    return _choose_times(table, given, chosen)


def name_by_position(fields: Sequence[str]) -> str:
    """Advice to name the columns of a file without a line of names, whose first line has ``fields``."""
    columns: dict[str, Name] = {"user_id": 1, "item_id": 2}
    for position, field in list(enumerate(fields, 1))[2:]:
        if _holds_times(pa.array([field])):
            columns["timestamp"] = position
            break
    values = ", ".join(
        f"{position} {shorten(repr(field), 20)}" for position, field in enumerate(fields, 1)
    )
    return (
        f"name the columns by position ({shorten(values, 120)}): if 1 is the user and 2 the item, "
        f"pass {_option(columns)}"
    )


def parse_columns(text: str) -> dict[str, Name | None]:
    """Columns from a command line: ``user_id=userId,item_id="item, id",timestamp=3``.

    A whole number is a position. A name is in double quotes if it is a number, or has a comma, a quote
    or blanks at its ends. ``timestamp=`` alone asks for the order of the rows, ``weight=`` for no
    weights, ``kind=`` for no kinds.
    """
    pair = re.compile(r'\s*(\w+)\s*=\s*(?:"((?:[^"]|"")*)"|([^",]*?))\s*(?:,|$)')
    columns: dict[str, Name | None] = {}
    position = 0
    while position < len(text) or not columns:
        match = pair.match(text, position)
        name, quoted, plain = match.groups() if match else ("", None, "")
        if not match or name in columns or not (quoted or plain or name in OPTIONAL):
            raise InputError(
                f"--columns {shorten(text, 100)}: write user_id=COLUMN,item_id=COLUMN,timestamp=COLUMN "
                "with names that have a comma in double quotes"
            )
        position = match.end()
        if quoted is not None:
            columns[name] = quoted.replace('""', '"')
        else:
            columns[name] = int(plain) if re.fullmatch("[0-9]+", plain) else plain or None
    return columns


def _option(columns: Mapping[str, Name]) -> str:
    """How to pass ``columns``, in Python and on the command line."""
    pairs = []
    for name, column in columns.items():
        text = str(column)
        if isinstance(column, str) and (re.search(r'[",]|^\s|\s$', text) or text.isdecimal()):
            text = '"' + text.replace('"', '""') + '"'
        pairs.append(f"{name}={text}")
    option = shlex.quote(",".join(pairs))
    return f"columns={columns}" + f" (command line: --columns {option})" * option.isprintable()


def _similar(present: Sequence[Name], chosen: Mapping[str, Name]) -> dict[str, Name]:
    return {
        name: column
        for name in ALIASES
        for column in reversed(present)
        if name not in chosen and _plain(column) in ALIASES[name].split()
    }


def _plain(column: Name) -> str:
    return re.sub("[^a-z0-9]", "", str(column).lower())


def _check_line_1(table: Table, given: Mapping[str, Name]) -> None:
    """InputError if line 1 was taken for names and is data, or the other way round."""
    fields = table.first_line
    if not fields:
        return
    names = {_plain(field) for field in fields}
    known = {alias for aliases in ALIASES.values() for alias in aliases.split()}
    if table.has_names:
        numbered = list(fields) in ([str(n + k) for n in range(len(fields))] for k in (0, 1))
        if not (names & known or (given and numbered)) and any(map(_is_data, fields)):
            raise InputError(
                f"{table.where} looks like data, not like names; {name_by_position(fields)}"
            )
        return
    positions = [n for n in table.names if isinstance(n, int)]
    head = table.head() if positions else {}
    unlike = any(
        len(head[n]) > 1 and not _is_data(fields[n - 1])
        and all(map(_is_data, head[n][1:100].to_pylist()))
        for n in positions
    )  # fmt: skip
    if positions and (names & known or unlike):
        by_name: dict[str, Name] = {
            name: fields[n - 1]
            for name, n in given.items()
            if isinstance(n, int) and n in positions
        }
        raise InputError(f"{table.where} looks like names, not like data; pass {_option(by_name)}")


def _is_data(field: str) -> bool:
    """Whether a field of line 1 is a number or a date."""
    try:
        TimeColumn().add(pa.array([field]))
    except BadValue:
        return False
    return True


# ---- columns that look like times ----------------------------------------------------------------


def _choose_times(table: Table, given: Mapping[str, Name], chosen: dict[str, Name]) -> Choice:
    head = table.head()
    rest = [column for column in table.names if column not in chosen.values()]
    by_name = [column for column in rest if _words(column) & {"*time"}]
    by_value = [column for column in rest if column in head and _holds_times(head[column])]
    unused = [column for column in rest if column in by_name or column in by_value]
    if not unused:
        places = head.get("order")
        if places is not None and _holds_places(places):
            return Choice(chosen | {"timestamp": "order"}, is_place=True)
        return Choice(chosen)
    (first, *others) = unused
    hint = _option({**given, "timestamp": first})
    clear = not others and first in by_name and first in by_value
    if clear and not head[first].null_count and not _words(first) & set(OTHER_TIMES.split()):
        warnings.warn(
            f"{table.where}: no column timestamp, so the events are ordered by {first!r}, the only "
            f"column that looks like a time; to say so, pass {hint}; for the order of the rows, pass "
            "None instead (command line: timestamp=)",
            stacklevel=5,  # the caller of read_log
        )
        return Choice(chosen | {"timestamp": first})
    backwards = [
        column for column in by_value if _runs_backwards(head.get(chosen["user_id"]), head[column])
    ]
    newest = f"the rows run backwards in {backwards[0]!r}; " if backwards else ""
    listed = " and ".join(map(repr, unused))
    verb = "look like times and are" if others else "looks like a time and is"
    warnings.warn(
        f"{table.where}: no column timestamp, so the order of the rows is used as the order in time; "
        f"{listed} {verb} not used; {newest}if {first!r} is the time, pass {hint}",
        stacklevel=5,
    )
    return Choice(chosen, unused=tuple(unused))


def _words(column: Name) -> set[str]:
    """The words of a name in lower case, and "*time" if it is that of a time."""
    if isinstance(column, int):
        return set()
    spaced = re.sub("([a-z0-9])([A-Z])", r"\1 \2", column)
    words = set(re.findall("[a-z]+", spaced.lower()))
    known = set(TIME_WORDS.split())
    is_time = words & known or any(word.endswith(TIME_ENDINGS) for word in words - NO_TIMES)
    return words | ({"*time"} if is_time else set())


def _holds_times(column: pa.Array) -> bool:
    """Whether all values that are not null are times of our days in one unit."""
    values = plain(column).drop_null()
    times = TimeColumn()
    try:
        if len(values):
            times.add(values)
    except BadValue:
        return False
    return times.all_in_one_unit


def _holds_places(column: pa.Array) -> bool:
    times = TimeColumn()
    try:
        times.add(column)
    except BadValue:
        return False
    return times.form == "whole number"


def _runs_backwards(users: pa.Array | None, column: pa.Array) -> bool:
    """Whether the times of no user grow from row to row, and those of some decrease."""
    types = (pa.types.is_integer, pa.types.is_dictionary)
    if users is None or not (is_text(users) or any(matches(users.type) for matches in types)):
        return False  # these are no ids
    times = TimeColumn()
    times.add(plain(column).drop_null())
    values = times.parts[0][0]
    known = column.is_valid().to_numpy(zero_copy_only=False)
    codes = plain(users).dictionary_encode().indices.fill_null(-1).to_numpy()[known]
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    steps = np.diff(values[order])[same] if same.any() else np.diff(values)
    return bool(np.all(steps <= 0) and np.any(steps < 0))
