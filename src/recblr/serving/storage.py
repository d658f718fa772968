"""What an event log and a cache of user states are, wherever they are stored.

A caller that changes the events of a user does so inside ``EventLog.transaction``, after
``EventLog.lock``. A caller that reads a cached state uses it only if the state names the model in use
and the version that the log has for the user.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
SNAPSHOT_INTERVAL = 64  # events of a user between two snapshots

User = tuple[str, str]
"""A tenant and the id of one of its users."""
EventKey = tuple[float, str]
"""Timestamp and event id: the events of a user are sorted by it."""
History = list[tuple[float, str, str, str]]
"""Events of a user as (timestamp, event id, item id, kind), sorted."""
BEFORE_ALL_EVENTS: EventKey = (float("-inf"), "")


class Event(NamedTuple):
    """An event of a user. All ids are text, also where the client sent numbers."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: float  # in the unit that EventLog.unit returns
    kind: str = ""  # such as "purchase"; empty for none

    @property
    def key(self) -> EventKey:
        return self.timestamp, self.event_id


class StorageError(RuntimeError):
    """The event log or the cache failed.

    None of the changes took effect; or all of them did, if a connection broke during the commit.
    """


@dataclass
class State:
    """The state of a user, and the events it is made of.

    Attributes:
        model: hash of the model that computed it.
        version: the user's version in the log.
        count: number of events.
        last: key of the last event.
        vector: (D + S,) float32, the hidden vector after the last event and the model's state.
        seen: item rows of the events whose items the model knows, in order.
    """

    model: str
    version: int
    count: int
    last: EventKey
    vector: np.ndarray
    seen: "array[int]" = field(default_factory=lambda: array("i"))


@dataclass(frozen=True)
class Snapshot:
    """A stored vector of a user: the vector after ``count`` events, the last of which has ``key``.

    The model knows the items of ``known`` of these events.
    """

    key: EventKey
    count: int
    known: int
    vector: np.ndarray


class ServedModelInfo(NamedTuple):
    """The model that the servers of a log serve.

    ``folder`` and ``model`` (a hash) name it; ``started`` is the folder that the servers were started
    with, which differs from ``folder`` after a swap.
    """

    folder: str
    model: str
    started: str


def user_digest(user: User, *scope: str) -> bytes:
    """16 bytes that identify a user, within a scope, but do not reveal the id."""
    return blake2b(repr((*user, *scope)).encode(), digest_size=16).digest()


def snapshot_counts(count: int) -> list[int]:
    """The event counts, ascending, at which snapshots of a user with ``count`` events are kept.

    The counts are multiples of 64, and each gap, from the latest backwards, is about twice the one
    before. The state for an event that arrives n events late is therefore recomputed from at most
    4n + 128 events, however long the history is.
    """
    last = count // SNAPSHOT_INTERVAL
    intervals, step = {last}, 1
    while step <= last:
        intervals.add((last - step) // step * step)
        step *= 2
    return sorted(SNAPSHOT_INTERVAL * interval for interval in intervals - {0})


class EventLog(Protocol):
    """The events of all users, with snapshots of the users' vectors.

    ``name`` says where the log is stored. All methods raise StorageError if the storage fails. One
    thread at a time uses a log; how many processes may, depends on the storage.
    """

    name: str
    local: bool  # whether it is on this machine, so that reads are quick

    def transaction(self) -> AbstractContextManager[None]:
        """Changes inside the block are on disk when it ends, or have no effect."""

    def lock(self, users: Sequence[User]) -> list[int]:
        """Lock users until the transaction ends; their versions, 0 for those without events."""

    def unit(self, tenant: str) -> str:
        """The unit of a tenant's timestamps: seconds, or what version 0.1.0 has stored."""

    def versions(self, users: Sequence[User]) -> list[int]:
        """The users' versions, 0 for those without events. Every change gives a higher version."""

    def add(self, events: Sequence[tuple[str, Event]]) -> list[int]:
        """Add (tenant, event) pairs.

        Returns:
            For each event the new version of its user; 0 if the log has the event already, -1 if the
            tenant has another event with its id.
        """

    def events(
        self, user: User, after: EventKey = BEFORE_ALL_EVENTS, limit: int | None = None
    ) -> History:
        """The events of a user after a key, the first ``limit`` of them."""

    def latest_events(self, user: User, limit: int) -> History:
        """The last ``limit`` events of a user."""

    def user_of(self, tenant: str, event_id: str) -> str | None:
        """The id of the user of an event; None if there is no such event."""

    def remove(self, user: User, event_id: str) -> tuple[EventKey, int] | None:
        """Remove an event of a user; its key and the user's new version, None if there is no such
        event. The version is 0 if the user has no events left."""

    def snapshot(self, user: User, model: str, count: int | None = None) -> Snapshot | None:
        """The latest snapshot of a user by a model, of at most ``count`` events."""

    def add_snapshots(self, user: User, model: str, snapshots: Sequence[Snapshot]) -> None:
        """Add snapshots; remove those of other models and those not in :func:`snapshot_counts`."""

    def drop_snapshots(self, user: User, after: EventKey) -> None:
        """Remove the snapshots of a user whose last event comes after a key."""

    def erase(self, user: User) -> int:
        """Remove everything about a user; returns how many events that was."""

    def outdated_users(self, model: str, limit: int) -> list[User]:
        """Up to ``limit`` users with snapshots of other models."""

    def drop_outdated(self, user: User, model: str) -> None:
        """Remove the snapshots of a user by other models."""

    def check(self) -> None:
        """Check that events can be added.

        Raises:
            StorageError: they cannot.
        """

    def users(self) -> Iterable[User]:
        """All users with events."""

    def users_of(self, tenant: str, limit: int) -> list[str]:
        """The first ``limit`` user ids of a tenant, sorted."""

    def record_start(self, started: str, folder: str, model: str) -> None:
        """Record that a server was started with the folder ``started`` and has loaded ``folder``.

        The loaded model becomes the served one, unless another was swapped in since servers are
        started with the same folder.
        """

    def record_swap(self, folder: str, model: str) -> None:
        """Make another model the served one."""

    def served_model(self) -> ServedModelInfo | None:
        """The model to serve; None before the first start of a server."""

    def close(self) -> None:
        """Close the log; no other method may follow."""


class StateCache(Protocol):
    """States by user. It may lose any state at any time."""

    def get(self, users: Sequence[User]) -> list[State | None]:
        """The cached states of users."""

    def __contains__(self, user: object) -> bool:
        """Whether there is a state of a user in the memory of this process."""

    def put(self, states: Sequence[tuple[User, State]]) -> None:
        """Cache states, except where the cache has a later version."""

    def discard(self, users: Iterable[User]) -> None:
        """Drop states that :meth:`get` returned and the caller has changed."""

    def check(self) -> None:
        """Raises StorageError if the cache does not answer."""

    def close(self) -> None:
        """Close the cache; no other method may follow."""

    def erase(self, user: User, version: int) -> None:
        """Remove a user; from now on, states of ``version`` and earlier are not accepted.

        Raises:
            StorageError: the state could not be removed.
        """


def batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` values; the last one may be shorter."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch
