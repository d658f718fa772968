"""Read and validate what an HTTP request contains: body, path and query."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from recblr.data.vocabulary import MAX_ID_BYTES, check_id
from recblr.serving.api import MAX_IDS, OPERATIONS
from recblr.serving.parsing import InvalidError, TooDeepError, parse_json
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import User

JSON = "application/json"

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
        turn: waits for the tenant's next turn on the event loop.
    """

    tenant: str
    name: str
    query: bytes
    body: bytes
    turn: Callable[[], Awaitable[None]]

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
    headers: Headers, receive: Any, hold: Callable[[int], None],
    turn: Callable[[], Awaitable[None]], settings: ServerSettings,
) -> bytes:  # fmt: skip
    """The body of a request.

    ``hold`` is told the number of bytes in memory, and may refuse them; ``turn`` is that of a Call.

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
                if more := message.get("more_body", False):
                    await turn()
    except TimeoutError:
        raise RefusedError(
            408, f"the body did not arrive in {settings.body_seconds:g} seconds"
        ) from None
    return bytes(body)


async def decode_body(call: Call) -> Any:
    """The decoded JSON body.

    Raises:
        RefusedError: it is not JSON.
        InvalidError: the JSON is nested too deeply, or has too many values.
    """
    await call.turn()
    try:
        return parse_json(call.body)
    except TooDeepError:
        raise
    except InvalidError as error:
        raise RefusedError(400, str(error)) from None


@lru_cache(256)
def read_query(query: bytes, operation: str) -> Mapping[str, Any]:
    """The parameters of a query string, with the defaults of the operation."""
    parameters = OPERATIONS[operation].query
    values = {parameter.name: parameter.default for parameter in parameters}
    kinds = {parameter.name: parameter.kind for parameter in parameters}
    given: set[str] = set()
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in kinds:
            raise InvalidError(f"no parameter {name!r}; there are {', '.join(kinds) or 'none'}")
        if name in given:
            raise InvalidError(f"{name}: is given twice")
        given.add(name)
        try:
            values[name] = msgspec.convert(text, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidError(f"{name}: {error}") from None
    return MappingProxyType(values)


def read_ids(values: list[str | int], name: str) -> tuple[str, ...]:
    """The ids in a list of the body; ``name`` is the field for error messages."""
    if len(values) > MAX_IDS[name]:
        raise InvalidError(f"{name}: give at most {MAX_IDS[name]:,} ids, found {len(values):,}")
    if _are_ascii(values):  # all at once, because lists can be long
        return tuple(values)  # type: ignore[arg-type]
    return tuple(check_id(value, f"{name}[{number}]") for number, value in enumerate(values))


def _are_ascii(values: list[Any]) -> bool:
    """Whether all values are ids as :func:`check_id` returns them. It may be False if they are."""
    try:
        lengths = set(map(len, values))
        text = "".join(values)
    except TypeError:
        return False
    short = not lengths or 0 < min(lengths) <= max(lengths) <= MAX_ID_BYTES
    return short and text.isascii() and "\0" not in text
