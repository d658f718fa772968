"""The HTTP interface: all requests and responses as structures, and their OpenAPI document."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from recblr.serving.parsing import TEXT_SCHEMA, EventBody, Id
from recblr.similar import Similarity

K = Annotated[int, Meta(ge=1, le=1000, description="the maximum number of items")]
Kind = Annotated[str | int, Meta(description="items for events of this kind; by default of any")]
MAX_EVENTS = 1_000  # in a request
MAX_IDS = {"history": 10_000, "allow": 20_000, "deny": 20_000}  # in the lists of a request


def _at_most(count: int) -> Meta:
    """Puts the length of a list into the document; where it is read, it has a better message."""
    return Meta(extra_json_schema={"maxItems": count})


HistoryLength = Annotated[int, Meta(ge=0, le=1000)]
ModelHash = Annotated[str, Meta(description="hash of the model that answered")]


class RecommendOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """What to recommend after the events are recorded."""

    k: K = 10
    hide_seen: bool = True
    kind: Kind = ""


class EventBatch(Struct, forbid_unknown_fields=True, frozen=True):
    """Up to 1,000 events, each with a result of its own. With ``recommend``, the response also has
    items for the user of the last event."""

    events: Annotated[
        list[EventBody], Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_EVENTS})
    ]
    recommend: RecommendOptions | None = None


class EventResult(Struct, omit_defaults=True):
    """What happened to an event."""

    status: Literal["accepted", "duplicate", "rejected"]
    event_id: Id | None = None
    reason: str = ""


class RecommendedItem(Struct, omit_defaults=True):
    """``title`` is present if the server has a file of titles."""

    item_id: Id
    score: float
    title: str = ""


class Recommendations(Struct, omit_defaults=True):
    """Items, best first. ``basis`` is "popularity" if the model knows no item of the history.

    ``reason`` says why the list is empty, or why its basis is popularity. ``warnings`` name the ids of
    the request that the model does not know; they have no effect."""

    model: ModelHash
    basis: Literal["history", "popularity"]
    items: list[RecommendedItem]
    reason: str = ""
    warnings: list[str] = []


class RecordResponse(Struct, omit_defaults=True):
    """The result of each event, in order. Accepted events are on disk."""

    model: ModelHash
    results: list[EventResult]
    recommendations: Recommendations | None = None


class RecommendRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """Either ``user_id`` or ``history``: item ids, oldest first, which are not stored. Only items of
    ``allow`` are recommended, and none of ``deny``."""

    user_id: Id | None = None
    history: Annotated[list[Id] | None, _at_most(MAX_IDS["history"])] = None
    k: K = 10
    hide_seen: bool = True
    allow: Annotated[list[Id] | None, _at_most(MAX_IDS["allow"])] = None
    deny: Annotated[list[Id], _at_most(MAX_IDS["deny"])] = []
    kind: Kind = ""


class HistoryEvent(Struct, omit_defaults=True):
    """An event of a user."""

    event_id: str
    item_id: str
    timestamp: float
    title: str = ""
    kind: str = ""


class UserState(Struct):
    """``events`` is the number of events in the log, ``known_events`` that of events whose item the
    model knows. ``age`` is the time since the last event in seconds, if timestamps are seconds since
    1970. ``history`` has the latest events, newest first, as many as requested."""

    model: ModelHash
    user_id: str
    events: int
    known_events: int
    last_event_id: str
    last_timestamp: float
    age: float
    state_bytes: int
    history: list[HistoryEvent]


class UserList(Struct):
    """Some users with events, sorted by id."""

    model: ModelHash
    users: list[str]


class EventInfluence(Struct, omit_defaults=True):
    """The influence of one event."""

    event_id: str
    item_id: str
    timestamp: float
    state: float
    score: float
    memory: float
    title: str = ""


class InfluenceResponse(Struct):
    """The influence of the latest events on the score of ``item_id``, newest first, for events whose
    item the model knows.

    ``state`` is the exact share of the event in the state of the first layer. ``score`` is the
    network's part, gradient times contribution, an approximation. ``memory`` is the exact part of the
    memory of transitions, which is there because ``item_id`` often follows the item of the event; it
    is 0 for all but the last few events. ``repeat`` is what the memory adds because ``item_id`` itself
    is in the history."""

    model: ModelHash
    item_id: Id
    repeat: float
    events: list[EventInfluence]


class SimilarItems(Struct):
    """The items that are most similar to ``item_id``, best first; fewer than ``k`` by the memory, if
    fewer have followed the item."""

    model: ModelHash
    item_id: Id
    items: list[RecommendedItem]


class EraseResponse(Struct):
    """``events`` is the number of events that were removed."""

    model: ModelHash
    events: int


class SwapRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """``name`` is a model folder in the same parent folder as the model the server was started with."""

    name: Annotated[str, Meta(extra_json_schema=TEXT_SCHEMA)]


class SwapResponse(Struct):
    """The hashes of the new and of the previous model."""

    model: ModelHash
    before: ModelHash


class Health(Struct):
    """The server is healthy."""

    model: ModelHash
    status: Literal["ok"]


class ErrorResponse(Struct):
    """What is wrong with a request, in one line."""

    error: str


@dataclass(frozen=True)
class QueryParameter:
    """A parameter in the query string."""

    name: str
    kind: Any
    default: Any
    description: str


@dataclass(frozen=True)
class Operation:
    """An operation of the API.

    ``body`` lists the accepted bodies. ``response`` is None for plain text. ``access`` says who may
    call the operation: a tenant, the administrator, or everyone without a key.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    response: type[Struct] | None
    body: tuple[type[Struct], ...] = ()
    query: tuple[QueryParameter, ...] = ()
    access: Literal["tenant", "admin", "everyone"] = "tenant"


