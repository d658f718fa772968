"""What ids and times mean, by the standard library: the oracle of the doors.

None stands for a value that is to be refused.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

UNITS = {"seconds": 10**9, "milliseconds": 10**6, "microseconds": 10**3, "nanoseconds": 1}
DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d(?::\d\d(?::\d\d)?)?)(?:(?<=:\d\d:\d\d)\.(\d{1,9}))?"
    r"(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def nanoseconds(text: str) -> int:
    """An ISO date, exactly; ValueError if it is none."""
    match = DATE.fullmatch(text)
    if not match:
        raise ValueError(text)
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock or '00'}{zone or 'Z'}")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(seconds=1) * 10**9 + int((fraction or "0").ljust(9, "0"))


def unit_of(number: Decimal | Fraction) -> str:
    """The unit in which a number is a time of our days."""
    for unit, size in UNITS.items():
        if 750_000_000 <= number * size / 10**9 < 4_200_000_000:
            return unit
    return ""


def exact_time(value: Any) -> Fraction | None:
    """A number or an ISO date in nanoseconds since 1970; numbers in no unit count as seconds."""
    try:
        exact = Fraction(nanoseconds(value)) if isinstance(value, str) else _exact(Fraction(value))
    except (TypeError, ValueError, OverflowError):  # not a number, not finite
        return None
    return exact if abs(exact) < 2**63 and not isinstance(value, bool) else None


def _exact(number: Fraction) -> Fraction:
    return number * UNITS[unit_of(number) or "seconds"]


def stored_time(value: Any) -> Fraction | None:
    """A time in nanoseconds that an event log stores: not more than a day from now."""
    exact = exact_time(value)
    return None if exact is None or exact > (time.time() + 86_400) * 10**9 else exact


def sent_time(value: Any) -> Fraction | None:
    """A time in nanoseconds that HTTP accepts: as in an event log, and not finer than microseconds."""
    exact = stored_time(value)
    if exact is None:
        return None
    if isinstance(value, str):
        match = DATE.fullmatch(value)
        return exact if match and len(match[3] or "") <= 6 else None
    return None if isinstance(value, int) and exact % 1000 else exact


def id_text(value: Any) -> str | None:
    """An id as an event log stores it."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        return str(value) if -(2**63) <= value < 2**63 else None
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return None
    return value if 0 < size <= 256 and "\0" not in value else None
