"""Late and removed events: the state stays that of the log, and the cost that of what is replayed."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recblr.serving.engine import Engine
from recblr.serving.model import ServedModel
from recblr.serving.requests import PART
from recblr.serving.sql import SQLLog
from recblr.serving.storage import Event
from recblr.serving.user_states import AT_ONCE, READ_FASTER
from serving.fixtures import ALL_ITEMS, Site, Store, assert_scores, items_of, make_events, send

LONG = 3_000  # events of a user


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The numbers of events that are read, and folded, at a time."""
    work: dict[str, list[int]] = {"read": [], "folded": []}
    read, fold = SQLLog.events, ServedModel.fold

    def counted_read(self: SQLLog, *arguments: Any) -> Any:
        events = read(self, *arguments)
        work["read"].append(len(events))
        return events

    def counted_fold(self: ServedModel, vectors: Any, histories: Any) -> Any:
        work["folded"].append(sum(map(len, histories)))
        return fold(self, vectors, histories)

    monkeypatch.setattr(SQLLog, "events", counted_read)
    monkeypatch.setattr(ServedModel, "fold", counted_fold)
    return work


def long_history(engine: Engine, a: ServedModel) -> list[Event]:
    draw = random.Random(0)
    events = [
        Event(f"e{number}", "u", str(draw.choice(a.item_ids)), float(number))
        for number in range(LONG)
    ]
    send(engine, events)
    return events


def assert_state(engine: Engine, events: list[Event], model: ServedModel) -> None:
    events = sorted(events, key=lambda event: event.key)
    ranked = engine.recommend(("t", "u"), ALL_ITEMS).result(60)
    assert_scores(ranked, items_of(events), model)
    description = engine.describe(("t", "u"), events=3).result(60)
    assert (description.count, description.last) == (len(events), events[-1].key)
    assert [item for _, _, item, _ in description.events] == items_of(events[-3:])


def test_a_late_event_does_not_read_the_whole_history(
    engine: Engine, a: ServedModel, work: dict[str, list[int]]
) -> None:
    events = long_history(engine, a)
    for late in (1, 30, 200):
        work.update(read=[], folded=[])
        events.append(Event(f"late{late}", "u", str(a.item_ids[0]), LONG - late - 0.5))
        send(engine, [events[-1]])
        assert sum(work["read"]) <= 2 * AT_ONCE
        assert_state(engine, events, a)
        assert sum(work["read"]) <= 4 * late + 2 * PART + 2
        assert sum(work["folded"]) <= 4 * late + 2 * PART + 2


def test_a_very_late_event_is_replayed_in_parts(
    engine: Engine, a: ServedModel, work: dict[str, list[int]]
) -> None:
    events = long_history(engine, a)
    for number in range(3):
        work.update(read=[], folded=[])
        events.append(Event(f"late{number}", "u", str(a.item_ids[0]), LONG / 2 + number))
        send(engine, [events[-1]])
        assert sum(work["read"]) <= 2 * AT_ONCE
        assert sum(work["folded"]) <= 1
        more = Event(f"new{number}", "u", str(a.item_ids[1]), float(LONG + number))
        events.append(more)
        send(engine, [more])  # while the state is behind
        assert sum(work["folded"]) <= 1
        assert_state(engine, events, a)
        assert max(work["read"]) <= READ_FASTER * PART
        assert max(work["folded"]) <= PART
        assert sum(work["folded"]) <= LONG // 2 + 4 * PART + AT_ONCE


def test_the_state_of_a_long_history_is_read_in_parts_after_a_restart(
    a: ServedModel, store: Store, work: dict[str, list[int]]
) -> None:
    engine = store.engine(a)
    events = long_history(engine, a)
    engine.close()
    work.update(read=[], folded=[])
    engine = store.engine(a)
    assert_state(engine, events, a)
    engine.close()
    assert max(work["read"], default=0) <= READ_FASTER * PART
    assert sum(work["folded"]) <= 2 * PART  # from the last snapshot


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_removed_events_leave_the_state_of_the_others(
    engine: Engine, a: ServedModel, data: st.DataObject
) -> None:
    engine.erase(("t", "u")).result(60)
    kept: dict[str, Event] = {}
    events = make_events(a, "u", data.draw(st.sampled_from([3, 70, 150, 400])))
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            batch = data.draw(st.lists(st.sampled_from(events), max_size=len(events)))
            send(engine, batch)
            kept |= {event.event_id: event for event in batch}
        for event in data.draw(st.lists(st.sampled_from(events), max_size=3)):
            removed = engine.remove("t", event.event_id).result(60)
            assert removed == (kept.pop(event.event_id, None) is not None)
        if kept and data.draw(st.booleans()):
            assert_state(engine, list(kept.values()), a)
    if kept:
        assert_state(engine, list(kept.values()), a)
    else:
        assert engine.describe(("t", "u")).result(60).last is None
        assert engine.recommend(("t", "u"), ALL_ITEMS).result(60).basis == "popularity"


def test_remove_an_event_over_http(site: Site, a: ServedModel) -> None:
    def event(number: int) -> dict[str, Any]:
        item = str(a.item_ids[number])
        return {"event_id": f"a/{number}", "user_id": "u", "item_id": item, "timestamp": number}

    site.client.post("/v1/events", json={"events": [event(1), event(2)]})
    before = site.client.post("/v1/recommend", json={"history": [str(a.item_ids[1])]}).json()
    assert site.client.delete("/v1/events/a%2F3").status_code == 404
    assert site.client.delete("/v1/events/a%2F2").json() == {"model": a.hash, "events": 1}
    assert site.client.delete("/v1/events/a%2F2").status_code == 404
    assert site.client.get("/v1/users/u/recommendations").json() == before
    again = site.client.post("/v1/events", json=event(2)).json()
    assert again["results"][0]["status"] == "accepted"


def test_an_event_in_the_future_is_refused(site: Site) -> None:
    body = {"event_id": "e", "user_id": "u", "item_id": "i", "timestamp": "2100-01-01"}
    answer = site.client.post("/v1/events", json=body)
    assert answer.status_code == 422
    assert "more than a day in the future" in answer.json()["error"]
    assert site.client.get("/v1/users/u").status_code == 404
