"""The engine: queues requests, and handles them in batches on two threads.

The first thread owns the log and the states. It takes waiting requests, for each tenant a share of its
time, and passes them to the :class:`RequestProcessor`: all that write in one transaction, then all that
read. So the events of a user are applied in order, and a request that is sent after an event was
acknowledged sees that event. Long work is done in parts: after each, the request queues again. The
second thread, the :class:`ItemSearcher`, searches the best items of large catalogues.
"""

import asyncio
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from recblr.serving.fair_queue import BusyError, FairQueue
from recblr.serving.item_search import ItemSearch, ItemSearcher, search_together
from recblr.serving.model import ServedModel
from recblr.serving.processor import RequestProcessor
from recblr.serving.requests import (
    RECORDED,
    RECORDED_SHARED,
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
from recblr.serving.settings import MAX_WAITING
from recblr.serving.storage import (
    Event,
    EventLog,
    ServedModelInfo,
    StateCache,
    StorageError,
    User,
)

BATCH = 16  # requests handled at once
BATCH_COST = 1.5  # their cost at most, in ms, if several tenants are active
COMMIT_SECONDS = 0.001  # of a commit, after which the event loop goes on
CHANGES = (
    RecordEvents,
    RemoveEvent,
    EraseUser,
    CheckStorage,
)  # that succeed only if the log is writable


class _Task(NamedTuple):
    """A request and the future that gets its answer."""

    tenant: str
    request: Request
    answer: "Future[Any]"


class Engine:
    """Serves one model from one log. Any thread may call any method; no method but :meth:`close` waits.

    Attributes:
        failure: the error of the last batch, or None if it succeeded.
        computing: whether a batch is in work, and does not wait for a slow disk.

    Raises:
        BusyError: by methods that send a request, if too many requests of the tenant are waiting.
    """

    def __init__(self, log: EventLog, cache: StateCache, model: ServedModel) -> None:
        self._log, self._cache = log, cache
        self._processor = RequestProcessor(log, cache, model)
        self.failure: StorageError | None = None
        self._queue: FairQueue[_Task] = FairQueue(BATCH, BATCH_COST)
        self._searcher = ItemSearcher()
        self._waiting: Counter[str] = Counter()  # by tenant
        self._waiting_lock = threading.Lock()
        self._processing = threading.Lock()  # held while the processor is in use
        self._loop: asyncio.AbstractEventLoop | None = None
        self._computed: Callable[[], None] = lambda: None
        self.computing = False
        self._thread = threading.Thread(target=self._run, name="states", daemon=True)
        self._thread.start()

    def record(self, tenant: str, events: Sequence[Event]) -> "Future[list[Outcome]]":
        """Add events to the log. The answer comes when they are on disk."""
        return self._send(tenant, RecordEvents(tenant, events))

    def record_and_recommend(
        self, tenant: str, events: Sequence[Event], query: Query
    ) -> "Future[tuple[list[Outcome], RankedItems]]":
        """Add events to the log, and recommend items to the user of the last event."""
        return self._send(tenant, RecordEvents(tenant, events, query))

    def erase(self, user: User) -> "Future[int]":
        """Remove everything about a user; the answer is the number of removed events."""
        return self._send(user[0], EraseUser(user))

    def recommend(self, user: User, query: Query) -> "Future[RankedItems]":
        """Recommend items to a user."""
        return self._send(user[0], RecommendForUser(user, query))

    def read_on(self, loop: asyncio.AbstractEventLoop, computed: Callable[[], None]) -> None:
        """Let an event loop handle the quick requests that only read, if the log is on this machine.

        Two threads that compute at the same time would wait for each other, and take longer. So the
        loop is told by ``computing`` that it had better wait, and by a call of ``computed`` when it
        need not any more.
        """
        self._loop, self._computed = loop if self._log.local else None, computed

    def _begin_computing(self) -> None:
        self.computing = self._loop is not None

    def _begin_commit(self) -> None:
        if self._loop is not None:  # a quick commit is over before
            self._loop.call_soon_threadsafe(self._loop.call_later, COMMIT_SECONDS, self._resume)

    def _end_computing(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        self.computing = False
        self._computed()

    def recommend_now(self, user: User, query: Query) -> RankedItems | None:
        """The answer of :meth:`recommend`, computed on this thread; None if that could take longer than
        passing the request to another thread."""
        request = RecommendForUser(user, query)
        if self._loop is None or not self._queue.is_empty:
            return None
        if not self._processing.acquire(blocking=False):
            return None
        try:
            if not self._processor.is_quick(request):
                return None
            (answer,) = self._processor.read([request])
        except StorageError as error:
            self.failure = error
            raise
        finally:
            self._processing.release()
        if isinstance(answer, ItemSearch):
            return answer.run() if answer.is_quick else None
        return answer if isinstance(answer, RankedItems) else None

    def recommend_for_history(
        self, tenant: str, item_ids: tuple[str, ...], query: Query
    ) -> "Future[RankedItems]":
        """Recommend items after a history that is not stored."""
        return self._send(tenant, RecommendForHistory(item_ids, query))

    def describe(self, user: User, events: int = 0) -> "Future[UserDescription]":
        """Describe a user, with the latest ``events`` events."""
        return self._send(user[0], DescribeUser(user, events))

    def explain(self, user: User, events: int) -> "Future[UserHistory]":
        """Get what explains the scores of a user by at least the latest ``events`` events."""
        return self._send(user[0], ExplainUser(user, events))

    def remove(self, tenant: str, event_id: str) -> "Future[bool]":
        """Remove one event; the answer is whether there was one."""
        return self._send(tenant, FindEvent(tenant, event_id))

    def check_storage(self) -> "Future[str]":
        """Check that events can be added; the answer is why states cannot be cached, if so."""
        return self._send("", CheckStorage())

    def users(self, tenant: str, limit: int) -> "Future[list[str]]":
        """The first ``limit`` user ids of a tenant, sorted."""
        return self._send(tenant, ListUsers(tenant, limit))

    def swap(self, model: ServedModel) -> "Future[None]":
        """Serve another model from now on, and tell the other servers of the log.

        States are recomputed when they are needed, and in the background.
        """
        return self._send("", SwapModel(model, announce=True))

    def follow_swap(self, model: ServedModel) -> "Future[None]":
        """Serve a model that another server has announced."""
        return self._send("", SwapModel(model, announce=False))

    def served_model(self) -> "Future[ServedModelInfo | None]":
        """The model that the servers of this log are to serve."""
        return self._send("", GetServedModel())

    @property
    def model(self) -> ServedModel:
        """The model in use."""
        return self._processor.model

    @property
    def rebuilding(self) -> bool:
        """Whether snapshots of an earlier model are still being replaced."""
        return self._processor.rebuilding

    @property
    def waiting(self) -> int:
        """The number of unanswered requests."""
        with self._waiting_lock:
            return self._waiting.total()

    def close(self) -> None:
        """Answer the waiting requests, end the threads and close the log."""
        self._queue.close()
        self._thread.join()
        self._searcher.close()
        self._cache.close()
        self._log.close()

    def _send(self, tenant: str, request: Request) -> "Future[Any]":
        answer: Future[Any] = Future()
        with self._waiting_lock:
            if tenant and self._waiting[tenant] >= MAX_WAITING:
                raise BusyError(f"{MAX_WAITING} requests are waiting already")
            self._waiting[tenant] += 1
        answer.add_done_callback(lambda _: self._count_answered(tenant))
        try:
            self._queue.put(tenant, _Task(tenant, request, answer), request.cost)
        except BusyError:
            answer.cancel()
            raise
        return answer

    def _count_answered(self, tenant: str) -> None:
        with self._waiting_lock:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]

    # ---- the thread of the states ------------------------------------------------------------------

    def _run(self) -> None:
        processor = self._processor
        while (tasks := self._queue.take(wait=not processor.rebuilding)) is not None:
            self._processing.acquire()
            if not tasks:
                self._rebuild()
                self._processing.release()
                continue
            # A client that hung up may have cancelled its task.
            running = [task for task in tasks if _is_wanted(task.answer)]
            size = RECORDED_SHARED if self._queue.is_shared else RECORDED
            writes = [
                task._replace(request=replace(task.request, size=size))
                if isinstance(task.request, RecordEvents) else task
                for task in running if processor.is_write(task.request)
            ]  # fmt: skip
            reads = [task for task in running if not processor.is_write(task.request)]
            self._begin_computing()
            write = partial(processor.write, computed=self._begin_commit)
            reads += self._handle(writes, write)
            quick: list[_Task] = []
            slow: list[_Task] = []
            for task in reads:
                on_loop = self._loop is not None and processor.is_quick(task.request)
                (quick if on_loop else slow).append(task)
            self._handle(slow, processor.read)
            self._end_computing()
            if quick and self._loop is not None:
                self._loop.call_soon_threadsafe(self._read, quick)
            else:
                self._processing.release()

    def _read(self, tasks: Sequence[_Task]) -> None:
        """Handle the last requests of a batch, on the event loop."""
        try:
            self._handle(tasks, self._processor.read)
        finally:
            self._processing.release()

    def _charge(self, tasks: Sequence[_Task], milliseconds: float) -> None:
        """Divide the time of requests among their tenants as their estimated costs."""
        estimates: defaultdict[str, float] = defaultdict(float)
        for task in tasks:
            estimates[task.tenant] += task.request.cost
        excess = milliseconds / sum(estimates.values()) - 1
        self._queue.charge({tenant: excess * cost for tenant, cost in estimates.items()})

    def _rebuild(self) -> None:
        try:
            self._processor.rebuild()
        except StorageError as error:
            self.failure = error
        except Exception:  # a bug; the thread has to go on answering requests
            traceback.print_exc()

    def _handle(
        self, tasks: Sequence[_Task], process: Callable[[Sequence[Request]], list[Any]]
    ) -> list[_Task]:
        """Process requests and deliver their answers; returns the follow-ups of some of them."""
        if not tasks:
            return []
        begin = time.perf_counter()
        try:
            answers = process([task.request for task in tasks])
            if any(
                isinstance(task.request, CHANGES) and not isinstance(answer, StorageError)
                for task, answer in zip(tasks, answers, strict=True)
            ):
                self.failure = None
        except StorageError as error:
            self.failure = error
            answers = [error] * len(tasks)
        except Exception as error:  # a bug; the clients have to get an answer
            answers = [error] * len(tasks)
        follow_ups = []
        searches: list[tuple[ItemSearch, Future[Any]]] = []
        for (tenant, request, future), answer in zip(tasks, answers, strict=True):
            if isinstance(answer, ItemSearch) and answer.is_quick:
                answer = _result(answer)
            if isinstance(answer, Exception):
                future.set_exception(answer)
            elif isinstance(answer, ItemSearch):
                if answer.is_short:
                    searches.append((answer, future))
                else:
                    self._searcher.submit(tenant, answer, future)
            elif isinstance(answer, Request):
                self._queue.put(tenant, _Task(tenant, answer, future), answer.cost, first=True)
            elif follow_up := request.follow_up:
                follow_ups.append(_Task(tenant, follow_up, _second_of_pair(answer, future)))
            else:
                future.set_result(answer)
        search_together(searches)
        self._charge(tasks, 1e3 * (time.perf_counter() - begin))
        return follow_ups


def _result(search: ItemSearch) -> RankedItems | Exception:
    try:
        return search.run()
    except Exception as error:  # the vector of one user is not finite
        return error


def _is_wanted(answer: "Future[Any]") -> bool:
    """Whether nobody has cancelled a future; from now on nobody can."""
    return answer.running() or answer.set_running_or_notify_cancel()


def _second_of_pair(first: Any, pair: "Future[Any]") -> "Future[Any]":
    """A future whose result, together with ``first``, becomes the result of ``pair``."""

    def deliver(second: "Future[Any]") -> None:
        if error := second.exception():
            pair.set_exception(error)
        else:
            pair.set_result((first, second.result()))

    second: Future[Any] = Future()
    second.add_done_callback(deliver)
    return second
