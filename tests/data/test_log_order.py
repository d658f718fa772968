"""What orders the events of a log, and how it is said."""

# ruff: noqa: E501 - messages are asserted whole
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data.log_examples import write
from recblr.data import open_log, prepare
from recblr.data.log import Interactions, read_log
from recblr.data.sequences import Sequences

NOW = 1_700_000_000


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frame_with(times: Any = None, **others: Any) -> pl.DataFrame:
    """Two users with two events each, the newest first."""
    columns = {"user_id": ["a", "a", "b", "b"], "item_id": ["y", "x", "y", "x"]}
    return pl.DataFrame(columns | ({} if times is None else {"timestamp": times}) | others)


NEWEST_FIRST = [NOW + 1, NOW, NOW + 1, NOW]


@pytest.mark.parametrize(
    "name",
    ["event_timestamp", "unix_timestamp", "time_ms", "t_dat", "created", "created_at", "createdAt",
     "order_date", "purchase_time", "rating_date", "eventtime", "visit.ts", "reviewTime", "Timestamp",
     "datetime_utc", "when", "day", "rated-at", "unixReviewTime"],
)  # fmt: skip
@pytest.mark.parametrize("text", [True, False], ids=["text", "frame"])
def test_a_single_column_of_times_is_used_and_named(name: str, text: bool) -> None:
    source: Any = frame_with(**{name: NEWEST_FIRST})
    if text:
        source.write_csv("a.csv")
        source = "a.csv"
    with pytest.warns(
        UserWarning, match="no column timestamp, so the events are ordered by"
    ) as seen:
        log = read_log(source)
    assert f"pass columns={{'timestamp': {name!r}}}" in str(seen[0].message)
    assert seen[0].filename == __file__
    assert (log.ordered_by, log.unit, log.timestamps.tolist()) == (name, "seconds", NEWEST_FIRST)
    assert read_log(source, columns={"timestamp": name}).ordered_by == name
    assert read_log(source, columns={"timestamp": None}).timestamps is None


@pytest.mark.parametrize(
    ("others", "named", "backwards"),
    [
        ({"event_timestamp": NEWEST_FIRST, "rating_date": NEWEST_FIRST}, "'event_timestamp' and 'rating_date' look like times", True),
        ({"x": NEWEST_FIRST}, "'x' looks like a time", True),
        ({"x": [f"2024-05-0{day}" for day in (2, 1, 4, 3)]}, "'x' looks like a time", True),
        ({"x": [NOW, NOW + 1, NOW, NOW + 1]}, "'x' looks like a time", False),
        ({"release_date": NEWEST_FIRST}, "'release_date' looks like a time", True),
        ({"created": [NOW, None, NOW, None]}, "'created' looks like a time", False),
        ({"time": ["monday", "tuesday"] * 2}, "'time' looks like a time", False),
        ({"ts": [3, 4, 3, 4]}, "'ts' looks like a time", False),
    ],
)  # fmt: skip
def test_unclear_columns_of_times_are_named_and_not_used(
    others: dict[str, Any], named: str, backwards: bool
) -> None:
    with pytest.warns(UserWarning, match="the order of the rows is used") as seen:
        log = read_log(frame_with(**others))
    message = str(seen[0].message)
    first = next(iter(others))
    assert named in message
    assert ("the rows run backwards in" in message) == backwards
    assert f"if {first!r} is the time, pass columns={{'timestamp': {first!r}}}" in message
    assert f"(command line: --columns timestamp={first})" in message
    assert (log.timestamps, log.unused_times) == (None, tuple(others))
    assert log.order.startswith("in the order of the rows (not used, but similar to times: ")


@pytest.mark.parametrize(
    "others",
    [{}, {"rating": [5.0, 4.0, 3.0, 2.0]}, {"update": [1, 2, 3, 4]}, {"price": [10, 20, 30, 40]}],
)
def test_a_log_without_times_says_so(others: dict[str, Any]) -> None:
    log = read_log(frame_with(**others))
    assert log.order == "in the order of the rows (no column of times)"
    assert "4 events, 2 users, 2 items, in the order of the rows" in repr(log)


# ---- places --------------------------------------------------------------------------------------


def test_a_column_order_holds_the_places_of_any_log() -> None:
    write("a.tsv", "user_id\titem_id\torder\nb\ty\t1\na\tx\t0\nb\tx\t0\na\ty\t1\n")
    log = read_log("a.tsv")
    assert log.to_polars().rows() == [("b", "x"), ("b", "y"), ("a", "x"), ("a", "y")]
    assert (log.timestamps, log.order) == (None, "ordered by 'order', the place in the history")
    assert read_log("a.tsv", columns={"timestamp": None}).order.startswith(
        "in the order of the rows"
    )


def test_an_order_number_is_not_a_place() -> None:
    with pytest.warns(UserWarning, match="'order' has the same number twice for a user"):
        log = read_log(frame_with(order=[7, 7, 8, 9]))
    assert log.to_polars().rows() == frame_with().rows()
    assert read_log(frame_with(order=["A7", "A7", "B8", "B9"])).ordered_by == ""
    assert read_log(frame_with(times=NEWEST_FIRST, order=[1, 2, 3, 4])).ordered_by == "timestamp"


# ---- newest first --------------------------------------------------------------------------------


def histories_of(data: Sequences) -> list[list[str]]:
    names = data.item_ids.to_pylist()
    return [
        [names[item] for item in data.items[begin:end]]
        for begin, end in pairwise(data.offsets.tolist())
    ]


def newest_first(events: int) -> Interactions:
    """One user with two events at each time, from the latest to the first."""
    times = np.repeat(np.arange(NOW, NOW + events // 2), 2)
    items = [f"i{number}" for number in range(events)]
    return read_log(pl.DataFrame({"user_id": "u", "item_id": items, "timestamp": times})[::-1])


def test_ties_of_a_log_that_is_newest_first_are_in_the_order_of_events() -> None:
    data = prepare(newest_first(100))
    assert histories_of(data) == [[f"i{number}" for number in range(100)]]
    assert "newest first" in data.summary["order"]
    assert data.summary["duplicate_rows_kept"] == 0
    few = prepare(newest_first(20))  # too few to be sure
    assert histories_of(few)[0][:4] == ["i1", "i0", "i3", "i2"]
    assert "newest first" not in few.summary["order"]


# ---- where it is said ----------------------------------------------------------------------------


def test_opening_a_log_reports_its_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "recblr")
    times = np.arange(NOW, NOW + 8)
    frame = pl.DataFrame({"user_id": "u", "item_id": range(8), "timestamp": times})
    frame.write_parquet("a.parquet")
    data = open_log("a.parquet")
    data.save(Path("ready"))
    open_log("ready")
    expected = "a.parquet: ordered by 'timestamp' (seconds, 2023-11-14 to 2023-11-14)"
    assert [record.message for record in caplog.records] == [expected] * 2
    assert data.summary["unit"] == "seconds"
