"""The engine, compared with a slow and simple one that folds whole histories in float64."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recblr.serving.engine import Engine
from recblr.serving.local_cache import LocalCache
from recblr.serving.model import ServedModel
from recblr.serving.requests import PART, Query
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import BEFORE_ALL_EVENTS, Event, StorageError, User
from serving.fixtures import (
    ALL_ITEMS,
    Store,
    assert_scores,
    expected_scores,
    items_of,
    make_events,
    send,
)


class SlowEngine:
    """A dictionary of all events."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], Event] = {}

    def record(self, tenant: str, event: Event) -> str:
        existing = self.events.get((tenant, event.event_id))
        if existing is not None:
            return "duplicate" if existing == event else "rejected"
        self.events[tenant, event.event_id] = event
        return "accepted"

    def history(self, user: User) -> list[str]:
        events = [
            event for (tenant, _), event in self.events.items() if (tenant, event.user_id) == user
        ]
        return items_of(sorted(events, key=lambda event: event.key))


# ---- events and states ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("together", [1, 7, 1000])
def test_states_are_those_of_whole_histories(
    engine: Engine, a: ServedModel, count: int, together: int
) -> None:
    slow, events = SlowEngine(), make_events(a, "u", count)
    for start in range(0, count, together):
        batch = events[start : start + together]
        assert send(engine, batch) == [slow.record("t", event) for event in batch]
    ranked = engine.recommend(("t", "u"), ALL_ITEMS).result(60)
    assert ranked.basis == "history"
    assert_scores(ranked, slow.history(("t", "u")), a)
    description = engine.describe(("t", "u"), events=10**6).result(60)
    assert (description.count, description.known) == (count, count)
    assert [item for _, _, item, _ in description.events] == slow.history(("t", "u"))


def test_long_histories_are_folded_in_parts(
    a: ServedModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[int] = []
    fold = ServedModel.fold

    def counted(self: ServedModel, vectors: Any, histories: Any) -> Any:
        folded.append(sum(map(len, histories)))
        return fold(self, vectors, histories)

    engine, histories = store.engine(a), {user: make_events(a, user, 150) for user in "uvw"}
    send(engine, [event for events in histories.values() for event in events])
    engine.close()
    log = store.log()
    with log.transaction():
        for user in "uvw":
            log.drop_snapshots(("t", user), BEFORE_ALL_EVENTS)
    log.close()
    monkeypatch.setattr(ServedModel, "fold", counted)
    engine = store.engine(a)
    for user, events in histories.items():
        ranked = engine.recommend(("t", user), ALL_ITEMS).result(60)
        assert_scores(ranked, items_of(events), a)
        ranked = engine.recommend_for_history("t", tuple(items_of(events)), ALL_ITEMS).result(60)
        assert_scores(ranked, items_of(events), a)
    assert max(folded) <= PART < 150
    engine.close()
    log = store.log()
    for user in "uvw":
        snapshot = log.snapshot(("t", user), a.hash)
        assert snapshot is not None or store.kind == "shared"  # which has cached the states
        assert snapshot is None or snapshot.count == 128
    log.close()


@pytest.mark.parametrize("cached_users", [1, 100])
def test_states_are_correct_after_late_and_repeated_events_and_restarts(
    a: ServedModel, store: Store, cached_users: int
) -> None:
    """Late events, duplicates, conflicts, evicted states, restarts: the state is that of the log."""
    draw, slow = random.Random(cached_users), SlowEngine()
    events = [event for user in "uvw" for event in make_events(a, user, 150, seed=ord(user))]
    sent = [*events, *draw.sample(events, 60)]
    sent += [event._replace(item_id="another") for event in draw.sample(events, 20)]
    sent += [Event(f"x{n}", "u", f"unknown{n}", 20.0) for n in range(10)]
    # Nearly in order, as events arrive, except that some are very late.
    sent.sort(key=lambda event: event.timestamp + draw.uniform(0, 40 if draw.random() < 0.1 else 2))
    while sent:
        engine = store.engine(a, cached_users)
        for _ in range(20):
            count = draw.randint(1, 9)
            batch, sent = sent[:count], sent[count:]
            if batch:
                assert send(engine, batch) == [slow.record("t", event) for event in batch]
            user = ("t", draw.choice("uvw"))
            ranked = engine.recommend(user, ALL_ITEMS).result(60)
            if len(a.rows(slow.history(user))):
                assert_scores(ranked, slow.history(user), a)
            else:
                assert ranked.basis == "popularity"
        engine.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8)))
