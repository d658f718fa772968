"""Timestamps have one rule over HTTP and in replay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.log import read_log
from recblr.data.times import UNITS, unit_of
from recblr.errors import InputError
from recblr.serving.replay import replay
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.timestamps import parse_timestamp, seconds_of, to_unit
from serving.fixtures import OpenSite, Site

# A time of our days in whole microseconds.
MICROSECONDS = st.integers(750_000_000_000_000, 4_199_999_999_999_999)


@settings(deadline=None)
@given(MICROSECONDS, st.sampled_from(list(UNITS)))
def test_any_unit_becomes_seconds(microseconds: int, unit: str) -> None:
    size = UNITS[unit] // 1000 or 1
    whole = microseconds // size * size  # a whole number of the unit
    number = whole * 1000 // UNITS[unit]
    assert parse_timestamp(number) == whole / 1e6
    if unit != "nanoseconds":
        assert parse_timestamp(float(number)) == whole / 1e6
    assert to_unit(np.array([number]), unit) == [whole / 1e6]


@settings(deadline=None)
@given(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | MICROSECONDS
    | MICROSECONDS.map(lambda value: value / 1e3)
)  # fmt: skip
def test_a_single_time_is_converted_as_a_column(value: Any) -> None:
    try:
        expected = to_unit(np.array([value]), unit_of(value))
    except (InputError, OverflowError, ValueError):
        return
    try:
        found = parse_timestamp(value)
    except InputError:
        assert unit_of(value) == "nanoseconds"
        return
    assert [found] == expected


@settings(deadline=None)
@given(st.lists(MICROSECONDS, min_size=2, max_size=2, unique=True).map(sorted))
def test_microseconds_stay_apart(pair: list[int]) -> None:
    earlier, later = map(parse_timestamp, pair)
    assert earlier < later


def test_dates_numbers_in_no_unit_and_refusals() -> None:
    assert parse_timestamp("2024-05-01T02:00:00+02:00") == 1714521600.0
    assert parse_timestamp("2024-05-01") == parse_timestamp("2024-05-01 00:00:00") == 1714521600.0
    assert [parse_timestamp(value) for value in (7, 1.5, -3, 0)] == [7.0, 1.5, -3.0, 0.0]
    assert parse_timestamp(1714521600.1234567) == 1714521600.1234567
    message = "^timestamp: 1700000000000000010 is finer than a microsecond.* 1700000000000000$"
    with pytest.raises(InputError, match=message):
        parse_timestamp(1_700_000_000_000_000_010)
    with pytest.raises(InputError, match=r"^timestamp: found the time 20240501123000.*; write it"):
        parse_timestamp(20240501123000)
    for text in ("now", "1714521600", "2024-13-01", "2024-05-01T00:00:00.000000001", ""):
        with pytest.raises(InputError, match=r"^timestamp: found "):
            parse_timestamp(text)


@settings(deadline=None)
@given(MICROSECONDS, st.sampled_from(list(UNITS)))
def test_a_log_of_version_0_1_keeps_its_unit(microseconds: int, unit: str) -> None:
    (stored,) = to_unit(np.array([microseconds]), "microseconds", unit)
    assert stored == pytest.approx(microseconds * 1000 / UNITS[unit], rel=1e-15)
    assert seconds_of(stored) == pytest.approx(microseconds / 1e6, abs=1e-6)


NUMBERS = {
    "seconds": 1714521600, "milliseconds": 1714521600250, "microseconds": 1714521600250000,
    "nanoseconds": 1714521600250000000, "date": "2024-05-01T00:00:00.25", "place": 7,
    "decimal": 1714521600.25,
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_http_and_replay_store_the_same(
    site: Site, models: Path, tmp_path: Path, kind: str
) -> None:
    value = NUMBERS[kind]
    body = {"event_id": "e", "user_id": "u", "item_id": "c001-i0002", "timestamp": value}
    assert site.client.post("/v1/events", json=body).status_code == 200
    over_http = site.client.get("/v1/users/u").json()["last_timestamp"]
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\nu,c001-i0002,{value}\n")
    replay(models / "a", str(tmp_path / "other.sqlite"), str(tmp_path / "log.csv"))
    log = SQLiteLog(tmp_path / "other.sqlite")
    ((replayed, *_),) = log.events(("default", "u"))
    log.close()
    assert (
        over_http == replayed == (7 if kind == "place" else pytest.approx(1714521600.25, abs=0.25))
    )


def test_units_mix_in_one_history(site: Site) -> None:
    """Events in different units are in the order of time."""
    times: list[Any] = [
        1714521603,
        1714521601000,
        "2024-05-01T00:00:02Z",
        1714521604000000,
        1714521600,
    ]
    for number, timestamp in enumerate(times):
        body = {"event_id": str(number), "user_id": "u", "item_id": "i", "timestamp": timestamp}
        assert site.client.post("/v1/events", json=body).status_code == 200
    history = site.client.get("/v1/users/u?history=9").json()["history"]
    assert [event["event_id"] for event in history] == ["3", "0", "2", "1", "4"]


def test_events_join_a_log_of_version_0_1_in_its_unit(open_site: OpenSite, file: Any) -> None:
    """It stored the numbers of the client, here milliseconds."""
    log = file.log()
    with log.transaction():
        log._do(
            "INSERT INTO events (tenant, event_id, user_id, item_id, timestamp)"
            " VALUES ('default', 'old', 'u', 'i', 1714521601000.0)"
        )
        log._do("INSERT INTO users VALUES ('default', 'u', 1)")
    log.close()
    site = open_site()
    for name, timestamp in (
        ("before", 1714521600),
        ("after", 1714521602000),
        ("old", 1714521601000),
    ):
        body = {"event_id": name, "user_id": "u", "item_id": "i", "timestamp": timestamp}
        status = site.client.post("/v1/events", json=body).json()["results"][0]["status"]
        assert status == ("duplicate" if name == "old" else "accepted")
    user = site.client.get("/v1/users/u?history=9").json()
    assert [event["event_id"] for event in user["history"]] == ["after", "old", "before"]
    assert user["last_timestamp"] == 1714521602000.0
    assert 0 < user["age"] < 1e9


@pytest.mark.parametrize(
    "text",
    ["2024-05-01", "2024-05-01 10:00", "2024-05-01T10:00Z", "2024-05-01T10:00:00.5+0200",
     "2024-05-01T10:00-03:00"],
)  # fmt: skip
def test_a_date_of_a_log_is_a_date_over_http(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,timestamp\na,b,{text}\n")
    times = read_log(path).timestamps
    assert times is not None
    assert parse_timestamp(text) == times[0] / 1e6
