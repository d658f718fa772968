"""Read and validate what an HTTP request contains: body, path and query."""

import asyncio
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import ClientDisconnect, Request

from recblr.data.vocabulary import check_id
from recblr.serving.api import Operation
from recblr.serving.parsing import InvalidError, TooDeepError, parse_json
from recblr.serving.storage import User

JSON = "application/json"
MAX_BODY_BYTES = 1_000_000
BODY_SECONDS = 10.0  # time for a body to arrive


class RefusedError(Exception):
    """A request that is answered with an error status and a one-line reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def read_body(request: Request) -> Any:
    """The decoded JSON body.

    Raises:
        RefusedError: the body is too large, too slow, or not JSON.
        InvalidError: the JSON is nested too deeply.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RefusedError(415, f"send {JSON}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RefusedError(413, f"the body has more than {MAX_BODY_BYTES:,} bytes")
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive in {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise RefusedError(400, "the client disconnected") from None
    try:
        return parse_json(bytes(body))
    except TooDeepError:
        raise
    except InvalidError as error:
        raise RefusedError(400, str(error)) from None


def read_user(tenant: str, request: Request) -> User:
    """The user that the path names."""
    try:
        text = unquote_to_bytes(request.path_params["user_id"]).decode()
    except UnicodeDecodeError:
        raise InvalidError("user_id: not UTF-8") from None
    return tenant, check_id(text, "user_id")


def read_query(request: Request, operation: Operation) -> dict[str, Any]:
    """The parameters of the query string, with the defaults of the operation."""
    kinds = {parameter.name: parameter.kind for parameter in operation.query}
    values = {parameter.name: parameter.default for parameter in operation.query}
    for name, text in request.query_params.multi_items():
        if name not in kinds:
            raise InvalidError(f"no parameter {name!r}; there are {', '.join(kinds) or 'none'}")
        try:
            values[name] = msgspec.convert(text, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidError(f"{name}: {error}") from None
    return values


def read_ids(values: list[str | int], name: str) -> tuple[str, ...]:
    """The ids in a list of the body; ``name`` is the field for error messages."""
    return tuple(check_id(value, f"{name}[{number}]") for number, value in enumerate(values))
