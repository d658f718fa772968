"""Which items the engine recommends: filters, the memory of transitions, popular items."""

import copy
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr import retrieval
from recblr.data.batches import pack_latest
from recblr.serving import item_search
from recblr.serving.engine import Engine
from recblr.serving.model import ServedModel
from recblr.serving.requests import Query
from serving.fixtures import (
    ALL_ITEMS,
    Store,
    assert_scores,
    expected_scores,
    items_of,
    make_events,
    send,
)


def test_filters(engine: Engine, a: ServedModel) -> None:
    ids = [str(item_id) for item_id in a.item_ids]
    events = make_events(a, "u", 5)
    send(engine, events)
    seen = set(items_of(events))
    order = [ids[row] for row in engine.recommend(("t", "u"), ALL_ITEMS).result(60).rows]
    unseen = [item for item in order if item not in seen]

    def recommend(**options: Any) -> list[str]:
        ranked = engine.recommend(("t", "u"), Query(**{"k": 4, **options})).result(60)
        assert list(ranked.scores) == sorted(ranked.scores, reverse=True)
        return [ids[row] for row in ranked.rows]

    assert recommend() == unseen[:4]
    assert recommend(hide_seen=False) == order[:4]
    deny = tuple(order[:3])
    assert recommend(deny=deny) == [item for item in unseen if item not in deny][:4]
    allow = (*order[-3:], "never seen")
    assert recommend(allow=allow) == [item for item in order[-3:] if item not in seen]
    assert recommend(allow=()) == []
    assert recommend(k=1000) == unseen


@pytest.mark.parametrize("repeat", [-20.0, 0.0, 2.5])
def test_the_memory_adds_to_the_scores(a: ServedModel, file: Store, repeat: float) -> None:
    model = copy.copy(a)
    assert model.memory is not None
    model.memory = replace(model.memory, repeat=repeat)
    engine, events = file.engine(model), make_events(a, "u", 30)
    send(engine, events)
    rows = a.rows(items_of(events))
    scores = expected_scores(model, rows)
    assert np.abs(scores - repeat * np.isin(np.arange(len(scores)), rows)).max() > 1
    order = np.argsort(-scores)
    ranked = engine.recommend(("t", "u"), Query(7, hide_seen=False)).result(60)
    assert ranked.rows.tolist() == order[:7].tolist()
    np.testing.assert_allclose(ranked.scores, scores[order[:7]], atol=1e-5)
    unseen = order[~np.isin(order, rows)]
    assert 0 < len(unseen) < len(order)
    ranked = engine.recommend(("t", "u"), Query(7)).result(60)
    assert ranked.rows.tolist() == unseen[:7].tolist()
    np.testing.assert_allclose(ranked.scores, scores[unseen[:7]], atol=1e-5)
    after = engine.recommend_for_history("t", tuple(items_of(events)), Query(7)).result(60)
    assert after.rows.tolist() == ranked.rows.tolist()
    allow = tuple(str(a.item_ids[row]) for row in order[::2])
    ranked = engine.recommend(("t", "u"), Query(7, hide_seen=False, allow=allow)).result(60)
    assert ranked.rows.tolist() == order[::2][:7].tolist()
    engine.close()


