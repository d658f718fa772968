"""The operations of the HTTP API: from a validated request to a response."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from recblr.audience import NONE_LEFT
from recblr.data.kinds import kind_code
from recblr.data.vocabulary import check_id
from recblr.errors import InputError
from recblr.influence import influence
from recblr.models.recblr import RecBLR
from recblr.serving import api
from recblr.serving.engine import Engine
from recblr.serving.http_input import Call, RefusedError, decode_body, read_ids, read_query
from recblr.serving.metrics import ServerMetrics
from recblr.serving.model import ServedModel, split
from recblr.serving.model_swaps import ModelSwaps
from recblr.serving.parsing import parse_body, parse_event
from recblr.serving.requests import Outcome, Query, RankedItems, UserHistory
from recblr.serving.storage import Event, StorageError, User
from recblr.serving.timestamps import seconds_of
from recblr.similar import Similarity, most_similar

MAX_INFLUENCES = 256  # in a response
VALIDATED = 128  # events that are checked at a time, before other requests are handled


T = TypeVar("T")


class Operations:
    """One method per operation of ``api.OPERATIONS``, with the same name.

    Args:
        engine: handles the requests.
        models: the parent folder of the models that can be swapped in.
        titles: titles by item id.
    """

    def __init__(self, engine: Engine, models: Path, titles: Mapping[str, str]) -> None:
        self.engine, self._titles = engine, titles
        self.swaps = ModelSwaps(engine, models)
        # One at a time, because each takes a core; it gives way to other requests.
        self._computing = ThreadPoolExecutor(1, "computing", _give_way)
        self.server_metrics = ServerMetrics()

    @property
    def failure(self) -> str:
        """Why the server cannot serve requests, or not by the model to be served; "" if it can."""
        swaps = self.swaps
        if swaps.failure:
            return f"the model to be served failed to load: {swaps.failure}"
        return str(
            self.engine.failure or swaps.log_failure or swaps.no_answer or swaps.cache_failure or ""
        )

    async def _compute(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._computing, work)

    # ---- events ----------------------------------------------------------------------------------

    async def record(self, call: Call) -> api.RecordResponse:
        if self.swaps.log_failure:  # a file that was deleted can still be written
            raise StorageError(self.swaps.log_failure)
        tenant, body = call.tenant, await decode_body(call)
        if not (isinstance(body, dict) and "events" in body):
            return await self._record_one(tenant, body)
        await call.turn()
        events = body["events"]
        options = parse_body({**body, "events": []}, api.EventBatch).recommend
        if not isinstance(events, list) or not 0 < len(events) <= api.MAX_EVENTS:
            raise RefusedError(422, f"events: give a list of 1 to {api.MAX_EVENTS:,}")
        parsed: list[Event | InputError] = []
        for start in range(0, len(events), VALIDATED):
            parsed += [_event_or_error(event) for event in events[start : start + VALIDATED]]
            await call.turn()
        valid = [event for event in parsed if isinstance(event, Event)]
        recorded: list[Outcome] = []
        items = None
        if valid and options is not None:
            query = Query(options.k, options.hide_seen, kind=str(options.kind))
            kind_code(query.kind or None, self.engine.model.kind_names)  # before events are added
            recorded, items = await asyncio.wrap_future(
                self.engine.record_and_recommend(tenant, valid, query)
            )
        elif valid:
            recorded = await asyncio.wrap_future(self.engine.record(tenant, valid))
        await call.turn()
        outcomes = iter(recorded)
        results = self._results([
            (event.event_id, next(outcomes)) if isinstance(event, Event)
            else (None, Outcome("rejected", str(event)))
            for event in parsed
        ])  # fmt: skip
        if items is None:
            return api.RecordResponse(self.engine.model.hash, results)
        ranked = self._recommendations(items, f"user {valid[-1].user_id!r}")
        return api.RecordResponse(items.model.hash, results, ranked)

    async def _record_one(self, tenant: str, body: object) -> api.RecordResponse:
        event = parse_event(body)
        (outcome,) = await asyncio.wrap_future(self.engine.record(tenant, [event]))
        results = self._results([(event.event_id, outcome)])
        if outcome.status == "rejected":
            raise RefusedError(409, outcome.reason)
        return api.RecordResponse(self.engine.model.hash, results)

    def _results(self, outcomes: Sequence[tuple[str | None, Outcome]]) -> list[api.EventResult]:
        self.server_metrics.count_events(outcome.status for _, outcome in outcomes)
        return [api.EventResult(status, name, reason) for name, (status, reason) in outcomes]

    async def remove(self, call: Call) -> api.EraseResponse:
        event_id = call.id("event_id")
        if not await asyncio.wrap_future(self.engine.remove(call.tenant, event_id)):
            raise RefusedError(404, f"no event {event_id!r}")
        return api.EraseResponse(self.engine.model.hash, 1)

    # ---- recommendations -------------------------------------------------------------------------

    async def recommend(self, call: Call) -> api.Recommendations:
        options = read_query(call.query, "recommend")
        query = Query(options["k"], options["hide_seen"], kind=options["kind"])
        user = call.user
        ranked = await self._recommend_for_user(user, query)
        return self._recommendations(ranked, f"user {user[1]!r}")

    async def _recommend_for_user(self, user: User, query: Query) -> RankedItems:
        if (ranked := self.engine.recommend_now(user, query)) is not None:
            return ranked
        return await asyncio.wrap_future(self.engine.recommend(user, query))

    async def recommend_for(self, call: Call) -> api.Recommendations:
        tenant = call.tenant
        body = parse_body(await decode_body(call), api.RecommendRequest)
        await call.turn()
        if (body.user_id is None) == (body.history is None):
            raise RefusedError(422, "give either user_id or history")
        allow = None if body.allow is None else read_ids(body.allow, "allow")
        deny, history = read_ids(body.deny, "deny"), read_ids(body.history or [], "history")
        query = Query(body.k, body.hide_seen, allow, deny, str(body.kind))
        await call.turn()
        if body.user_id is not None:
            user_id = check_id(body.user_id, "user_id")
            ranked = await self._recommend_for_user((tenant, user_id), query)
            answer = self._recommendations(ranked, f"user {user_id!r}")
        else:
            ranked = await asyncio.wrap_future(
                self.engine.recommend_for_history(tenant, history, query)
            )
            answer = self._recommendations(ranked, "the history")
        for name, ids in (("history", history), ("allow", allow or ()), ("deny", deny)):
            await call.turn()
            if text := ranked.model.describe_unknown(ids):
                answer.warnings.append(f"{name}: {text}; ignored")
        return answer

    def _recommendations(self, ranked: RankedItems, whom: str) -> api.Recommendations:
        items = self._items(ranked.model, ranked.rows, ranked.scores)
        reason = ""
        if not items:
            reason = NONE_LEFT
        elif ranked.basis == "popularity":
            reason = f"{whom} has no item that the model knows"
        return api.Recommendations(ranked.model.hash, ranked.basis, items, reason)

    def _items(
        self, model: ServedModel, rows: np.ndarray, scores: np.ndarray
    ) -> list[api.RecommendedItem]:
        ids = [model.item_ids[row] for row in rows]
        rounded = np.asarray(scores, np.float64).round(6).tolist()
        return [
            api.RecommendedItem(item_id, score, self._titles.get(str(item_id), ""))
            for item_id, score in zip(ids, rounded, strict=True)
        ]

    async def similar(self, call: Call) -> api.SimilarItems:
        item_id, model = call.id("item_id"), self.engine.model
        options = read_query(call.query, "similar")
        if not model.knows(item_id):
            raise RefusedError(404, model.describe_unknown([item_id]))
        return await self._compute(partial(self._similar, model, item_id, **options))

    def _similar(
        self, model: ServedModel, item_id: str, k: int, by: Similarity
    ) -> api.SimilarItems:
        rows, size = model.rows([item_id]), len(model.item_ids)
        _, similar, scores, _ = most_similar(model.network, model.memory, size, rows, k, by)
        items = self._items(model, similar, scores)
        return api.SimilarItems(model.hash, model.item_ids[rows[0]], items)

    # ---- users -----------------------------------------------------------------------------------

    async def users(self, call: Call) -> api.UserList:
        limit = read_query(call.query, "users")["limit"]
        users = await asyncio.wrap_future(self.engine.users(call.tenant, limit))
        return api.UserList(self.engine.model.hash, users)

    async def describe(self, call: Call) -> api.UserState:
        user = call.user
        length = read_query(call.query, "describe")["history"]
        description = await asyncio.wrap_future(self.engine.describe(user, length))
        if description.last is None:
            raise RefusedError(404, f"no events of user {user[1]!r}")
        timestamp, event_id = description.last
        history = [
            api.HistoryEvent(event_id, item_id, timestamp, self._titles.get(item_id, ""), kind)
            for timestamp, event_id, item_id, kind in reversed(description.events)
        ]
        return api.UserState(
            model=description.model.hash,
            user_id=user[1],
            events=description.count,
            known_events=description.known,
            last_event_id=event_id,
            last_timestamp=timestamp,
            age=time.time() - seconds_of(timestamp),
            state_bytes=description.model.start.nbytes,
            history=history,
        )

    async def erase(self, call: Call) -> api.EraseResponse:
        events = await asyncio.wrap_future(self.engine.erase(call.user))
        return api.EraseResponse(self.engine.model.hash, events)

    async def influence(self, call: Call) -> api.InfluenceResponse:
        user = call.user
        item_id = read_query(call.query, "influence")["item_id"]
        history = await asyncio.wrap_future(self.engine.explain(user, MAX_INFLUENCES))
        model = history.model
        if not len(history.encoded):
            raise RefusedError(404, f"user {user[1]!r} has no events of items the model knows")
        if not item_id:
            best = await self._recommend_for_user(user, Query(1))
            item_id = str(best.model.item_ids[best.rows[0]]) if len(best.rows) else ""
        if not model.knows(item_id):
            raise RefusedError(404, model.describe_unknown([item_id]))
        return await self._compute(partial(self._explain, history, item_id))

    def _explain(self, history: UserHistory, item_id: str) -> api.InfluenceResponse:
        model = history.model
        if not isinstance(model.network, RecBLR):
            raise RefusedError(422, f"{model.name} does not provide the influence of events")
        events = [event for event in history.events if model.knows(event[2])]
        rows, features = split(history.encoded)
        (target,) = model.rows([item_id]).tolist()
        before = model.states(history.before.copy()[None])
        result = influence(model.network, rows, target, model.memory, before, features)
        repeat = model.memory.repeat if model.memory and target in history.rows else 0.0
        parts = zip(
            result.first_layer.tolist(), result.score.tolist(), result.memory.tolist(), strict=True
        )
        influences = [
            api.EventInfluence(event_id, item, timestamp, *part, self._titles.get(item, ""))
            for (timestamp, event_id, item, _), part in zip(events, parts, strict=True)
        ]
        latest = influences[: -MAX_INFLUENCES - 1 : -1]
        return api.InfluenceResponse(model.hash, model.item_ids[target], repeat, latest)

    # ---- administration --------------------------------------------------------------------------

    async def swap(self, call: Call) -> api.SwapResponse:
        body = parse_body(await decode_body(call), api.SwapRequest)
        return api.SwapResponse(*await self.swaps.swap(check_id(body.name, "name")))

    async def live(self, call: Call) -> api.Health:
        return api.Health(self.engine.model.hash, "ok")

    async def ready(self, call: Call) -> api.Health:
        if failure := self.failure:
            raise RefusedError(503, failure)
        return api.Health(self.engine.model.hash, "ok")

    async def metrics(self, call: Call) -> bytes:
        return self.server_metrics.render()


def _give_way() -> None:
    """Let this thread use one core at most, and less of it than the threads that answer requests."""
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere it would be the priority of the process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _event_or_error(value: object) -> Event | InputError:
    try:
        return parse_event(value)
    except InputError as error:
        return error
