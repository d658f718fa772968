"""Strict parsing of JSON, events and ids that clients send."""

import json
from typing import Any, NoReturn, TypeVar

import msgspec

from recblr.serving.storage import Event

MAX_ID_BYTES = 256
MAX_DEPTH = 32
MAX_TIMESTAMP = 1e15  # far beyond the microseconds of any calendar

T = TypeVar("T")


class InvalidError(ValueError):
    """A request is malformed; the message is one line."""


class TooDeepError(InvalidError):
    """JSON is nested too deeply."""


class EventBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An event: which user acted on which item, and when.

    Ids have 1 to 256 bytes. The client chooses ``event_id``; an event that is sent twice counts once.
    ``timestamp`` is a number that grows with time: seconds since 1970, or any unit that all events of
    the user share.
    """

    event_id: str | int
    user_id: str | int
    item_id: str | int
    timestamp: float


def parse_event(value: object) -> Event:
    """An event from decoded JSON.

    Raises:
        InvalidError: a field is missing, unknown or invalid.
    """
    body = parse_body(value, EventBody)
    if not abs(body.timestamp) <= MAX_TIMESTAMP:
        raise InvalidError(
            f"timestamp: must be within ±{MAX_TIMESTAMP:.0e}, found {body.timestamp}"
        )
    return Event(
        parse_id(body.event_id, "event_id"), parse_id(body.user_id, "user_id"),
        parse_id(body.item_id, "item_id"), body.timestamp + 0.0,
    )  # fmt: skip


def parse_id(value: str | int, name: str) -> str:
    """An id as text; ``name`` is the field for error messages.

    Raises:
        InvalidError: the id is empty, too long, or not valid Unicode.
    """
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidError(f"{name}: contains an unpaired surrogate") from None
    if not 0 < size <= MAX_ID_BYTES:
        raise InvalidError(f"{name}: must have 1 to {MAX_ID_BYTES} bytes, found {size}")
    if "\0" in text:
        raise InvalidError(f"{name}: contains a NUL character")
    return text


def parse_body(value: object, kind: type[T]) -> T:
    """Decoded JSON as a structure of the API.

    Raises:
        InvalidError: a field is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidError(str(error)) from None


def parse_json(text: bytes) -> Any:
    """Strict JSON: valid Unicode, no NaN, no duplicate keys, at most 32 levels deep.

    Raises:
        InvalidError: what is wrong, and where.
    """
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise InvalidError(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidError(
            f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise TooDeepError(f"the body is more than {MAX_DEPTH} levels deep") from None
    except InvalidError:
        raise
    except ValueError:  # int() refuses thousands of digits
        raise InvalidError("the body contains a number that is too long") from None
    if _is_deeper(value, MAX_DEPTH):
        raise TooDeepError(f"the body is more than {MAX_DEPTH} levels deep")
    if b"\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidError("the body contains an unpaired surrogate") from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise InvalidError(f"the body has the key {duplicate!r} twice in one object")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise InvalidError(f"the body contains {text}, which is not JSON")


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)
