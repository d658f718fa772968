"""What a server does under load that comes from another process over HTTP.

How many requests a second it can take is asked in a closed loop: each client sends its next request
when the last is answered. Latency is asked at a steady rate; where all clients still wait when a
request is due, its time begins there. How long the machine itself keeps a busy loop waiting is
measured beside it.

The models have a memory of transitions. Events are of the first 8,192 items, whose rows of the memory
hold 1,024 entries: the most that a row has.
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
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event, State
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig

CATALOGUES = {3_416: 1000, 100_000: 1000, 1_000_000: 150}  # steady requests a second
HISTORIES = (10, 1_000, 100_000)
CLIENTS = 8
USERS = 1_000
HISTORY = 20  # events of a user before the load comes
NAMED = 8_192  # items that events are of


def time_serving(
    catalogues: Mapping[int, int] = CATALOGUES,
    histories: tuple[int, ...] = HISTORIES,
    seconds: float = 5,
) -> dict[str, Any]:
    """Requests a second and their latency, cost of an event by history, memory of a user.

    Returns:
        ``catalogues``: for each size and load the rate and quantiles in ms, and ``search``, what the
        memory costs, of :func:`time_memory`; ``histories``: median µs of a durable event after so
        many; ``user_bytes``: of a user at hand; ``gaps``: quantiles in ms of what the machine keeps a
        busy loop waiting.
    """
    found: dict[str, Any] = {"clients": CLIENTS, "users": USERS, "gaps": _gaps(), "catalogues": []}
    total = len(catalogues) * 4 * seconds
    with tempfile.TemporaryDirectory() as folder, progress("load", total) as advance:
        for items, rate in catalogues.items():
            model = Path(folder) / f"model{items}"
            _save_untrained(model, items)
            with _serving(model, str(Path(folder) / f"{items}.sqlite")) as port:
                rows = asyncio.run(_loads(port, items, rate, seconds, advance))
            rows["search"] = time_memory(ServedModel(model))
            found["catalogues"].append({"items": items, "steady_per_second": rate, **rows})
        served = ServedModel(Path(folder) / f"model{min(catalogues)}")
        found["index"] = served.index.kind
        found["histories"] = _by_history(served, Path(folder) / "events.sqlite", histories)
        found["user_bytes"] = _user_bytes(served)
    return found


def time_memory(model: ServedModel, repeats: int = 300) -> dict[str, float]:
    """Median µs of one search for the best 20 items after 20 events, which are hidden, by one thread.

    Returns:
        ``without`` the memory of transitions; ``with`` it; ``rows``, how much of that it takes to read
        the rows of the memory and sum them. Measured in turn.
    """
    draw, threads = np.random.default_rng(0), torch.get_num_threads()
    torch.set_num_threads(1)
    took = np.empty((repeats, 3))
    for repeat in range(repeats):
        history = draw.integers(min(len(model.item_ids), NAMED), size=HISTORY)
        hidden = model.hidden(model.fold(model.start[None], [history]))
        query = torch.from_numpy(hidden)
        begin = time.perf_counter()
        model.index.search(query, 20, [history])
        alone = time.perf_counter()
        added = model.memory_scores(history, repeats=False)
        rows = time.perf_counter()
        model.index.search(query, 20, [history], None, [added])
        took[repeat] = alone - begin, time.perf_counter() - alone, rows - alone
    torch.set_num_threads(threads)
    median = np.median(took, 0) * 1e6
    return dict(zip(("without", "with", "rows"), median.round().tolist(), strict=True))


def _save_untrained(folder: Path, items: int) -> None:
    """An artifact of random weights and a random memory, as quick as a trained one."""
    split = Split("leave-one-out", np.array([1]), np.array([-1]), np.array([-1]))
    data = Sequences(
        np.zeros(1, np.int32), np.array([0, 1]), pa.array(["nobody"]),
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
    """(V, V) with so many entries, or V of them, in each row of the items that events are of."""
    draw = np.random.default_rng(0)
    entries, rows = min(items, entries), min(items, NAMED)
    # One of each stretch of as many items: rising, and nowhere twice.
    begins = np.linspace(0, items, entries + 1).astype(np.int32)
    columns = draw.integers(begins[:-1], begins[1:], (rows, entries), dtype=np.int32)
    values = draw.lognormal(-3, 1, (rows, entries)).astype(np.float32)
    ends = entries * np.minimum(np.arange(items + 1, dtype=np.int32), rows)
    return sparse.csr_array((values.ravel(), columns.ravel(), ends), (items, items))


@contextmanager
def _serving(model: Path, store: str) -> Iterator[int]:
    """The port of a server in a process of its own."""
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
        run(model, store, "127.0.0.1", port)


async def _loads(
    port: int, items: int, rate: int, seconds: float, advance: Advance
) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    clients = [await connect(port) for _ in range(CLIENTS)]
    number = iter(range(1 << 60))

    def event(user: int | None = None) -> dict[str, Any]:
        at = next(number)
        user = int(draw.integers(USERS)) if user is None else user
        item = str(draw.integers(min(items, NAMED)))
        return {"event_id": str(at), "user_id": f"u{user}", "item_id": item, "timestamp": at}

    for user in range(USERS):
        await clients[0].do("/v1/events", {"events": [event(user) for _ in range(HISTORY)]})

    def recommend() -> tuple[str, Any]:
        return "/v1/recommend", {"user_id": f"u{draw.integers(USERS)}", "k": 20}

    def event_and_recommend() -> tuple[str, Any]:
        body = {"events": [event()], "recommend": {"k": 20}}
        return "/v1/events", body

    def record() -> tuple[str, Any]:
        return "/v1/events", event()

    rows = {}
    for name, make in (
        ("recommend", recommend), ("event_and_recommend", event_and_recommend), ("event", record),
    ):  # fmt: skip
        end = time.perf_counter() + seconds
        took = await asyncio.gather(*(client.load(make, end) for client in clients))
        rows[name] = _quantiles(np.concatenate(took), seconds)
        advance(seconds)
    begin = time.perf_counter()
    due = iter(begin + np.arange(int(rate * seconds)) / rate)
    took = await asyncio.gather(*(client.keep_up(event_and_recommend, due) for client in clients))
    rows["steady"] = _quantiles(np.concatenate(took), time.perf_counter() - begin)
    advance(seconds)
    for client in clients:
        client.writer.close()
    return rows


def _quantiles(took: np.ndarray, seconds: float) -> dict[str, float]:
    ms = {f"p{q}": round(float(np.percentile(took, q)) * 1e3, 2) for q in (50, 90, 99)}
    return {"per_second": round(len(took) / seconds), **ms}


class Client:
    """One connection. A library would take longer over a request than the server does."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str = ""
    ) -> None:
        self._reader, self.writer, self._key = reader, writer, key

    async def ask(self, path: str, body: Any) -> int:
        """The status of a POST."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self.writer.write(head.encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(answer[9:12])

    async def do(self, path: str, body: Any) -> None:
        """A POST that has to succeed."""
        if (status := await self.ask(path, body)) != 200:
            raise RuntimeError(f"{path}: {status}")

    async def load(self, make: Any, end: float) -> np.ndarray:
        """Seconds of each request, one after another until ``end``."""
        took = array("d")
        while (begin := time.perf_counter()) < end:
            await self.do(*make())
            took.append(time.perf_counter() - begin)
        return np.array(took)

    async def keep_up(self, make: Any, due: Iterator[float]) -> np.ndarray:
        """Seconds from when each request was due, taken in turn with the other clients."""
        took = array("d")
        for begin in due:
            if (early := begin - time.perf_counter()) > 0:
                await asyncio.sleep(early)
                begin = time.perf_counter()  # it is the clock of this loop that woke up late
            await self.do(*make())
            took.append(time.perf_counter() - begin)
        return np.array(took)


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
    """Median µs of a durable event of users with histories of growing length, asked in turn."""
    engine = Engine(SQLiteLog(path), LocalCache(len(histories)), model)
    draw = np.random.default_rng(0)

    def events(user: int, begin: int, end: int) -> list[Event]:
        items = draw.integers(min(len(model.item_ids), NAMED), size=end - begin).tolist()
        return [
            Event(f"{user}-{n}", f"u{user}", str(item), float(n))
            for n, item in zip(range(begin, end), items, strict=True)
        ]

    for user, length in enumerate(histories):
        for start in range(0, length, 10_000):
            engine.record("t", events(user, start, min(length, start + 10_000))).result()
    took = np.empty((repeats, len(histories)))
    for repeat in range(repeats):
        for user, length in enumerate(histories):
            (event,) = events(user, length + repeat, length + repeat + 1)
            begin = time.perf_counter()
            engine.record("t", [event]).result()
            took[repeat, user] = time.perf_counter() - begin
    engine.close()
    median = np.median(took, 0) * 1e6
    return [
        {"history": length, "median": float(it)}
        for length, it in zip(histories, median, strict=True)
    ]


def _user_bytes(model: ServedModel, users: int = 1_000) -> int:
    """Of memory that a user at hand takes, with 20 events."""
    tracemalloc.start()
    cache, before = LocalCache(users), tracemalloc.get_traced_memory()[0]
    for user in range(users):
        key = (float(user), str(user))
        state = State(model.hash, user, 20, key, model.start.copy(), array("i", range(20)))
        cache.put([(("t", str(user)), state)])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return round(grown / users)


def _gaps(seconds: float = 2) -> dict[str, float]:
    """Quantiles of the time between two looks at the clock, and the longest, in ms."""
    times = array("d")
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        times.append(now)
    gaps = np.diff(np.array(times)) * 1e3
    found = {f"p{q}": round(float(np.percentile(gaps, q)), 4) for q in (50, 99.99)}
    return {**found, "longest": round(float(gaps.max()), 2)}
