"""What comes in from outside: events, and JSON that is read strictly."""

import json
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

ID_BYTES = 256
DEPTH = 32
LATEST = 1e15  # far beyond the microseconds of any calendar

T = TypeVar("T")
User = tuple[str, str]
"""A tenant and one of its users."""
Key = tuple[float, str]
"""Timestamp and event id: a user's events are in this order."""


class InvalidError(ValueError):
    """A request that no server could carry out, in one line."""


class TooDeepError(InvalidError):
    """JSON with more levels than anybody needs."""


class Event(NamedTuple):
    """One event of a user. Ids are text, whatever the client sends: 7 is "7"."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: float

    @property
    def key(self) -> Key:
        return self.timestamp, self.event_id


class EventBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An event: who did something with which item, and when.

    Ids have 1 to 256 bytes. ``event_id`` is yours: sent twice, an event counts once. ``timestamp`` is
    a number that rises with time, seconds since 1970 or whatever all of a user's events have.
    """

    event_id: str | int
    user_id: str | int
    item_id: str | int
    timestamp: float


def digest(user: User, *of: str) -> bytes:
    """16 bytes that stand for a user, and for what else is named, without telling who it is."""
    return blake2b(repr((*user, *of)).encode(), digest_size=16).digest()


def read_event(value: object) -> Event:
    """An event from decoded JSON.

    Raises:
        InvalidError: what is wrong with it.
    """
    body = read_body(value, EventBody)
    if not abs(body.timestamp) <= LATEST:
        raise InvalidError(f"timestamp: must be within ±{LATEST:.0e}, found {body.timestamp}")
    return Event(
        read_id(body.event_id, "event_id"), read_id(body.user_id, "user_id"),
        read_id(body.item_id, "item_id"), body.timestamp + 0.0,
    )  # fmt: skip


def read_id(value: str | int, name: str) -> str:
    """An id as text.

    Raises:
        InvalidError: it is empty, too long, or no Unicode text.
    """
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidError(f"{name}: a surrogate without its other half") from None
    if not 0 < size <= ID_BYTES:
        raise InvalidError(f"{name}: must have 1 to {ID_BYTES} bytes, found {size}")
    if "\0" in text:
        raise InvalidError(f"{name}: holds a NUL")
    return text


def read_body(value: object, kind: type[T]) -> T:
    """Decoded JSON as a structure of the API.

    Raises:
        InvalidError: a field is missing, unknown or of another kind.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidError(str(error)) from None


def read_json(text: bytes) -> Any:
    """JSON by the letter: Unicode, no NaN, no name twice in an object, at most 32 levels deep.

    Raises:
        InvalidError: what is wrong, and where.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidError(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidError(
            f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise TooDeepError(f"the body is more than {DEPTH} levels deep") from None
    except InvalidError:
        raise
    except ValueError:  # a number of thousands of digits
        raise InvalidError("the body holds a number that is too long") from None
    if _deeper(value, DEPTH):
        raise TooDeepError(f"the body is more than {DEPTH} levels deep")
    if b"\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidError("the body holds a surrogate without its other half") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidError(f"the body has {twice!r} twice in one object")
    return value


def _no_constant(text: str) -> NoReturn:
    raise InvalidError(f"the body holds {text}, which is not JSON")


def _deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(it, levels - 1) for it in inside)
