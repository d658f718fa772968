"""An id or a time means the same, or is refused, in files, in frames, over HTTP and in ``replay``."""

import csv
import json
import warnings
from collections.abc import Callable
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.meaning import UNITS, exact_time, id_text, sent_time, stored_time
from fuzz.outcomes import Outcomes, fuzz
from fuzz.test_fuzz_http import ask
from recblr.data.log import Interactions, read_log
from recblr.data.times import parse_time
from recblr.errors import InputError
from recblr.serving.replay import replay
from recblr.serving.sqlite import SQLiteLog
from serving.fixtures import Site

ITEM = "c001-i0002"
FRAMES: dict[str, Callable[[Any], Any]] = {
    "polars": pl.DataFrame, "pandas": pd.DataFrame, "arrow": pa.table,
    "objects": lambda columns: pd.DataFrame(columns, dtype=object),
}  # fmt: skip
FILES = ["csv", "jsonl"]


def or_none(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns; None if it refuses its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*arguments)
        except InputError:
            return None


def written(user: Any, time: Any, door: str, folder: Path) -> Any:
    """A log with one event: a file or a frame."""
    columns = {"user_id": [user], "item_id": [ITEM], "timestamp": [time]}
    if door in FRAMES:
        try:
            return FRAMES[door](columns)
        except (OverflowError, pa.ArrowException):  # the library does not take the value
            raise InputError("no such frame") from None
    path = folder / f"log.{door}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if door == "csv":
            csv.writer(file).writerows([list(columns), [user, ITEM, time]])
        else:
            file.write(json.dumps({"user_id": user, "item_id": ITEM, "timestamp": time}) + "\n")
    return path


class Doors:
    """The ways in which an event of one user comes in."""

    def __init__(self, site: Site, model: Path, folder: Path) -> None:
        self.site, self.model, self.folder, self.numbers = site, model, folder, count()

    def read(self, user: Any, time: Any, door: str) -> Interactions:
        return read_log(written(user, time, door, self.folder))

    def over_http(self, user: Any, time: Any) -> tuple[str, float]:
        """The user and the seconds that the server has after it got the event."""
        event = {"event_id": "e", "user_id": user, "item_id": ITEM, "timestamp": time}
        ask(self.site, "POST", "/v1/events", event)
        (stored,) = ask(self.site, "GET", "/v1/users")["users"]
        path = f"/v1/users/{quote(stored, safe='').replace('.', '%2E')}"
        answer = ask(self.site, "GET", path)
        ask(self.site, "DELETE", path)
        return stored, answer["last_timestamp"]

    def replayed(self, user: Any, time: Any, door: str) -> tuple[str, float]:
        """The user and the seconds in an event log to which the file was added."""
        source = written(user, time, door, self.folder)
        store = self.folder / f"{next(self.numbers)}.sqlite"
        replay(self.model, str(store), source)
        log = SQLiteLog(store)
        ((_, stored),) = log.users()
        ((seconds, *_),) = log.events(("default", stored))
        log.close()
        store.unlink()
        return stored, seconds


@pytest.fixture
def doors(site: Site, models: Path, tmp_path: Path) -> Doors:
    return Doors(site, models / "a", tmp_path)


# ---- ids -----------------------------------------------------------------------------------------

TEXTS = [
    "007", "7", "NA", "null", "", " u", "u ", "a,b", 'q"q', "two\nlines", "a\tb", "..", "a/b", "1e5",
    "x" * 256, "x" * 257, "é" * 128, "é" * 129, "\0", "a\0", "\ufeff", "日本", "None", "-0", ".",
]  # fmt: skip
IDS = st.one_of(
    st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.integers(-(2**65), 2**65), st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 0]),
)  # fmt: skip


def test_ids(doors: Doors, keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(1000)
    @given(IDS, st.sampled_from(FILES))
    def test(user: Any, file: str) -> None:
        expected, in_csv = id_text(user), id_text(str(user))
        for door in (*FILES, *FRAMES):
            log = or_none(doors.read, user, 1_700_000_000, door)
            found = None if log is None else log.user_ids[0].as_py()
            assert found == (in_csv if door == "csv" else None if expected is None else user), door
        stored = or_none(doors.over_http, user, 1_700_000_000)
        replayed = or_none(doors.replayed, user, 1_700_000_000, file)
        assert (stored and stored[0]) == expected
        assert (replayed and replayed[0]) == (in_csv if file == "csv" else expected)
        outcomes.counts["errors" if expected is None else "results"] += 1

    test()
    keep("fuzz of ids at all doors", **outcomes.figures())


# ---- times ---------------------------------------------------------------------------------------

SIZES = {unit: 10**9 // size for unit, size in UNITS.items()}  # in a second
NOW = st.integers(750_000_000, 4_199_999_999)
DAYS = st.dates().map(str) | st.sampled_from(
    ["2024-02-30", "2024-02-29", "0001-01-01", "9999-12-31"]
)
DATES = st.tuples(
    DAYS, st.sampled_from(["", "T", " "]),
    st.tuples(st.times(), st.sampled_from([8, 8, 8, 5, 2])).map(lambda two: str(two[0])[: two[1]]),
    st.sampled_from(["", "", "", ".5", ".123456", ".000000001", "."]),
    st.sampled_from(["", "Z", "+02:00", "-0330", "+02", "+2", "z"]),
).map(lambda parts: "".join(parts) if parts[1] else parts[0])  # fmt: skip
TIMES = st.one_of(
    st.tuples(NOW, st.sampled_from([*SIZES.values()]), st.integers(0, 10**9 - 1)).map(
        lambda drawn: drawn[0] * drawn[1] + drawn[2] % drawn[1]
    ),
    st.tuples(NOW, st.integers(0, 999)).map(lambda drawn: drawn[0] + drawn[1] / 1000),
    st.integers(-(2**65), 2**65), st.integers(0, 99), st.floats(-(2**53), 2**53),
    DATES, st.sampled_from(["now", "", "nan", "inf", "1_0", "0x10", "１"]),
)  # fmt: skip


def exact(value: int | float, unit: str) -> Fraction:
    """A time that was read, in nanoseconds, or as it is if it is in no unit."""
    return Fraction(value) * UNITS.get(unit, 1)


def test_times(doors: Doors, keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(1000)
    @given(TIMES)
    def test(time: Any) -> None:
        single = or_none(parse_time, time)
        expected = None if single is None else exact(single.value, single.unit)
        for door in (*FILES, *FRAMES):
            log = or_none(doors.read, "u", time, door)
            found = None if log is None else exact(log.timestamps[0].item(), log.unit)
            assert found == expected, (door, found, expected)
        right = exact_time(time)  # None also for a time that only orders the events of a log
        assert right is None or exact(single.value, single.unit or "seconds") == right
        stored = or_none(doors.over_http, "u", time)
        replayed = or_none(doors.replayed, "u", time, "csv")
        assert (stored is None) == (sent_time(time) is None)
        assert (replayed is None) == (stored_time(time) is None)
        for seconds in (stored, replayed):
            assert seconds is None or abs(Fraction(seconds[1]) - right / 10**9) < Fraction(1, 10**6)
        outcomes.counts["errors" if expected is None else "results"] += 1

    test()
    keep("fuzz of times at all doors", **outcomes.figures())
