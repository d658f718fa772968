"""The ASGI application: routes, API keys, error responses and the page."""

import asyncio
import hashlib
import logging
import random
import re
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import recblr
from recblr.errors import InputError
from recblr.serving import api
from recblr.serving.admission import Admission
from recblr.serving.fair_queue import BusyError
from recblr.serving.http_input import JSON, Call, Headers, RefusedError, read_body
from recblr.serving.keys import ADMIN, DEFAULT_TENANT, Keys
from recblr.serving.operations import Operations
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import StorageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Mean delay of a 429. A client that retries at once would take time from the other tenants.
BUSY_SECONDS = 0.5
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
WATCH_SECONDS = 1.0  # between two looks at the file of keys and the gauges
MAX_REASON = 500  # characters of an error, which may quote a request
STATUSES: dict[type[Exception], int] = {
    InputError: 422,
    BusyError: 429,
    StorageError: 503,
}
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
EXTRA_HEADERS = {
    401: [(b"www-authenticate", b"Bearer")],
    429: [(b"retry-after", b"1")],
    503: [(b"retry-after", b"1")],
}

log = logging.getLogger("recblr.http")


class Application:
    """The ASGI application.

    Args:
        operations: handles the requests.
        keys: the API keys. Without, every client is the one tenant and the administrator, and the
            host name of a request must be that of this machine.
        settings: limits, path prefix and access log.
    """

    def __init__(self, operations: Operations, keys: Keys | None, settings: ServerSettings) -> None:
        self._operations, self._keys, self._settings = operations, keys, settings
        self._prefix = settings.path_prefix.rstrip("/")
        self._admission = Admission(settings, lambda: operations.engine.computing)
        operations.server_metrics.gauge(
            "requests_waiting", "Not answered yet.", "sum",
            lambda: operations.engine.waiting + self._admission.waiting,
        )  # fmt: skip
        operations.server_metrics.gauge(
            "rebuilding", "Whether states of an earlier model are replaced.", "max",
            lambda: operations.engine.rebuilding,
        )  # fmt: skip
        operations.server_metrics.gauge(
            "ready", "Whether the storage works and the model is served.", "min",
            lambda: not operations.failure,
        )  # fmt: skip
        self._hosts = {name.encode() for name in (*LOCAL_NAMES, settings.host)}
        document = msgspec.json.encode(
            api.openapi(recblr.__version__, self._prefix, keys is not None)
        )
        page, policy = _page()
        self._documents: dict[str, tuple[bytes, bytes, list[tuple[bytes, bytes]]]] = {
            "/openapi.json": (document, JSON.encode(), []),
            "/": (page, b"text/html; charset=utf-8", [(b"content-security-policy", policy)]),
        }
        self._routes: dict[str, dict[str, str]] = {}  # path, then method, to operation
        for name, operation in api.OPERATIONS.items():
            path = re.sub(r"\{\w+\}", "*", operation.path)
            self._routes.setdefault(path, {})[operation.method] = name
            if operation.method == "GET":
                self._routes[path]["HEAD"] = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _run(self, receive: Receive, send: Send) -> None:
        """Follow swaps and watch the storage until the server ends; then close the engine."""
        swaps = self._operations.swaps
        self._operations.engine.read_on(asyncio.get_running_loop(), self._admission.resume)
        loops = swaps.follow(), swaps.watch(), self._watch()
        tasks = [asyncio.create_task(loop) for loop in loops]
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(self._operations.engine.close)
        await send({"type": "lifespan.shutdown.complete"})

    def _reload(self) -> None:
        """Read the keys again, on SIGHUP."""
        if self._keys is not None:
            self._keys.reload()

    async def _watch(self) -> None:
        """Read the keys again when their file changes, and keep the gauges up to date."""
        while True:
            self._operations.server_metrics.refresh()
            await asyncio.sleep(WATCH_SECONDS)
            if self._keys is not None:
                self._keys.reload(only_if_changed=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        headers: Headers = dict(scope["headers"])
        request_id = _request_id(headers)
        name = "none"
        content_type = JSON.encode()
        more: list[tuple[bytes, bytes]] = []
        try:
            if self._keys is None and _host(headers) not in self._hosts:
                raise RefusedError(400, "this host name is not accepted")
            # Paths are matched before %2F is decoded to a slash, because ids may contain slashes.
            path = scope["raw_path"].decode("latin-1")
            if self._prefix and not path.startswith(f"{self._prefix}/"):
                raise RefusedError(404, f"no such path; see {self._prefix}/openapi.json")
            path = path[len(self._prefix) :]
            if path in self._documents:
                _check_method(scope["method"], {"GET": "", "HEAD": ""}, more)
                status = 200
                body, content_type, more = self._documents[path]
            else:
                methods, parameter = self._find(path)
                name = _check_method(scope["method"], methods, more)
                status, body, content_type, more = await self._call(
                    name, parameter, scope, headers, receive
                )
        except RefusedError as error:
            status, body = error.status, _error(error)
        except Exception:  # a bug
            log.exception("a bug", extra={"fields": {"request": request_id, "operation": name}})
            status, body = 500, _error(f"internal server error, request {request_id}")
        seconds = time.perf_counter() - begin
        self._operations.server_metrics.observe_request(name, status, seconds)
        if self._settings.access_log:
            log.info("answered", extra={"fields": {
                "request": request_id, "client": (scope.get("client") or [""])[0],
                "method": scope["method"], "operation": name, "status": status,
                "ms": round(1e3 * seconds, 2), "bytes": len(body),
            }})  # fmt: skip
        length = (b"content-length", str(len(body)).encode())
        await send({
            "type": "http.response.start", "status": status,
            "headers": [
                (b"content-type", content_type), length, *HEADERS,
                (b"x-request-id", request_id.encode()),
                *EXTRA_HEADERS.get(status, ()), *more,
            ],
        })  # fmt: skip
        await send({"type": "http.response.body", "body": body})

    def _find(self, path: str) -> tuple[dict[str, str], str]:
        """The operations of a path by method, and the id in the path."""
        if (methods := self._routes.get(path)) is not None and "*" not in path:
            return methods, ""
        parts = path.split("/")
        if len(parts) > 3 and parts[3]:
            parameter, parts[3] = parts[3], "*"
            if (methods := self._routes.get("/".join(parts))) is not None:
                return methods, parameter
        raise RefusedError(404, "no such path; see /openapi.json")

    async def _call(
        self, name: str, parameter: str, scope: Scope, headers: Headers, receive: Receive
    ) -> tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]:
        """Check the key, call an operation and turn errors into responses."""
        operation, admission = api.OPERATIONS[name], self._admission
        status, held, tenant = 200, 0, ""

        def hold(size: int) -> None:
            nonlocal held
            admission.hold(tenant, size)
            held += size

        try:
            tenant = self._tenant(headers, operation)
            body, turn = b"", partial(admission.turn, tenant)
            if operation.body:
                body = await read_body(headers, receive, hold, turn, self._settings)
            call = Call(tenant, parameter, scope["query_string"], body, turn)
            if operation.access == "tenant":
                await admission.enter(tenant)
                try:
                    await turn()
                    result = await getattr(self._operations, name)(call)
                finally:
                    admission.leave(tenant)
            else:
                result = await getattr(self._operations, name)(call)
        except RefusedError as error:
            status, result = error.status, error
        except tuple(STATUSES) as error:
            status = next(code for kind, code in STATUSES.items() if isinstance(error, kind))
            result = error
        finally:
            if held:
                admission.hold(tenant, -held)
        if status == 429:
            await asyncio.sleep(random.uniform(0, 2 * BUSY_SECONDS))
        if isinstance(result, bytes):
            return status, result, b"text/plain; version=0.0.4", []
        model = getattr(result, "model", self._operations.engine.model.hash)
        content = _error(result) if status != 200 else msgspec.json.encode(result)
        return status, content, JSON.encode(), [(b"x-model", model.encode())]

    def _tenant(self, headers: Headers, operation: api.Operation) -> str:
        """The tenant of a request's key.

        Raises:
            RefusedError: the key is missing, unknown, or does not allow the operation.
        """
        if self._keys is None or operation.access == "everyone":
            return DEFAULT_TENANT
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        tenant = self._keys.tenant(key) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise RefusedError(401, "send a key: Authorization: Bearer …")
        if (tenant == ADMIN) != (operation.access == "admin"):
            raise RefusedError(403, "this key does not allow the operation")
        return tenant


def _check_method(method: str, methods: dict[str, str], headers: list[tuple[bytes, bytes]]) -> str:
    """The operation of a method; if there is none, the allowed methods are added to ``headers``."""
    if method not in methods:
        headers.append((b"allow", ", ".join(sorted(methods)).encode()))
        raise RefusedError(405, "method not allowed; see /openapi.json")
    return methods[method]


def _request_id(headers: Headers) -> str:
    """The id that the client or a proxy has given a request, or a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def _host(headers: Headers) -> bytes:
    """The host name of a request, without a port."""
    host = headers.get(b"host", b"").lower()
    name, _, port = host.rpartition(b":")
    return name if name and port.isdigit() else host


def _error(reason: object) -> bytes:
    return msgspec.json.encode(api.ErrorResponse(str(reason)[:MAX_REASON]))


def _page() -> tuple[bytes, bytes]:
    """The page, and a content security policy that allows only its own style and script."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    inline = {tag: page.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script")}
    hashes = {
        tag: b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in inline.items()
    }
    policy = (
        f"default-src 'none'; img-src data:; connect-src 'self'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy.encode()
