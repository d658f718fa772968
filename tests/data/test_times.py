"""One rule for times: their units, single times, and columns of times."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from data.log_examples import HEAD, write
from recblr.data import text
from recblr.data.log import Interactions, read_log
from recblr.data.times import UNITS, Time, parse_time, to_nanoseconds, unit_of
from recblr.errors import InputError

NOW = 1_700_000_000  # 2023-11-14 in seconds
ZONE = dt.timezone(dt.timedelta(hours=2))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def log_of(times: Any) -> Interactions:
    """A log of one user with these times, read from a frame."""
    return read_log(
        pd.DataFrame({"user_id": "u", "item_id": range(len(times)), "timestamp": times})
    )


def lines(*times: object) -> str:
    return HEAD + "".join(f"u,i{number},{time}\n" for number, time in enumerate(times))


# ---- one time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "unit"),
    [
        (NOW, NOW, "seconds"),
        (np.int32(NOW), NOW, "seconds"),
        (np.uint64(NOW * 1000), NOW * 1000, "milliseconds"),
        (NOW * 10**6 + 1, NOW * 10**6 + 1, "microseconds"),
        (NOW * 10**9 + 1, NOW * 10**9 + 1, "nanoseconds"),
        (NOW + 0.5, NOW + 0.5, "seconds"),
        (np.float32(2.5), 2.5, ""),
        (torch.tensor(NOW), NOW, "seconds"),
        (Decimal(NOW), NOW, "seconds"),
        (Decimal(f"{NOW}.000000001"), NOW * 10**9 + 1, "nanoseconds"),
        (str(NOW), NOW, "seconds"),
        ("1970-01-01", 0, "microseconds"),
        ("2023-11-14T22:13:20Z", NOW * 10**6, "microseconds"),
        ("2023-11-14 22:13:20.000000001", NOW * 10**9 + 1, "nanoseconds"),
        (dt.datetime(2023, 11, 15, 0, 13, 20, tzinfo=ZONE), NOW * 10**6, "microseconds"),
        (dt.date(1970, 1, 2), 86_400_000_000, "microseconds"),
        (np.datetime64("1970-01-02"), 86_400_000_000, "microseconds"),
        (np.datetime64(NOW * 10**9 + 1, "ns"), NOW * 10**9 + 1, "nanoseconds"),
        (pd.Timestamp(NOW * 10**9 + 1), NOW * 10**9 + 1, "nanoseconds"),
        (0, 0, ""),
        (-7, -7, ""),
        (20240501120000, 20240501120000, ""),
    ],
)  # fmt: skip
def test_parse_time(value: object, expected: float, unit: str) -> None:
    time = parse_time(value)
    assert (time, type(time.value)) == (Time(expected, unit), type(expected))


@pytest.mark.parametrize(
    "value",
    [True, np.True_, None, float("nan"), float("inf"), 2**63, "", "soon", "0x1F", pd.NaT, [NOW],
     np.datetime64("NaT"), torch.tensor(True), dt.timedelta(1), Decimal("NaN"), b"1"],
)  # fmt: skip
def test_parse_time_refuses_other_values(value: object) -> None:
    with pytest.raises(InputError, match="write all times alike, as whole numbers"):
        parse_time(value)


def test_nanoseconds() -> None:
    assert parse_time("2023-11-14T22:13:20.5Z").nanoseconds == NOW * 10**9 + 5 * 10**8
    assert parse_time(NOW + 0.000001).nanoseconds == NOW * 10**9 + 1000
    assert parse_time(3).nanoseconds == 3 * 10**9  # a number in no unit counts as seconds
    assert parse_time(NOW * 10**9 + 7).nanoseconds == NOW * 10**9 + 7
    with pytest.raises(InputError, match="found the time 20240501120000, which is not in seconds"):
        assert parse_time(20240501120000).nanoseconds
    assert to_nanoseconds(np.array([1.5, -2.0]), "seconds").tolist() == [15 * 10**8, -2 * 10**9]


@given(st.integers(-(2**63), 2**63 - 1))
@example(749_999_999)
@example(4_200_000_000)
def test_a_number_is_in_at_most_one_unit(value: int) -> None:
    first, last = 750_000_000, 4_200_000_000
    units = [unit for unit, size in UNITS.items() if first * 10**9 <= value * size < last * 10**9]
    assert unit_of(value) == (units[0] if units else "")
    assert len(units) <= 1


@given(st.datetimes(dt.datetime(1994, 1, 1), dt.datetime(2100, 1, 1)), st.sampled_from([*UNITS]))
def test_a_time_means_the_same_in_every_form(moment: dt.datetime, unit: str) -> None:
    """A column of a frame reads as a single time does."""
    whole = moment.replace(microsecond=0)
    seconds = int(whole.replace(tzinfo=dt.UTC).timestamp())
    forms: list[Any] = [
        seconds * (10**9 // UNITS[unit]), Decimal(seconds), float(seconds), str(seconds), whole,
        whole.isoformat(), whole.replace(tzinfo=dt.UTC), np.datetime64(whole), pd.Timestamp(whole),
    ]  # fmt: skip
    assert {parse_time(form).nanoseconds for form in forms} == {seconds * 10**9}
    for form in forms:
        log = log_of([form])
        assert to_nanoseconds(log.timestamps, log.unit).tolist() == [seconds * 10**9]


# ---- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_nanoseconds_in_text_stay_exact(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    exact = [NOW * 10**9, NOW * 10**9 + 10, NOW * 10**9 + 20]
    for times in (
        exact,
        [f"{NOW}", f"{NOW}.000000010", f"{NOW}.00000002"],
        [f"{NOW}000", f"{NOW}000.000010", f"{NOW}000.000020"],
        ["2023-11-14T22:13:20", "2023-11-14T22:13:20.000000010", "2023-11-14T22:13:20.000000020"],
    ):
        log = read_log(write("a.csv", lines(*times)))
        assert (log.timestamps.dtype, log.timestamps.tolist()) == ("i8", exact)
        assert log.unit == "nanoseconds"


def test_microseconds_as_decimals_stay_floats() -> None:
    times = [f"{NOW}.123456", f"{NOW}.123457", f"{NOW}.1234580"]
    read = read_log(write("a.csv", lines(*times))).timestamps
    assert (read.dtype, read.tolist()) == ("f8", list(map(float, times)))


def test_decimals_that_float64_would_round_are_refused() -> None:
    close = ["0.12345678901234567891", "0.12345678901234567892"]
    with pytest.raises(InputError, match=r"line 2, column .timestamp.: .* exact in 64 bits"):
        read_log(write("a.csv", lines(*close)))
    with pytest.raises(InputError, match="line 3"):
        read_log(write("a.csv", lines(f"{NOW}.5", f"{NOW}.1234567891")))  # finer than nanoseconds


@pytest.mark.parametrize(
    "times",
    [
        [Decimal(NOW), Decimal(NOW + 1)],
        pa.array([NOW, NOW + 1], pa.decimal128(20, 0)),
        np.array([NOW, NOW + 1], np.uint32),
    ],
)
def test_numbers_of_other_types(times: Any) -> None:
    frame = pa.table({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times})
    for source in (frame, pl.DataFrame(frame)):
        log = read_log(source)
        assert (log.timestamps.tolist(), log.unit) == ([NOW, NOW + 1], "seconds")


def test_objects_keep_zones_and_nanoseconds() -> None:
    stamps = [pd.Timestamp(NOW * 10**9 + nano) for nano in (1, 2)]
    log = log_of(pd.Series(stamps, dtype=object))
    assert log.timestamps.tolist() == [NOW * 10**9 + 1, NOW * 10**9 + 2]
    days = pd.Series([dt.date(1970, 1, 1), dt.datetime(1970, 1, 1, 5)], dtype=object)
    assert log_of(days).timestamps.tolist() == [0, 5 * 3600 * 10**6]
    mixed = pd.Series([dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=ZONE)], dtype=object)
    with pytest.raises(
        InputError, match=r"row 2, column 'timestamp': found '.*\+02:00' after a date;"
    ):
        log_of(mixed)


@pytest.mark.parametrize("block", [64, text.BLOCK_BYTES])
@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([NOW, NOW, NOW * 1000], "line 4, .* found 1700000000000, .* after times in seconds"),
        ([NOW * 1000, NOW, NOW], "line 3, .* found 1700000000, .* after times in milliseconds"),
        ([0, NOW * 10**6, NOW * 10**9], "line 4, .* in nanoseconds after times in microseconds"),
        ([NOW + 0.5, NOW * 1000.5], "line 3, .* in milliseconds after times in seconds"),
    ],
)  # fmt: skip
def test_units_must_not_mix(
    times: list[float], expected: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    with pytest.raises(InputError, match=f"{expected}.*; write all times in one unit"):
        read_log(write("a.csv", lines(*times)))


def test_a_counter_that_grows_through_the_units_has_none() -> None:
    log = log_of(np.linspace(0, 10**13, 1000).astype(int))
    assert log.unit == ""


def test_times_that_are_none_give_a_warning() -> None:
    with pytest.warns(
        UserWarning, match=r"1 of 4 times are not in the years 1993 to 2103, such as 0"
    ):
        assert log_of([NOW, NOW, 0, NOW]).unit == "seconds"
    dates = ["2024-01-01", "2024-01-02", "9999-12-31"]
    with pytest.warns(UserWarning, match="1 of 3 times .* such as 9999-12-31"):
        assert log_of(dates).dates


@pytest.mark.parametrize(
    ("times", "spacing"),
    [(np.float32([NOW, NOW + 1]), 128), (np.float64([NOW * 10**9, 2 * NOW * 10**9]), 512)],
)
def test_rounded_times_give_a_warning(times: np.ndarray, spacing: int) -> None:
    with pytest.warns(UserWarning, match=f"rounds them to multiples of {spacing}, and events"):
        log_of(times)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([NOW, NOW + 86_400], "(seconds, 2023-11-14 to 2023-11-15)"),
        ([NOW * 1000], "(milliseconds, 2023-11-14 to 2023-11-14)"),
        (["2024-02-29"], "(dates, 2024-02-29 to 2024-02-29)"),
        ([3, 5], "(numbers from 3 to 5, in no unit that is known)"),
    ],
)
def test_the_log_says_its_unit(times: list[Any], expected: str) -> None:
    assert log_of(times).order == f"ordered by 'timestamp' {expected}"


def test_units_are_not_mixed_in_silence_beside_a_time_in_none() -> None:
    """A date of the year 9999 for a missing time is in no unit, and does not hide the other units."""
    times = [NOW, NOW * 1000, NOW + 1, (NOW + 1) * 1000, 253_402_300_799]
    frame = pl.DataFrame({"user_id": [1] * 5, "item_id": [*range(5)], "timestamp": times})
    with pytest.warns(UserWarning, match="3 of 5 times are not in the years 1993 to 2103"):
        read_log(frame)
