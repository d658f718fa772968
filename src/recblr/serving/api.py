"""The HTTP interface: every request and answer as a structure, and the OpenAPI document of them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from recblr.serving.events import EventBody

Id = str | int
K = Annotated[int, Meta(ge=1, le=1000, description="how many items, at most")]
Latest = Annotated[int, Meta(ge=0, le=1000)]
Hash = Annotated[str, Meta(description="hash of the model that answered")]


class Wish(Struct, forbid_unknown_fields=True, frozen=True):
    """What to recommend after the events."""

    k: K = 10
    hide_seen: bool = True


class Batch(Struct, forbid_unknown_fields=True, frozen=True):
    """Up to 1,000 events; each is answered by itself. ``recommend`` asks for items for the user of the
    last of them, in the same answer."""

    events: list[EventBody]
    recommend: Wish | None = None


class Result(Struct, omit_defaults=True):
    status: Literal["accepted", "duplicate", "rejected"]
    event_id: Id | None = None
    reason: str = ""


class Item(Struct, omit_defaults=True):
    """``title`` where the server has a file of titles."""

    item_id: Id
    score: float
    title: str = ""


class Recommendations(Struct):
    """Best first. ``basis`` is "popularity" where the model knows nothing of the history."""

    model: Hash
    basis: Literal["history", "popularity"]
    items: list[Item]


class Recorded(Struct, omit_defaults=True):
    """What became of each event, in order; what is accepted is on the disk."""

    model: Hash
    results: list[Result]
    recommendations: Recommendations | None = None


class Asked(Struct, forbid_unknown_fields=True, frozen=True):
    """Either ``user_id`` or ``history``, item ids, oldest first, which is not kept. ``allow`` are the
    only items to be shown, ``deny`` those not to be."""

    user_id: Id | None = None
    history: list[Id] | None = None
    k: K = 10
    hide_seen: bool = True
    allow: list[Id] | None = None
    deny: list[Id] = []


class Past(Struct, omit_defaults=True):
    event_id: str
    item_id: str
    timestamp: float
    title: str = ""


class UserState(Struct):
    """``events`` are in the log, ``known_events`` of them are of items that the model knows; ``age``
    seconds since the latest, if timestamps are seconds since 1970; ``history`` the latest, newest
    first, as many as were asked for."""

    model: Hash
    user_id: str
    events: int
    known_events: int
    last_event_id: str
    last_timestamp: float
    age: float
    state_bytes: int
    history: list[Past]


class Users(Struct):
    """Some who have events, in the order of their ids."""

    model: Hash
    users: list[str]


class Influence(Struct, omit_defaults=True):
    event_id: str
    item_id: str
    timestamp: float
    state: float
    score: float
    memory: float
    title: str = ""


class Influences(Struct):
    """What each of the latest events known to the model means to the score of ``item_id``, newest
    first.

    ``state`` is the exact share of the event in the first layer's state. ``score`` is the network's
    part: gradient times contribution, an approximation. ``memory`` is the exact part of the memory of
    transitions: what it adds because ``item_id`` often follows the item of the event; 0 for all but the
    last few events. ``repeat`` is what it adds because ``item_id`` is in the history itself."""

    model: Hash
    item_id: Id
    repeat: float
    events: list[Influence]


class Erased(Struct):
    model: Hash
    events: int


class SwapBody(Struct, forbid_unknown_fields=True, frozen=True):
    """The name of a model's folder beside the one the server was started with."""

    name: str


class Swapped(Struct):
    model: Hash
    before: Hash


class Health(Struct):
    model: Hash
    status: Literal["ok"]


class Problem(Struct):
    error: str


@dataclass(frozen=True)
class Parameter:
    """Of a query."""

    name: str
    kind: Any
    default: Any
    about: str


@dataclass(frozen=True)
class Operation:
    """A path, what it is asked with and what it answers.

    ``body`` is one of these; ``key`` whose key opens it: a tenant's, the administrator's, nobody's.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    about: str
    answer: type[Struct] | None
    body: tuple[type[Struct], ...] = ()
    query: tuple[Parameter, ...] = ()
    key: Literal["tenant", "admin", "nobody"] = "tenant"


ITEMS = (
    Parameter("k", K, 10, "how many items, at most"),
    Parameter("hide_seen", bool, True, "leave out the items of the user's events"),
)
USER = "/v1/users/{user_id}"
OPERATIONS = {
    "record": Operation(
        "POST", "/v1/events", "Keep an event, or several.", Recorded, (EventBody, Batch),
    ),
    "recommend": Operation(
        "GET", f"{USER}/recommendations", "The best items after a user's events.",
        Recommendations, query=ITEMS,
    ),
    "recommend_for": Operation(
        "POST", "/v1/recommend", "The best items for a user or a history, filtered.",
        Recommendations, (Asked,),
    ),
    "users": Operation(
        "GET", "/v1/users", "Some users.", Users,
        query=(Parameter("limit", K, 100, "how many, at most"),),
    ),
    "describe": Operation(
        "GET", USER, "What is remembered of a user.", UserState,
        query=(Parameter("history", Latest, 0, "how many of the latest events to show"),),
    ),
    "influence": Operation(
        "GET", f"{USER}/influence", "How much each past event weighs.", Influences,
        query=(Parameter("item_id", str, "", "the item whose score is looked at; the best one"),),
    ),
    "erase": Operation("DELETE", USER, "Remove all that is known of a user.", Erased),
    "swap": Operation(
        "POST", "/v1/models/swap", "Answer by another model.", Swapped, (SwapBody,), key="admin"
    ),
    "live": Operation("GET", "/health/live", "The process runs.", Health, key="nobody"),
    "ready": Operation("GET", "/health/ready", "The log can be written.", Health, key="nobody"),
    "metrics": Operation("GET", "/metrics", "For Prometheus.", None, key="admin"),
}  # fmt: skip
PROBLEMS = {
    400: "not JSON", 401: "no key, or an unknown one", 403: "not with this key",
    404: "no such user, item or path", 409: "the event_id is another event's",
    413: "the body is too large", 415: "not application/json", 422: "a field is missing or wrong",
    429: "too many requests wait; try again later", 503: "the store failed; nothing was kept",
}  # fmt: skip


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    kinds: list[type[Struct]] = [Problem]
    for it in OPERATIONS.values():
        kinds += [kind for kind in (it.answer, *it.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    of = dict(zip(kinds, schemas, strict=True))
    problems = {
        str(code): {"description": about, "content": _json(of[Problem])}
        for code, about in PROBLEMS.items()
    }
    paths: dict[str, Any] = {}
    for name, it in OPERATIONS.items():
        parameters: list[dict[str, Any]] = [
            {"name": p.name, "in": "query", "description": p.about,
             "schema": {**msgspec.json.schema(p.kind), "default": p.default}}
            for p in it.query
        ]  # fmt: skip
        if "{user_id}" in it.path:
            parameters.insert(
                0, {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string"}}
            )
        content = _json(of[it.answer]) if it.answer else {"text/plain": {}}
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": it.about,
            "parameters": parameters,
            "responses": {"200": {"description": "done", "content": content}, **problems},
        }
        if it.body:
            body = {"anyOf": [of[kind] for kind in it.body]} if len(it.body) > 1 else of[it.body[0]]
            operation["requestBody"] = {"required": True, "content": _json(body)}
        if it.key != "nobody":
            operation["security"] = [{"key": []}]
        paths.setdefault(it.path, {})[it.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "recblr", "version": version,
                 "description": "Events in, recommendations out."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
