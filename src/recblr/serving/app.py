"""The HTTP server: who asks, what for, and whether that is within the limits."""

import asyncio
import hashlib
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np
import prometheus_client
import torch
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from recblr.errors import InputError
from recblr.influence import influence
from recblr.models.recblr import RecBLR
from recblr.serving import api
from recblr.serving.engine import Engine, Outcome, Query, Recommended
from recblr.serving.events import (
    Event,
    InvalidError,
    TooDeepError,
    User,
    read_body,
    read_event,
    read_id,
    read_json,
)
from recblr.serving.keys import ADMIN, Keys
from recblr.serving.line import BusyError
from recblr.serving.model import ServedModel
from recblr.serving.store import Served, StoreError

BODY = 1_000_000  # bytes
EVENTS = 1_000  # of a request
SHOWN = 1_000  # events whose influence is answered
PATIENCE = 10.0  # seconds for a body to arrive
PAUSE = 0.5  # seconds before a refusal, on average: who asks again at once keeps others waiting
FOLLOWING = 1.0  # seconds from one look at what is to be served to the next
ALONE = "default"  # the tenant where there are no keys
JSON = "application/json"

T = TypeVar("T")


class RefusedError(Exception):
    """A request that is answered with a status and a line that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server:
    """One method an operation of ``api.OPERATIONS``, of the same name.

    Args:
        engine: does the work.
        keys: whose they are; without, everybody is the one tenant and the administrator.
        models: the folder that models are swapped in from.
        titles: of items, by id.
    """

    def __init__(
        self, engine: Engine, keys: Keys | None, models: Path, titles: Mapping[str, str]
    ) -> None:
        self.engine, self._keys, self._models, self._titles = engine, keys, models, titles
        self._swapping = asyncio.Lock()
        self._behind = ""  # why the model that is to be served is not
        registry = prometheus_client.CollectorRegistry()
        self._registry = registry
        self._seconds = prometheus_client.Histogram(
            "recblr_request_seconds", "Time to answer.", ["operation", "status"],
            registry=registry, buckets=[0.001 * 2**n for n in range(13)],
        )  # fmt: skip
        self._events = prometheus_client.Counter(
            "recblr_events", "Events received.", ["outcome"], registry=registry
        )
        waiting = prometheus_client.Gauge(
            "recblr_requests_waiting", "Not answered yet.", registry=registry
        )
        waiting.set_function(lambda: engine.waiting)

    # ---- operations ------------------------------------------------------------------------------

    async def record(self, tenant: str, request: Request) -> api.Recorded:
        body = await _body(request)
        alone = not (isinstance(body, dict) and "events" in body)
        sent, wish = [body], None
        if not alone:
            sent = body["events"]
            wish = read_body({**body, "events": []}, api.Batch).recommend
            if not isinstance(sent, list) or not 0 < len(sent) <= EVENTS:
                raise RefusedError(422, f"events: give a list of 1 to {EVENTS:,}")
        events = [_event(it) for it in sent]
        if alone and isinstance(events[0], InvalidError):
            raise events[0]
        whole = [it for it in events if isinstance(it, Event)]
        kept: list[Outcome] = []
        best = None
        if whole and wish is not None:
            query = Query(wish.k, wish.hide_seen)
            kept, best = await _done(self.engine.record_and_recommend(tenant, whole, query))
        elif whole:
            kept = await _done(self.engine.record(tenant, whole))
        left = iter(kept)
        outcomes = [
            next(left) if isinstance(it, Event) else Outcome("rejected", str(it)) for it in events
        ]
        for outcome in outcomes:
            self._events.labels(outcome.status).inc()
        if alone and outcomes[0].status == "rejected":
            raise RefusedError(409, outcomes[0].reason)
        results = [
            api.Result(it.status, event.event_id if isinstance(event, Event) else None, it.reason)
            for event, it in zip(events, outcomes, strict=True)
        ]
        recommendations = best and self._items(best)
        model = best.model if best else self.engine.model
        return api.Recorded(model.hash, results, recommendations)

    async def recommend(self, tenant: str, request: Request) -> api.Recommendations:
        asked = _query(request, api.OPERATIONS["recommend"])
        query = Query(asked["k"], asked["hide_seen"])
        return self._items(await _done(self.engine.recommend(_user(tenant, request), query)))

    async def recommend_for(self, tenant: str, request: Request) -> api.Recommendations:
        asked = read_body(await _body(request), api.Asked)
        if (asked.user_id is None) == (asked.history is None):
            raise RefusedError(422, "give user_id or history, one of the two")
        query = Query(
            asked.k, asked.hide_seen, None if asked.allow is None else _ids(asked.allow, "allow"),
            _ids(asked.deny, "deny"),
        )  # fmt: skip
        if asked.user_id is not None:
            user = tenant, read_id(asked.user_id, "user_id")
            return self._items(await _done(self.engine.recommend(user, query)))
        history = _ids(asked.history or [], "history")
        return self._items(await _done(self.engine.recommend_after(tenant, history, query)))

    async def describe(self, tenant: str, request: Request) -> api.UserState:
        user = _user(tenant, request)
        latest = _query(request, api.OPERATIONS["describe"])["history"]
        about = await _done(self.engine.describe(user, events=latest > 0))
        if about.last is None:
            raise RefusedError(404, f"no events of user {user[1]!r}")
        timestamp, event_id = about.last
        history = [
            api.Past(event_id, item, timestamp, self._titles.get(item, ""))
            for timestamp, event_id, item in about.events[: -latest - 1 : -1]
        ]
        return api.UserState(
            about.model.hash, user[1], about.count, about.known, event_id, timestamp,
            time.time() - timestamp, about.model.start.nbytes, history,
        )  # fmt: skip

    async def users(self, tenant: str, request: Request) -> api.Users:
        limit = _query(request, api.OPERATIONS["users"])["limit"]
        found = await _done(self.engine.users(tenant, limit))
        return api.Users(self.engine.model.hash, found)

    async def influence(self, tenant: str, request: Request) -> api.Influences:
        user = _user(tenant, request)
        item_id = _query(request, api.OPERATIONS["influence"])["item_id"]
        about = await _done(self.engine.describe(user, events=True))
        model = about.model
        known = [it for it in about.events if model.knows(it[2])]
        if not known:
            raise RefusedError(404, f"no events of user {user[1]!r} that the model knows")
        if not item_id:
            best = await _done(self.engine.recommend(user, Query(1)))
            item_id = str(best.model.item_ids[best.rows[0]]) if len(best.rows) else ""
        wanted = model.rows([item_id])
        if not len(wanted):
            raise RefusedError(404, f"no item {item_id!r} that the model knows")
        if not isinstance(model.network, RecBLR):
            raise RefusedError(422, f"no influence of single events in a {model.name}")
        rows = torch.from_numpy(model.rows([it[2] for it in known]))
        target = int(wanted[0])
        found = await asyncio.to_thread(influence, model.network, rows, target, model.memory)
        parts = zip(
            found.first_layer.tolist(), found.score.tolist(), found.memory.tolist(), strict=True
        )
        events = [
            api.Influence(event_id, item, timestamp, *of_event, self._titles.get(item, ""))
            for (timestamp, event_id, item), of_event in zip(known, parts, strict=True)
        ]
        latest = events[: -SHOWN - 1 : -1]
        return api.Influences(model.hash, model.item_ids[target], found.repeat, latest)

    async def erase(self, tenant: str, request: Request) -> api.Erased:
        events = await _done(self.engine.erase(_user(tenant, request)))
        return api.Erased(self.engine.model.hash, events)

    async def swap(self, tenant: str, request: Request) -> api.Swapped:
        name = read_id(read_body(await _body(request), api.SwapBody).name, "name")
        folders = {it.name: it for it in self._models.iterdir() if not it.is_symlink()}
        if name not in folders:  # so that no path is ever made of what was sent
            raise RefusedError(404, f"no model {name!r}")
        if self._swapping.locked():
            raise RefusedError(429, "another model is being loaded")
        async with self._swapping:
            before = self.engine.model.hash
            model = await asyncio.to_thread(ServedModel, folders[name])
            await _done(self.engine.swap(model))
        return api.Swapped(model.hash, before)

    async def follow(self) -> None:
        """For ever: serve the model that was swapped in through another server of the log."""
        seen: tuple[Served, str] | None = None  # what was to be served, and what then was
        while True:
            try:
                served, now = await _done(self.engine.served()), self.engine.model.hash
                if served and served.model != now and (served, now) != seen:
                    async with self._swapping:
                        if await _done(self.engine.served()) != served:
                            continue  # it was this server that swapped meanwhile
                        model = await asyncio.to_thread(ServedModel, Path(served.folder))
                        await _done(self.engine.follow(model))
                    seen = served, model.hash
                self._behind = ""
            except (StoreError, BusyError):
                pass  # it is asked again
            except Exception as error:  # a folder that is not there, or half there
                self._behind = str(error)
            await asyncio.sleep(FOLLOWING)

    async def live(self, tenant: str, request: Request) -> api.Health:
        return api.Health(self.engine.model.hash, "ok")

    async def ready(self, tenant: str, request: Request) -> api.Health:
        if self.engine.failure is not None:
            raise RefusedError(503, str(self.engine.failure))
        if self._behind:
            raise RefusedError(503, f"another model is to be served: {self._behind}")
        return api.Health(self.engine.model.hash, "ok")

    async def metrics(self, tenant: str, request: Request) -> bytes:
        return prometheus_client.generate_latest(self._registry)

    # ---- around them -----------------------------------------------------------------------------

    def endpoint(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """An operation with the key checked before and errors answered after."""
        operation, work = api.OPERATIONS[name], getattr(self, name)

        async def answer(request: Request) -> Response:
            begin, status, more = time.perf_counter(), 200, {}
            try:
                found: Any = await work(self._tenant(request, operation), request)
            except RefusedError as error:
                status, found = error.status, api.Problem(str(error))
            except (InvalidError, InputError) as error:
                status, found = 422, api.Problem(str(error))
            except BusyError as error:
                status, found = 429, api.Problem(str(error))
            except StoreError as error:
                status, found = 503, api.Problem(str(error))
            if status == 429:
                await asyncio.sleep(random.uniform(0, 2 * PAUSE))  # not all of them together
            if status in (429, 503):
                more = {"Retry-After": "1"}
            if status == 401:
                more = {"WWW-Authenticate": "Bearer"}
            self._seconds.labels(name, status).observe(time.perf_counter() - begin)
            if isinstance(found, bytes):
                return Response(found, status, media_type="text/plain; version=0.0.4")
            more["X-Model"] = getattr(found, "model", self.engine.model.hash)
            return Response(msgspec.json.encode(found), status, more, JSON)

        return answer

    def _items(self, found: Recommended) -> api.Recommendations:
        ids = [found.model.item_ids[row] for row in found.rows]
        scores = np.asarray(found.scores, np.float64).round(6).tolist()
        titles = (self._titles.get(str(item), "") for item in ids)
        items = [api.Item(*it) for it in zip(ids, scores, titles, strict=True)]
        return api.Recommendations(found.model.hash, found.basis, items)

    def _tenant(self, request: Request, operation: api.Operation) -> str:
        if self._keys is None or operation.key == "nobody":
            return ALONE
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        tenant = self._keys.tenant(key) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise RefusedError(401, "send a key: Authorization: Bearer …")
        if (tenant == ADMIN) != (operation.key == "admin"):
            raise RefusedError(403, "not with this key")
        return tenant


def application(server: Server, hosts: list[str]) -> Any:
    """The ASGI application; requests for other hosts than these are refused."""
    page, policy = _page()
    document = msgspec.json.encode(api.openapi(version("recblr")))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type=JSON)

    async def home(request: Request) -> Response:
        return Response(page, headers={"Content-Security-Policy": policy}, media_type="text/html")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(server.follow())
        yield
        following.cancel()
        await asyncio.to_thread(server.engine.close)

    routes = [
        Route(it.path, server.endpoint(name), methods=[it.method])
        for name, it in api.OPERATIONS.items()
    ]
    routes += [Route("/openapi.json", openapi), Route("/", home)]
    app = Starlette(
        routes=routes, lifespan=lifespan,
        exception_handlers={404: _no_path, 405: _no_path, Exception: _mistake},
    )  # fmt: skip
    app.router.redirect_slashes = False

    async def undecoded(scope: Scope, receive: Receive, send: Send) -> None:
        """Paths are matched before %2F becomes a slash, as an id may hold one."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await app(scope, receive, send)

    return TrustedHostMiddleware(undecoded, hosts, www_redirect=False)


