"""The engine against a server that is slow and obvious: all events in a dictionary, folded anew."""

import copy
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recblr.data.batches import latest
from recblr.serving import engine as module
from recblr.serving.cache import LocalCache
from recblr.serving.engine import Engine, Query, Recommended
from recblr.serving.events import Event, User
from recblr.serving.line import BusyError, Line
from recblr.serving.model import ServedModel
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import StoreError
from serving.fixtures import Store, scores

EVERYTHING = Query(k=1000, hide_seen=False)


class Slow:
    """Events as they were sent; a score is a pass over the whole history in float64, and the memory's
    equations written out."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.events: dict[tuple[str, str], Event] = {}

    def record(self, tenant: str, event: Event) -> str:
        there = self.events.get((tenant, event.event_id))
        if there is not None:
            return "duplicate" if there == event else "rejected"
        self.events[tenant, event.event_id] = event
        return "accepted"

    def history(self, user: User) -> list[str]:
        events = [
            event for (tenant, _), event in self.events.items() if (tenant, event.user_id) == user
        ]
        return [event.item_id for event in sorted(events, key=lambda it: it.key)]

    def scores(self, user: User) -> np.ndarray:
        rows = self.model.rows(self.history(user))
        return scores(self.model, rows)


def by_row(found: Recommended, items: int) -> np.ndarray:
    """The scores of all items in the order of their rows."""
    assert sorted(found.rows) == list(range(items))
    return found.scores[np.argsort(found.rows)]


@pytest.fixture
def engine(a: ServedModel, store: Store) -> Iterator[Engine]:
    engine = store.engine(a)
    yield engine
    engine.close()


def events_of(model: ServedModel, user: str, count: int, seed: int = 0) -> list[Event]:
    draw = random.Random(seed)
    return [
        Event(f"{user}-{number}", user, str(draw.choice(model.item_ids)), float(number // 2))
        for number in range(count)
    ]


def send(engine: Engine, events: list[Event], tenant: str = "t") -> list[str]:
    return [outcome.status for outcome in engine.record(tenant, events).result(60)]


# ---- events and what they come to --------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("together", [1, 7, 1000])
def test_states_are_those_of_whole_histories(
    engine: Engine, a: ServedModel, count: int, together: int
) -> None:
    slow, events = Slow(a), events_of(a, "u", count)
    for start in range(0, count, together):
        some = events[start : start + together]
        assert send(engine, some) == [slow.record("t", it) for it in some]
    found = engine.recommend(("t", "u"), EVERYTHING).result(60)
    assert found.basis == "history"
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), slow.scores(("t", "u")), atol=1e-5)
    about = engine.describe(("t", "u"), events=True).result(60)
    assert (about.count, about.known) == (count, count)
    assert [item for _, _, item in about.events] == slow.history(("t", "u"))


def test_long_histories_are_folded_in_parts(
    a: ServedModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recblr.serving.states.EVENTS", 7)
    engine, histories = store.engine(a), {user: events_of(a, user, 150) for user in "uvw"}
    send(engine, [it for events in histories.values() for it in events])
    for user, events in histories.items():
        found = engine.recommend(("t", user), EVERYTHING).result(60)
        rows = a.rows([it.item_id for it in events])
        np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)
    engine.close()
    log = store.log()
    assert {user: log.snapshot(("t", user), a.hash).count for user in "uvw"} == dict.fromkeys(
        "uvw", 128
    )
    log.close()


@pytest.mark.parametrize("size", [1, 100])
def test_states_survive_any_order_any_repeats_and_any_loss(
    a: ServedModel, store: Store, size: int
) -> None:
    """Late events, duplicates, conflicts, forgotten states, restarts: the state is the log's."""
    draw, slow = random.Random(size), Slow(a)
    events = [it for user in "uvw" for it in events_of(a, user, 150, seed=ord(user))]
    sent = [*events, *draw.sample(events, 60)]
    sent += [it._replace(item_id="another") for it in draw.sample(events, 20)]
    sent += [Event(f"x{n}", "u", f"unknown{n}", 20.0) for n in range(10)]
    # Nearly in order, as events arrive, but for some that are very late.
    sent.sort(key=lambda it: it.timestamp + draw.uniform(0, 40 if draw.random() < 0.1 else 2))
    at = 0
    while at < len(sent):
        engine = store.engine(a, size)
        for _ in range(20):
            some = sent[at : (at := at + draw.randint(1, 9))]
            if some:
                assert send(engine, some) == [slow.record("t", it) for it in some]
            user = ("t", draw.choice("uvw"))
            found = engine.recommend(user, EVERYTHING).result(60)
            if len(a.rows(slow.history(user))):
                ours = by_row(found, len(a.item_ids))
                np.testing.assert_allclose(ours, slow.scores(user), atol=1e-5)
            else:
                assert found.basis == "popularity"
        engine.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8)))
