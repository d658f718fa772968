"""Frames of Polars, pandas and Arrow with columns of many types."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from hypothesis import assume
from hypothesis import strategies as st

from fuzz.written_logs import ITEMS, SECONDS, USERS

MADE_BY: dict[str, Any] = {
    "polars": pl.DataFrame,
    "pandas": pd.DataFrame,
    "pandas objects": lambda columns: pd.DataFrame(columns, dtype=object),
    "pandas categories": lambda columns: pd.DataFrame(columns).astype(
        dict.fromkeys(("user_id", "item_id"), "category")
    ),
    "arrow": pa.table,
    "lazy": lambda columns: pl.LazyFrame(columns),
}
NUMBERS = [np.int8, np.int32, np.int64, np.uint64, int]
DAY = datetime(2024, 5, 1, 12)
ZONE = timezone(timedelta(hours=2))


def ids(texts: list[str]) -> st.SearchStrategy[list[Any]]:
    """Twelve ids of one type, now and then of several."""
    text = st.sampled_from(texts[:10]) | st.sampled_from(texts)
    whole = st.sampled_from(NUMBERS).flatmap(lambda kind: st.integers(0, 9).map(kind))
    alike = st.sampled_from(NUMBERS).flatmap(
        lambda kind: st.lists(st.integers(0, 9).map(kind), min_size=12, max_size=12)
    )
    odd = st.none() | st.booleans() | st.floats(width=32) | whole | text | st.just(2**64)
    return st.one_of(
        st.lists(text, min_size=12, max_size=12), alike, st.lists(odd, min_size=12, max_size=12)
    )


def one_time(form: int, number: int) -> Any:
    """A time of the form, which is a number from 0."""
    forms: list[Any] = [
        lambda n: SECONDS + n, lambda n: np.int64(SECONDS * 1000 + n), lambda n: SECONDS * 10**6 + n,
        lambda n: np.uint64(SECONDS * 10**9 + n), lambda n: SECONDS + n / 8,
        lambda n: np.float32(SECONDS + n), lambda n: Decimal(SECONDS) + Decimal(n) / 1000,
        lambda n: Decimal(SECONDS * 1000) + Decimal(n) / 10**6, lambda n: DAY + timedelta(days=n),
        lambda n: (DAY + timedelta(microseconds=n)).replace(tzinfo=UTC),
        lambda n: DAY.replace(tzinfo=ZONE) + timedelta(hours=n), lambda n: date(2024, 5, 1 + n),
        lambda n: np.datetime64("2024-05-01") + np.timedelta64(n, "D"),
        lambda n: np.datetime64("2024-05-01T00:00:00", "ns") + np.timedelta64(n, "ns"),
        lambda n: f"2024-05-{n + 1:02}T10:00:00Z", lambda n: n,
        lambda n: [None, np.nan, True, "soon", -1, np.inf, "", 1e300, pd.NaT, 2**63][n % 10],
    ]  # fmt: skip
    return forms[form % len(forms)](number)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Any, dict[str, list[Any]]]:
    """A frame, and the values of its columns."""
    rows = draw(st.integers(1, 12))
    form, other = draw(st.integers(0, 16)), draw(st.integers(0, 16))
    mixed = draw(st.sampled_from([0] * 8 + [1, 2]))
    numbers = draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows))
    columns = {
        "user_id": draw(ids(USERS))[:rows],
        "item_id": draw(ids(ITEMS))[:rows],
        "timestamp": [
            one_time(other if row < mixed else form, number) for row, number in enumerate(numbers)
        ],
    }
    made_by = MADE_BY[draw(st.sampled_from(list(MADE_BY)))]
    if made_by is pa.table:  # Arrow crashes on a np.datetime64 before a number of NumPy
        kinds = {type(value) for value in columns["timestamp"] if isinstance(value, np.generic)}
        assume(np.datetime64 not in kinds or len(kinds) == 1)
    try:
        frame = made_by(columns)
        return frame, {name: _values(frame, name) for name in columns}
    except Exception:  # the library refuses these columns, or does not know their type
        assume(False)
        raise


def _values(frame: Any, name: str) -> list[Any]:
    """The values that a column holds, some of which the library has changed."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        frame = frame.to_arrow()
    values: list[Any] = (
        list(frame[name]) if isinstance(frame, pd.DataFrame) else frame[name].to_pylist()
    )
    return values