def test_the_order_of_arrival_does_not_matter(
    engine: Engine, a: ServedModel, order: list[int], cuts: set[int]
) -> None:
    user = f"{order}{cuts}"
    events = make_events(a, user, 9)
    engine.erase(("t", user)).result(60)  # hypothesis may try an example again
    for start, stop in pairwise([0, *sorted(cuts), 9]):
        send(engine, [events[n] for n in order[start:stop]])
    ranked = engine.recommend(("t", user), ALL_ITEMS).result(60)
    assert_scores(ranked, items_of(sorted(events, key=lambda event: event.key)), a)


def test_events_sent_by_many_threads(engine: Engine, a: ServedModel) -> None:
    events = [event for user in "uv" for event in make_events(a, user, 120)]
    thrice = [event for event in events for _ in range(3)]
    random.Random(3).shuffle(thrice)
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for (status,) in pool.map(lambda event: send(engine, [event]), thrice)]
    assert statuses.count("accepted") == len(events)
    assert statuses.count("duplicate") == 2 * len(events)
    for user in "uv":
        history = [event.item_id for event in events if event.user_id == user]
        assert_scores(engine.recommend(("t", user), ALL_ITEMS).result(60), history, a)


def test_read_your_writes(engine: Engine, a: ServedModel) -> None:
    for count, event in enumerate(make_events(a, "u", 100), 1):
        send(engine, [event])
        assert engine.describe(("t", "u")).result(60).count == count


def test_events_of_unknown_items_are_stored_but_do_not_change_scores(
    engine: Engine, a: ServedModel
) -> None:
    known = make_events(a, "u", 3)
    unknown = [Event(f"s{n}", "u", "never seen", n + 0.5) for n in range(2)]
    send(engine, [*known, *unknown])
    description = engine.describe(("t", "u")).result(60)
    assert (description.count, description.known) == (5, 3)
    assert_scores(engine.recommend(("t", "u"), ALL_ITEMS).result(60), items_of(known), a)


# ---- erasure -------------------------------------------------------------------------------------


def test_erasure_is_complete(engine: Engine, a: ServedModel) -> None:
    send(engine, [event for user in "uv" for event in make_events(a, user, 70)])
    assert engine.erase(("t", "u")).result(60) == 70
    assert engine.describe(("t", "u")).result(60).last is None
    assert engine.recommend(("t", "u"), Query(3)).result(60).basis == "popularity"
    assert engine.describe(("t", "v")).result(60).count == 70
    again = make_events(a, "u", 2)
    assert send(engine, again) == ["accepted", "accepted"]
    assert_scores(engine.recommend(("t", "u"), ALL_ITEMS).result(60), items_of(again), a)
    assert engine.erase(("t", "nobody")).result(60) == 0


class CacheThatCannotErase(LocalCache):
    def erase(self, user: User, version: int) -> None:
        raise StorageError("the cache of states failed")