def _page() -> tuple[str, str]:
    """The page, and a policy by which it runs nothing but its own script and asks nobody else."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    inside = {tag: page.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script")}
    hashes = {
        tag: b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in inside.items()
    }
    return page, (
        f"default-src 'none'; img-src data:; connect-src 'self'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; frame-ancestors 'none'"
    )


async def _no_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    why = "no such path" if status == 404 else "not with this method"
    return Response(
        msgspec.json.encode(api.Problem(f"{why}; see /openapi.json")), status, None, JSON
    )


async def _mistake(request: Request, error: Exception) -> Response:
    return Response(msgspec.json.encode(api.Problem("a mistake of the server")), 500, None, JSON)


async def _done(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)


async def _body(request: Request) -> Any:
    """What was sent, decoded, if it is JSON within the limits."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RefusedError(415, f"send {JSON}")
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY:
                    raise RefusedError(413, f"the body has more than {BODY:,} bytes")
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive in {PATIENCE:.0f} seconds") from None
    except ClientDisconnect:
        raise RefusedError(400, "the client is gone") from None
    try:
        return read_json(bytes(body))
    except TooDeepError:
        raise
    except InvalidError as error:
        raise RefusedError(400, str(error)) from None


def _event(value: object) -> Event | InvalidError:
    try:
        return read_event(value)
    except InvalidError as error:
        return error


def _ids(values: list[str | int], name: str) -> tuple[str, ...]:
    return tuple(read_id(value, f"{name}[{number}]") for number, value in enumerate(values))


def _user(tenant: str, request: Request) -> User:
    try:
        text = unquote_to_bytes(request.path_params["user_id"]).decode()
    except UnicodeDecodeError:
        raise InvalidError("user_id: not UTF-8") from None
    return tenant, read_id(text, "user_id")


def _query(request: Request, operation: api.Operation) -> dict[str, Any]:
    """The parameters of a query, the others by default."""
    given = request.query_params.multi_items()
    known = {it.name: it for it in operation.query}
    values = {it.name: it.default for it in operation.query}
    for name, text in given:
        if name not in known:
            raise InvalidError(f"no parameter {name!r}; there are {', '.join(known) or 'none'}")
        try:
            values[name] = msgspec.convert(text, known[name].kind, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidError(f"{name}: {error}") from None
    return values
