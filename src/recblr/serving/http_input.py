"""Read and validate what an HTTP request contains: body, path and query."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from recblr.data.vocabulary import MAX_ID_BYTES, check_id
from recblr.serving.api import MAX_IDS, Operation
from recblr.serving.parsing import InvalidError, TooDeepError, parse_json
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import User

JSON = "application/json"
LARGE_BODIES_RATE = 50e6  # bytes of large bodies a second, of all clients
LARGE_BODY = 16_384  # bytes from which the time to decode a body matters to others

Headers = Mapping[bytes, bytes]


class RefusedError(Exception):
    """A request that is answered with an error status and a one-line reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an operation.

    Attributes:
        tenant: whose key it has.
        name: the part of the path that names a user or an event, percent-encoded.
        query: the query string.
        body: the body, not decoded.
    """

    tenant: str
    name: str
    query: bytes
    body: bytes

    def id(self, kind: str) -> str:
        """The id that the path names; ``kind`` is its field in messages."""
        try:
            text = unquote_to_bytes(self.name).decode()
        except UnicodeDecodeError:
            raise InvalidError(f"{kind}: not UTF-8") from None
        return check_id(text, kind)

    @property
    def user(self) -> User:
        """The user that the path names."""
        return self.tenant, self.id("user_id")


async def read_body(
    headers: Headers, receive: Any, hold: Callable[[int], None], settings: ServerSettings
) -> bytes:
    """The body of a request.

    ``hold`` is told the number of bytes in memory, and may refuse them.

    Raises:
        RefusedError: the body is of another type, too large or too slow.
    """
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON.encode():
        raise RefusedError(415, f"send {JSON}")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise RefusedError(415, "send the body without Content-Encoding")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "the client disconnected")
                chunk = message.get("body", b"")
                hold(len(chunk))
                body += chunk
                if len(body) > settings.max_body_bytes:
                    raise RefusedError(
                        413, f"the body has more than {settings.max_body_bytes:,} bytes"
                    )
                more = message.get("more_body", False)
    except TimeoutError:
        raise RefusedError(
            408, f"the body did not arrive in {settings.body_seconds:g} seconds"
        ) from None
    return bytes(body)


async def decode_body(body: bytes, turn: asyncio.Lock) -> Any:
    """The decoded JSON body. Large ones are decoded in turn, with pauses for other requests.

    Raises:
        RefusedError: it is not JSON.
        InvalidError: the JSON is nested too deeply, or has too many values.
    """
    if len(body) < LARGE_BODY:
        return _decode(body)
    async with turn:
        begin = time.perf_counter()
        try:
            return _decode(body)
        finally:
            pause = max(time.perf_counter() - begin, len(body) / LARGE_BODIES_RATE)
            await asyncio.sleep(pause)


def _decode(body: bytes) -> Any:
    try:
        return parse_json(body)
    except TooDeepError:
        raise
    except InvalidError as error:
        raise RefusedError(400, str(error)) from None


def read_query(call: Call, operation: Operation) -> dict[str, Any]:
    """The parameters of the query string, with the defaults of the operation."""
    values = {parameter.name: parameter.default for parameter in operation.query}
    if not call.query:
        return values
    kinds = {parameter.name: parameter.kind for parameter in operation.query}
    given: set[str] = set()
    for name, text in parse_qsl(call.query.decode("latin-1"), keep_blank_values=True):
        if name not in kinds:
            raise InvalidError(f"no parameter {name!r}; there are {', '.join(kinds) or 'none'}")
        if name in given:
            raise InvalidError(f"{name}: is given twice")
        given.add(name)
        try:
            values[name] = msgspec.convert(text, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidError(f"{name}: {error}") from None
    return values


def read_ids(values: list[str | int], name: str) -> tuple[str, ...]:
    """The ids in a list of the body; ``name`` is the field for error messages."""
    if len(values) > MAX_IDS[name]:
        raise InvalidError(f"{name}: give at most {MAX_IDS[name]:,} ids, found {len(values):,}")
    if _are_short_texts(values):  # all at once, because lists can be long
        return tuple(values)  # type: ignore[arg-type]
    return tuple(check_id(value, f"{name}[{number}]") for number, value in enumerate(values))


def _are_short_texts(values: list[Any]) -> bool:
    """Whether all values are ids as :func:`check_id` returns them. It may be False if they are."""
    try:
        lengths = set(map(len, values))
        text = "".join(values)
    except TypeError:
        return False
    short = not lengths or 0 < min(lengths) <= max(lengths) <= MAX_ID_BYTES // 4
    return short and text.isascii() and "\0" not in text
