"""Strict parsing of JSON, events and ids that clients send."""

import json
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import numpy as np

from recblr.data.vocabulary import MAX_ID_BYTES, check_id
from recblr.errors import InputError
from recblr.serving.storage import Event
from recblr.serving.timestamps import check_not_future, parse_timestamp

MAX_DEPTH = 32
MAX_SEPARATORS = 50_000  # commas and colons of a body: a bound on the time to decode it
CONTAINERS = {dict, list}
MAX_SHOWN = 40  # characters of a client's text in a message

T = TypeVar("T")
TEXT_SCHEMA = {"minLength": 1, "maxLength": MAX_ID_BYTES, "pattern": "^[^\\u0000]*$"}
ID_SCHEMA = {  # of text and of whole numbers; the limit of the text is in bytes
    **TEXT_SCHEMA, "minimum": -(2**63), "maximum": 2**63 - 1,
}  # fmt: skip
Id = Annotated[str | int, msgspec.Meta(extra_json_schema=ID_SCHEMA)]


class InvalidError(InputError):
    """A request is malformed."""


class TooDeepError(InvalidError):
    """JSON is nested too deeply, or has too many values."""


class EventBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An event: which user acted on which item, and when.

    Ids have 1 to 256 bytes. The client chooses ``event_id``; an event that is sent twice counts once.
    ``timestamp`` is seconds, milliseconds, microseconds or nanoseconds since 1970, of our days, or an
    ISO 8601 date, in UTC without a zone. It is stored in seconds. Any other number that grows with time
    is stored as it is. ``kind`` says what sort of event it is, such as ``view`` or ``purchase``; only a
    model of a log with kinds reads it.
    """

    event_id: Id
    user_id: Id
    item_id: Id
    timestamp: Annotated[int | float | str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    kind: Id | None = None


def parse_event(value: object) -> Event:
    """An event from decoded JSON.

    Raises:
        InputError: a field is missing, unknown or invalid.
    """
    body = parse_body(value, EventBody)
    timestamp = parse_timestamp(body.timestamp)
    check_not_future(timestamp)
    return Event(
        check_id(body.event_id, "event_id"), check_id(body.user_id, "user_id"),
        check_id(body.item_id, "item_id"), timestamp,
        "" if body.kind is None else check_id(body.kind, "kind"),
    )  # fmt: skip


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

    The time is linear in the length of the text, and small beyond a number of values.

    Raises:
        InvalidError: what is wrong, and where.
    """
    characters = np.frombuffer(text, np.uint8)  # bytes.count takes several times as long
    commas, colons = (int(np.count_nonzero(characters == ord(each))) for each in ",:")
    if commas + colons > MAX_SEPARATORS:
        raise TooDeepError(f"the body has more than {MAX_SEPARATORS:,} commas and colons")
    try:
        value = _decoder.decode(text)
        keys = _count_keys(value)
    except TooDeepError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError):
        keys = -1
    # With a colon more than keys, a key may be there twice.
    return value if keys == colons else _parse_slowly(text)


def _parse_slowly(text: bytes) -> Any:
    """:func:`parse_json` at half the speed; it finds duplicate keys and says what is wrong."""
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant,
            parse_float=_number,
        )  # fmt: skip
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
    _count_keys(value)
    if b"\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidError("the body contains an unpaired surrogate") from None
    return value


def _number(text: str) -> int | float:
    """A number with a fraction or an exponent. 7.0 is the whole number 7, as in JSON Schema."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise InvalidError(f"the body has the key {name[:MAX_SHOWN]!r} twice in one object")
            names.add(name)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise InvalidError(f"the body contains {text}, which is not JSON")


def _count_keys(value: object) -> int:
    """The number of keys in all objects; looks at one level after the other.

    Raises:
        TooDeepError: there are too many levels.
    """
    containers: list[Any] = [value] if type(value) in CONTAINERS else []
    keys = 0
    for _ in range(MAX_DEPTH):
        keys += sum(len(each) for each in containers if isinstance(each, dict))
        levels = [each.values() if isinstance(each, dict) else each for each in containers]
        # A long list of texts is not looked at one by one.
        nested = [each for each in levels if not CONTAINERS.isdisjoint(map(type, each))]
        containers = [child for each in nested for child in each if type(child) in CONTAINERS]
    if containers:
        raise TooDeepError(f"the body is more than {MAX_DEPTH} levels deep")
    return keys


_decoder = msgspec.json.Decoder(float_hook=_number)
