"""The queue takes from tenants in turn, and the engine refuses too many requests of one tenant."""

import threading
import time
from types import SimpleNamespace

import pytest

from recblr.serving import engine as engine_module
from recblr.serving.engine import Engine
from recblr.serving.fair_queue import BusyError, FairQueue
from recblr.serving.model import ServedModel
from recblr.serving.requests import Query
from serving.fixtures import make_events, send


def test_take_serves_tenants_in_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "a2", "a3", "b1", "c1"):
        queue.put(name[0], name)
    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    queue.put("b", "b2")
    assert queue.take(4) == ["a3", "b2"]
    assert queue.take(4, wait=False) == []
    queue.put("a", "a5")
    queue.put("", "ours")
    assert queue.take(1) == ["a5"]
    assert queue.take(4) == ["ours"]
    queue.put("a", "a5")
    queue.close()
    with pytest.raises(BusyError):
        queue.put("b", "b3")
    assert queue.take(4) == ["a5"]
    assert queue.take(4) is None


def test_one_call_takes_an_equal_share_of_each_active_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("recblr.serving.fair_queue.time", clock)
    queue: FairQueue[str] = FairQueue()
    queue.put("", "ours")
    for number in range(9):
        queue.put("a", f"a{number}")
    assert queue.take(8) == ["ours", *(f"a{number}" for number in range(7))]  # a is alone
    queue.put("b", "b0")
    assert queue.take(2) == ["a7", "b0"]
    for number in range(9):
        queue.put("a", f"a{number}")
    assert queue.take(4) == ["a8", "a0"]  # half is left for b, which may send another request
    clock.monotonic = lambda: 1.5  # b is no longer active
    assert queue.take(4) == ["a1", "a2", "a3", "a4"]


def test_too_many_requests_of_a_tenant_are_refused(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_WAITING", 5)
    refused, answers = 0, []
    for event in make_events(a, "u", 500):
        try:
            answers.append(engine.record("t", [event]))
        except BusyError:
            refused += 1
    assert refused > 0
    assert all(answer.result(60)[0].status == "accepted" for answer in answers)
    assert engine.describe(("t", "u")).result(60).count == len(answers) == 500 - refused
    while engine.waiting:  # an answer may arrive before it is counted
        time.sleep(0.01)


def test_requests_that_wait_for_a_search_count_as_waiting(
    engine: Engine, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow search does not let requests accumulate behind it, nor block other tenants."""
    send(engine, make_events(a, "u", 3))
    monkeypatch.setattr(engine_module, "MAX_WAITING", 5)
    begun, proceed, search = threading.Event(), threading.Event(), a.index.search

    def slow_search(*arguments: object) -> object:
        begun.set()
        proceed.wait(60)
        return search(*arguments)

    monkeypatch.setattr(a.index, "search", slow_search)
    answers = [engine.recommend(("t", "u"), Query(1)) for _ in range(5)]
    begun.wait(60)
    with pytest.raises(BusyError, match="5 requests are waiting already"):
        engine.recommend(("t", "u"), Query(1))
    assert send(engine, make_events(a, "v", 1), tenant="other") == ["accepted"]
    proceed.set()
    assert all(len(answer.result(60).rows) == 1 for answer in answers)
    assert engine.recommend(("t", "u"), Query(1)).result(60).basis == "history"