RANKING = (
    QueryParameter("k", K, 10, "the maximum number of items"),
    QueryParameter("hide_seen", bool, True, "exclude the items of the user's events"),
    QueryParameter("kind", str, "", "items for events of this kind; by default of any"),
)
USER = "/v1/users/{user_id}"
OPERATIONS = {
    "record": Operation(
        "POST", "/v1/events", "Record one or several events.", RecordResponse,
        (EventBody, EventBatch),
    ),
    "remove": Operation(
        "DELETE", "/v1/events/{event_id}", "Remove one event.", EraseResponse
    ),
    "recommend": Operation(
        "GET", f"{USER}/recommendations", "Recommend items to a user.", Recommendations,
        query=RANKING,
    ),
    "recommend_for": Operation(
        "POST", "/v1/recommend", "Recommend items for a user or a history, with filters.",
        Recommendations, (RecommendRequest,),
    ),
    "users": Operation(
        "GET", "/v1/users", "List users.", UserList,
        query=(QueryParameter("limit", K, 100, "the maximum number of users"),),
    ),
    "describe": Operation(
        "GET", USER, "Describe the state of a user.", UserState,
        query=(
            QueryParameter("history", HistoryLength, 0, "how many of the latest events to return"),
        ),
    ),
    "influence": Operation(
        "GET", f"{USER}/influence", "Explain the score of an item by the user's events.",
        InfluenceResponse,
        query=(QueryParameter("item_id", str, "", "the item; by default the best one"),),
    ),
    "similar": Operation(
        "GET", "/v1/items/{item_id}/similar", "List the items similar to one.", SimilarItems,
        query=(
            QueryParameter("k", K, 10, "the maximum number of items"),
            QueryParameter(
                "by", Similarity, "model", "compare vectors, or count what followed (memory)"
            ),
        ),
    ),
    "erase": Operation("DELETE", USER, "Remove everything about a user.", EraseResponse),
    "swap": Operation(
        "POST", "/v1/models/swap", "Serve another model.", SwapResponse, (SwapRequest,),
        access="admin",
    ),
    "live": Operation(
        "GET", "/health/live", "Check that the process runs.", Health, access="everyone"
    ),
    "ready": Operation(
        "GET", "/health/ready", "Check that the log can be written.", Health, access="everyone"
    ),
    "metrics": Operation("GET", "/metrics", "Metrics for Prometheus.", None, access="admin"),
}  # fmt: skip
MODEL_HEADER = {"X-Model": {"schema": {"type": "string"}, "description": "hash of the model"}}
RETRY_HEADER = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds to wait"}}
ERRORS = {
    400: "the body is not JSON", 401: "the key is missing or unknown",
    403: "the key does not allow the operation", 404: "no such user, event, item or path",
    405: "the path has other methods, see Allow", 408: "the request did not arrive in time",
    409: "the event_id belongs to another event", 413: "the body is too large",
    414: "the URL is too long", 415: "the content type is not application/json",
    422: "a field is missing or invalid",
    429: "too many requests are waiting; retry later", 431: "the headers are too long",
    503: "the storage failed; send the request again",
}  # fmt: skip


def openapi(version: str, prefix: str = "", keys: bool = True) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an API whose paths begin with ``prefix``; ``keys`` says whether it
    asks for keys."""
    kinds: list[type[Struct]] = [ErrorResponse]
    for operation in OPERATIONS.values():
        kinds += [kind for kind in (operation.response, *operation.body) if kind is not None]
    references, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(kinds, references, strict=True))
    components["EventBatch"]["properties"]["events"]["items"] = {
        "anyOf": [{"$ref": "#/components/schemas/EventBody"}, {}],
        "description": "an event; anything else is rejected, and the others are recorded",
    }
    components["RecommendRequest"]["oneOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
        for name in ("user_id", "history")
    ]
    paths: dict[str, Any] = {}
    for name, operation in OPERATIONS.items():
        document = {"operationId": name, **_document(operation, schemas)}
        if keys and operation.access != "everyone":
            document["security"] = [{"key": []}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = document
    return {
        "openapi": "3.1.0",
        "info": {"title": "recblr", "version": version,
                 "description": "Send events, get recommendations."},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _document(operation: Operation, schemas: dict[type[Struct], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI object of an operation."""
    parameters: list[dict[str, Any]] = []
    for name in ("user_id", "event_id", "item_id"):
        if f"{{{name}}}" in operation.path:
            schema = {"type": "string", **TEXT_SCHEMA}
            parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    for parameter in operation.query:
        schema = {**msgspec.json.schema(parameter.kind), "default": parameter.default}
        parameters.append(
            {"name": parameter.name, "in": "query", "description": parameter.description,
             "schema": schema}
        )  # fmt: skip
    content = _json(schemas[operation.response]) if operation.response else {"text/plain": {}}
    errors = {
        str(status): {
            "description": description,
            "content": _json(schemas[ErrorResponse]),
            "headers": RETRY_HEADER if status in (429, 503) else {},
        }
        for status, description in ERRORS.items()
    }
    document: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "success", "content": content, "headers": MODEL_HEADER},
            **errors,
        },
    }
    if bodies := [schemas[kind] for kind in operation.body]:
        body = {"anyOf": bodies} if len(bodies) > 1 else bodies[0]
        document["requestBody"] = {"required": True, "content": _json(body)}
    return document


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
