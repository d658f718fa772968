"""What each request does to the event log and the states.

A :class:`RequestProcessor` handles requests in batches: those that change something in one
transaction, those that read with one access to the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from recblr.data.kinds import kind_code
from recblr.errors import InputError
from recblr.serving.item_search import ItemSearch
from recblr.serving.model import ServedModel
from recblr.serving.requests import (
    PART,
    CheckStorage,
    DescribeUser,
    EraseUser,
    ExplainUser,
    FindEvent,
    GetServedModel,
    ListUsers,
    Outcome,
    Query,
    RankedItems,
    RecommendForHistory,
    RecommendForUser,
    RecordEvents,
    RemoveEvent,
    Request,
    SwapModel,
    UserDescription,
    UserHistory,
)
from recblr.serving.storage import (
    BEFORE_ALL_EVENTS,
    Event,
    EventLog,
    ServedModelInfo,
    StateCache,
    StorageError,
    User,
)
from recblr.serving.timestamps import to_unit
from recblr.serving.user_states import NewEvents, Rebuild, UserStates

REBUILT_USERS = 4  # users whose snapshots are rebuilt at once
UNKNOWN = -1  # a version that no state has


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
            RemoveEvent: self._remove,
            SwapModel: self._swap,
        }
        self._readers: dict[type[Request], Callable[[list[Any]], list[Any]]] = {
            RecommendForUser: self._recommend_for_users,
            RecommendForHistory: self._recommend_for_histories,
            DescribeUser: self._describe,
            ExplainUser: self._explain,
            FindEvent: self._find,
            CheckStorage: self._check,
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

    def is_quick(self, request: Request) -> bool:
        """Whether a request needs only a state in memory and the search of a small catalogue."""
        small = self.model.index.is_small
        return small and isinstance(request, RecommendForUser) and request.user in self._cache

    def write(
        self, requests: Sequence[Request], computed: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """Handle requests in order, in one transaction; returns their answers.

        ``computed`` is called before the transaction is committed, which only waits for the disk. An
        answer may be a StorageError, if one request failed and the others did not.
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
                computed()
        except BaseException:
            self._states.discard(users)
            raise
        self._states.put(advanced)
        self._states = transaction.states
        return answers

    def read(self, requests: Sequence[Request]) -> list[Any]:
        """Answer requests, those of one type together.

        The answer to a recommendation is an ItemSearch, unless it needs no search. An answer that is a
        Request has to be handled next: a part of the work is done.
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
        """Do a part of replacing the snapshots of a few users that are of another model.

        Clears ``rebuilding`` when none are left, or on failure.
        """
        remaining = False
        try:
            users = self._log.outdated_users(self.model.hash, REBUILT_USERS)
            for user, state in zip(users, self._states.get(users), strict=True):
                if not isinstance(state, Rebuild):
                    self._log.drop_outdated(user, self.model.hash)
            remaining = bool(users)
        finally:
            self.rebuilding = remaining

    # ---- requests that change the log or the model -----------------------------------------------

    def _record(
        self, requests: list[RecordEvents], transaction: _Transaction
    ) -> list[list[Outcome] | Request]:
        by_request = [self._in_unit_of_log(request) for request in requests]
        versions = iter(self._log.add(
            [(request.tenant, event)
             for request, events in zip(requests, by_request, strict=True) for event in events]
        ))  # fmt: skip
        answers: list[list[Outcome] | Request] = []
        for request, events in zip(requests, by_request, strict=True):
            outcomes = list(request.outcomes)
            for event in events:
                version = next(versions)
                if version > 0:
                    user = request.tenant, event.user_id
                    transaction.new_events.setdefault(user, []).append((event, version))
                outcomes.append(_outcome(event, version))
            complete = len(outcomes) == len(request.events)
            answers.append(outcomes if complete else replace(request, outcomes=outcomes))
        return answers

    def _in_unit_of_log(self, request: RecordEvents) -> Sequence[Event]:
        events, unit = request.part, self._log.unit(request.tenant)
        if unit == "seconds":
            return events
        times = to_unit(np.array([event.timestamp for event in events]), "seconds", unit)
        return [event._replace(timestamp=time) for event, time in zip(events, times, strict=True)]

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
            self._forget(request.user, transaction)
            answers.append(self._log.erase(request.user))
        return answers

    def _remove(self, requests: list[RemoveEvent], transaction: _Transaction) -> list[bool]:
        answers = []
        for user, event_id in ((request.user, request.event_id) for request in requests):
            before = transaction.versions[user]
            removed = self._log.remove(user, event_id)
            answers.append(removed is not None)
            if removed is None:
                continue
            (timestamp, _), version = removed
            if not version:
                self._cache.erase(user, before)  # if it fails, so does the transaction
            if user in transaction.new_events or not version:
                self._forget(user, transaction)
                self._log.drop_snapshots(user, (timestamp, ""))
            else:
                # The key before all events of that time, because snapshots at the event include it.
                self._states.change(user, before, version, (timestamp, ""))
                transaction.versions[user] = version
        return answers

    def _forget(self, user: User, transaction: _Transaction) -> None:
        """Make the state of a user be rebuilt when it is needed."""
        transaction.new_events.pop(user, None)
        transaction.states.discard([user])
        transaction.versions[user] = UNKNOWN

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
    ) -> list[RankedItems | ItemSearch | Request | InputError]:
        states = self._states.get([request.user for request in requests])
        answers: list[RankedItems | ItemSearch | Request | InputError] = []
        for request, state in zip(requests, states, strict=True):
            if state is None:
                answers.append(self._rank(request.query, self.model.start, np.zeros(0, np.int64)))
            elif isinstance(state, Rebuild):
                answers.append(request)
            else:
                history = np.frombuffer(state.seen, np.int32)
                answers.append(self._rank(request.query, state.vector, history))
        return answers

    def _recommend_for_histories(
        self, requests: list[RecommendForHistory]
    ) -> list[RankedItems | ItemSearch | Request | InputError]:
        requests = [
            request if request.model is self.model
            else replace(
                request, model=self.model, rows=self.model.rows(request.item_ids), count=0,
                vector=self.model.start,
            )
            for request in requests
        ]  # fmt: skip
        parts = [request.rows[request.count : request.count + PART] for request in requests]
        vectors = np.stack([request.vector for request in requests])
        vectors = self.model.fold(vectors, parts)
        answers: list[RankedItems | ItemSearch | Request | InputError] = []
        for request, part, vector in zip(requests, parts, vectors, strict=True):
            count = request.count + len(part)
            if count < len(request.rows):
                answers.append(replace(request, count=count, vector=vector))
            else:
                answers.append(self._rank(request.query, vector, request.rows))
        return answers

    def _describe(self, requests: list[DescribeUser]) -> list[UserDescription | Request]:
        answers: list[UserDescription | Request] = []
        states = self._states.get([request.user for request in requests])
        for request, state in zip(requests, states, strict=True):
            if state is None:
                answers.append(UserDescription(self.model, 0, 0, None, []))
            elif isinstance(state, Rebuild):
                answers.append(request)
            else:
                events = []
                if request.events:
                    events = self._log.latest_events(request.user, request.events)
                answers.append(
                    UserDescription(self.model, state.count, len(state.seen), state.last, events)
                )
        return answers

    def _explain(self, requests: list[ExplainUser]) -> list[UserHistory | Request]:
        answers: list[UserHistory | Request] = []
        states = self._states.get([request.user for request in requests])
        for (user, count), state in zip(
            ((request.user, request.events) for request in requests), states, strict=True
        ):
            if isinstance(state, Rebuild):
                answers.append(ExplainUser(user, count))
                continue
            start, events, rows = self.model.start, [], np.zeros(0, np.int64)
            encoded = rows
            if state is not None:
                rows = np.array(state.seen, np.int64)
                snapshot = self._log.snapshot(user, self.model.hash, max(0, state.count - count))
                after = BEFORE_ALL_EVENTS if snapshot is None else snapshot.key
                start = start if snapshot is None else snapshot.vector
                events = self._log.events(user, after)
                encoded = self.model.encode(events, after[0], self._log.unit(user[0]))
            answers.append(UserHistory(self.model, start, events, encoded, rows))
        return answers

    def _find(self, requests: list[FindEvent]) -> list[bool | Request]:
        answers: list[bool | Request] = []
        for request in requests:
            user_id = self._log.user_of(request.tenant, request.event_id)
            answers.append(
                user_id is not None and RemoveEvent((request.tenant, user_id), request.event_id)
            )
        return answers

    def _check(self, requests: list[CheckStorage]) -> list[str | StorageError]:
        answer: str | StorageError = ""
        try:
            self._log.check()
        except StorageError as error:
            answer = error  # not raised, because other requests can succeed
        else:
            try:
                self._cache.check()
            except StorageError as error:
                answer = str(error)
        return [answer] * len(requests)

    def _list_users(self, requests: list[ListUsers]) -> list[list[str]]:
        return [self._log.users_of(request.tenant, request.limit) for request in requests]

    def _get_served_model(self, requests: list[GetServedModel]) -> list[ServedModelInfo | None]:
        return [self._log.served_model() for _ in requests]

    def _rank(
        self, query: Query, vector: np.ndarray, history: np.ndarray
    ) -> RankedItems | ItemSearch | InputError:
        """The search for the best items after a history (T,) of item rows; the most popular ones
        if it is empty. An InputError, if the model does not know the kind that is asked for."""
        model = self.model
        try:
            kind_code(query.kind or None, model.kind_names)
        except InputError as error:
            return error.with_traceback(None)  # whose frames would keep the history from growing
        hide = model.rows(query.deny)
        if query.hide_seen:
            hide = np.concatenate([hide, history])
        allow = None if query.allow is None else model.rows(query.allow)
        if len(history):
            # A copy, because the history of a cached state grows while the search is queued.
            looked_up = (history[-model.reach :] if query.hide_seen else history).copy()
            hidden = model.ask(model.hidden(vector[None]), query.kind)[0]
            return ItemSearch(model, hidden, looked_up, not query.hide_seen, query.k, hide, allow)
        rows = model.popular if allow is None else model.popular[np.isin(model.popular, allow)]
        rows = rows[~np.isin(rows, hide)][: query.k]
        return RankedItems(model, "popularity", rows, model.counts[rows])


def _outcome(event: Event, version: int) -> Outcome:
    if version < 0:
        return Outcome("rejected", f"event_id {event.event_id!r} is already used by another event")
    return Outcome("accepted" if version else "duplicate")