def test_events_converge_in_any_order(
    engine: Engine, a: ServedModel, order: list[int], cuts: set[int]
) -> None:
    user = f"{order}{cuts}"
    events = events_of(a, user, 9)
    engine.erase(("t", user)).result(60)  # of an example that is tried again
    bounds = [0, *sorted(cuts), 9]
    for start, stop in pairwise(bounds):
        send(engine, [events[n] for n in order[start:stop]])
    found = engine.recommend(("t", user), EVERYTHING).result(60)
    rows = a.rows([it.item_id for it in sorted(events, key=lambda it: it.key)])
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)


def test_events_sent_at_once_by_many_are_all_there(engine: Engine, a: ServedModel) -> None:
    events = [it for user in "uv" for it in events_of(a, user, 120)]
    draw = random.Random(3)
    thrice = [it for it in events for _ in range(3)]
    draw.shuffle(thrice)
    with ThreadPoolExecutor(8) as pool:
        statuses = [it for some in pool.map(lambda it: send(engine, [it]), thrice) for it in some]
    assert statuses.count("accepted") == len(events)
    assert statuses.count("duplicate") == 2 * len(events)
    for user in "uv":
        history = [it.item_id for it in events if it.user_id == user]
        found = engine.recommend(("t", user), EVERYTHING).result(60)
        np.testing.assert_allclose(
            by_row(found, len(a.item_ids)), scores(a, a.rows(history)), atol=1e-5
        )


def test_who_was_told_reads_it(engine: Engine, a: ServedModel) -> None:
    for number, event in enumerate(events_of(a, "u", 100), 1):
        send(engine, [event])
        assert engine.describe(("t", "u")).result(60).count == number


def test_items_that_the_model_does_not_know_are_kept_and_passed_over(
    engine: Engine, a: ServedModel, b: ServedModel
) -> None:
    known = events_of(a, "u", 3)
    strange = [Event(f"s{n}", "u", "never seen", n + 0.5) for n in range(2)]
    send(engine, [*known, *strange])
    about = engine.describe(("t", "u")).result(60)
    assert (about.count, about.known) == (5, 3)
    found = engine.recommend(("t", "u"), EVERYTHING).result(60)
    rows = a.rows([it.item_id for it in known])
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)


# ---- what is recommended -----------------------------------------------------------------------


def test_filters_are_applied_inside(engine: Engine, a: ServedModel) -> None:
    ids = [str(it) for it in a.item_ids]
    events = events_of(a, "u", 5)
    send(engine, events)
    seen = {it.item_id for it in events}
    best = engine.recommend(("t", "u"), EVERYTHING).result(60).rows
    order = [ids[row] for row in best]

    def shown(**wish: Any) -> list[str]:
        found = engine.recommend(("t", "u"), Query(**{"k": 4, **wish})).result(60)
        assert list(found.scores) == sorted(found.scores, reverse=True)
        return [ids[row] for row in found.rows]

    assert shown() == [it for it in order if it not in seen][:4]
    assert shown(hide_seen=False) == order[:4]
    deny = tuple(order[:3])
    assert shown(deny=deny) == [it for it in order if it not in seen | set(deny)][:4]
    allow = (*order[-3:], "never seen")
    assert shown(allow=allow) == [it for it in order[-3:] if it not in seen]
    assert shown(allow=()) == []
    assert shown(k=1000) == [it for it in order if it not in seen]


