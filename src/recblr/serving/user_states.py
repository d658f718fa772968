"""The states of users under one model, computed from the events of a log."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from recblr.serving.model import ServedModel
from recblr.serving.storage import (
    BEFORE_ALL_EVENTS,
    SNAPSHOT_INTERVAL,
    Event,
    EventLog,
    History,
    Snapshot,
    State,
    StateCache,
    User,
    snapshot_counts,
)

FOLD_EVENTS = 1 << 15  # events of all users in one call of the model: about a second's work

NewEvents = dict[User, list[tuple[Event, int]]]
"""Events that the current transaction has added, each with the user's version after it."""


class _Update(NamedTuple):
    """A state and the events to add to it."""

    user: User
    state: State
    events: History


class UserStates:
    """The states of one model over a log; recently used ones are cached."""

    def __init__(self, log: EventLog, cache: StateCache, model: ServedModel) -> None:
        self._log, self._cache, self.model = log, cache, model

    def get(self, users: Sequence[User]) -> list[State | None]:
        """The current states of users; None for users without events."""
        versions = self._log.versions(users)
        states = self._cached(users, versions)
        missing = [
            user for user, version, state in zip(users, versions, states, strict=True)
            if version and state is None
        ]  # fmt: skip
        if not missing:
            return states
        by_user = dict(zip(users, states, strict=True)) | self.rebuild(missing)
        return [by_user[user] for user in users]

    def advance(self, versions: dict[User, int], new_events: NewEvents) -> dict[User, State]:
        """The states after events that the open transaction has added to the log.

        ``versions`` are the users' versions before the transaction. The caller passes the states to
        :meth:`put` after the commit, so that no reader sees a state of a transaction that fails.
        """
        updates = []
        states = self._cached(list(new_events), [versions[user] for user in new_events])
        for (user, added), state in zip(new_events.items(), states, strict=True):
            events = sorted((*event.key, event.item_id) for event, _ in added)
            first, version = events[0][:2], max(version for _, version in added)
            if state is not None and first > state.last:
                updates.append(_Update(user, replace(state, version=version), events))
            else:  # an event is late, or the state is not cached
                self._log.drop_snapshots(user, first)
                updates.append(self._from_snapshot(user, version))
        return self._apply(updates)

    def put(self, states: dict[User, State]) -> None:
        """Cache states."""
        self._cache.put(list(states.items()))

    def rebuild(self, users: Sequence[User], from_scratch: bool = False) -> dict[User, State]:
        """Recompute and cache states; users without events are left out.

        Each state starts from the latest snapshot of this model, or with ``from_scratch`` from the
        first event.
        """
        with self._log.transaction():
            versions = self._log.lock(users)
            if from_scratch:
                for user in users:
                    self._log.drop_snapshots(user, BEFORE_ALL_EVENTS)
            states = self._apply(
                [self._from_snapshot(user, version)
                 for user, version in zip(users, versions, strict=True) if version]
            )  # fmt: skip
        self.put(states)
        return states

    def _cached(self, users: Sequence[User], versions: Sequence[int]) -> list[State | None]:
        """The cached states that are of this model and of these versions."""
        return [
            state if state and (state.model, state.version) == (self.model.hash, version) else None
            for state, version in zip(self._cache.get(users), versions, strict=True)
        ]

    def _from_snapshot(self, user: User, version: int) -> _Update:
        """The state at the latest snapshot, and the events after it."""
        events = self._log.events(user)
        snapshot = self._log.snapshot(user, self.model.hash)
        start = snapshot or Snapshot(BEFORE_ALL_EVENTS, 0, self.model.start)
        before, after = events[: start.count], events[start.count :]
        seen = array("i", self.model.rows([item for _, _, item in before]).tolist())
        state = State(self.model.hash, version, start.count, start.key, start.vector, seen)
        return _Update(user, state, after)

    def _apply(self, updates: Sequence[_Update]) -> dict[User, State]:
        """The states after their events. Snapshots that fall due are added to the log."""
        pending = [(update, _split(update.state.count, update.events)) for update in updates]
        snapshots: dict[User, list[Snapshot]] = {}
        while pending:
            batch, events = [], 0
            while pending and events < FOLD_EVENTS:
                batch.append(pending.pop())
                events += len(batch[-1][1][0])
            parts = [parts.pop(0) for _, parts in batch]
            rows = [self.model.rows([item for _, _, item in part]) for part in parts]
            before = np.stack([update.state.vector for update, _ in batch])
            vectors = self.model.fold(before, rows)
            for (update, _), part, vector, known in zip(batch, parts, vectors, rows, strict=True):
                state = update.state
                state.vector, state.count = vector, state.count + len(part)
                state.seen.extend(known.tolist())
                if part:
                    state.last = part[-1][:2]
                if part and state.count % SNAPSHOT_INTERVAL == 0:
                    snapshot = Snapshot(state.last, state.count, vector)
                    snapshots.setdefault(update.user, []).append(snapshot)
            pending += [(update, parts) for update, parts in batch if parts]
            if pending:
                self._log.versions([])  # keeps PostgreSQL from ending an idle transaction
        for user, new in snapshots.items():
            self._log.add_snapshots(user, self.model.hash, new)
        return {update.user: update.state for update in updates}


def _split(count: int, events: History) -> list[History]:
    """Events that follow ``count`` others, in parts of at most FOLD_EVENTS that end where a snapshot
    is kept. Without events, one empty part."""
    due = {kept - count for kept in snapshot_counts(count + len(events)) if kept > count}
    cuts = sorted({0, *due, *range(0, len(events), FOLD_EVENTS), len(events)})
    parts = [events[start:stop] for start, stop in pairwise(cuts)]
    return [part for part in parts if part] or [[]]
