"""What serving promises, at full length in `make soak` and briefly in `make test`."""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import httpx
import numpy as np
import pytest

from recblr.benchmark.serve import connect
from recblr.data.log import read_log
from recblr.recommender import Recommender
from recblr.serving import sqlite
from recblr.serving.cache import LocalCache
from recblr.serving.engine import Engine
from recblr.serving.events import Event
from recblr.serving.keys import add_key
from recblr.serving.model import ServedModel
from recblr.serving.replay import verify
from recblr.serving.server import run
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import StoreError
from recblr.training.trainer import TrainConfig
from serving.fixtures import Store, scores

SOAK = bool(os.environ.get("RECBLR_SOAK"))
KILLS, CUTS, FAULTS, READS, REFUSED = (
    (100, 200, 200, 10_000, 5_000) if SOAK else (2, 30, 30, 200, 100)
)


# ---- power cuts and disk errors ----------------------------------------------------------------


class Disk(apsw.VFS):
    """A disk that remembers what was synced, and calls ``before`` each write and sync."""

    def __init__(self, name: str) -> None:
        self.synced: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda what: None
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return File(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        super().xDelete(name, sync)
        self.synced.pop(name, None)

    def after_a_cut(self, folder: Path) -> Path:
        """A folder as it would be found if the power went now."""
        folder.mkdir()
        for name, content in self.synced.items():
            (folder / Path(name).name).write_bytes(content)
        return folder


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.before("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.before("sync")
        super().xSync(flags)
        if self._name:
            self._disk.synced[self._name] = Path(self._name).read_bytes()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk("disk")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite.apsw, "Connection", partial(apsw.Connection, vfs="disk"))
        yield disk
    disk.unregister()


def batches(draw: random.Random) -> Iterator[list[Event]]:
    number = 0
    while True:
        count = draw.randint(1, 20)
        yield [
            Event(f"e{number + n}", f"u{draw.randrange(5)}", f"i{number + n}", draw.random())
            for n in range(count)
        ]
        number += count


def lost_in_cuts(disk: Disk, folder: Path, cuts: int, seed: int) -> tuple[int, int]:
    """Cut the power ``cuts`` times in the midst of writing; acknowledged events, and those lost."""
    draw = random.Random(seed)
    acknowledged: list[str] = []
    found: list[tuple[Path, int]] = []

    def cut(what: str) -> None:
        if draw.random() < 0.1 and len(found) < cuts:
            found.append((disk.after_a_cut(folder / f"cut{len(found)}"), len(acknowledged)))

    log = SQLiteLog(folder / "events.sqlite")
    disk.before = cut
    for some in batches(draw):
        with log.transaction():
            log.add([("t", event) for event in some])
        acknowledged += [event.event_id for event in some]
        if len(found) == cuts:
            break
    log.close()
    lost = 0
    for left, count in found:
        log = SQLiteLog(left / "events.sqlite")
        there = {event_id for n in range(5) for _, event_id, _ in log.events(("t", f"u{n}"))}
        assert log._one("PRAGMA integrity_check") == ("ok",)
        lost += len(set(acknowledged[:count]) - there)
        log.close()
        shutil.rmtree(left)
    return len(acknowledged), lost


def test_a_power_cut_loses_nothing_acknowledged(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable[..., None]
) -> None:
    (tmp_path / "full").mkdir()
    events, lost = lost_in_cuts(disk, tmp_path / "full", CUTS, seed=0)
    assert lost == 0
    disk.synced.clear()
    weaker = [it.replace("synchronous = full", "synchronous = normal") for it in sqlite.PRAGMAS]
    monkeypatch.setattr(sqlite, "PRAGMAS", weaker)
    (tmp_path / "normal").mkdir()
    _, of_control = lost_in_cuts(disk, tmp_path / "normal", CUTS, seed=0)
    assert of_control > 0  # so that the test can fail
    keep("power cuts", cuts=CUTS, events=events, lost=lost, lost_by_the_control=of_control)


def test_a_disk_error_is_never_acknowledged(
    disk: Disk, a: ServedModel, tmp_path: Path, keep: Callable[..., None]
) -> None:
    draw, refused, acknowledged = random.Random(1), 0, []

    def fail(what: str) -> None:
        if draw.random() < 0.05:
            raise draw.choice([apsw.IOError, apsw.FullError])(f"no {what}")

    path = tmp_path / "events.sqlite"
    engine = Engine(SQLiteLog(path), LocalCache(1000), a)
    engine.describe(("t", "u0")).result(60)  # the snapshots have been looked at
    disk.before = fail
    for some in batches(draw):
        try:
            outcomes = engine.record("t", some).result(60)
        except StoreError:
            refused += 1
            assert engine.failure is not None
        else:
            assert {it.status for it in outcomes} <= {"accepted", "duplicate"}
            acknowledged += some
        if refused == FAULTS:
            break
    disk.before = lambda what: None
    seen = {
        event.user_id: engine.describe(("t", event.user_id)).result(60) for event in acknowledged
    }
    engine.close()
    log = SQLiteLog(path)
    there = {user: [it[1] for it in log.events(("t", user))] for user in seen}
    log.close()
    for event in acknowledged:
        assert event.event_id in there[event.user_id]
    assert {user: about.count for user, about in seen.items()} == {
        user: len(events) for user, events in there.items()
    }
    keep("disk errors", refused=refused, acknowledged=len(acknowledged), lost=0)


# ---- processes that die --------------------------------------------------------------------------


class Serving:
    """A server in a process of its own."""

    def __init__(self, model: Path, store: Store, keys: Path | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["recblr.serving.server"])
        self.port = free_port()
        self.process = context.Process(
            target=run, args=(model, store.name, "127.0.0.1", self.port, keys, None, store.url),
            daemon=True,
        )  # fmt: skip
        self.process.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        begin = time.perf_counter()
        while True:
            try:
                self.client.get("/health/ready").raise_for_status()
                break
            except httpx.TransportError:
                assert self.process.is_alive()
                assert time.perf_counter() - begin < 60
                time.sleep(0.01)
        self.seconds = time.perf_counter() - begin

    def kill(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.client.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGTERM)  # uvicorn ends by the signal it got
        self.client.close()


def free_port() -> int:
    from recblr.serving.server import listen

    with listen("127.0.0.1", 0) as bound:
        port: int = bound.getsockname()[1]
    return port


def body(number: int, user: str, item: str) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": item, "timestamp": number}


async def pour(
    port: int, make: Callable[[], Any], acknowledged: list[Any], clients: int = 4
) -> None:
    """Events, some in a request, until the server is gone; those it has acknowledged."""

    async def send() -> None:
        client = await connect(port)
        try:
            while True:
                events = [make() for _ in range(20)]
                assert await client.ask("/v1/events", {"events": events}) == 200
                acknowledged.extend(events)
        except (OSError, EOFError):
            client.writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))