@pytest.mark.parametrize("repeat", [-20.0, 0.0, 2.5])
def test_the_memory_adds_to_the_scores(a: ServedModel, file: Store, repeat: float) -> None:
    model = copy.copy(a)
    assert model.memory is not None
    model.memory = replace(model.memory, repeat=repeat)
    engine, events = file.engine(model), events_of(a, "u", 30)
    send(engine, events)
    rows = a.rows([it.item_id for it in events])
    truth = scores(model, rows)
    assert np.abs(truth - repeat * np.isin(np.arange(len(truth)), rows)).max() > 1
    order = np.argsort(-truth)
    found = engine.recommend(("t", "u"), Query(7, hide_seen=False)).result(60)
    assert found.rows.tolist() == order[:7].tolist()
    np.testing.assert_allclose(found.scores, truth[order[:7]], atol=1e-5)
    new = order[~np.isin(order, rows)]
    assert 0 < len(new) < len(order)
    found = engine.recommend(("t", "u"), Query(7)).result(60)
    assert found.rows.tolist() == new[:7].tolist()
    np.testing.assert_allclose(found.scores, truth[new[:7]], atol=1e-5)
    after = engine.recommend_after("t", tuple(it.item_id for it in events), Query(7)).result(60)
    assert after.rows.tolist() == found.rows.tolist()
    allow = tuple(str(a.item_ids[row]) for row in order[::2])
    found = engine.recommend(("t", "u"), Query(7, hide_seen=False, allow=allow)).result(60)
    assert found.rows.tolist() == order[::2][:7].tolist()
    engine.close()


def test_the_memory_looks_at_the_last_items_alone(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a.memory is not None
    looked: list[tuple[int, bool]] = []
    added = a.added
    monkeypatch.setattr(a, "added", lambda *it: (looked.append((len(it[0]), it[1])), added(*it))[1])
    send(engine, events_of(a, "u", 300))
    engine.recommend(("t", "u"), Query(3)).result(60)
    engine.recommend_after("t", tuple(map(str, a.item_ids * 9)), Query(3)).result(60)
    assert looked == [(a.memory.config.reach, False)] * 2


def test_events_come_in_while_a_search_waits(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search was asked with does not change, nor keep a user's items from growing."""
    events = events_of(a, "u", 40)
    send(engine, events[:20])
    hold, begun, search = threading.Event(), threading.Event(), a.index.search

    def waiting(*given: Any) -> Any:
        begun.set()
        hold.wait(30)
        return search(*given)

    monkeypatch.setattr(a.index, "search", waiting)
    asked = [engine.recommend(("t", "u"), query) for query in (EVERYTHING, Query(3))]
    begun.wait(30)
    for event in events[20:]:
        assert send(engine, [event]) == ["accepted"]
    hold.set()
    found = by_row(asked[0].result(60), len(a.item_ids))
    truth = scores(a, a.rows([it.item_id for it in events[:20]]))
    np.testing.assert_allclose(found, truth, atol=1e-5)
    assert len(asked[1].result(60).rows) == 3


def test_a_model_without_a_memory_adds_nothing(b: ServedModel) -> None:
    assert b.memory is None
    assert b.added(np.array([1, 2]), repeats=True) is None


@settings(max_examples=50, deadline=None)
@given(
    history=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    repeats=st.booleans(), repeat=st.sampled_from([-20.0, 0.0, 3.0]),
)  # fmt: skip
def test_what_is_added_is_the_memorys_own(
    a: ServedModel, history: list[int], repeats: bool, repeat: float
) -> None:
    model, rows = copy.copy(a), np.array(history)
    assert a.memory is not None
    model.memory = memory = replace(a.memory, repeat=repeat)
    items, values = model.added(rows if repeats else rows[-model.reach :], repeats)
    found = np.zeros(len(a.item_ids), np.float32)
    found[items] = values
    batch = latest(rows, np.array([0]), np.array([len(rows)]), 99, "none")
    truth = memory if repeats else replace(memory, repeat=0.0)
    expected = truth.add_to(torch.zeros(1, len(found)), batch)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.diff(items) > 0).all()


def test_who_is_unknown_gets_what_is_popular(engine: Engine, a: ServedModel) -> None:
    found = engine.recommend(("t", "nobody"), Query(5)).result(60)
    assert found.basis == "popularity"
    assert list(found.scores) == sorted(a.counts, reverse=True)[:5]
    first, second = (str(a.item_ids[row]) for row in found.rows[:2])
    query = Query(5, deny=(first,), allow=(first, second))
    (row,) = engine.recommend(("t", "nobody"), query).result(60).rows
    assert str(a.item_ids[row]) == second
    found = engine.recommend_after("t", ("never seen",), Query(3)).result(60)
    assert found.basis == "popularity"


def test_events_and_what_is_best_then_in_one_request(engine: Engine, a: ServedModel) -> None:
    events = events_of(a, "u", 3)
    outcomes, found = engine.record_and_recommend("t", events, EVERYTHING).result(60)
    assert [it.status for it in outcomes] == ["accepted"] * 3
    rows = a.rows([it.item_id for it in events])
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)


