"""The states of users: what the events of the log come to under one model."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from recblr.serving.events import Event, User
from recblr.serving.model import ServedModel
from recblr.serving.store import BEGINNING, SNAPSHOT, Cache, Log, Rows, Snapshot, State, kept

New = dict[User, list[tuple[Event, int]]]
"""Events that have just been added, with the user's version after each."""


class States:
    """States of one model over a log, those at hand in a cache."""

    def __init__(self, log: Log, cache: Cache, model: ServedModel) -> None:
        self._log, self._cache, self.model = log, cache, model

    def advance(self, versions: dict[User, int], new: New) -> None:
        """Fold new events, which the log has, into the states of before, at these versions."""
        work = []
        states = self._valid(list(new), [versions[user] for user in new])
        for (user, events), state in zip(new.items(), states, strict=True):
            events.sort(key=lambda it: it[0].key)
            first, version = events[0][0].key, max(version for _, version in events)
            if state is not None and first > state.last:
                pending = [(*event.key, event.item_id) for event, _ in events]
                work.append((user, replace(state, version=version), pending))
            else:  # late, or not at hand
                self._log.drop(user, first)
                work.append((user, *self._start(user, version)))
        self._fold(work)

    def of(self, users: Sequence[User]) -> list[State | None]:
        """Of the users' latest versions; None of those without events."""
        versions = self._log.versions(users)
        states = self._valid(users, versions)
        missing = [
            user for user, version, state in zip(users, versions, states, strict=True)
            if version and state is None
        ]  # fmt: skip
        if not missing:
            return states
        with self._log.transaction():
            found = dict(zip(users, states, strict=True))
            versions = self._log.lock(missing)
            found |= self._fold(
                [(user, *self._start(user, version))
                 for user, version in zip(missing, versions, strict=True) if version]
            )  # fmt: skip
        return [found[user] for user in users]

    def _valid(self, users: Sequence[User], versions: Sequence[int]) -> list[State | None]:
        """States at hand that hold all the user's events, by the model in use."""
        return [
            state if state and (state.model, state.version) == (self.model.hash, version) else None
            for state, version in zip(self._cache.get(users), versions, strict=True)
        ]

    def _start(self, user: User, version: int) -> tuple[State, Rows]:
        """A state to start from, the latest snapshot, and the events behind it."""
        events = self._log.events(user)
        found = self._log.snapshot(user, self.model.hash)
        start = found or Snapshot(BEGINNING, 0, self.model.start)
        before, behind = events[: start.count], events[start.count :]
        seen = array("i", self.model.rows([item for _, _, item in before]).tolist())
        state = State(self.model.hash, version, start.count, start.key, start.vector, seen)
        return state, behind

    def _fold(self, work: Sequence[tuple[User, State, Rows]]) -> dict[User, State]:
        """States after more events; snapshots where they fall due, all of it kept."""
        left = [(user, state, _pieces(state.count, events)) for user, state, events in work]
        made: dict[User, list[Snapshot]] = {}
        while left:
            rows = [self.model.rows([item for _, _, item in pieces[0]]) for _, _, pieces in left]
            vectors = np.stack([state.vector for _, state, _ in left])
            vectors = self.model.fold(vectors, rows)
            for (user, state, pieces), vector, known in zip(left, vectors, rows, strict=True):
                piece = pieces.pop(0)
                state.vector, state.count = vector, state.count + len(piece)
                state.seen.extend(known.tolist())
                if piece:
                    state.last = piece[-1][:2]
                if piece and state.count % SNAPSHOT == 0:
                    made.setdefault(user, []).append(Snapshot(state.last, state.count, vector))
            left = [it for it in left if it[2]]
        for user, snapshots in made.items():
            self._log.keep(user, self.model.hash, snapshots)
        states = [(user, state) for user, state, _ in work]
        self._cache.put(states)
        return dict(states)

    def rebuild(self, users: Sequence[User], whole: bool = False) -> None:
        """Make states anew, from the latest snapshots of this model or from the ``whole`` history."""
        with self._log.transaction():
            versions = self._log.lock(users)
            for user in users if whole else ():
                self._log.drop(user, BEGINNING)
            self._fold(
                [(user, *self._start(user, version))
                 for user, version in zip(users, versions, strict=True) if version]
            )  # fmt: skip


def _pieces(count: int, events: Rows) -> list[Rows]:
    """Events that follow ``count`` others, cut where snapshots fall due that will be kept; at least
    one piece, of no event only if there is none."""
    due = (it - count for it in kept(count + len(events)) if it > count)
    pieces = [events[start:stop] for start, stop in pairwise([0, *due, len(events)])]
    return [piece for piece in pieces if piece] or [[]]
