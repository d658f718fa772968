"""A server under load over HTTP from another process.

Throughput is measured in a closed loop: each client sends its next request when the previous one is
answered. Latency is measured at a steady rate; if all clients are still waiting when a request is due,
its latency counts from then. The pauses of the machine itself are measured as well, in a busy loop.

The models have a memory of transitions. Every event has one of the first 8,192 items, whose rows of the
memory have 1,024 entries, the maximum.
"""

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from recblr import artifact
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.memory import Memory, MemoryConfig
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import Advance, progress
from recblr.serving.engine import Engine
from recblr.serving.local_cache import LocalCache
from recblr.serving.model import ServedModel
from recblr.serving.server import listen, run
from recblr.serving.settings import ServerSettings
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event, State
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig

CATALOGUES = {3_416: 1000, 100_000: 1000, 1_000_000: 150}  # steady requests a second
HISTORIES = (10, 1_000, 100_000)
CLIENTS = 8
USERS = 1_000
HISTORY = 20  # events of each user before the load
EVENT_ITEMS = 8_192  # events have one of this many items


def time_serving(
    catalogues: Mapping[int, int] = CATALOGUES,
    histories: tuple[int, ...] = HISTORIES,
    seconds: float = 5,
) -> dict[str, Any]:
    """Measure throughput and latency, the time of an event by history length, and memory per user.

    Args:
        catalogues: the numbers of items, each with the steady rate in requests per second.
        histories: the lengths of history.
        seconds: the duration of each load.

    Returns:
        ``catalogues``: for each size and load the rate and the quantiles in ms, and ``search``, the
        result of :func:`time_memory`; ``histories``: the median µs of a durable event by history
        length; ``user_bytes``: the memory of a cached user; ``gaps``: quantiles in ms of the pauses of
        the machine.
    """
    result: dict[str, Any] = {"clients": CLIENTS, "users": USERS, "gaps": _gaps(), "catalogues": []}
    total = len(catalogues) * 4 * seconds
    with tempfile.TemporaryDirectory() as folder, progress("load", total) as advance:
        for items, rate in catalogues.items():
            model = Path(folder) / f"model{items}"
            _save_untrained(model, items)
            with _serving(model, str(Path(folder) / f"{items}.sqlite")) as port:
                rows = asyncio.run(_loads(port, items, rate, seconds, advance))
            rows["search"] = time_memory(ServedModel(model))
            result["catalogues"].append({"items": items, "steady_per_second": rate, **rows})
        served = ServedModel(Path(folder) / f"model{min(catalogues)}")
        result["index"] = served.index.kind
        result["histories"] = _by_history(served, Path(folder) / "events.sqlite", histories)
        result["user_bytes"] = _user_bytes(served)
    return result


def time_memory(model: ServedModel, repeats: int = 300) -> dict[str, float]:
    """Median µs of a search for the best 20 items after 20 events, which are excluded, on one thread.

    Returns:
        ``without`` the memory of transitions; ``with`` it; ``rows``, the part of that for reading and
        summing rows of the memory. Measured in turn.
    """
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    torch.set_num_threads(1)
    times = np.empty((repeats, 3))
    for repeat in range(repeats):
        history = rng.integers(min(len(model.item_ids), EVENT_ITEMS), size=HISTORY)
        hidden = model.hidden(model.fold(model.start[None], [history]))
        query = hidden[0]
        begin = time.perf_counter()
        model.index.search_one(query, 20, history, None)
        without_memory = time.perf_counter()
        added = model.memory_scores(history, repeats=False)
        rows_read = time.perf_counter()
        model.index.search_one(query, 20, history, added)
        end = time.perf_counter()
        times[repeat] = without_memory - begin, end - without_memory, rows_read - without_memory
    torch.set_num_threads(threads)
    median = np.median(times, 0) * 1e6
    return dict(zip(("without", "with", "rows"), median.round().tolist(), strict=True))