def test_a_raw_history_is_not_kept(engine: Engine, a: ServedModel) -> None:
    history = tuple(str(it) for it in a.item_ids[:7])
    found = engine.recommend_after("t", history, EVERYTHING).result(60)
    expected = scores(a, a.rows(history))
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), expected, atol=1e-5)
    hidden = engine.recommend_after("t", history, Query(1000)).result(60)
    assert set(hidden.rows).isdisjoint(a.rows(history))


# ---- erasure, other models, failure --------------------------------------------------------------


def test_erasure_is_complete(engine: Engine, a: ServedModel) -> None:
    send(engine, [it for user in "uv" for it in events_of(a, user, 70)])
    assert engine.erase(("t", "u")).result(60) == 70
    assert engine.describe(("t", "u")).result(60).last is None
    assert engine.recommend(("t", "u"), Query(3)).result(60).basis == "popularity"
    assert engine.describe(("t", "v")).result(60).count == 70
    again = events_of(a, "u", 2)
    assert send(engine, again) == ["accepted", "accepted"]
    found = engine.recommend(("t", "u"), EVERYTHING).result(60)
    rows = a.rows([it.item_id for it in again])
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)
    assert engine.erase(("t", "nobody")).result(60) == 0


class Forgetful(LocalCache):
    """Does not forget when it is told to."""

    def erase(self, user: User, version: int) -> None:
        raise StoreError("the cache of states failed")


def test_what_cannot_be_erased_everywhere_is_not_and_others_do_not_suffer(
    a: ServedModel, store: Store
) -> None:
    engine = Engine(store.log(), Forgetful(9), a)
    send(engine, events_of(a, "u", 3))
    hold = threading.Event()
    describe, engine._describe = (
        engine._describe,
        lambda *given: (hold.wait(30), describe(*given))[1],
    )
    engine.describe(("t", "v"))
    events = events_of(a, "v", 2)
    erased, recorded = engine.erase(("t", "u")), engine.record("s", events)  # in one transaction
    hold.set()
    with pytest.raises(StoreError, match="the cache of states failed"):
        erased.result(60)
    assert [it.status for it in recorded.result(60)] == ["accepted"] * 2
    assert engine.describe(("t", "u")).result(60).count == 3
    assert engine.describe(("s", "v")).result(60).count == 2
    engine.close()


def test_another_model_answers_from_the_same_events(
    engine: Engine, a: ServedModel, b: ServedModel
) -> None:
    histories = {
        user: events_of(a, user, count) for user, count in (("u", 3), ("v", 64), ("w", 150))
    }
    send(engine, [it for events in histories.values() for it in events])
    answers = []
    for model in (b, a, b):
        engine.swap(model).result(60)
        for user, events in histories.items():
            found = engine.recommend(("t", user), EVERYTHING).result(60)
            assert found.model is model
            rows = model.rows([it.item_id for it in events])
            ours = by_row(found, len(model.item_ids))
            np.testing.assert_allclose(ours, scores(model, rows), atol=1e-5)
            answers.append(ours)
    assert not np.allclose(answers[0], answers[3], atol=1e-3)  # the two models differ


def test_a_swap_under_load_mixes_nothing(engine: Engine, a: ServedModel, b: ServedModel) -> None:
    users = [f"u{n}" for n in range(5)]
    histories = {user: events_of(a, user, 90, seed=n) for n, user in enumerate(users)}
    send(engine, [it for events in histories.values() for it in events][:450])
    expected = {
        (model.hash, user): scores(model, model.rows([it.item_id for it in events]))
        for model in (a, b) for user, events in histories.items()
    }  # fmt: skip

    def ask(number: int) -> str:
        user = users[number % 5]
        found = engine.recommend(("t", user), EVERYTHING).result(60)
        wanted = expected[found.model.hash, user]
        np.testing.assert_allclose(by_row(found, len(a.item_ids)), wanted, atol=1e-5)
        return found.model.hash

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, number) for number in range(200)]
        for model in (b, a, b):
            engine.swap(model).result(60)
        asked += [pool.submit(ask, number) for number in range(50)]
        wait(asked)
    assert {it.result() for it in asked[-50:]} == {b.hash}


