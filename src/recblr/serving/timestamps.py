"""Timestamps of an event log: seconds since 1970, whatever unit the client or the log has.

The rule for units is that of :mod:`recblr.data.times`. A number in no unit counts as seconds. Float64
seconds distinguish microseconds, but not nanoseconds.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recblr.data.times import DATE, UNITS, Time, parse_time, to_nanoseconds, unit_of
from recblr.errors import InputError

LIMIT = 9e9  # seconds within 64 bits of nanoseconds
HORIZON = 86_400.0  # seconds from now after which an event cannot have happened


def parse_timestamp(value: int | float | str) -> float:
    """A number or an ISO 8601 date that a client sent, in seconds since 1970.

    Raises:
        InputError: it is not a time, beyond 64 bits, or finer than a microsecond.
    """
    if isinstance(value, str) and not DATE.fullmatch(value):  # other texts take long to parse
        raise InputError(
            f"timestamp: found {value[:40]!r}; send a number, or a date like 2024-05-01T12:00:00Z"
        )
    try:
        moment = parse_time(value)
        seconds = _seconds(moment)
    except InputError as error:
        raise InputError(f"timestamp: {error}") from None
    if moment.unit == "nanoseconds" and moment.value % 1000:
        raise InputError(
            f"timestamp: {value} is finer than a microsecond, and the order of such events would be "
            f"lost; send microseconds, {int(moment.value) // 1000}"
        )
    return seconds


def check_not_future(seconds: float) -> None:
    """InputError if a time is over a day ahead; it would make all later events of the user late."""
    if seconds > time.time() + HORIZON:
        raise InputError(
            f"timestamp: {seconds:.0f} seconds since 1970 is more than a day in the future; check the "
            "clock and the unit"
        )


def _seconds(moment: Time) -> float:
    """A time in seconds, as :func:`to_unit` converts it, but faster."""
    value, size = moment.value, UNITS[moment.unit or "seconds"]
    if value == int(value):
        nanoseconds = int(value) * size
        if abs(nanoseconds) < 2**63:
            return nanoseconds / 10**9
    elif size == UNITS["seconds"] and abs(value) < LIMIT:
        return float(value)
    (seconds,) = to_unit(np.array([value]), moment.unit)
    return seconds


def to_unit(times: NDArray[Any], unit: str, stored: str = "seconds") -> list[float]:
    """Times in the unit ``stored`` of an event log.

    Args:
        times: (N,) numbers.
        unit: their unit, "" for none, as in :class:`recblr.data.log.Interactions`.
        stored: as :meth:`EventLog.unit` returns.

    Raises:
        InputError: a time is beyond 64 bits of nanoseconds.
    """
    if (
        times.dtype.kind == "f"
        and np.all(np.rint(times) == times)
        and np.all(np.abs(times) < 2**63)
    ):
        times = times.astype(np.int64)  # whole numbers are converted exactly
    nanoseconds = to_nanoseconds(times, unit)
    if (unit or "seconds") == stored:
        values: list[float] = times.astype(np.float64).tolist()
        return values
    return [value / UNITS[stored] for value in nanoseconds.tolist()]


def seconds_of(timestamp: float) -> float:
    """A stored timestamp in seconds; those that version 0.1.0 stored may have another unit."""
    return timestamp * UNITS[unit_of(timestamp) or "seconds"] / 1e9
