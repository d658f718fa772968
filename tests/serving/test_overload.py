"""A server under more load than it can take, and requests beyond its limits."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import SOAK
from recblr.benchmark.serve import connect
from recblr.serving.keys import add_key
from recblr.serving.model import ServedModel
from serving.fixtures import Store
from serving.server_process import (
    PROCESSES,
    ServerProcess,
    event_body,
    send_noise,
    steady_rate,
)

REPEATS, SECONDS = (5_000, 20.0) if SOAK else (40, 0.5)


def test_a_noisy_tenant_and_a_quiet_one(
    models: Path, file: Store, tmp_path: Path, keep: Callable[..., None]
) -> None:
    """16 clients keep the server busy; of 400 some are refused. The quiet tenant is always served."""
    key_file = tmp_path / "keys"
    keys = {tenant: add_key(key_file, tenant) for tenant in ("quiet", "noisy")}
    server = ServerProcess(models / "a", file, key_file)
    numbers = iter(range(0, 10**9, 10**6))

    def quiet_latencies() -> list[float]:
        return asyncio.run(steady_rate(server.port, keys["quiet"], next(numbers), SECONDS))

    refused: dict[int, int] = {}
    latencies = {0: quiet_latencies()}
    for clients in (16, 400):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        load = server.port, keys["noisy"], clients, next(numbers), SECONDS + 2 * SOAK
        noise = PROCESSES.Process(target=send_noise, args=(sender, *load))
        noise.start()
        receiver.recv()
        latencies[clients] = quiet_latencies()
        statuses = receiver.recv()
        noise.join()
        assert 200 in statuses
        assert set(statuses) <= {200, 429}
        refused[clients] = statuses.get(429, 0)
    server.stop()
    assert refused[16] == 0
    if SOAK:  # behind all requests of the noisy tenant it would be 40 times
        assert np.median(latencies[400]) < 10 * np.median(latencies[0])
    keep(
        "noisy neighbour",
        refused_by_noisy_clients=refused,
        quiet_ms_by_noisy_clients={
            clients: {f"p{q}": round(1e3 * float(np.percentile(times, q)), 1) for q in (50, 99)}
            for clients, times in latencies.items()
        },
    )


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_refused_requests_leave_nothing_in_memory(
    models: Path, a: ServedModel, file: Store, keep: Callable[..., None]
) -> None:
    server, item = ServerProcess(models / "a", file), str(a.item_ids[0])
    one, deep = event_body(0, "u", item), "[" * 33 + "]" * 33
    many = [event_body(number, "u", item) for number in range(1001)]
    refused = {
        "a long body": ("/v1/events", " " * 1_000_001, 413),
        "many events": ("/v1/events", json.dumps({"events": many}), 422),
        "a long id": ("/v1/events", json.dumps({**one, "user_id": "u" * 257}), 422),
        "many items": ("/v1/recommend", json.dumps({"user_id": "u", "k": 1001}), 422),
        "deep JSON": ("/v1/events", deep, 422),
        "a huge number": ("/v1/events", f'{{"timestamp": {"9" * 5000}}}', 400),
    }

    def memory_after(repeats: int) -> int:
        """Send all of them; MiB of memory that the server has afterwards."""
        for _ in range(repeats):
            for path, content, status in refused.values():
                answer = server.client.post(
                    path, content=content, headers={"content-type": "application/json"}
                )
                assert answer.status_code == status
        content = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(content.split("VmRSS:")[1].split()[0]) // 1024

    before = memory_after(20)
    after = memory_after(REPEATS)
    server.stop()
    assert after < before + 16
    keep("limits", requests=REPEATS * len(refused), mib_before=before, mib_after=after)


@pytest.mark.skipif(not SOAK, reason="needs RECBLR_SOAK and some minutes")
def test_memory_is_flat_over_many_requests(
    models: Path, a: ServedModel, file: Store, keep: Callable[..., None]
) -> None:
    server, item = ServerProcess(models / "a", file), str(a.item_ids[0])

    async def send(first: int, count: int) -> None:
        """Recommendations, new events, and events that the server has already."""
        client = await connect(server.port)
        for number in range(first, first + count):
            user = f"u{number % 1000}"
            if number % 4:
                status = await client.status(f"/v1/users/{user}/recommendations", None, "GET")
            else:
                status = await client.status("/v1/events", event_body(number % 5_000, user, item))
            assert status == 200
        client.writer.close()

    async def memory_after(first: int, count: int) -> int:
        """MiB of the server after requests of eight clients."""
        await asyncio.gather(*(send(first + n * count // 8, count // 8) for n in range(8)))
        content = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(content.split("VmRSS:")[1].split()[0]) // 1024

    before = asyncio.run(memory_after(0, 20_000))
    after = asyncio.run(memory_after(20_000, 200_000))
    server.stop()
    assert after < before + 16
    keep("memory", requests=200_000, mib_before=before, mib_after=after)
