"""Which requests are in work, and that parts of long ones alternate with those of other tenants."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from recblr.serving import admission
from recblr.serving.admission import Admission
from recblr.serving.engine import Engine
from recblr.serving.fair_queue import BusyError
from recblr.serving.model import ServedModel
from recblr.serving.requests import PART, Query, RecommendForHistory, RecommendForUser
from recblr.serving.settings import ServerSettings
from serving.fixtures import Store, make_events, send
from serving.server_process import wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(admission, "time", clock)
    return clock


def test_a_tenant_has_fewer_requests_in_work_when_others_are_active(clock: Any) -> None:
    async def run() -> None:
        gate, inside = Admission(ServerSettings()), []

        async def ask(tenant: str) -> None:
            await gate.enter(tenant)
            inside.append(tenant)

        tasks = [asyncio.create_task(ask("noisy")) for _ in range(100)]
        await asyncio.sleep(0)
        assert inside == ["noisy"] * ServerSettings.max_running
        clock.now += 0.2
        for _ in range(2):
            await ask("quiet")  # at once
            clock.now += 0.2
        for _ in range(ServerSettings.max_running - 1):
            gate.leave("noisy")
        await asyncio.sleep(0)
        share = admission.TOGETHER // 2
        assert inside.count("noisy") == ServerSettings.max_running + share - 1
        assert gate.waiting == 100 - inside.count("noisy")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(share):
            gate.leave("noisy")
        clock.now += 5
        await ask("noisy")
        assert gate.waiting == 0

    asyncio.run(run())


def test_requests_beyond_the_limits_are_refused() -> None:
    few = ServerSettings(max_waiting=3, wait_seconds=0.05)

    async def run() -> None:
        gate = Admission(few)
        for _ in range(ServerSettings.max_running):
            await gate.enter("t")
        waiting = [asyncio.create_task(gate.enter("t")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="3 requests are waiting already"):
            await gate.enter("t")
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert all("waited" in str(error) for error in errors)
        gate.hold("t", few.max_waiting_bytes)
        with pytest.raises(BusyError, match="bytes of bodies"):
            gate.hold("t", 1)
        gate.hold("other", 1)
        gate.hold("t", -1)
        gate.hold("t", 1)

    asyncio.run(run())


def test_the_tenant_that_has_used_the_event_loop_least_is_next(clock: Any) -> None:
    """Three requests of a tenant that computes for 4 ms in each turn, and one of another with short
    turns; the times are those of a clock that only the turns move."""
    clock.perf_counter = lambda: clock.now

    async def run() -> list[str]:
        computing, turns = False, []
        gate = Admission(ServerSettings(), lambda: computing)

        async def work(tenant: str, seconds: float) -> None:
            await gate.enter(tenant)
            for _ in range(4):
                await gate.turn(tenant)
                turns.append(tenant)
                clock.now += seconds
            gate.leave(tenant)

        for tenant in ("noisy", "quiet"):  # both are active
            await gate.enter(tenant)
            gate.leave(tenant)
            clock.now += 0.2
        requests = [("noisy", 0.004)] * 3 + [("quiet", 0.0001)]
        tasks = [asyncio.create_task(work(*request)) for request in requests]
        await asyncio.sleep(0.01)
        assert turns.index("quiet") <= 1
        assert turns[turns.index("quiet") :][:4] == ["quiet"] * 4
        await asyncio.gather(*tasks)
        # While another thread computes there is no turn; then there is at least one.
        computing = True
        task = asyncio.create_task(work("noisy", 0.0))
        await asyncio.sleep(0.01)
        assert len(turns) == 16
        for _ in range(4):
            gate.resume()
            await asyncio.sleep(0.01)
        await task
        return turns

    assert len(asyncio.run(run())) == 20


def test_a_short_request_does_not_wait_for_a_long_one(
    file: Store, a: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handled after the part that is in work."""
    engine = file.engine(a)
    history = tuple(str(item) for item in a.item_ids) * 200
    handled: list[list[type]] = []
    permits, read = threading.Semaphore(0), engine._processor.read

    def one_by_one(requests: Any) -> Any:
        handled.append([type(request) for request in requests])
        assert permits.acquire(timeout=60)
        return read(requests)

    monkeypatch.setattr(engine._processor, "read", one_by_one)
    # By the estimates alone: on a busy machine, the measured time of a short request may be long.
    monkeypatch.setattr(engine, "_charge", lambda tasks, milliseconds: None)
    long = [engine.recommend_for_history("noisy", history, Query(1)) for _ in range(4)]
    for _ in range(5):
        wait_until(lambda: len(handled) > 0)
        number = len(handled)
        answer = engine.recommend(("quiet", "nobody"), Query(1))
        permits.release(2)
        answer.result(60)
        assert RecommendForUser in handled[number]
        assert len(handled[number]) <= 4
        wait_until(lambda: len(handled) == number + 2)  # noqa: B023
    assert not all(answer.done() for answer in long)
    permits.release(1000)
    for answer in long:
        assert len(answer.result(60).rows) <= 1
    parts = sum(kinds.count(RecommendForHistory) for kinds in handled)
    assert parts == 4 * -(-len(history) // PART)
    engine.close()


def test_many_events_are_recorded_in_parts(engine: Engine, a: ServedModel) -> None:
    events = make_events(a, "u", 1000)
    recorded = engine.record_and_recommend("noisy", events, Query(3, hide_seen=False))
    quick = engine.record("quiet", make_events(a, "v", 1))
    assert [outcome.status for outcome in quick.result(60)] == ["accepted"]
    outcomes, ranked = recorded.result(60)
    assert [outcome.status for outcome in outcomes] == ["accepted"] * 1000
    assert len(ranked.rows) == 3
    assert engine.describe(("noisy", "u")).result(60).count == 1000
    assert send(engine, events[:100], "noisy") == ["duplicate"] * 100
