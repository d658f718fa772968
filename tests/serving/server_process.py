"""Servers in processes of their own, and clients that put load on them."""

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from recblr.benchmark.serve import connect
from recblr.serving.server import listen, run
from recblr.serving.settings import ServerSettings
from serving.fixtures import Store

PATIENCE = 120  # seconds until a test gives up waiting
PROCESSES = multiprocessing.get_context("forkserver")
# What this module imports, so that a process starts at once.
PROCESSES.set_forkserver_preload(["recblr.serving.server", "recblr.benchmark.serve", "pytest"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that comes true in time unless something hangs."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"the condition did not come true in {PATIENCE} seconds")
        time.sleep(0.02)


NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx")


@contextmanager
def running_nginx(text: str, folder: Path, port: int) -> Iterator[None]:
    """nginx with the configuration ``text`` of a site that listens on ``port``."""
    assert NGINX is not None
    folders = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders}\n{text}\n}}"
    )
    process = subprocess.Popen([NGINX, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"])

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)
    yield
    process.terminate()
    process.wait()


class ServerProcess:
    """A server in a process of its own, ready to answer. ``seconds`` is how long it took to start."""

    def __init__(
        self, model: Path, store: Store, keys: Path | None = None, **settings: Any
    ) -> None:
        self.port = free_port()
        chosen = ServerSettings(
            model=str(model), store=store.name, cache=store.cache_url or "", port=self.port,
            keys=str(keys or ""), **settings,
        )  # fmt: skip
        # A daemon cannot have workers of its own.
        daemon = chosen.workers == 1
        self.process = PROCESSES.Process(target=run, args=(chosen,), daemon=daemon)
        begin = time.perf_counter()
        self.process.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        wait_until(self._ready)
        self.seconds = time.perf_counter() - begin

    def _ready(self) -> bool:
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            assert self.process.is_alive()
            return False

    def get(self, path: str) -> Any:
        """The JSON of a successful GET."""
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a successful POST."""
        return self.client.post(path, json=body).raise_for_status().json()

    def kill(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.client.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGTERM)  # uvicorn raises the signal again
        self.client.close()


def free_port() -> int:
    with listen("127.0.0.1", 0) as bound:
        port: int = bound.getsockname()[1]
    return port


def event_body(number: int, user: str, item: str) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": item, "timestamp": number}


async def send_until_killed(
    port: int, make_event: Callable[[], Any], acknowledged: list[Any], clients: int = 4
) -> None:
    """Send events until the server is gone; adds those that it has acknowledged to a list."""

    async def send() -> None:
        client = await connect(port)
        try:
            while True:
                events = [make_event() for _ in range(20)]
                assert await client.status("/v1/events", {"events": events}) == 200
                acknowledged.extend(events)
        except (OSError, EOFError):
            client.writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))


async def closed_loop(
    port: int, key: str, clients: int, first_event: int, seconds: float,
    connected: Callable[[], None],
) -> dict[int, int]:  # fmt: skip
    """Each client sends its next event when the last is answered; the number of answers by status."""
    statuses: Counter[int] = Counter()
    connections = await asyncio.gather(*(connect(port, key) for _ in range(clients)))
    connected()
    end = time.perf_counter() + seconds

    async def send(number: int) -> None:
        event = first_event + number
        while True:
            body = event_body(event, f"u{number}", "1")
            statuses[await connections[number].status("/v1/events", body)] += 1
            event += clients
            if time.perf_counter() > end:
                break
        connections[number].writer.close()

    await asyncio.gather(*(send(number) for number in range(clients)))
    return dict(statuses)


def send_noise(results: Any, *load: Any) -> None:
    """A process with the clients of :func:`closed_loop`, which tells when it begins, and its result."""
    results.send(asyncio.run(closed_loop(*load, lambda: results.send("begins"))))


async def steady_rate(port: int, key: str, first_event: int, seconds: float) -> list[float]:
    """One client sends an event about every 20 ms; the seconds that each took."""
    client, latencies, number = await connect(port, key), [], first_event
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end or not latencies:
        await client.post("/v1/events", event_body(number, "u", "1"))
        latencies.append(time.perf_counter() - begin)
        number += 1
        await asyncio.sleep(0.02)
    client.writer.close()
    return latencies
