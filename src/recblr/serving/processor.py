"""What each request does to the event log and the states.

A :class:`RequestProcessor` handles requests in batches: those that change something in one
transaction, those that read with one access to the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from recblr.serving.item_search import ItemSearch
from recblr.serving.model import ServedModel
from recblr.serving.requests import (
    DescribeUser,
    EraseUser,
    GetServedModel,
    ListUsers,
    Outcome,
    Query,
    RankedItems,
    RecommendForHistory,
    RecommendForUser,
    RecordEvents,
    Request,
    SwapModel,
    UserDescription,
)
from recblr.serving.storage import (
    Event,
    EventLog,
    ServedModelInfo,
    State,
    StateCache,
    StorageError,
    User,
)
from recblr.serving.timestamps import to_unit
from recblr.serving.user_states import NewEvents, UserStates

REBUILT_USERS = 4  # users whose snapshots are rebuilt at once


@dataclass
class _Transaction:
    """What the requests of a transaction have done so far.

    ``versions`` are the users' versions before; ``states`` will be in use after the commit.
    """

    versions: dict[User, int]
    states: UserStates
    new_events: NewEvents = field(default_factory=dict)


class RequestProcessor:
    """Handles requests on one thread.

    Attributes:
        rebuilding: whether there may be snapshots of another model than the one in use.
    """

    def __init__(self, log: EventLog, cache: StateCache, model: ServedModel) -> None:
        self._log, self._cache = log, cache
        self._states = UserStates(log, cache, model)
        self.rebuilding = True
        self._writers: dict[type[Request], Callable[[list[Any], _Transaction], list[Any]]] = {
            RecordEvents: self._record,
            EraseUser: self._erase,
            SwapModel: self._swap,
        }
        self._readers: dict[type[Request], Callable[[list[Any]], list[Any]]] = {
            RecommendForUser: self._recommend_for_users,
            RecommendForHistory: self._recommend_for_histories,
            DescribeUser: self._describe,
            ListUsers: self._list_users,
            GetServedModel: self._get_served_model,
        }

    @property
    def model(self) -> ServedModel:
        """The model in use."""
        return self._states.model

    def is_write(self, request: Request) -> bool:
        """Whether a request is for :meth:`write` rather than :meth:`read`."""
        return type(request) in self._writers

    def write(self, requests: Sequence[Request]) -> list[Any]:
        """Handle requests in order, in one transaction; returns their answers.

        An answer may be a StorageError, if one request failed and the others did not.
        """
        users = sorted({user for request in requests for user in request.users})
        answers: list[Any] = []
        try:
            with self._log.transaction():
                versions = dict(zip(users, self._log.lock(users), strict=True))
                transaction = _Transaction(versions, self._states)
                for kind, group in groupby(requests, type):
                    answers += self._writers[kind](list(group), transaction)
                advanced = self._states.advance(versions, transaction.new_events)
        except BaseException:
            self._cache.discard(users)
            raise
        self._states.put(advanced)
        self._states = transaction.states
        return answers

    def read(self, requests: Sequence[Request]) -> list[Any]:
        """Answer requests, those of one type together.

        The answer to a recommendation is an ItemSearch, unless it needs no search.
        """
        by_type: dict[type[Request], list[int]] = {}
        for position, request in enumerate(requests):
            by_type.setdefault(type(request), []).append(position)
        answers: list[Any] = [None] * len(requests)
        for kind, positions in by_type.items():
            group = [requests[position] for position in positions]
            for position, answer in zip(positions, self._readers[kind](group), strict=True):
                answers[position] = answer
        return answers

    def rebuild(self) -> None:
        """Replace the snapshots of a few users that are of another model.

        Clears ``rebuilding`` when none are left, or on failure.
        """
        remaining = False
        try:
            users = self._log.outdated_users(self.model.hash, REBUILT_USERS)
            self._states.rebuild(users)
            remaining = bool(users)
        finally:
            self.rebuilding = remaining

    # ---- requests that change the log or the model -----------------------------------------------

    def _record(
        self, requests: list[RecordEvents], transaction: _Transaction
    ) -> list[list[Outcome]]:
        by_request = [self._in_unit_of_log(request) for request in requests]
        versions = iter(self._log.add(
            [(request.tenant, event)
             for request, events in zip(requests, by_request, strict=True) for event in events]
        ))  # fmt: skip
        answers = []
        for request, events in zip(requests, by_request, strict=True):
            outcomes = []
            for event in events:
                version = next(versions)
                if version > 0:
                    user = request.tenant, event.user_id
                    transaction.new_events.setdefault(user, []).append((event, version))
                outcomes.append(_outcome(event, version))
            answers.append(outcomes)
        return answers

    def _in_unit_of_log(self, request: RecordEvents) -> Sequence[Event]:
        unit = self._log.unit(request.tenant)
        if unit == "seconds":
            return request.events
        times = to_unit(np.array([event.timestamp for event in request.events]), "seconds", unit)
        return [
            event._replace(timestamp=time)
            for event, time in zip(request.events, times, strict=True)
        ]

    def _erase(
        self, requests: list[EraseUser], transaction: _Transaction
    ) -> list[int | StorageError]:
        answers: list[int | StorageError] = []
        for request in requests:
            try:
                self._cache.erase(request.user, transaction.versions[request.user])
            except StorageError as error:  # of a shared cache; the other requests can succeed
                answers.append(error)
                continue
            transaction.new_events.pop(request.user, None)
            answers.append(self._log.erase(request.user))
        return answers

    def _swap(self, requests: list[SwapModel], transaction: _Transaction) -> list[None]:
        for request in requests:
            if request.announce:
                self._log.record_swap(str(request.model.path), request.model.hash)
            transaction.states = UserStates(self._log, self._cache, request.model)
        self.rebuilding = True
        return [None] * len(requests)

    # ---- requests that only read -----------------------------------------------------------------

    def _recommend_for_users(
        self, requests: list[RecommendForUser]
    ) -> list[RankedItems | ItemSearch]:
        states = self._states_of([request.user for request in requests])
        answers = []
        for request in requests:
            if (state := states[request.user]) is None:
                answers.append(self._rank(request.query, self.model.start, np.zeros(0, np.int64)))
                continue
            history = np.frombuffer(state.seen, np.int32)
            answers.append(self._rank(request.query, state.vector, history))
        return answers

    def _recommend_for_histories(
        self, requests: list[RecommendForHistory]
    ) -> list[RankedItems | ItemSearch]:
        histories = [self.model.rows(request.item_ids) for request in requests]
        starts = np.tile(self.model.start, (len(requests), 1))
        vectors = self.model.fold(starts, histories)
        return [
            self._rank(request.query, vector, history)
            for request, vector, history in zip(requests, vectors, histories, strict=True)
        ]

    def _describe(self, requests: list[DescribeUser]) -> list[UserDescription]:
        states = self._states_of([request.user for request in requests])
        answers = []
        for request in requests:
            if (state := states[request.user]) is None:
                answers.append(UserDescription(self.model, 0, 0, None, []))
                continue
            events = self._log.events(request.user) if request.with_events else []
            answers.append(
                UserDescription(self.model, state.count, len(state.seen), state.last, events)
            )
        return answers

    def _list_users(self, requests: list[ListUsers]) -> list[list[str]]:
        return [self._log.users_of(request.tenant, request.limit) for request in requests]

    def _get_served_model(self, requests: list[GetServedModel]) -> list[ServedModelInfo | None]:
        return [self._log.served_model() for _ in requests]

    def _states_of(self, users: Sequence[User]) -> dict[User, State | None]:
        users = list(dict.fromkeys(users))
        return dict(zip(users, self._states.get(users), strict=True))

    def _rank(
        self, query: Query, vector: np.ndarray, history: np.ndarray
    ) -> RankedItems | ItemSearch:
        """The search for the best items after a history (T,) of item rows; the most popular ones
        if it is empty."""
        model = self.model
        hide = model.rows(query.deny)
        if query.hide_seen:
            hide = np.concatenate([hide, history])
        allow = None if query.allow is None else model.rows(query.allow)
        if len(history):
            # A copy, because the history of a cached state grows while the search is queued.
            looked_up = (history[-model.reach :] if query.hide_seen else history).copy()
            hidden = model.hidden(vector[None])[0]
            return ItemSearch(model, hidden, looked_up, not query.hide_seen, query.k, hide, allow)
        rows = model.popular if allow is None else model.popular[np.isin(model.popular, allow)]
        rows = rows[~np.isin(rows, hide)][: query.k]
        return RankedItems(model, "popularity", rows, model.counts[rows])


def _outcome(event: Event, version: int) -> Outcome:
    if version < 0:
        return Outcome("rejected", f"event_id {event.event_id!r} is already used by another event")
    return Outcome("accepted" if version else "duplicate")
