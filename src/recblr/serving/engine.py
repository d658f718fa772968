"""What is done with requests, a few at a time.

One thread owns the log and the states. Again and again it takes the requests that wait, a fair share
of every tenant, writes all their events in one transaction, folds them into the states and answers:
so that a user's events follow one another, and who was told that an event is kept finds it in what
is read next. A second thread looks for the best items, of several requests in one pass.
"""

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from recblr.serving.events import Event, Key, User
from recblr.serving.line import BusyError, Line
from recblr.serving.model import ServedModel
from recblr.serving.states import New, States
from recblr.serving.store import Cache, Log, Rows, Served, State, StoreError

WAITING = 256  # requests of a tenant that are not answered yet; more are refused
TOGETHER = 16  # requests that are done at once
REBUILT = 4  # users whose snapshots are made anew while nobody asks for anything


class Outcome(NamedTuple):
    """What became of an event, and why."""

    status: Literal["accepted", "duplicate", "rejected"]
    reason: str = ""


@dataclass(frozen=True)
class Query:
    """What to recommend: ``k`` items, of ``allow`` alone if named, none of ``deny``."""

    k: int
    hide_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


class Recommended(NamedTuple):
    """Items with their scores, best first; ``basis`` is "history", or "popularity" if there is none."""

    model: ServedModel
    basis: Literal["history", "popularity"]
    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class About:
    """A user's state: how many events it holds, how many the model knows, and the latest of them.

    ``events`` are all of them as (timestamp, event id, item id), if they were asked for.
    """

    model: ServedModel
    count: int
    known: int
    last: Key | None
    events: Rows


class Record(NamedTuple):
    """``query`` is what to recommend then to the user of the last event."""

    tenant: str
    events: Sequence[Event]
    query: Query | None = None


class Erase(NamedTuple):
    user: User


class Recommend(NamedTuple):
    """For a user, or for item ids that are nobody's history."""

    user: User | None
    items: tuple[str, ...]
    query: Query


class Describe(NamedTuple):
    user: User
    events: bool  # whether these, too


class Users(NamedTuple):
    tenant: str
    limit: int


class Swap(NamedTuple):
    model: ServedModel
    announce: bool  # to the other servers of this log


class Look(NamedTuple):
    """For the model that is to be served."""


Write = Record | Erase | Swap
Read = Recommend | Describe | Users | Look


class Request(NamedTuple):
    """Something to be done by the thread of the states, and where the answer goes."""

    work: Write | Read
    answer: "Future[Any]"


class Search(NamedTuple):
    """A vector to be compared with the items, and the history for the memory of transitions.

    ``history`` and ``repeats`` as in :meth:`ServedModel.added`; a copy, as a state's own rows grow.
    """

    model: ServedModel
    hidden: np.ndarray
    history: np.ndarray
    repeats: bool
    k: int
    hide: np.ndarray
    allow: np.ndarray | None