def _save_untrained(folder: Path, items: int) -> None:
    """Save an artifact of random weights and a random memory, as fast as a trained one."""
    split = Split("leave-one-out", np.array([1]), np.array([-1]), np.array([-1]))
    data = Sequences(
        np.zeros(1, np.int32), np.array([0, 1]), pa.array(["user"]),
        pa.array([str(item) for item in range(items)]), split, 1, {"source": "none"},
    )  # fmt: skip
    torch.manual_seed(0)
    network, trained = RecBLR(items, RecBLRConfig()), Trained(0, 0, {}, 0.0, "epochs")
    config = MemoryConfig()
    memory = Memory(config, _random_rows(items, config.pairs), 1.5, 10.0, -20.0)
    contents = artifact.Artifact(
        "recblr", network.config, TrainConfig(), data, network, trained, [], config, memory, None
    )  # fmt: skip
    artifact.save(contents, folder)


def _random_rows(items: int, entries: int) -> sparse.csr_array:
    """(V, V) with ``entries`` entries, at most V, in each row of an item that events have."""
    rng = np.random.default_rng(0)
    entries, rows = min(items, entries), min(items, EVENT_ITEMS)
    # One column of each range of equal size, so the columns are ascending and distinct.
    begins = np.linspace(0, items, entries + 1).astype(np.int32)
    columns = rng.integers(begins[:-1], begins[1:], (rows, entries), dtype=np.int32)
    values = rng.lognormal(-3, 1, (rows, entries)).astype(np.float32)
    ends = entries * np.minimum(np.arange(items + 1, dtype=np.int32), rows)
    return sparse.csr_array((values.ravel(), columns.ravel(), ends), (items, items))


@contextmanager
def _serving(model: Path, store: str) -> Iterator[int]:
    """Run a server in another process; yield its port."""
    with listen("127.0.0.1", 0) as bound:
        port: int = bound.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(model, store, port))
    process.start()
    try:
        yield port
    finally:
        process.terminate()
        process.join()


def _run(model: Path, store: str, port: int) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        run(ServerSettings(model=str(model), store=store, port=port))