def test_the_memory_looks_at_the_last_items_only(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a.memory is not None
    calls: list[tuple[int, bool]] = []
    memory_scores = a.memory_scores

    def recorded(history: np.ndarray, repeats: bool) -> Any:
        calls.append((len(history), repeats))
        return memory_scores(history, repeats)

    monkeypatch.setattr(a, "memory_scores", recorded)
    send(engine, make_events(a, "u", 300))
    engine.recommend(("t", "u"), Query(3)).result(60)
    engine.recommend_for_history("t", tuple(map(str, a.item_ids * 9)), Query(3)).result(60)
    assert calls == [(a.memory.config.reach, False)] * 2


def test_a_waiting_search_and_new_events_do_not_affect_each_other(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = make_events(a, "u", 40)
    send(engine, events[:20])
    begun, proceed, search = threading.Event(), threading.Event(), a.index.search

    def slow_search(*arguments: Any) -> Any:
        begun.set()
        proceed.wait(60)
        return search(*arguments)

    monkeypatch.setattr(retrieval, "_SCORE_ALL", 0)  # so that searches wait for a thread
    monkeypatch.setattr(item_search, "FEW", 0)
    monkeypatch.setattr(a.index, "search", slow_search)
    answers = [engine.recommend(("t", "u"), query) for query in (ALL_ITEMS, Query(3))]
    assert begun.wait(60)
    for event in events[20:]:
        assert send(engine, [event]) == ["accepted"]
    proceed.set()
    assert_scores(answers[0].result(60), items_of(events[:20]), a)
    assert len(answers[1].result(60).rows) == 3


@pytest.mark.parametrize(("score_all", "few"), [(8192, 200_000), (0, 200_000), (0, 0)])
def test_all_ways_of_a_search_give_the_scores_of_offline_scoring(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch, score_all: int, few: int
) -> None:
    """At once, on the thread of the states, and on that of the searches."""
    monkeypatch.setattr(retrieval, "_SCORE_ALL", score_all)
    monkeypatch.setattr(item_search, "FEW", few)
    events = make_events(a, "u", 20)
    recorded = engine.record_and_recommend("t", events, ALL_ITEMS).result(60)
    again = [engine.recommend(("t", "u"), ALL_ITEMS) for _ in range(20)]
    for ranked in (recorded[1], *(answer.result(60) for answer in again)):
        assert_scores(ranked, items_of(events), a)


def test_a_model_without_a_memory(b: ServedModel) -> None:
    assert b.memory is None
    assert b.memory_scores(np.array([1, 2]), repeats=True) is None


@settings(max_examples=50, deadline=None)
@given(
    history=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    repeats=st.booleans(), repeat=st.sampled_from([-20.0, 0.0, 3.0]),
)  # fmt: skip
def test_memory_scores_are_those_of_offline_scoring(
    a: ServedModel, history: list[int], repeats: bool, repeat: float
) -> None:
    model, rows = copy.copy(a), np.array(history)
    assert a.memory is not None
    model.memory = memory = replace(a.memory, repeat=repeat)
    added = model.memory_scores(rows if repeats else rows[-model.reach :], repeats)
    assert added is not None
    items, values = added
    scores = np.zeros(len(a.item_ids), np.float32)
    scores[items] = values
    batch = pack_latest(rows, np.array([0]), np.array([len(rows)]), 99, "none")
    offline = memory if repeats else replace(memory, repeat=0.0)
    expected = offline.add_to(torch.zeros(1, len(scores)), batch)[0].numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (np.diff(items) > 0).all()


def test_users_without_known_items_get_popular_items(engine: Engine, a: ServedModel) -> None:
    ranked = engine.recommend(("t", "nobody"), Query(5)).result(60)
    assert ranked.basis == "popularity"
    assert list(ranked.scores) == sorted(a.counts, reverse=True)[:5]
    first, second = (str(a.item_ids[row]) for row in ranked.rows[:2])
    query = Query(5, deny=(first,), allow=(first, second))
    (row,) = engine.recommend(("t", "nobody"), query).result(60).rows
    assert str(a.item_ids[row]) == second
    ranked = engine.recommend_for_history("t", ("never seen",), Query(3)).result(60)
    assert ranked.basis == "popularity"


def test_record_and_recommend_in_one_request(engine: Engine, a: ServedModel) -> None:
    events = make_events(a, "u", 3)
    outcomes, ranked = engine.record_and_recommend("t", events, ALL_ITEMS).result(60)
    assert [outcome.status for outcome in outcomes] == ["accepted"] * 3
    assert_scores(ranked, items_of(events), a)


def test_recommend_for_a_history_that_is_not_stored(engine: Engine, a: ServedModel) -> None:
    history = tuple(str(item_id) for item_id in a.item_ids[:7])
    ranked = engine.recommend_for_history("t", history, ALL_ITEMS).result(60)
    assert_scores(ranked, list(history), a)
    hidden = engine.recommend_for_history("t", history, Query(1000)).result(60)
    assert set(hidden.rows).isdisjoint(a.rows(history))


def test_different_requests_in_one_batch_get_their_own_answers(
    a: ServedModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = store.engine(a), make_events(a, "u", 3)
    send(engine, events)
    begun, proceed, processor = threading.Event(), threading.Event(), engine._processor
    read = processor.read

    def slow_read(requests: Any) -> Any:
        begun.set()
        proceed.wait(60)
        return read(requests)

    monkeypatch.setattr(processor, "read", slow_read)
    engine.users("t", 9)
    begun.wait(60)  # what follows waits, and is one batch
    history = tuple(items_of(events[:1]))
    answers: list[Any] = [
        engine.recommend(("t", "u"), ALL_ITEMS), engine.describe(("t", "u")),
        engine.recommend_for_history("t", history, ALL_ITEMS), engine.users("t", 9),
        engine.recommend(("t", "nobody"), Query(1)), engine.describe(("t", "nobody")),
        engine.served_model(),
    ]  # fmt: skip
    proceed.set()
    ranked, user, after, users, popular, nobody, served = (answer.result(60) for answer in answers)
    assert_scores(ranked, items_of(events), a)
    assert_scores(after, list(history), a)
    assert (user.count, nobody.count, users, popular.basis) == (3, 0, ["u"], "popularity")
    assert served is None
    engine.close()
