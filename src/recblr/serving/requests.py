"""The requests that the engine handles, and its answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from recblr.serving.model import ServedModel
from recblr.serving.storage import Event, EventKey, History, User

PART = 128  # events of a history in one part of the work, which takes about 2 ms
RECORDED, RECORDED_SHARED = 64, 16  # events that are added in one part: a part takes about 5 ms,
# and less than 2 ms if several tenants are active


@dataclass(frozen=True)
class Query:
    """What to recommend: the best ``k`` items, only of ``allow`` unless None, none of ``deny``, for
    events of a ``kind``, or of any kind if it is empty."""

    k: int
    hide_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Request:
    """Base of all requests.

    ``users`` are the users whose events the request changes. ``follow_up`` is a request to handle
    next, whose answer is delivered together with this one's. ``cost`` is an estimate of the time to
    handle the request, or its next part, in milliseconds.
    """

    @property
    def cost(self) -> float:
        return 0.2

    @property
    def users(self) -> Sequence[User]:
        return ()

    @property
    def follow_up(self) -> "Request | None":
        return None


# ---- requests that change the log or the model -------------------------------------------------------


@dataclass(frozen=True)
class RecordEvents(Request):
    """Add events; with ``query`` also recommend items to the user of the last event.

    Many events are added in parts of ``size``: ``outcomes`` are those of the first ones.

    Answer: a list of Outcomes; with ``query`` a pair of that list and RankedItems.
    """

    tenant: str
    events: Sequence[Event]
    query: Query | None = None
    outcomes: Sequence["Outcome"] = ()
    size: int = RECORDED

    @property
    def part(self) -> Sequence[Event]:
        """The events to add next."""
        return self.events[len(self.outcomes) : len(self.outcomes) + self.size]

    @property
    def cost(self) -> float:
        return 0.3 + 0.08 * min(len(self.events) - len(self.outcomes), self.size)

    @property
    def users(self) -> Sequence[User]:
        return [(self.tenant, event.user_id) for event in self.part]

    @property
    def follow_up(self) -> Request | None:
        if self.query is None:
            return None
        return RecommendForUser((self.tenant, self.events[-1].user_id), self.query)


@dataclass(frozen=True)
class EraseUser(Request):
    """Remove everything about a user. Answer: the number of removed events."""

    user: User

    @property
    def users(self) -> Sequence[User]:
        return (self.user,)


@dataclass(frozen=True)
class RemoveEvent(Request):
    """Remove one event of a user. Answer: whether there was such an event."""

    user: User
    event_id: str

    @property
    def users(self) -> Sequence[User]:
        return (self.user,)


@dataclass(frozen=True)
class SwapModel(Request):
    """Use another model; ``announce`` tells the other servers of the log. Answer: None."""

    model: ServedModel
    announce: bool


# ---- requests that only read -------------------------------------------------------------------------


@dataclass(frozen=True)
class RecommendForUser(Request):
    """Recommend items to a user. Answer: RankedItems."""

    user: User
    query: Query


def _no_rows() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class RecommendForHistory(Request):
    """Recommend items after a history of item ids that is not stored. Answer: RankedItems.

    A long history is handled in parts: ``vector`` is that of ``model`` after the first ``count`` of
    ``rows``, the items that it knows.
    """

    item_ids: tuple[str, ...]
    query: Query
    model: ServedModel | None = None
    rows: np.ndarray = field(default_factory=_no_rows)
    count: int = 0
    vector: np.ndarray = field(default_factory=_no_rows)

    @property
    def cost(self) -> float:
        left = len(self.item_ids) if self.model is None else len(self.rows) - self.count
        return 0.3 + 0.03 * min(left, PART)


@dataclass(frozen=True)
class DescribeUser(Request):
    """Describe a user, with the latest ``events`` events. Answer: UserDescription."""

    user: User
    events: int = 0

    @property
    def cost(self) -> float:
        return 0.2 + 0.003 * self.events


@dataclass(frozen=True)
class ExplainUser(Request):
    """Get what explains the scores of a user by at least the latest ``events`` events, if there are so
    many. Answer: UserHistory."""

    user: User
    events: int

    @property
    def cost(self) -> float:
        return 0.2 + 0.01 * self.events


@dataclass(frozen=True)
class FindEvent(Request):
    """Look for the user of an event, to remove the event. Answer: that of RemoveEvent."""

    tenant: str
    event_id: str


@dataclass(frozen=True)
class ListUsers(Request):
    """List the first ``limit`` users of a tenant. Answer: a list of user ids."""

    tenant: str
    limit: int


@dataclass(frozen=True)
class CheckStorage(Request):
    """Check that events can be added. Answer: why states cannot be cached, empty if they can."""


@dataclass(frozen=True)
class GetServedModel(Request):
    """Read from the log which model is to be served. Answer: ServedModelInfo or None."""


# ---- answers -----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What happened to one event, and the reason if it was rejected."""

    status: Literal["accepted", "duplicate", "rejected"]
    reason: str = ""


class RankedItems(NamedTuple):
    """Item rows with their scores, best first.

    ``basis`` is "history", or "popularity" if the model knows no item of the history.
    """

    model: ServedModel
    basis: Literal["history", "popularity"]
    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class UserDescription:
    """The number of events of a user, how many of them have a known item, and the key of the last.

    ``events`` are the latest events, as many as were requested.
    """

    model: ServedModel
    count: int
    known: int
    last: EventKey | None
    events: History


@dataclass(frozen=True)
class UserHistory:
    """The latest ``events`` of a user, the vector before them, and the item rows (T,) of all events.

    ``encoded`` are the latest events as :meth:`ServedModel.encode` returns them."""

    model: ServedModel
    before: np.ndarray
    events: History
    encoded: np.ndarray
    rows: np.ndarray