async def _loads(
    port: int, items: int, rate: int, seconds: float, advance: Advance
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    clients = [await connect(port)]
    number = iter(range(1 << 60))

    def event(user: int | None = None) -> dict[str, Any]:
        n = next(number)
        user = int(rng.integers(USERS)) if user is None else user
        item = str(rng.integers(min(items, EVENT_ITEMS)))
        return {"event_id": str(n), "user_id": f"u{user}", "item_id": item, "timestamp": n}

    for user in range(USERS):
        await clients[0].post("/v1/events", {"events": [event(user) for _ in range(HISTORY)]})
    # Only now, because a connection without a request is closed after ten seconds.
    clients += [await connect(port) for _ in range(CLIENTS - 1)]

    def recommend() -> tuple[str, Any]:
        return "/v1/recommend", {"user_id": f"u{rng.integers(USERS)}", "k": 20}

    def event_and_recommend() -> tuple[str, Any]:
        body = {"events": [event()], "recommend": {"k": 20}}
        return "/v1/events", body

    def event_only() -> tuple[str, Any]:
        return "/v1/events", event()

    rows = {}
    for name, make in (
        ("recommend", recommend), ("event_and_recommend", event_and_recommend), ("event", event_only),
    ):  # fmt: skip
        end = time.perf_counter() + seconds
        times = await asyncio.gather(*(client.closed_loop(make, end) for client in clients))
        rows[name] = _quantiles(np.concatenate(times), seconds)
        advance(seconds)
    begin = time.perf_counter()
    due = iter(begin + np.arange(int(rate * seconds)) / rate)
    times = await asyncio.gather(
        *(client.steady_rate(event_and_recommend, due) for client in clients)
    )
    rows["steady"] = _quantiles(np.concatenate(times), time.perf_counter() - begin)
    advance(seconds)
    for client in clients:
        client.writer.close()
    return rows


def _quantiles(times: np.ndarray, seconds: float) -> dict[str, float]:
    ms = {f"p{q}": round(float(np.percentile(times, q)) * 1e3, 2) for q in (50, 90, 99)}
    return {"per_second": round(len(times) / seconds), **ms}


class Client:
    """One connection. An HTTP library would take longer for a request than the server."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str = ""
    ) -> None:
        self._reader, self.writer, self._key = reader, writer, key

    async def status(self, path: str, body: Any, method: str = "POST") -> int:
        """Send a request; return the status of the response."""
        content = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self.writer.write(head.encode() + content)
        response = await self._reader.readuntil(b"\r\n\r\n")
        length = int(response.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(response[9:12])

    async def post(self, path: str, body: Any) -> None:
        """Send a POST; raise RuntimeError if it fails."""
        if (status := await self.status(path, body)) != 200:
            raise RuntimeError(f"{path}: {status}")

    async def closed_loop(self, make: Any, end: float) -> np.ndarray:
        """Send requests one after another until ``end``; return the seconds of each."""
        times = array("d")
        while (begin := time.perf_counter()) < end:
            await self.post(*make())
            times.append(time.perf_counter() - begin)
        return np.array(times)

    async def steady_rate(self, make: Any, due: Iterator[float]) -> np.ndarray:
        """Send requests at the times ``due``, shared with the other clients; return the seconds."""
        times = array("d")
        for begin in due:
            if (early := begin - time.perf_counter()) > 0:
                await asyncio.sleep(early)
                begin = time.perf_counter()  # a late wake-up of this loop does not count
            await self.post(*make())
            times.append(time.perf_counter() - begin)
        return np.array(times)


async def connect(port: int, key: str = "") -> Client:
    for _ in range(600):
        try:
            return Client(*await asyncio.open_connection("127.0.0.1", port), key)
        except OSError:
            await asyncio.sleep(0.1)
    raise RuntimeError("the server did not start within a minute")


def _by_history(
    model: ServedModel, path: Path, histories: tuple[int, ...], repeats: int = 300
) -> list[dict[str, float]]:
    """Median µs of a durable event of users with histories of several lengths, in turn."""
    engine = Engine(SQLiteLog(path), LocalCache(len(histories)), model)
    rng = np.random.default_rng(0)

    def events(user: int, begin: int, end: int) -> list[Event]:
        items = rng.integers(min(len(model.item_ids), EVENT_ITEMS), size=end - begin).tolist()
        return [
            Event(f"{user}-{n}", f"u{user}", str(item), float(n))
            for n, item in zip(range(begin, end), items, strict=True)
        ]

    for user, length in enumerate(histories):
        for start in range(0, length, 10_000):
            engine.record("t", events(user, start, min(length, start + 10_000))).result()
    times = np.empty((repeats, len(histories)))
    for repeat in range(repeats):
        for user, length in enumerate(histories):
            (event,) = events(user, length + repeat, length + repeat + 1)
            begin = time.perf_counter()
            engine.record("t", [event]).result()
            times[repeat, user] = time.perf_counter() - begin
    engine.close()
    medians = np.median(times, 0) * 1e6
    return [
        {"history": length, "median": float(median)}
        for length, median in zip(histories, medians, strict=True)
    ]


def _user_bytes(model: ServedModel, users: int = 1_000) -> int:
    """The memory of a cached user with 20 events, in bytes."""
    tracemalloc.start()
    cache, before = LocalCache(users), tracemalloc.get_traced_memory()[0]
    for user in range(users):
        key = (float(user), str(user))
        state = State(model.hash, user, 20, key, model.start.copy(), array("i", range(20)))
        cache.put([(("t", str(user)), state)])
    allocated = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return round(allocated / users)


def _gaps(seconds: float = 2) -> dict[str, float]:
    """Quantiles and maximum of the time between two readings of the clock, in ms."""
    times = array("d")
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        times.append(now)
    gaps = np.diff(np.array(times)) * 1e3
    quantiles = {f"p{q}": round(float(np.percentile(gaps, q)), 4) for q in (50, 99.99)}
    return {**quantiles, "longest": round(float(gaps.max()), 2)}
