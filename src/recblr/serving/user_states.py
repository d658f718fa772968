"""The states of users under one model, computed from the events of a log.

A state that is not cached, or that a very late event has set back, is rebuilt in parts: each call of
:meth:`UserStates.get` does one part, so that other requests are handled between the parts.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from recblr.serving.model import ServedModel, split
from recblr.serving.requests import PART
from recblr.serving.storage import (
    BEFORE_ALL_EVENTS,
    SNAPSHOT_INTERVAL,
    Event,
    EventKey,
    EventLog,
    History,
    Snapshot,
    State,
    StateCache,
    User,
    snapshot_counts,
)

MAX_REBUILDS = 10_000  # states that are rebuilt at the same time
READ_FASTER = 16  # events that a snapshot includes are only read, so many times as many in one part
MANY_EVENTS = 1 << 14  # folded in one part if nobody waits: a fraction of a second
AT_ONCE = 2 * SNAPSHOT_INTERVAL  # events that the late events of a transaction fold again at once

NewEvents = dict[User, list[tuple[Event, int]]]
"""Events that the current transaction has added, each with the user's version after it."""


@dataclass
class Rebuild:
    """A state that does not include all events of its user yet.

    Attributes:
        state: ``count``, ``last`` and ``seen`` include the events that have been read.
        folded: how many of these events ``state.vector`` includes. If it is fewer than ``count``, a
            stored snapshot includes the others.
        snapshots: those that are to be stored.
    """

    state: State
    folded: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)


class _Update(NamedTuple):
    """A state, the events to add to it, and counts of events after which the vector is kept."""

    user: User
    state: State
    events: History
    kept: Sequence[int]


