"""The states of users: what the events of the log come to under one model."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from recblr.serving.events import Event, User
from recblr.serving.model import ServedModel
from recblr.serving.store import BEGINNING, SNAPSHOT, Cache, Log, Rows, Snapshot, State, kept

EVENTS = 1 << 15  # folded at once: about a second's work

New = dict[User, list[tuple[Event, int]]]
"""Events that have just been added, with the user's version after each."""


class States:
    """States of one model over a log, those at hand in a cache."""

    def __init__(self, log: Log, cache: Cache, model: ServedModel) -> None:
        self._log, self._cache, self.model = log, cache, model

    def advance(self, versions: dict[User, int], new: New) -> dict[User, State]:
        """Fold new events, which the log has, into the states of before, at these versions.

        To be kept when the transaction is done: nobody is to find a state that never came to be.
        """
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
        return self._fold(work)

    def keep(self, states: dict[User, State]) -> None:
        """Have states at hand."""
        self._cache.put(list(states.items()))

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
        found = dict(zip(users, states, strict=True)) | self.rebuild(missing)
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
        """States after more events; snapshots are kept where they fall due."""
        left = [(user, state, _pieces(state.count, events)) for user, state, events in work]
        made: dict[User, list[Snapshot]] = {}
        while left:
            some, events = [], 0
            while left and events < EVENTS:
                some.append(left.pop())
                events += len(some[-1][2][0])
            rows = [self.model.rows([item for _, _, item in pieces[0]]) for _, _, pieces in some]
            vectors = np.stack([state.vector for _, state, _ in some])
            vectors = self.model.fold(vectors, rows)
            for (user, state, pieces), vector, known in zip(some, vectors, rows, strict=True):
                piece = pieces.pop(0)
                state.vector, state.count = vector, state.count + len(piece)
                state.seen.extend(known.tolist())
                if piece:
                    state.last = piece[-1][:2]
                if piece and state.count % SNAPSHOT == 0:
                    made.setdefault(user, []).append(Snapshot(state.last, state.count, vector))
            left += [it for it in some if it[2]]
            if left:
                self._log.versions([])  # a sign of life, or a shared log takes us for hung
        for user, snapshots in made.items():
            self._log.keep(user, self.model.hash, snapshots)
        return {user: state for user, state, _ in work}

    def rebuild(self, users: Sequence[User], whole: bool = False) -> dict[User, State]:
        """Make states anew, from the latest snapshots of this model or from the ``whole`` history;
        none of those without events."""
        with self._log.transaction():
            versions = self._log.lock(users)
            for user in users if whole else ():
                self._log.drop(user, BEGINNING)
            made = self._fold(
                [(user, *self._start(user, version))
                 for user, version in zip(users, versions, strict=True) if version]
            )  # fmt: skip
        self.keep(made)
        return made


def _pieces(count: int, events: Rows) -> list[Rows]:
    """Events that follow ``count`` others, cut where snapshots fall due that will be kept, and where
    they are too many; at least one piece, of no event only if there is none."""
    due = {it - count for it in kept(count + len(events)) if it > count}
    cuts = sorted({0, *due, *range(0, len(events), EVENTS), len(events)})
    pieces = [events[start:stop] for start, stop in pairwise(cuts)]
    return [piece for piece in pieces if piece] or [[]]