def test_snapshots_of_another_model_are_made_anew_while_nobody_asks(
    a: ServedModel, b: ServedModel, store: Store
) -> None:
    engine = store.engine(a)
    for user in "uvwxyz":
        send(engine, events_of(a, user, 70))
    engine.swap(b).result(60)
    while engine.rebuilding:
        time.sleep(0.01)
    engine.close()
    log = store.log()
    assert log.outdated(b.hash, 10) == []
    assert all(log.snapshot(("t", user), b.hash) for user in "uvwxyz")
    log.close()


class Failing(SQLiteLog):
    """A disk that fails when it is told to."""

    fails = False

    def keep(self, *values: Any) -> None:
        if self.fails:
            raise StoreError("the event log failed: disk I/O error")
        super().keep(*values)


def test_what_the_store_could_not_keep_is_not_acknowledged(a: ServedModel, tmp_path: Path) -> None:
    log = Failing(tmp_path / "events.sqlite")
    engine, events = Engine(log, LocalCache(1000), a), events_of(a, "u", 70)
    send(engine, events[:63])
    log.fails = True
    with pytest.raises(StoreError, match="disk I/O error"):
        send(engine, events[63:65])
    assert engine.failure is not None
    assert engine.describe(("t", "u")).result(60).count == 63
    log.fails = False
    assert send(engine, events[62:70]) == ["duplicate", *["accepted"] * 7]
    assert engine.failure is None
    found = engine.recommend(("t", "u"), EVERYTHING).result(60)
    rows = a.rows([it.item_id for it in events])
    np.testing.assert_allclose(by_row(found, len(a.item_ids)), scores(a, rows), atol=1e-5)
    engine.close()


# ---- who waits -----------------------------------------------------------------------------------


def test_a_line_takes_from_every_tenant_in_turn() -> None:
    line: Line[str] = Line()
    for name in ("a1", "a2", "a3", "b1", "c1"):
        line.put(name[0], name)
    assert line.take(4) == ["a1", "b1", "c1", "a2"]
    line.put("b", "b2")
    assert line.take(4) == ["a3", "b2"]
    assert line.take(4, wait=False) == []
    line.put("a", "a5")
    line.put("", "ours")
    assert line.take(1) == ["a5"]
    assert line.take(4) == ["ours"]
    line.put("a", "a5")
    line.close()
    with pytest.raises(BusyError):
        line.put("b", "b3")
    assert line.take(4) == ["a5"]
    assert line.take(4) is None


def test_a_tenant_has_its_share_of_what_is_done_at_once() -> None:
    line: Line[str] = Line()
    line.put("", "ours")
    for number in range(9):
        line.put("a", f"a{number}")
    assert line.take(8) == ["ours", *(f"a{number}" for number in range(7))]  # alone
    line.put("b", "b0")
    assert line.take(2) == ["a7", "b0"]
    for number in range(9):
        line.put("a", f"a{number}")
    assert line.take(4) == ["a8", "a0"]  # b may come any moment


def test_too_many_requests_of_one_tenant_are_refused(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 5)
    events, refused, asked = events_of(a, "u", 500), 0, []
    for event in events:
        try:
            asked.append(engine.record("t", [event]))
        except BusyError:
            refused += 1
    assert refused > 0
    assert all(it.result(60)[0].status == "accepted" for it in asked)
    assert engine.describe(("t", "u")).result(60).count == len(asked) == 500 - refused
    while engine.waiting:  # the last one may be told before it is counted
        time.sleep(0.01)


def test_who_waits_for_items_waits_too(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that is slow does not let requests pile up behind it."""
    send(engine, events_of(a, "u", 3))
    monkeypatch.setattr(module, "WAITING", 5)
    hold, search = threading.Event(), a.index.search
    monkeypatch.setattr(a.index, "search", lambda *given: (hold.wait(30), search(*given))[1])
    asked = [engine.recommend(("t", "u"), Query(1)) for _ in range(5)]
    time.sleep(0.1)  # the states are read by now
    with pytest.raises(BusyError, match="5 requests wait already"):
        engine.recommend(("t", "u"), Query(1))
    other = engine.record("other", events_of(a, "v", 1))
    assert other.result(60)[0].status == "accepted"
    hold.set()
    assert all(len(it.result(60).rows) == 1 for it in asked)
    assert engine.recommend(("t", "u"), Query(1)).result(60).basis == "history"
