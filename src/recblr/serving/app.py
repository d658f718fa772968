"""The ASGI application: routes, API keys, error responses and the page."""

import asyncio
import hashlib
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from recblr.errors import InputError
from recblr.serving import api
from recblr.serving.fair_queue import BusyError
from recblr.serving.http_input import JSON, RefusedError
from recblr.serving.keys import ADMIN, DEFAULT_TENANT, Keys
from recblr.serving.operations import Operations
from recblr.serving.storage import StorageError

Endpoint = Callable[[Request], Awaitable[Response]]

# Mean delay of a 429. A client that retries at once would take time from the other tenants.
BUSY_SECONDS = 0.5
STATUSES: dict[type[Exception], int] = {
    InputError: 422,
    BusyError: 429,
    StorageError: 503,
}


def application(operations: Operations, keys: Keys | None, hosts: list[str]) -> Any:
    """The ASGI application.

    Args:
        operations: handles the requests.
        keys: the API keys. Without, every client is the one tenant and the administrator.
        hosts: the accepted host names of requests.
    """
    page, policy = _page()
    document = msgspec.json.encode(api.openapi(version("recblr")))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type=JSON)

    async def home(request: Request) -> Response:
        return Response(page, headers={"Content-Security-Policy": policy}, media_type="text/html")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(operations.swaps.follow())
        yield
        following.cancel()
        await asyncio.to_thread(operations.engine.close)

    routes = [
        Route(operation.path, _endpoint(operations, name, keys), methods=[operation.method])
        for name, operation in api.OPERATIONS.items()
    ]
    routes += [Route("/openapi.json", openapi), Route("/", home)]
    app = Starlette(
        routes=routes, lifespan=lifespan,
        exception_handlers={404: _no_route, 405: _no_route, Exception: _internal_error},
    )  # fmt: skip
    app.router.redirect_slashes = False

    async def with_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        """Match paths before %2F is decoded to a slash, because ids may contain slashes."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await app(scope, receive, send)

    return TrustedHostMiddleware(with_raw_path, hosts, www_redirect=False)


def _endpoint(operations: Operations, name: str, keys: Keys | None) -> Endpoint:
    """An operation that checks the key first and turns errors into responses."""
    operation, handle = api.OPERATIONS[name], getattr(operations, name)

    async def endpoint(request: Request) -> Response:
        begin, status = time.perf_counter(), 200
        try:
            result: Any = await handle(_authorized_tenant(request, operation, keys), request)
        except RefusedError as error:
            status, result = error.status, api.ErrorResponse(str(error))
        except tuple(STATUSES) as error:
            status = next(code for kind, code in STATUSES.items() if isinstance(error, kind))
            result = api.ErrorResponse(str(error))
        if status == 429:
            await asyncio.sleep(random.uniform(0, 2 * BUSY_SECONDS))
        operations.server_metrics.observe_request(name, status, time.perf_counter() - begin)
        if isinstance(result, bytes):
            return Response(result, status, media_type="text/plain; version=0.0.4")
        headers = {"X-Model": getattr(result, "model", operations.engine.model.hash)}
        if status in (429, 503):
            headers["Retry-After"] = "1"
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(msgspec.json.encode(result), status, headers, JSON)

    return endpoint


def _authorized_tenant(request: Request, operation: api.Operation, keys: Keys | None) -> str:
    """The tenant of a request's key.

    Raises:
        RefusedError: the key is missing, unknown, or does not allow the operation.
    """
    if keys is None or operation.access == "everyone":
        return DEFAULT_TENANT
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    tenant = keys.tenant(key) if scheme.lower() == "bearer" else None
    if tenant is None:
        raise RefusedError(401, "send a key: Authorization: Bearer …")
    if (tenant == ADMIN) != (operation.access == "admin"):
        raise RefusedError(403, "this key does not allow the operation")
    return tenant


def _page() -> tuple[str, str]:
    """The page, and a content security policy that allows only its own style and script."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    inline = {tag: page.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script")}
    hashes = {
        tag: b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in inline.items()
    }
    return page, (
        f"default-src 'none'; img-src data:; connect-src 'self'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; frame-ancestors 'none'"
    )


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    reason = "no such path" if status == 404 else "method not allowed"
    response = api.ErrorResponse(f"{reason}; see /openapi.json")
    return Response(msgspec.json.encode(response), status, None, JSON)


async def _internal_error(request: Request, error: Exception) -> Response:
    response = api.ErrorResponse("internal server error")
    return Response(msgspec.json.encode(response), 500, None, JSON)
