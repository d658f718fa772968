"""Times: one rule for what a time may be and in which unit it is, in logs and over HTTP.

A time is a number or an ISO 8601 date. A number is in seconds, milliseconds, microseconds or
nanoseconds since 1970 if it then lies between October 1993 and February 2103; at most one unit fits.
Any other number, such as a place in a history, only orders events.
"""

import math
import operator
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recblr.data.values import BadValue, cast, first_bad_row, is_text, shorten
from recblr.errors import InputError

UNITS = {"seconds": 10**9, "milliseconds": 10**6, "microseconds": 10**3, "nanoseconds": 1}
FIRST, LAST = 750_000_000, 4_200_000_000  # seconds since 1970: October 1993, February 2103
# The class of a number is its place among these: 1, 3, 5 and 7 are the units, the others are none.
EDGES = [edge * 10**9 // size for size in UNITS.values() for edge in (FIRST, LAST)]
MAX_EXACT = 2**53 - 1  # float64 represents every whole number up to here exactly
FLOAT_DIGITS = 17  # times of at most so many characters that differ also differ in float64
# The numbers of a block in their own unit and, if they are exact only so, in whole nanoseconds.
Values = tuple[NDArray[Any], NDArray[np.int64] | None]
DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?"
)
TIME_FORMAT = (
    "write all times alike, as whole numbers, finite decimals or ISO 8601 dates with or without zone, "
    "exact in 64 bits"
)


@dataclass(frozen=True)
class Time:
    """One time: an int or a finite float, and a key of ``UNITS``, or "" for a number in no unit."""

    value: int | float
    unit: str

    @property
    def nanoseconds(self) -> int:
        """Since 1970; a number in no unit counts as seconds. InputError beyond 64 bits."""
        return int(to_nanoseconds(np.array([self.value]), self.unit)[0])