def test_a_failed_erasure_has_no_effect_on_other_requests(
    a: ServedModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(store.log(), CacheThatCannotErase(9), a)
    send(engine, make_events(a, "u", 3))
    begun, proceed, read = threading.Event(), threading.Event(), engine._processor.read

    def slow_read(requests: Any) -> Any:
        begun.set()
        proceed.wait(60)
        return read(requests)

    monkeypatch.setattr(engine._processor, "read", slow_read)
    engine.describe(("t", "v"))
    begun.wait(60)  # the two requests that follow wait, and share a transaction
    erased, recorded = engine.erase(("t", "u")), engine.record("s", make_events(a, "v", 2))
    proceed.set()
    with pytest.raises(StorageError, match="the cache of states failed"):
        erased.result(60)
    assert [outcome.status for outcome in recorded.result(60)] == ["accepted"] * 2
    assert engine.describe(("t", "u")).result(60).count == 3
    assert engine.describe(("s", "v")).result(60).count == 2
    engine.close()


# ---- another model -------------------------------------------------------------------------------


def test_another_model_answers_from_the_same_events(
    engine: Engine, a: ServedModel, b: ServedModel
) -> None:
    histories = {
        user: make_events(a, user, count) for user, count in (("u", 3), ("v", 64), ("w", 150))
    }
    send(engine, [event for events in histories.values() for event in events])
    best = []
    for model in (b, a, b):
        engine.swap(model).result(60)
        for user, events in histories.items():
            ranked = engine.recommend(("t", user), ALL_ITEMS).result(60)
            assert ranked.model is model
            assert_scores(ranked, items_of(events), model)
            best.append(ranked.scores[0])
    assert not np.allclose(best[0], best[3], atol=1e-3)  # the two models differ


def test_a_swap_under_load_does_not_mix_models(
    engine: Engine, a: ServedModel, b: ServedModel
) -> None:
    users = [f"u{n}" for n in range(5)]
    histories = {user: make_events(a, user, 90, seed=n) for n, user in enumerate(users)}
    send(engine, [event for events in histories.values() for event in events])
    expected = {
        (model.hash, user): expected_scores(model, model.rows(items_of(events)))
        for model in (a, b) for user, events in histories.items()
    }  # fmt: skip

    def recommend(number: int) -> str:
        user = users[number % 5]
        ranked = engine.recommend(("t", user), ALL_ITEMS).result(60)
        scores = ranked.scores[np.argsort(ranked.rows)]
        np.testing.assert_allclose(scores, expected[ranked.model.hash, user], atol=1e-5)
        return ranked.model.hash

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(recommend, number) for number in range(200)]
        for model in (b, a, b):
            engine.swap(model).result(60)
        answers += [pool.submit(recommend, number) for number in range(50)]
        wait(answers)
    assert {answer.result() for answer in answers[:-50]} <= {a.hash, b.hash}
    assert {answer.result() for answer in answers[-50:]} == {b.hash}


def test_snapshots_of_another_model_are_rebuilt_in_the_background(
    a: ServedModel, b: ServedModel, store: Store
) -> None:
    engine = store.engine(a)
    for user in "uvwxyz":
        send(engine, make_events(a, user, 70))
    engine.swap(b).result(60)
    while engine.rebuilding:
        time.sleep(0.01)
    engine.close()
    log = store.log()
    assert log.outdated_users(b.hash, 10) == []
    assert all(log.snapshot(("t", user), b.hash) for user in "uvwxyz")
    log.close()


# ---- failures ------------------------------------------------------------------------------------


class FailingLog(SQLiteLog):
    """A log on a disk that can be made to fail."""

    fails = False

    def add_snapshots(self, *arguments: Any) -> None:
        if self.fails:
            raise StorageError("the event log failed: disk I/O error")
        super().add_snapshots(*arguments)


def test_events_that_could_not_be_stored_are_not_acknowledged(
    a: ServedModel, tmp_path: Path
) -> None:
    log = FailingLog(tmp_path / "events.sqlite")
    engine, events = Engine(log, LocalCache(1000), a), make_events(a, "u", 70)
    send(engine, events[:63])
    log.fails = True
    with pytest.raises(StorageError, match="disk I/O error"):
        send(engine, events[63:65])
    assert engine.failure is not None
    assert engine.describe(("t", "u")).result(60).count == 63
    log.fails = False
    assert send(engine, events[62:70]) == ["duplicate", *["accepted"] * 7]
    assert engine.failure is None
    assert_scores(engine.recommend(("t", "u"), ALL_ITEMS).result(60), items_of(events), a)
    engine.close()


def test_a_bug_is_answered_and_the_engine_goes_on(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(engine, make_events(a, "u", 2))
    with monkeypatch.context() as patch:
        patch.setattr(engine._processor, "read", lambda requests: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.describe(("t", "u")).result(60)
    with monkeypatch.context() as patch:
        patch.setattr(a.index, "search_one", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.recommend(("t", "u"), Query(3)).result(60)
    assert engine.describe(("t", "u")).result(60).count == 2
    assert len(engine.recommend(("t", "u"), Query(3)).result(60).rows) == 3