class UserStates:
    """The states of one model over a log; recently used ones are cached."""

    def __init__(self, log: EventLog, cache: StateCache, model: ServedModel) -> None:
        self._log, self._cache, self.model = log, cache, model
        self._rebuilds: OrderedDict[User, Rebuild] = OrderedDict()

    # ---- read ------------------------------------------------------------------------------------

    def get(self, users: Sequence[User], part: int = PART) -> list[State | Rebuild | None]:
        """The current states of users; None for users without events.

        A Rebuild stands for a state that takes more calls. ``part`` is the number of events that are
        folded in one call.
        """
        versions = self._log.versions(users)
        states: dict[User, State | Rebuild | None] = dict(
            zip(users, self._cached(users, versions), strict=True)
        )
        missing = [
            user for user, version in zip(users, versions, strict=True)
            if version and states[user] is None
        ]  # fmt: skip
        if missing:
            states.update(self._rebuild_part(list(dict.fromkeys(missing)), part))
        return [states[user] for user in users]

    def get_complete(self, users: Sequence[User]) -> list[State | None]:
        """The current states of users, however long it takes; None for users without events."""
        while True:
            states = self.get(users, MANY_EVENTS)
            complete = [state for state in states if not isinstance(state, Rebuild)]
            if len(complete) == len(states):
                return complete

    def rebuild(self, users: Sequence[User]) -> list[State | None]:
        """Recompute states from the first event of each user; None for users without events."""
        with self._log.transaction():
            self._log.lock(users)
            for user in users:
                self._log.drop_snapshots(user, BEFORE_ALL_EVENTS)
        self.discard(users)
        return self.get_complete(users)

    def put(self, states: dict[User, State]) -> None:
        """Cache states."""
        self._cache.put(list(states.items()))

    def discard(self, users: Sequence[User]) -> None:
        """Forget what is known about users."""
        self._cache.discard(users)
        for user in users:
            self._rebuilds.pop(user, None)

    def _cached(self, users: Sequence[User], versions: Sequence[int]) -> list[State | None]:
        """The cached states that are of this model and of these versions."""
        return [
            state if state and (state.model, state.version) == (self.model.hash, version) else None
            for state, version in zip(self._cache.get(users), versions, strict=True)
        ]

    def _rebuild_part(self, users: Sequence[User], part: int) -> dict[User, State | Rebuild | None]:
        """Do a part of the rebuilds of users."""
        part = max(16, part // len(users) // 16 * 16)
        states: dict[User, State | Rebuild | None] = {}
        try:
            with self._log.transaction():
                updates = []
                for user, version in zip(users, self._log.lock(users), strict=True):
                    states[user] = None
                    if version:
                        states[user] = rebuild = self._rebuild_of(user, version)
                        if (update := self._next_part(user, rebuild, part)) is not None:
                            updates.append(update)
                for user, snapshots in self._fold(updates).items():
                    rebuild = self._rebuilds[user]
                    kept = set(snapshot_counts(rebuild.state.count))
                    rebuild.snapshots = [
                        snapshot for snapshot in (*rebuild.snapshots, *snapshots)
                        if snapshot.count in kept
                    ]  # fmt: skip
                    rebuild.folded = rebuild.state.count
                for user, _, events, _ in updates:
                    if len(events) < part:
                        states[user] = self._rebuilds[user].state
                        if snapshots := self._rebuilds[user].snapshots:
                            self._log.add_snapshots(user, self.model.hash, snapshots)
        except BaseException:
            self.discard(users)
            raise
        complete = {user: state for user, state in states.items() if isinstance(state, State)}
        self.put(complete)
        for user in complete:
            del self._rebuilds[user]
        return states

    def _rebuild_of(self, user: User, version: int) -> Rebuild:
        """The rebuild of a user, which is begun if the events that it includes may have changed."""
        rebuild = self._rebuilds.pop(user, None)
        if rebuild is None or rebuild.state.version != version:
            rebuild = Rebuild(self._before_all_events(version))
        self._rebuilds[user] = rebuild
        if len(self._rebuilds) > MAX_REBUILDS:
            self._rebuilds.popitem(last=False)
        return rebuild

    def _next_part(self, user: User, rebuild: Rebuild, part: int) -> _Update | None:
        """The next events to fold; None after reading events that a snapshot includes."""
        state, snapshot = rebuild.state, self._log.snapshot(user, self.model.hash)
        if snapshot is None or snapshot.count <= state.count:
            if rebuild.folded < state.count:  # the snapshot that included them was dropped
                self._set_back(state, snapshot)
            events = self._log.events(user, state.last, part)
            end = state.count + len(events)
            kept = end // SNAPSHOT_INTERVAL * SNAPSHOT_INTERVAL
            return _Update(user, state, events, [kept] if len(events) < part else [end])
        count = min(READ_FASTER * part, snapshot.count - state.count)
        events = self._log.events(user, state.last, count)
        self._add_to(state, events, self.model.rows([item for _, _, item, _ in events]))
        if state.count == snapshot.count:
            state.vector, rebuild.folded = snapshot.vector, state.count
        return None

    # ---- write -----------------------------------------------------------------------------------

    def advance(self, versions: dict[User, int], new_events: NewEvents) -> dict[User, State]:
        """The states after events that the open transaction has added to the log.

        ``versions`` are the users' versions before the transaction. The caller passes the states to
        :meth:`put` after the commit, so that no reader sees a state of a transaction that fails, and
        calls :meth:`discard` if it fails. Users that are left out have to be rebuilt.
        """
        updates, at_once = [], AT_ONCE
        states = self._cached(list(new_events), [versions[user] for user in new_events])
        for (user, added), state in zip(new_events.items(), states, strict=True):
            events = sorted((*event.key, event.item_id, event.kind) for event, _ in added)
            first, version = events[0][:2], max(version for _, version in added)
            if not versions[user]:
                state = self._before_all_events(version)
            elif state is None or first < state.last:
                events = self.change(user, versions[user], version, first, at_once)
                at_once -= len(events)
                state = self._rebuilds.pop(user).state if events else None
            if state is not None:
                end = state.count + len(events)
                kept = [count for count in snapshot_counts(end) if count > state.count]
                updates.append(_Update(user, replace(state, version=version), events, kept))
        for user, snapshots in self._fold(updates).items():
            if snapshots:
                self._log.add_snapshots(user, self.model.hash, snapshots)
        return {update.user: update.state for update in updates}

    def change(
        self, user: User, before: int, version: int, first: EventKey, at_once: int = AT_ONCE
    ) -> History:
        """Set the state of a user back to before the event ``first``, which was added or removed.

        ``before`` and ``version`` are the user's versions before and after the change.

        Returns:
            The events after the state in ``_rebuilds``, if it was cached and they are about ``at_once``
            at most; otherwise nothing.
        """
        self._log.drop_snapshots(user, first)
        (cached,) = self._cached([user], [before])
        rebuild = self._rebuilds.get(user) if cached is None else Rebuild(cached, cached.count)
        if rebuild is None or rebuild.state.version != before:
            return []
        snapshot = self._log.snapshot(user, self.model.hash)
        state, count = rebuild.state, rebuild.state.count
        if first < state.last:
            rebuild.snapshots = [each for each in rebuild.snapshots if each.key < first]
            latest = max((snapshot, *rebuild.snapshots), key=lambda each: each.count if each else 0)
            self._set_back(state, latest)
            rebuild.folded = state.count
        state.version = version
        self._cache.discard([user])
        self._rebuilds[user] = rebuild
        if cached is None or count - state.count > at_once:
            return []
        events = self._log.events(user, state.last, 2 * at_once)
        return events if len(events) < 2 * at_once else []

    def _set_back(self, state: State, snapshot: Snapshot | None) -> None:
        """Set a state back to a snapshot; without one, before all events."""
        if snapshot is None:
            snapshot = Snapshot(BEFORE_ALL_EVENTS, 0, 0, self.model.start)
        state.count, state.last, state.vector = snapshot.count, snapshot.key, snapshot.vector
        del state.seen[snapshot.known :]

    # ---- fold ------------------------------------------------------------------------------------

    def _before_all_events(self, version: int) -> State:
        return State(self.model.hash, version, 0, BEFORE_ALL_EVENTS, self.model.start, array("i"))

    def _fold(self, updates: Sequence[_Update]) -> dict[User, list[Snapshot]]:
        """Add events to states; the snapshots that were to be kept."""
        pending = [(update, _split(update)) for update in updates]
        snapshots: dict[User, list[Snapshot]] = {update.user: [] for update in updates}
        while pending := [(update, parts) for update, parts in pending if parts]:
            events = [parts.pop(0) for _, parts in pending]
            encoded = [
                self.model.encode(part, update.state.last[0], self._log.unit(update.user[0]))
                for (update, _), part in zip(pending, events, strict=True)
            ]
            before = np.stack([update.state.vector for update, _ in pending])
            vectors = self.model.fold(before, encoded)
            for (update, _), part, vector, known in zip(
                pending, events, vectors, encoded, strict=True
            ):
                state = update.state
                self._add_to(state, part, split(known)[0].numpy())
                state.vector = vector
                if state.count in update.kept and state.count % SNAPSHOT_INTERVAL == 0:
                    snapshot = Snapshot(state.last, state.count, len(state.seen), vector)
                    snapshots[update.user].append(snapshot)
        return snapshots

    def _add_to(self, state: State, events: History, rows: np.ndarray) -> None:
        """Note events as read; ``rows`` are the items that the model knows."""
        if events:
            state.count, state.last = state.count + len(events), events[-1][:2]
            state.seen.extend(rows.tolist())


def _split(update: _Update) -> list[History]:
    """The events of an update in parts that end where the vector is kept."""
    begin, events = update.state.count, update.events
    due = {count - begin for count in update.kept if begin < count < begin + len(events)}
    cuts = sorted({0, *due, len(events)})
    return [events[start:stop] for start, stop in pairwise(cuts)]
