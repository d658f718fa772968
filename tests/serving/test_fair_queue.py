"""The queue takes from tenants in turn, and the engine refuses too many requests of one tenant."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.serving import engine as engine_module
from recblr.serving import item_search
from recblr.serving.engine import Engine
from recblr.serving.fair_queue import BusyError, FairQueue
from recblr.serving.item_search import ItemSearch
from recblr.serving.model import ServedModel
from recblr.serving.requests import Query
from serving.fixtures import make_events, send


def test_take_serves_tenants_in_turn() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for name in ("a1", "a2", "a3", "b1", "c1"):
        queue.put(name[0], name)
    assert queue.take() == ["a1", "b1", "c1", "a2"]
    queue.put("b", "b2")
    assert queue.take() == ["b2", "a3"]  # a has used more
    assert queue.take(wait=False) == []
    queue.put("a", "a5")
    queue.put("", "ours")
    assert queue.take() == ["ours", "a5"]
    queue.put("a", "a6")
    queue.put("a", "a0", first=True)
    queue.close()
    with pytest.raises(BusyError):
        queue.put("b", "b3")
    assert queue.take(wait=False) == ["a0", "a6"]
    assert queue.take() is None


def test_one_call_takes_an_equal_share_of_each_active_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("recblr.serving.fair_queue.time", clock)
    queue: FairQueue[str] = FairQueue(4)
    for number in range(12):
        queue.put("a", f"a{number}")
    assert queue.take() == ["a0", "a1", "a2", "a3"]  # a is alone
    queue.put("b", "b0")
    assert queue.take() == ["b0", "a4", "a5", "a6"]
    assert queue.take() == ["a7", "a8"]  # half is left for b, which may send another request
    clock.monotonic = lambda: 1.5  # b is no longer active
    queue.put("a", "a12")
    assert queue.take() == ["a9", "a10", "a11", "a12"]


@given(
    costs=st.lists(st.floats(0.1, 30), min_size=2, max_size=60),
    errors=st.lists(st.floats(0.2, 5), min_size=1, max_size=9),
)
def test_tenants_share_the_time_and_not_the_number_of_requests(
    costs: list[float], errors: list[float]
) -> None:
    """Requests of one tenant cost what they may, those of the other 1; estimates are wrong."""
    queue: FairQueue[tuple[str, float, float]] = FairQueue(1)
    error = itertools.cycle(errors)
    for cost in costs:
        queue.put("costly", ("costly", cost, estimate := cost * next(error)), estimate)
    for _ in range(2000):
        queue.put("cheap", ("cheap", 1.0, 1.0), 1.0)
    used = {"costly": 0.0, "cheap": 0.0}
    for _ in costs[1:]:
        ((tenant, cost, estimate),) = queue.take() or []
        used[tenant] += cost
        queue.charge({tenant: cost - estimate})
        assert abs(used["costly"] - used["cheap"]) <= max(costs) + 1


def test_a_call_takes_no_more_than_a_cost_if_several_tenants_are_active() -> None:
    queue: FairQueue[str] = FairQueue(16, 5.0)
    for number in range(4):
        queue.put("a", f"a{number}", 2.0)
    assert queue.take() == ["a0", "a1", "a2", "a3"]
    queue.put("b", "b0", 1.0)
    for number in range(4, 8):
        queue.put("a", f"a{number}", 2.0)
    assert queue.take() == ["b0", "a4", "a5"]
    queue.put("a", "long", 100.0, first=True)
    assert queue.take() == ["long"]


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
    monkeypatch.setattr(ItemSearch, "is_quick", False)
    monkeypatch.setattr(item_search, "FEW", 0)  # as if there were many items
    answers = [engine.recommend(("t", "u"), Query(1)) for _ in range(5)]
    begun.wait(60)
    with pytest.raises(BusyError, match="5 requests are waiting already"):
        engine.recommend(("t", "u"), Query(1))
    assert send(engine, make_events(a, "v", 1), tenant="other") == ["accepted"]
    proceed.set()
    assert all(len(answer.result(60).rows) == 1 for answer in answers)
    assert engine.recommend(("t", "u"), Query(1)).result(60).basis == "history"