def unit_of(value: float) -> str:
    """The unit in which a number is a time of our days; "" for none."""
    place = bisect_right(EDGES, value)
    return list(UNITS)[place // 2] if place % 2 else ""


def parse_time(value: object) -> Time:
    """Read one time: a number of any type, an ISO date as text, or a date of Python, NumPy or pandas.

    Dates are in microseconds, or in nanoseconds if they have them; without a zone they are in UTC.

    Raises:
        InputError: the value is not a time; the message is one line without a location.
    """
    if not isinstance(value, np.datetime64 | Decimal | str):
        if hasattr(value, "item"):  # a scalar of NumPy or torch
            value = value.item()
        if isinstance(value, bool):
            raise InputError(f"found {value}; {TIME_FORMAT}")
        if isinstance(value, float) and math.isfinite(value):
            return Time(value + 0.0, unit_of(value))  # no negative zero
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            if -(2**63) <= value < 2**63:
                return Time(value, unit_of(value))
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    if DATE.fullmatch(text):  # the column below takes a hundred times as long
        with suppress(ValueError):
            date = datetime.fromisoformat(text)
            since = date.replace(tzinfo=date.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
            return Time(since // timedelta(microseconds=1), "microseconds")
    column = TimeColumn()
    try:
        column.add(pa.array([text], pa.string()))
    except BadValue as error:
        raise InputError(str(error)) from None
    times = column.finish("")
    assert times is not None
    return Time(times[0].item(), column.unit)


def to_nanoseconds(times: NDArray[Any], unit: str) -> NDArray[np.int64]:
    """Times since 1970 as whole nanoseconds; numbers in no unit count as seconds.

    Whole numbers stay exact, floats are rounded to microseconds.

    Raises:
        InputError: a time does not fit into 64 bits.
    """
    size = UNITS[unit or "seconds"]
    limit = (2**63 - 1) // size
    wrong = (times < -limit) | (times > limit)
    if wrong.any():
        raise InputError(
            f"found the time {times[wrong][0]}, which is not in seconds, milliseconds, microseconds "
            "or nanoseconds since 1970; write it in one of these units"
        )
    if times.dtype.kind in "iu":
        return times.astype(np.int64) * size
    if size <= 1000:
        return np.rint(times * size).astype(np.int64)
    return np.rint(times * (size // 1000)).astype(np.int64) * 1000


def seconds_between(
    times: NDArray[Any], unit: str, before: float = -math.inf
) -> NDArray[np.float64]:
    """(N,) the seconds to each time from the one before it, and to the first from ``before``.

    Numbers in no unit count as seconds.
    """
    size = UNITS[unit or "seconds"] / 1e9
    return np.diff(times.astype(np.float64) * size, prepend=before * size)


def describe_times(times: NDArray[Any], unit: str, dates: bool = False) -> str:
    """The unit of some times and the days between which they lie, in words."""
    low, high = times.min().item(), times.max().item()
    if not unit:
        return f"numbers from {low} to {high}, in no unit that is known"
    first, last = (
        np.datetime64(value * UNITS[unit] // 10**9, "s") for value in (int(low), int(high))
    )
    return f"{'dates' if dates else unit}, {str(first)[:10]} to {str(last)[:10]}"


class TimeColumn:
    """Converts the blocks of a column of times, all of one form and unit, to int64 or float64.

    Attributes:
        form: "whole number", "decimal", "date" or "date with zone".
        unit: a key of ``UNITS``, or "" for numbers in no unit; known after :meth:`finish`.
        read_unit: the same of the numbers that were read, before they are made exact.
    """

    def __init__(self) -> None:
        self.form = self.unit = self.read_unit = ""
        self.parts: list[Values] = []
        self.counts = np.zeros(len(EDGES) + 1, np.int64)  # of the numbers in each class
        self.first: dict[int, Any] = {}  # the first number of each class
        self.spacing = 0.0  # of the floats that the type of the column can hold, if above 1

    @property
    def dates(self) -> bool:
        return self.form.startswith("date")

    @property
    def all_in_one_unit(self) -> bool:
        """Whether there are times so far, all between 1993 and 2103 in one unit."""
        return 0 < self.counts.sum() == self.counts[1::2].max()

    def add(self, column: pa.Array) -> None:
        """Convert the next block. BadValue names the first row that cannot be read."""
        if pa.types.is_decimal(column.type) or is_text(column):
            column = column.cast(pa.string())
        if not _possible_forms(column):
            raise BadValue(0, f"times of type {column.type}; cast to int64, float64 or datetime")
        parsed = self._parse(column)
        if parsed is None:
            row = first_bad_row(column, self._parse)
            before = self._parse(column[:row]) if row else None
            form = before[0] if before else self.form
            value = shorten(repr(column[row : row + 1].cast(pa.string())[0].as_py()))
            found = f"found {value} after a {form}" if form else f"found {value}"
            raise BadValue(row, f"{found}; {TIME_FORMAT}")
        self.form, (values, exact) = parsed
        self._check_unit(values)
        if pa.types.is_floating(column.type):
            spacing = np.spacing(np.abs(values).max().astype(column.type.to_pandas_dtype()))
            self.spacing = max(self.spacing, float(spacing) if spacing > 1 else 0.0)
        self.parts.append((values if exact is None else exact, exact))

    def take(self) -> Values:
        """Remove the numbers of the last block, and return them; only their extremes stay."""
        values, exact = self.parts.pop()
        ends = np.array([values.min(), values.max()])
        self.parts.append((ends, None if exact is None else ends))
        return values, exact

    def finish(self, source: str) -> NDArray[Any] | None:
        """(N,) all times; None if there are none. Warns of times in ``source`` that look wrong."""
        if not self.parts:
            return None
        parts, self.parts = self.parts, []
        total, in_unit = int(self.counts.sum()), self.counts[1::2]
        if self.dates:
            self.unit = "microseconds"
        elif 2 * in_unit.sum() > total:
            self.unit = list(UNITS)[int(in_unit.argmax())]
        self.read_unit = self.unit
        self._warn(source, total - int(in_unit.max()), total)
        if all(exact is None for _, exact in parts):
            return np.concatenate([values for values, _ in parts])
        self.unit = "nanoseconds"
        return np.concatenate(
            [
                to_nanoseconds(values, self.read_unit) if exact is None else exact
                for values, exact in parts
            ]
        )

    def _warn(self, source: str, others: int, total: int) -> None:
        if others and self.counts[1::2].sum() * 2 > total:
            other = next(value for place, value in self.first.items() if place != self._main_class)
            shown = np.datetime64(int(other), "us") if self.dates else other
            warnings.warn(
                f"{source}: {others:,} of {total:,} times are not in the years 1993 to 2103, such as "
                f"{shown}, but the others are; check that these are times, too",
                stacklevel=4,  # the caller of read_log
            )
        if self.spacing:
            warnings.warn(
                f"{source}: the type of the times rounds them to multiples of {self.spacing:g}, and "
                "events at equal times keep the order of the rows; store the times as int64",
                stacklevel=4,
            )

    @property
    def _main_class(self) -> int:
        return 2 * int(self.counts[1::2].argmax()) + 1

    def _parse(self, column: pa.Array) -> tuple[str, Values] | None:
        """Form and values of the next block; None if its form differs from that of earlier blocks."""
        for form in _possible_forms(column):
            widens = (self.form, form) == ("whole number", "decimal")
            if self.form in ("", form) or (widens and all(_is_exact(v) for v, _ in self.parts)):
                values = FORMS[form](column)
                if values is not None:
                    return form, values
        return None

    def _check_unit(self, values: NDArray[Any]) -> None:
        """Count the numbers of each class. BadValue at the first one in another unit.

        If there are numbers between two units, the column counts from a start of its own, and has
        no unit.
        """
        edges = EDGES[4:6] if self.dates else EDGES
        earlier = [place for place in self.first if place % 2]
        low, high = np.searchsorted(edges, [values.min(), values.max()], "right").tolist()
        places = np.searchsorted(edges, values, "right") if low != high else np.array([low])
        for place, row in zip(*np.unique(places, return_index=True), strict=True):
            self.first.setdefault(int(place), values[row])
        self.counts += (
            np.bincount(places, minlength=len(self.counts)) if low != high
            else len(values) * (np.arange(len(self.counts)) == low)
        )  # fmt: skip
        units = {place for place in self.first if place % 2}
        if len(units) > 1 and not any(place and place % 2 == 0 for place in self.first):
            known = earlier[0] if earlier else places[places % 2 == 1][0]
            row = int(np.argmax((places % 2 == 1) & (places != known)))
            raise BadValue(
                row,
                f"found {values[row]}, a time in {unit_of(values[row])} after times in "
                f"{list(UNITS)[known // 2]}; write all times in one unit",
            )


# ---- from Arrow arrays ---------------------------------------------------------------------------


def _possible_forms(column: pa.Array) -> list[str]:
    types, kind = pa.types, column.type
    if is_text(column):
        return list(FORMS)
    if types.is_integer(kind):
        return ["whole number"]
    if types.is_floating(kind):
        return ["decimal"]
    if types.is_timestamp(kind):
        return ["date with zone" if kind.tz else "date"]
    return ["date"] if types.is_date(kind) else []


def _whole(column: pa.Array) -> Values | None:
    # Arrow also accepts hexadecimal numbers such as 0x1F.
    if is_text(column) and pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
        return None
    values = _numbers(column, pa.int64())
    return None if values is None else (values, None)


def _decimal(column: pa.Array) -> Values | None:
    values = _numbers(column, pa.float64())
    if values is None or not np.isfinite(values).all():
        return None
    if not is_text(column):
        return values, None
    sizes = pc.binary_length(column)
    if pc.max(sizes).as_py() <= FLOAT_DIGITS:
        return (values, None) if _is_exact(values) else None
    unit = unit_of(values.min())
    if unit and unit == unit_of(values.max()):
        exact = _exact_nanoseconds(column, UNITS[unit])
        # Floats distinguish microseconds, but not nanoseconds.
        is_float = exact is not None and not np.any(exact % 1000) and _is_exact(values)
        return None if exact is None else (values, None if is_float else exact)
    long = sizes.to_numpy() > FLOAT_DIGITS
    texts = column.filter(pa.array(long)).to_pylist()
    same = all(
        Decimal(repr(value)) == Decimal(text)
        for value, text in zip(values[long].tolist(), texts, strict=True)
    )
    return (values, None) if same and _is_exact(values) else None


def _exact_nanoseconds(column: pa.Array, size: int) -> NDArray[np.int64] | None:
    """Decimals as text, times ``size``; None unless all products are whole numbers of 64 bits."""
    try:
        factor = pa.scalar(Decimal(size), pa.decimal256(10, 0))
        product = pc.multiply(column.cast(pa.decimal256(40, 9)), factor)
        return product.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None


def _date(column: pa.Array, zone: str | None) -> Values | None:
    """Microseconds since 1970, and nanoseconds if a date is exact only in these."""
    values = _numbers(column, pa.timestamp("us", zone))
    if values is not None:
        return values, None
    exact = _numbers(column, pa.timestamp("ns", zone))
    if exact is None:
        return None
    return exact // 1000, exact if np.any(exact % 1000) else None


FORMS: dict[str, Callable[[pa.Array], Values | None]] = {
    "whole number": _whole,
    "decimal": _decimal,
    "date": lambda column: _date(column, None),
    "date with zone": lambda column: _date(column, "UTC"),
}


def _numbers(column: pa.Array, to: pa.DataType) -> NDArray[Any] | None:
    values = None if column.null_count else cast(column, to)
    if values is not None and pa.types.is_timestamp(to):
        values = values.cast(pa.int64())
    return None if values is None else values.to_numpy()


def _is_exact(values: NDArray[Any]) -> bool:
    return bool(values.min() >= -MAX_EXACT and values.max() <= MAX_EXACT)