class Engine:
    """Serves one model from one log; every method may be called from any thread and does not wait.

    Raises:
        BusyError: by methods that take a request, when too many wait.
    """

    def __init__(self, log: Log, cache: Cache, model: ServedModel) -> None:
        self._log, self._cache = log, cache
        self._states = States(log, cache, model)
        self.failure: StoreError | None = None  # of the last transaction
        self.rebuilding = True  # there may be snapshots of another model
        self._requests: Line[Request] = Line()
        self._searches: Line[tuple[Search, Future[Any]]] = Line()
        self._waiting: Counter[str] = Counter()  # by tenant
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name="states", daemon=True),
            threading.Thread(target=self._search, name="items", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def record(self, tenant: str, events: Sequence[Event]) -> "Future[list[Outcome]]":
        """Keep events; the answer comes when they are on the disk."""
        return self._ask(tenant, Record(tenant, events))

    def record_and_recommend(
        self, tenant: str, events: Sequence[Event], query: Query
    ) -> "Future[tuple[list[Outcome], Recommended]]":
        """The same, and the best items then for the user of the last event."""
        return self._ask(tenant, Record(tenant, events, query))

    def erase(self, user: User) -> "Future[int]":
        """Remove all that is known of a user; the answer is how many events that was."""
        return self._ask(user[0], Erase(user))

    def recommend(self, user: User, query: Query) -> "Future[Recommended]":
        """The best items after a user's events."""
        return self._ask(user[0], Recommend(user, (), query))

    def recommend_after(
        self, tenant: str, item_ids: tuple[str, ...], query: Query
    ) -> "Future[Recommended]":
        """The best items after a history that is not kept."""
        return self._ask(tenant, Recommend(None, item_ids, query))

    def describe(self, user: User, events: bool = False) -> "Future[About]":
        """What is known of a user."""
        return self._ask(user[0], Describe(user, events))

    def users(self, tenant: str, limit: int) -> "Future[list[str]]":
        """Some of a tenant's users."""
        return self._ask(tenant, Users(tenant, limit))

    def swap(self, model: ServedModel) -> "Future[None]":
        """Answer by another model from now on, and let the other servers of the log follow; states
        are made anew when they are needed."""
        return self._ask("", Swap(model, announce=True))

    def follow(self, model: ServedModel) -> "Future[None]":
        """Answer by the model that another server has swapped in."""
        return self._ask("", Swap(model, announce=False))

    def served(self) -> "Future[Served | None]":
        """The model that is to be served from this log."""
        return self._ask("", Look())

    @property
    def model(self) -> ServedModel:
        """The model in use."""
        return self._states.model

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        with self._counting:
            return self._waiting.total()

    def close(self) -> None:
        """Do what waits, then end."""
        self._requests.close()
        self._threads[0].join()
        self._searches.close()
        self._threads[1].join()
        self._log.close()

    def _ask(self, tenant: str, work: Any) -> "Future[Any]":
        answer: Future[Any] = Future()
        with self._counting:
            if self._waiting[tenant] >= WAITING:
                raise BusyError(f"{WAITING} requests wait already")
            self._waiting[tenant] += 1
        answer.add_done_callback(lambda _: self._answered(tenant))
        try:
            self._requests.put(tenant, Request(work, answer))
        except BusyError:
            answer.cancel()
            raise
        return answer

    def _answered(self, tenant: str) -> None:
        with self._counting:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]

    # ---- the thread of the states --------------------------------------------------------------

    def _serve(self) -> None:
        while (taken := self._requests.take(TOGETHER, wait=not self.rebuilding)) is not None:
            requests = [it for it in taken if it.answer.set_running_or_notify_cancel()]
            self.rebuilding |= any(isinstance(it.work, Swap) for it in requests)
            writes = [it for it in requests if isinstance(it.work, Write)]
            reads = [it for it in requests if not isinstance(it.work, Write)]
            reads += self._answer(writes, self._write)
            self._answer(reads, self._read)
            if not taken:
                self.rebuilding = self._rebuild()

    def _rebuild(self) -> bool:
        """Make some users' snapshots anew that are of another model; whether there were any."""
        try:
            users = self._log.outdated(self.model.hash, REBUILT)
            self._states.rebuild(users)
        except StoreError as error:
            self.failure = error
            return False
        except Exception:  # a mistake of ours: what is asked for is still to be answered
            traceback.print_exc()
            return False
        return bool(users)

    def _answer(
        self, requests: Sequence[Request], work: Callable[[list[Any]], list[Any]]
    ) -> list[Request]:
        """Do and answer requests; what is to be done next before some of them are answered."""
        if not requests:
            return []
        try:
            answers = work([it.work for it in requests])
            self.failure = None
        except StoreError as error:
            self.failure = error
            answers = [error] * len(requests)
        except Exception as error:  # a mistake of ours: nobody shall wait for ever
            answers = [error] * len(requests)
        then = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Exception):
                request.answer.set_exception(answer)
            elif isinstance(answer, Search):
                self._searches.put("", (answer, request.answer))
            elif isinstance(request.work, Record) and request.work.query is not None:
                user = request.work.tenant, request.work.events[-1].user_id
                found = _followed(answer, request.answer)
                then.append(Request(Recommend(user, (), request.work.query), found))
            else:
                request.answer.set_result(answer)
        return then

    def _write(self, works: Sequence[Write]) -> list[Any]:
        """All in one transaction."""
        touched = sorted({user for work in works for user in _users(work)})
        states = self._states
        answers: list[Any] = []
        try:
            with self._log.transaction():
                versions = dict(zip(touched, self._log.lock(touched), strict=True))
                new: New = {}
                for kind, some in groupby(works, type):
                    if kind is Record:
                        answers += self._add(
                            [work for work in some if isinstance(work, Record)], new
                        )
                        continue
                    for work in some:
                        if isinstance(work, Erase):
                            answers.append(self._erase(work.user, versions[work.user], new))
                        elif isinstance(work, Swap):
                            if work.announce:
                                self._log.swap(str(work.model.path), work.model.hash)
                            states = States(self._log, self._cache, work.model)
                            answers.append(None)
                made = self._states.advance(versions, new)
        except BaseException:
            self._cache.undo(touched)
            raise
        self._states.keep(made)
        self._states = states
        return answers

    def _add(self, works: Sequence[Record], new: New) -> list[list[Outcome]]:
        """Put events into the log, and those that it had not into ``new``."""
        versions = iter(self._log.add([(it.tenant, event) for it in works for event in it.events]))
        answers = []
        for work in works:
            outcomes = []
            for event in work.events:
                version = next(versions)
                if version > 0:
                    new.setdefault((work.tenant, event.user_id), []).append((event, version))
                outcomes.append(_outcome(event, version))
            answers.append(outcomes)
        return answers

    def _erase(self, user: User, version: int, new: New) -> int | StoreError:
        try:
            self._cache.erase(user, version)
        except StoreError as error:  # of a shared cache; others are not to suffer from it
            return error
        new.pop(user, None)
        return self._log.erase(user)

    def _read(self, works: Sequence[Read]) -> list[Any]:
        known = [work for work in works if isinstance(work, Recommend | Describe)]
        users = list({work.user: None for work in known if work.user})
        states = dict(zip(users, self._states.of(users), strict=True))
        raw = [work for work in known if isinstance(work, Recommend) and not work.user]
        rows = [self.model.rows(work.items) for work in raw]
        starts = np.tile(self.model.start, (len(raw), 1))
        vectors = iter(zip(self.model.fold(starts, rows), rows, strict=True))
        answers: list[Any] = []
        for work in works:
            if isinstance(work, Users):
                answers.append(self._log.users_of(work.tenant, work.limit))
            elif isinstance(work, Look):
                answers.append(self._log.served())
            elif isinstance(work, Describe):
                answers.append(self._describe(work, states[work.user]))
            elif work.user is None:
                answers.append(self._find(work.query, *next(vectors)))
            elif (state := states[work.user]) is None:
                answers.append(self._find(work.query, self.model.start, np.zeros(0, np.int64)))
            else:
                seen = np.frombuffer(state.seen, np.int32)
                answers.append(self._find(work.query, state.vector, seen))
        return answers

    def _describe(self, work: Describe, state: State | None) -> About:
        if state is None:
            return About(self.model, 0, 0, None, [])
        events = self._log.events(work.user) if work.events else []
        return About(self.model, state.count, len(state.seen), state.last, events)

    def _find(self, query: Query, vector: np.ndarray, seen: np.ndarray) -> Recommended | Search:
        model = self.model
        hide = model.rows(query.deny)
        if query.hide_seen:
            hide = np.concatenate([hide, seen])
        allow = None if query.allow is None else model.rows(query.allow)
        if len(seen):
            history = (seen[-model.reach :] if query.hide_seen else seen).copy()
            hidden = model.hidden(vector[None])[0]
            return Search(model, hidden, history, not query.hide_seen, query.k, hide, allow)
        some = model.popular if allow is None else model.popular[np.isin(model.popular, allow)]
        some = some[~np.isin(some, hide)][: query.k]
        return Recommended(model, "popularity", some, model.counts[some])

    # ---- the thread of the items ---------------------------------------------------------------

    def _search(self) -> None:
        while (searches := self._searches.take(TOGETHER)) is not None:
            for model in {it.model for it, _ in searches}:
                some = [one for one in searches if one[0].model is model]
                try:
                    vectors = torch.from_numpy(np.stack([it.hidden for it, _ in some]))
                    k, hide, allow = zip(
                        *((it.k, it.hide, it.allow) for it, _ in some), strict=True
                    )
                    added = [model.added(it.history, it.repeats) for it, _ in some]
                    scores, rows = model.index.search(vectors, max(k), hide, allow, added)
                except Exception as error:
                    for _, answer in some:
                        answer.set_exception(error)
                    continue
                for (it, answer), best, row in zip(some, scores, rows, strict=True):
                    count = min(it.k, int((row >= 0).sum()))
                    found = Recommended(model, "history", row[:count], best[:count])
                    answer.set_result(found)


def _followed(outcomes: list[Outcome], answer: "Future[Any]") -> "Future[Recommended]":
    """What is recommended after events, answered together with what became of them."""

    def join(done: "Future[Recommended]") -> None:
        if error := done.exception():
            answer.set_exception(error)
        else:
            answer.set_result((outcomes, done.result()))

    found: Future[Recommended] = Future()
    found.add_done_callback(join)
    return found


def _outcome(event: Event, version: int) -> Outcome:
    if version < 0:
        return Outcome("rejected", f"event_id {event.event_id!r} is another event's already")
    return Outcome("accepted" if version else "duplicate")


def _users(work: Write) -> list[User]:
    """Whose events it changes."""
    if isinstance(work, Record):
        return [(work.tenant, event.user_id) for event in work.events]
    return [work.user] if isinstance(work, Erase) else []
