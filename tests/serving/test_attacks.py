"""What the work of one tenant, however much, may cost another: each kind at its limit (`make soak`)."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SOAK
from recblr.benchmark.serve import connect
from recblr.serving.keys import add_key
from serving.fixtures import Store
from serving.server_process import PROCESSES, ServerProcess, event_body, steady_rate

CLIENTS, HISTORY, SECONDS = 8, 20_000, 15.0
ITEM = "c001-i0000"
DRAW = random.Random(0)
Load = Callable[[int], tuple[str, str, Any]]  # from a number to method, path and body


def many_events(number: int) -> tuple[str, str, Any]:
    events = [event_body(2 * 10**8 + 1000 * number + n, f"n{n % 50}", ITEM) for n in range(1000)]
    return "POST", "/v1/events", {"events": events}


LOADS: dict[str, Load] = {
    "plain GETs": lambda number: ("GET", f"/v1/users/n{number % 50}/recommendations", None),
    "batches of 1,000 events": many_events,
    f"late events in a history of {HISTORY:,}": lambda number: (
        "POST", "/v1/events",
        {**event_body(8 * 10**8 + number, "long", ITEM), "timestamp": DRAW.uniform(0, HISTORY)},
    ),
    "deny lists of 20,000": lambda number: (
        "POST", "/v1/recommend", {"user_id": "long", "deny": [f"i{n}" for n in range(20_000)]}
    ),
    "histories of 880 kB": lambda number: (
        "POST", "/v1/recommend", {"history": [f"{n:084d}" for n in range(10_000)]}
    ),
    f"influence of {HISTORY:,} events": lambda number: ("GET", "/v1/users/long/influence", None),
}  # fmt: skip


async def attack(
    port: int, key: str, load: Load, seconds: float, connected: Callable[[], None]
) -> set[int]:
    """The statuses of the answers to clients that send one request after the other."""
    clients = [await connect(port, key) for _ in range(CLIENTS)]
    connected()
    end, statuses = time.perf_counter() + seconds, set()

    async def send(number: int) -> None:
        first = number
        while time.perf_counter() < end or number == first:
            method, path, body = load(number)
            statuses.add(await clients[first].status(path, body, method))
            number += CLIENTS
        clients[first].writer.close()

    await asyncio.gather(*(send(number) for number in range(CLIENTS)))
    return statuses


def attack_from_a_process(results: Any, port: int, key: str, name: str, seconds: float) -> None:
    begins = lambda: results.send("begins")  # noqa: E731
    results.send(asyncio.run(attack(port, key, LOADS[name], seconds, begins)))


@pytest.mark.skipif(not SOAK, reason="needs RECBLR_SOAK and some minutes")
def test_a_quiet_tenant_beside_each_kind_of_work(
    models: Path, file: Store, tmp_path: Path, keep: Callable[..., None]
) -> None:
    keys = {tenant: add_key(tmp_path / "keys", tenant) for tenant in ("quiet", "noisy")}
    server = ServerProcess(models / "a", file, tmp_path / "keys")
    server.client.headers["Authorization"] = f"Bearer {keys['noisy']}"
    for start in range(0, HISTORY, 1000):
        events = [event_body(9 * 10**8 + n, "long", ITEM) for n in range(start, start + 1000)]
        server.post(
            "/v1/events", {"events": [{**e, "timestamp": n} for n, e in enumerate(events, start)]}
        )
    numbers = iter(range(0, 10**8, 10**6))

    def quiet(seconds: float = SECONDS) -> dict[str, float]:
        times = asyncio.run(steady_rate(server.port, keys["quiet"], next(numbers), seconds))
        return {f"p{q}": round(1e3 * float(np.percentile(times, q)), 1) for q in (50, 99)}

    alone, beside = quiet(), {}
    for name in LOADS:
        receiver, sender = PROCESSES.Pipe(duplex=False)
        arguments = sender, server.port, keys["noisy"], name, SECONDS + 1
        noise = PROCESSES.Process(target=attack_from_a_process, args=arguments)
        noise.start()
        receiver.recv()
        beside[name] = quiet()
        assert receiver.recv() <= {200, 429}
        noise.join()
    again = quiet()
    assert server.client.get("/health/ready").status_code == 200
    server.stop()
    # Once the 99th percentile was from 3 to more than 10,000 times as long. Twice is the aim; the bound
    # is wider, because client, server and whatever else runs share the cores.
    slowest = max(figures["p99"] for figures in beside.values())
    assert slowest < 8 * max(alone["p99"], again["p99"])
    keep("a quiet tenant beside others", ms_alone=[alone, again], ms_beside=beside)