def test_a_kill_loses_nothing_acknowledged(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    draw = random.Random(2)
    acknowledged: list[dict[str, Any]] = []
    numbers = iter(range(1 << 30))
    rates = []

    def event(number: int) -> dict[str, Any]:
        return body(number, f"u{draw.randrange(20)}", str(draw.choice(a.item_ids)))

    for _ in range(KILLS):
        serving = Serving(models / "a", store)
        before, seconds = len(acknowledged), draw.uniform(0.2, 1.0)
        killer = threading.Timer(seconds, serving.kill)
        killer.start()
        asyncio.run(pour(serving.port, lambda: event(next(numbers)), acknowledged))
        killer.join()
        rates.append((len(acknowledged) - before) / seconds)
    log = store.log()
    if isinstance(log, SQLiteLog):
        assert log._one("PRAGMA integrity_check") == ("ok",)
    there = {it[1] for n in range(20) for it in log.events(("default", f"u{n}"))}
    log.close()
    assert {it["event_id"] for it in acknowledged} <= there
    assert len(acknowledged) > 20 * KILLS

    # And what is remembered afterwards is what the log says.
    engine = store.engine(a)
    counts = [engine.describe(("default", f"u{n}")).result(60).count for n in range(20)]
    engine.close()
    assert sum(counts) == len(there)
    keep(
        f"kills, {store.kind}", kills=KILLS, acknowledged=len(acknowledged), lost=0,
        events_a_second=round(sum(rates) / len(rates)),
    )  # fmt: skip


def swap_for_ever(serving: Serving, name: str) -> None:
    while True:
        serving.client.post("/v1/models/swap", json={"name": name})


def test_a_kill_in_the_midst_of_a_swap(
    models: Path, a: ServedModel, b: ServedModel, store: Store
) -> None:
    """The next server answers by the one model or the other, from all events."""
    hashes = set()
    for number in range(max(4, KILLS // 5)):
        serving = Serving(models / "a", store)
        events = {"events": [body(number * 70 + n, "u", str(a.item_ids[0])) for n in range(70)]}
        assert serving.client.post("/v1/events", json=events).status_code == 200
        name = "ab"[(number + 1) % 2]
        if number < 2:  # one that ends, so that both outcomes are seen
            serving.client.post("/v1/models/swap", json={"name": name}).raise_for_status()
        else:
            killer = threading.Timer(0.002 * number, serving.kill)
            killer.start()
            with pytest.raises((httpx.TransportError, RuntimeError)):
                swap_for_ever(serving, name)
            killer.join()
        if serving.process.is_alive():
            serving.kill()
        serving = Serving(models / "a", store)
        found = serving.client.get("/v1/users/u/recommendations").json()
        assert found["model"] in (a.hash, b.hash)
        hashes.add(found["model"])
        assert serving.client.get("/v1/users/u").json()["events"] == 70 * (number + 1)
        serving.stop()
    assert hashes == {a.hash, b.hash}


def test_who_was_told_reads_it_over_http(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    """From whichever worker."""
    workers = [Serving(models / "a", store) for _ in range(store.workers)]
    for number in range(READS):
        user, said, asked = f"u{number % 7}", workers[number % len(workers)], workers[-1]
        said.client.post(
            "/v1/events", json=body(number, user, str(a.item_ids[0]))
        ).raise_for_status()
        found = asked.client.get(f"/v1/users/{user}").json()
        assert found["last_event_id"] == f"e{number}"
    for serving in workers:
        serving.stop()
    keep(f"read your writes, {store.kind}", reads=READS, stale=0)


def test_every_worker_follows_a_swap(
    models: Path, a: ServedModel, b: ServedModel, shared: Store
) -> None:
    """Under load: every request is answered, by one of the two models."""
    workers = [Serving(models / "a", shared) for _ in range(2)]
    first = workers[0].client
    history = [str(it) for it in a.item_ids[:70]]
    events = [body(number, "u", item) for number, item in enumerate(history)]
    first.post("/v1/events", json={"events": events}).raise_for_status()
    wanted = {model.hash: scores_of(model, history) for model in (a, b)}
    found: list[list[str]] = [[], []]

    def ask(number: int) -> None:
        with httpx.Client(base_url=workers[number].client.base_url, timeout=30) as client:
            while found[number][-1:] != [b.hash] or len(found[number]) < 20:
                answer = client.get("/v1/users/u/recommendations?k=5&hide_seen=false").json()
                best = {it["item_id"]: it["score"] for it in answer["items"]}
                assert best == pytest.approx(wanted[answer["model"]], abs=1e-4)
                found[number].append(answer["model"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    swapped = first.post("/v1/models/swap", json={"name": "b"})
    assert swapped.json()["model"] == b.hash
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert {it for models in found for it in models} == {a.hash, b.hash}
    # One that comes later follows, too, and one that is started with another model leads.
    later = Serving(models / "a", shared)
    assert later.client.get("/health/live").json()["model"] == b.hash
    lead = Serving(models / "b", shared)
    assert first.post("/v1/models/swap", json={"name": "a"}).status_code == 200
    for worker in (*workers, later, lead):
        until_served_by(a, worker)
    # Nor does a worker miss that its own swap is undone at once.
    for worker, name in ((workers[1], "b"), (workers[0], "a")):
        assert worker.client.post("/v1/models/swap", json={"name": name}).status_code == 200
    for worker in (*workers, later, lead):
        until_served_by(a, worker)
        worker.stop()


def scores_of(model: ServedModel, history: list[str]) -> dict[str | int, float]:
    """The best five."""
    found = scores(model, model.rows(history))
    return {model.item_ids[row]: float(found[row]) for row in np.argsort(-found)[:5]}


def until_served_by(model: ServedModel, worker: Serving) -> None:
    begin = time.perf_counter()
    while worker.client.get("/health/live").json()["model"] != model.hash:
        assert time.perf_counter() - begin < 30
        time.sleep(0.1)


def test_a_worker_that_cannot_follow_says_so(
    models: Path, a: ServedModel, tmp_path: Path, shared: Store
) -> None:
    shutil.copytree(models, tmp_path / "models")
    worker = Serving(tmp_path / "models" / "a", shared)
    log = shared.log()
    log.swap(str(tmp_path / "models" / "none"), "another")
    begin = time.perf_counter()
    while (ready := worker.client.get("/health/ready")).status_code == 200:
        assert time.perf_counter() - begin < 30
        time.sleep(0.1)
    assert ready.status_code == 503
    assert ready.json()["error"].startswith("another model is to be served: ")
    answer = worker.client.post("/v1/recommend", json={"history": [a.item_ids[0]]})
    assert answer.json()["model"] == a.hash
    log.swap(str(tmp_path / "models" / "a"), a.hash)
    log.close()
    while worker.client.get("/health/ready").status_code != 200:
        assert time.perf_counter() - begin < 30
        time.sleep(0.1)
    worker.stop()


def test_events_of_one_user_sent_by_many_at_once(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    workers = [Serving(models / "a", store) for _ in range(store.workers)]
    serving = workers[0]

    def send(worker: int) -> None:
        to = workers[worker % len(workers)].client.base_url
        with httpx.Client(base_url=to, timeout=30) as client:
            for number in range(50):
                event = body(number * 8 + worker, "u", str(a.item_ids[worker]))
                client.post("/v1/events", json=event).raise_for_status()

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert serving.client.get("/v1/users/u").json()["events"] == 400
    history = [str(a.item_ids[number % 8]) for number in range(400)]
    whole = serving.client.post("/v1/recommend", json={"history": history, "k": 20}).json()["items"]
    for worker in workers:
        kept = worker.client.get("/v1/users/u/recommendations?k=20").json()["items"]
        assert [it["item_id"] for it in kept] == [it["item_id"] for it in whole]
        assert [it["score"] for it in kept] == pytest.approx(
            [it["score"] for it in whole], abs=1e-5
        )
    for worker in workers:
        worker.stop()
    keep(f"one user, {store.kind}", workers=len(workers), clients=8, events=400, lost=0)


# ---- models that are not whole -------------------------------------------------------------------


def spoil(folder: Path, how: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    if how == "a flipped byte":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif how == "a pickle":
        torch.save({"x": 1}, weights)
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        tensors = load_file(weights)
        name = "embedding.weight"
        tensors[name] = tensors[name] * float("nan") if how == "a NaN" else tensors[name][:-1]
        save_file(tensors, weights)
        resign(folder)


def resign(folder: Path) -> None:
    """Hashes of what is there, as somebody would who wants it to be believed."""
    from recblr import artifact

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: artifact.sha256(folder / name) for name in artifact.FILES}
    manifest["digest"] = artifact._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "how", ["a flipped byte", "a NaN", "a wrong shape", "a pickle", "no manifest"]
)
def test_a_bad_model_is_refused_and_the_old_one_serves_on(
    models: Path, a: ServedModel, file: Store, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder, ignore=shutil.ignore_patterns("link"))
    spoil(folder / "b", how)
    serving = Serving(folder / "a", file)
    found = serving.client.post("/v1/models/swap", json={"name": "b"})
    assert (found.status_code, "error" in found.json()) == (422, True)
    assert serving.client.get("/health/ready").json()["model"] == a.hash
    found = serving.client.post("/v1/recommend", json={"history": [a.item_ids[0]]})
    assert found.json()["model"] == a.hash
    serving.stop()


# ---- when it is too much -------------------------------------------------------------------------


async def closed_loop(
    port: int, key: str, clients: int, first: int, seconds: float
) -> dict[int, int]:
    """How many answers of each status."""
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        client = await connect(port, key)
        event = first + number
        while time.perf_counter() < end:
            statuses[await client.ask("/v1/events", body(event, f"u{number}", "1"))] += 1
            event += clients
        client.writer.close()

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return dict(statuses)


def make_noise(sent: Any, *load: Any) -> None:
    sent.send("it begins")
    sent.send(asyncio.run(closed_loop(*load)))


async def steady(port: int, key: str, first: int, seconds: float) -> list[float]:
    """Seconds of each of a few requests a second."""
    client, took, number = await connect(port, key), [], first
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        await client.do("/v1/events", body(number, "u", "1"))
        took.append(time.perf_counter() - begin)
        number += 1
        await asyncio.sleep(0.02)
    client.writer.close()
    return took


def test_a_noisy_tenant_does_not_hold_up_a_quiet_one(
    models: Path, file: Store, tmp_path: Path, keep: Callable[..., None]
) -> None:
    """With 16 clients there is as much to do as the server can; with 400 some are refused."""
    let_in, seconds = tmp_path / "keys", 20 if SOAK else 1
    keys = {name: add_key(let_in, name) for name in ("quiet", "noisy")}
    serving = Serving(models / "a", file, let_in)
    refused: dict[int, int] = {}
    numbers = iter(range(0, 10**9, 10**6))
    context = multiprocessing.get_context("forkserver")
    took = {0: asyncio.run(steady(serving.port, keys["quiet"], next(numbers), seconds))}
    for clients in (16, 400):
        found, sent = context.Pipe(duplex=False)
        load = serving.port, keys["noisy"], clients, next(numbers), seconds + 2
        noise = context.Process(target=make_noise, args=(sent, *load))
        noise.start()
        found.recv()
        took[clients] = asyncio.run(steady(serving.port, keys["quiet"], next(numbers), seconds))
        statuses = found.recv()
        noise.join()
        assert 200 in statuses
        assert set(statuses) <= {200, 429}
        refused[clients] = statuses.get(429, 0)
    serving.stop()
    assert refused[16] == 0
    assert np.median(took[400]) < 10 * np.median(took[0])  # behind all of them it would be 40 times
    keep(
        "noisy neighbour",
        refused_by_noisy_clients=refused,
        quiet_ms_by_noisy_clients={
            clients: {f"p{q}": round(1e3 * float(np.percentile(it, q)), 1) for q in (50, 99)}
            for clients, it in took.items()
        },
    )


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_what_is_too_much_is_refused_and_leaves_nothing_in_memory(
    models: Path, a: ServedModel, file: Store, keep: Callable[..., None]
) -> None:
    serving, item = Serving(models / "a", file), str(a.item_ids[0])
    one, deep = body(0, "u", item), "[" * 33 + "]" * 33
    many = [body(number, "u", item) for number in range(1001)]
    refused = {
        "a long body": ("/v1/events", " " * 1_000_001, 413),
        "many events": ("/v1/events", json.dumps({"events": many}), 422),
        "a long id": ("/v1/events", json.dumps({**one, "user_id": "u" * 257}), 422),
        "many items": ("/v1/recommend", json.dumps({"user_id": "u", "k": 1001}), 422),
        "depth": ("/v1/events", deep, 422),
        "a huge number": ("/v1/events", f'{{"timestamp": {"9" * 5000}}}', 400),
    }

    def send(times: int) -> int:
        for _ in range(times):
            for path, content, status in refused.values():
                found = serving.client.post(
                    path, content=content, headers={"content-type": "application/json"}
                )
                assert found.status_code == status
        status = Path(f"/proc/{serving.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    before = send(20)
    after = send(REFUSED)
    serving.stop()
    assert after < before + 16
    keep("limits", requests=REFUSED * len(refused), mib_before=before, mib_after=after)


# ---- how long it takes ---------------------------------------------------------------------------


def test_a_late_event_costs_a_bounded_replay(
    a: ServedModel, store: Store, keep: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the history, it is followed from a snapshot not far behind it."""
    folded: list[int] = []
    fold = ServedModel.fold

    def counted(self: ServedModel, vectors: Any, histories: Any) -> Any:
        folded.append(sum(map(len, histories)))
        return fold(self, vectors, histories)

    engine, draw = store.engine(a), random.Random(4)
    for start in range(0, 5000, 500):
        events = [
            Event(f"e{n}", "u", str(draw.choice(a.item_ids)), float(n))
            for n in range(start, start + 500)
        ]
        engine.record("t", events).result(60)
    monkeypatch.setattr(ServedModel, "fold", counted)
    seconds = []
    for number in range(200):
        folded.clear()
        late = Event(f"late{number}", "u", str(a.item_ids[0]), 5000 - draw.uniform(0, 30))
        begin = time.perf_counter()
        engine.record("t", [late]).result(60)
        seconds.append(time.perf_counter() - begin)
        assert sum(folded) <= 4 * (30 + number) + 128 + 1
    engine.close()
    keep(f"late events, {store.kind}", p99_ms=round(1000 * sorted(seconds)[197], 2), history=5000)


def test_recovery_is_quick(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    count, draw = 1_000_000 if SOAK else 20_000, random.Random(5)
    log = store.log()
    for start in range(0, count, 10_000):
        events = [
            Event(f"e{n}", f"u{n % 5000}", str(draw.choice(a.item_ids)), n)
            for n in range(start, start + 10_000)
        ]
        with log.transaction():
            log.add([("default", it) for it in events])
    log.close()
    serving = Serving(models / "a", store)
    serving.client.post("/v1/events", json=body(count, "u0", str(a.item_ids[0]))).raise_for_status()
    serving.kill()
    serving = Serving(models / "a", store)
    assert serving.client.get("/v1/users/u0").json()["last_event_id"] == f"e{count}"
    keep(f"recovery, {store.kind}", events=count, seconds=round(serving.seconds, 2))
    serving.stop()
    assert serving.seconds < 10


# ---- online is offline ---------------------------------------------------------------------------


@pytest.mark.skipif(
    not SOAK or "RECBLR_DATA" not in os.environ, reason="long, and needs RECBLR_DATA"
)
def test_every_user_of_movielens(tmp_path: Path, file: Store, keep: Callable[..., None]) -> None:
    """All events as they happened, a few at a time; then every state against the offline scorer."""
    path = Path(os.environ["RECBLR_DATA"]) / "ml-1m.tsv.gz"
    training = TrainConfig(epochs=1, batch_size=2048, window=3000, lr=3e-3, seed=0)
    Recommender("recblr", training=training).fit(path, core=5, out=tmp_path / "model")
    log = read_log(path)
    users, items = log.user_ids.to_pylist(), log.item_ids.to_pylist()
    model = ServedModel(tmp_path / "model")
    engine = file.engine(model)
    # There are no times: all users' first events come first, then their second ones.
    stable = np.argsort(log.users, kind="stable")
    counts = np.bincount(log.users)
    place = np.empty(len(log), np.int64)
    place[stable] = np.arange(len(log)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(place, kind="stable")
    begin = time.perf_counter()
    for rows in np.array_split(order, len(order) // 50):
        events = [
            Event(f"{row:07d}", str(users[log.users[row]]), str(items[log.items[row]]),
                  float(place[row]))
            for row in rows
        ]  # fmt: skip
        assert {it.status for it in engine.record("t", events).result(60)} == {"accepted"}
    seconds = time.perf_counter() - begin
    engine.close()
    found = verify(tmp_path / "model", file.name)
    assert found["equal"]
    assert (found["users"], found["events"]) == (len(users), len(log))
    keep("online is offline", **found, recorded_in_seconds=round(seconds))
