"""What a log and a cache of states are, wherever they lie.

Whoever changes a user's events does so inside ``Log.transaction`` after ``Log.lock``; whoever reads a
state believes it only if it is stamped with the model in use and the user's version in the log.
"""

from array import array
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from recblr.serving.events import Event, Key, User

SNAPSHOT = 64  # events from one snapshot of a user to the next
BEGINNING: Key = (float("-inf"), "")

Rows = list[tuple[float, str, str]]
"""Events as (timestamp, event id, item id)."""


class StoreError(RuntimeError):
    """The store did not do what it was asked to.

    Nothing of it has happened; or all of it, where a connection was lost while it was being confirmed.
    """


@dataclass
class State:
    """What is remembered of a user, and of which events.

    Attributes:
        model: hash of the model that made it.
        version: the user's, in the log.
        count: events of the user.
        last: the latest of them.
        vector: (D + S,) float32, the hidden vector after the last event and the model's state.
        seen: item rows of the events that the model knows, in order.
    """

    model: str
    version: int
    count: int
    last: Key
    vector: np.ndarray
    seen: "array[int]" = field(default_factory=lambda: array("i"))


@dataclass(frozen=True)
class Snapshot:
    """A point of a user's history to start from: the vector after ``count`` events."""

    key: Key
    count: int
    vector: np.ndarray


class Served(NamedTuple):
    """The model that is to be served: its folder, its hash, and what servers were started with."""

    folder: str
    model: str
    started: str


def kept(count: int) -> list[int]:
    """After how many events each, rising, are the snapshots that are kept of a user with ``count``.

    They are multiples of 64, each step back about twice as far as the one before. So a state that an
    event comes n events late for is found again from at most 4n + 128 events, however long the history.
    """
    last = count // SNAPSHOT
    found, step = {last}, 1
    while step <= last:
        found.add((last - step) // step * step)
        step *= 2
    return sorted(SNAPSHOT * it for it in found - {0})


class Log(Protocol):
    """Events of all users in the order (timestamp, event id), with snapshots to start from.

    ``name`` says where it is.

    All methods raise StoreError when the store fails. One thread at a time uses it; of processes as
    many as the store is made for.
    """

    name: str

    def transaction(self) -> AbstractContextManager[None]:
        """What is changed inside is on the disk when it ends, or has not happened."""

    def lock(self, users: Sequence[User]) -> list[int]:
        """Their versions, 0 without events; nobody else changes them before the transaction ends."""

    def versions(self, users: Sequence[User]) -> list[int]:
        """Their versions, 0 without events. Any change of a user's events gives a greater one."""

    def add(self, events: Sequence[tuple[str, Event]]) -> list[int]:
        """Events of tenants; the user's version with each, 0 if the log has it already, -1 if the
        tenant has another event of its id."""

    def events(self, user: User) -> Rows:
        """(timestamp, event id, item id) of all events of a user, in order."""

    def snapshot(self, user: User, model: str) -> Snapshot | None:
        """The latest of this model."""

    def keep(self, user: User, model: str, snapshots: Sequence[Snapshot]) -> None:
        """Add snapshots; those of other models go, and those not :func:`kept` any more."""

    def drop(self, user: User, after: Key) -> None:
        """Remove the snapshots behind ``after``."""

    def erase(self, user: User) -> int:
        """Remove all that is known of a user; how many events that was."""

    def outdated(self, model: str, limit: int) -> list[User]:
        """Some of the users whose snapshots are of other models."""

    def users(self) -> Iterable[User]:
        """All that have events."""

    def users_of(self, tenant: str, limit: int) -> list[str]:
        """Some of a tenant's users that have events, in the order of their ids."""

    def start(self, started: str, folder: str, model: str) -> None:
        """A server is started with ``started`` and has loaded ``folder``: it is to be served unless
        another was swapped in since servers are started with the same."""

    def swap(self, folder: str, model: str) -> None:
        """Another model is to be served from now on."""

    def served(self) -> Served | None:
        """What is to be served; None before a server was started."""

    def close(self) -> None:
        """No more calls."""


class Cache(Protocol):
    """States by user. It may lose any of them at any time."""

    def get(self, users: Sequence[User]) -> list[State | None]:
        """What is there."""

    def put(self, states: Sequence[tuple[User, State]]) -> None:
        """Keep them, where nothing of a later version is kept."""

    def undo(self, users: Iterable[User]) -> None:
        """What was made of their states, as :meth:`get` gave them, is not to be kept."""

    def erase(self, user: User, version: int) -> None:
        """Forget a user for good: nothing of this version or an earlier one is kept from now on.

        Raises:
            StoreError: it could not be forgotten.
        """
