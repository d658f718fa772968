"""Logs as people write them, right and wrong, and an independent reading of what they mean."""

import csv
import io
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from fuzz.meaning import UNITS, nanoseconds, unit_of

USERS = [
    "u1",
    "u2",
    "007",
    "7",
    "NA",
    "ann lee",
    "日本",
    "a,b",
    'q"q',
    " u1",
    "u1 ",
    "x" * 257,
    "",
    "-1",
]
ITEMS = ["i1", "i2", "null", "1e5", "0x1F", "a;b", "two\nlines", "a::b", "é", "None", "1_0"]
TIME_NAMES = ["timestamp", "datetime", "date", "event_time", "created", "unix_ts", "Time", "when"]
OTHER_NAMES = ["rating", "price", "release_date", "order", "user_id", "item", "", "a,b"]
SECONDS = 1_700_000_000
DELIMITERS = {"csv": ",", "tsv": "\t"}

names = {
    "user_id": st.sampled_from(
        ["user_id"] * 20 + [" user_id", "userId", "USER_ID", "User Id", "who"]
    ),
    "item_id": st.sampled_from(
        ["item_id"] * 20 + ["item_id ", "movieId", "asin", "item, id", "item"]
    ),
    "timestamp": st.sampled_from(["timestamp"] * 9 + TIME_NAMES),
}


@st.composite
def times(draw: st.DrawFn) -> list[str]:
    """Twelve times of one form, now and then with one of another."""
    forms = [
        lambda n: str(SECONDS + 60 * n), lambda n: str(SECONDS * 1000 + n),
        lambda n: str(SECONDS * 10**6 + n), lambda n: str(SECONDS * 10**9 + n),
        lambda n: f"{SECONDS + n}.{n:03}", lambda n: str(n), lambda n: f"2024-05-{n + 1:02}",
        lambda n: f"2024-05-01T00:00:{n:02}.{n:06}Z", lambda n: f"2024-05-01 {n:02}:00:00+02:00",
        lambda n: ["", "nan", "inf", "yesterday", "1e9", "-5", " 5", "0", "1_0", "99999999999999999999",
                   "20240501"][n % 11],
    ]  # fmt: skip
    (form, other) = (draw(st.sampled_from(forms[:-1])), draw(st.sampled_from(forms)))
    numbers = draw(st.lists(st.integers(0, 20), min_size=12, max_size=12))
    mixed = draw(st.sampled_from([0] * 8 + [1, 3]))
    return [(other if row < mixed else form)(number) for row, number in enumerate(numbers)]


@dataclass(frozen=True)
class Written:
    """The bytes of a file, its ending, and the columns that are passed with it."""

    body: bytes
    ending: str
    columns: dict[str, Any] | None


@st.composite
def written_logs(draw: st.DrawFn) -> Written:
    """A text log; a third of them are damaged in some bytes."""
    users = draw(
        st.lists(st.sampled_from(USERS[:6]) | st.sampled_from(USERS), min_size=1, max_size=3)
    )
    items = draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4))
    head = {name: draw(strategy) for name, strategy in names.items()}
    others = draw(st.just([]) | st.lists(st.sampled_from(OTHER_NAMES), max_size=2))
    columns = {"user_id": users, "item_id": items, "timestamp": draw(times())}
    order = draw(st.permutations([*columns][: draw(st.sampled_from([3, 3, 3, 2]))]))
    rows = [
        [str(draw(st.sampled_from(columns[name][: 12])) if name != "timestamp" else columns[name][row])
         for name in order] + [str(row)] * len(others)
        for row in range(draw(st.integers(0, 12)))
    ]  # fmt: skip
    ending = draw(st.sampled_from(["csv", "csv", "tsv", "jsonl"]))
    table = [[head[name] for name in order] + others, *rows]
    body = _json_lines(table, draw) if ending == "jsonl" else _delimited(table, ending, draw)
    if draw(st.sampled_from([False, False, True])):
        body = draw(damaged(body))
    asked = draw(st.sampled_from([None] * 4 + [{name: head[name].strip(" ") for name in order}]))
    return Written(body, ending, asked)


def _delimited(table: list[list[str]], ending: str, draw: st.DrawFn) -> bytes:
    text = io.StringIO()
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    line_end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    rows = table[draw(st.sampled_from([0] * 9 + [1])) :]  # without a line of names
    csv.writer(
        text, delimiter=DELIMITERS[ending], quoting=quoting, lineterminator=line_end
    ).writerows(rows)  # fmt: skip
    mark = draw(st.sampled_from(["", "", "", "\ufeff"]))
    end = draw(st.sampled_from(["", line_end, line_end * 2]))
    return (mark + text.getvalue().rstrip("\r\n") + end).encode()


def _json_lines(table: list[list[str]], draw: st.DrawFn) -> bytes:
    def value(text: str) -> Any:
        number = re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text)
        return json.loads(text) if number and as_numbers else text

    as_numbers = draw(st.booleans())
    head, *rows = table
    lines = [json.dumps(dict(zip(head, map(value, row), strict=True))) for row in rows]
    return "".join(f"{line}\n" for line in lines).encode()


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """The bytes with some of them changed, removed, inserted or repeated."""
    changed = bytearray(body)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(changed)))
        match draw(st.integers(0, 4)):
            case 0:
                changed[place : place + 1] = draw(
                    st.sampled_from([b'"', b",", b"\n", b"\r", b"\0", b"\xff"])
                )
            case 1:
                del changed[place : place + draw(st.integers(1, 20))]
            case 2:
                changed[place:place] = draw(
                    st.sampled_from([b'"', b"\t", b" ", b"'", b"\n", b"\n\n", b"#"])
                )
            case 3:
                changed[place:place] = draw(st.text(max_size=4)).encode(errors="ignore")
            case _:
                changed[place:place] = changed[max(0, place - 30) : place]
    return bytes(changed)


# ---- what they mean ------------------------------------------------------------------------------


def read_plainly(written: Written) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns and the rows, by the standard library."""
    text = written.body.decode("utf-8-sig")
    if written.ending == "jsonl":
        objects = [
            json.loads(line, parse_float=Decimal) for line in text.rstrip("\r\n").split("\n")
        ]
        head = list(objects[0])
        return head, [[each.get(name) for name in head] for each in objects]
    delimiter = DELIMITERS[written.ending]
    records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    while records and records[-1] == []:
        records.pop()
    head, *rows = records
    return [name.strip(" ") for name in head], rows


def same_time(written: Any, read: Any, unit: str, dates: bool) -> bool:
    """Whether a time was read as it is written."""
    if dates:
        return int(read) * UNITS[unit] == nanoseconds(str(written))
    number = Decimal(str(written))
    if Decimal(read.item()) == number or read == float(number):
        return True
    return unit == "nanoseconds" and Decimal(read.item()) == number * UNITS[unit_of(number)]
