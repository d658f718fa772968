"""Acknowledged events survive power cuts, disk errors and killed processes."""

import asyncio
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from conftest import SOAK, slow
from recblr.serving import sqlite
from recblr.serving.engine import Engine
from recblr.serving.local_cache import LocalCache
from recblr.serving.model import ServedModel
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event, StorageError
from serving.fixtures import Store
from serving.server_process import ServerProcess, event_body, send_until_killed

CUTS, FAULTS, KILLS, KILLS_IN_SWAPS = (200, 200, 100, 18) if SOAK else (30, 30, 1, 1)


# ---- power cuts and disk errors ------------------------------------------------------------------


class Disk(apsw.VFS):
    """A disk that knows what was synced, and calls ``before`` ahead of each write and sync."""

    def __init__(self, name: str) -> None:
        self.synced: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda action: None
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return DiskFile(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        super().xDelete(name, sync)
        self.synced.pop(name, None)

    def write_synced(self, folder: Path) -> Path:
        """Write the files to a folder as a power cut would leave them now."""
        folder.mkdir()
        for name, content in self.synced.items():
            (folder / Path(name).name).write_bytes(content)
        return folder


class DiskFile(apsw.VFSFile):
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


def event_batches(draw: random.Random) -> Iterator[list[Event]]:
    number = 0
    while True:
        count = draw.randint(1, 20)
        yield [
            Event(f"e{number + n}", f"u{draw.randrange(5)}", f"i{number + n}", draw.random())
            for n in range(count)
        ]
        number += count


def lost_in_power_cuts(disk: Disk, folder: Path, cuts: int, seed: int) -> tuple[int, int]:
    """Cut the power ``cuts`` times while events are written.

    Returns the number of acknowledged events, and how many of them were lost.
    """
    draw = random.Random(seed)
    acknowledged: list[str] = []
    remains: list[tuple[Path, int]] = []  # files after a cut, and how many events were acknowledged

    def maybe_cut(action: str) -> None:
        if draw.random() < 0.1 and len(remains) < cuts:
            files = disk.write_synced(folder / f"cut{len(remains)}")
            remains.append((files, len(acknowledged)))

    log = SQLiteLog(folder / "events.sqlite")
    disk.before = maybe_cut
    for batch in event_batches(draw):
        with log.transaction():
            log.add([("t", event) for event in batch])
        acknowledged += [event.event_id for event in batch]
        if len(remains) == cuts:
            break
    log.close()
    lost = 0
    for files, count in remains:
        log = SQLiteLog(files / "events.sqlite")
        stored = {event_id for n in range(5) for _, event_id, *_ in log.events(("t", f"u{n}"))}
        assert log._one("PRAGMA integrity_check") == ("ok",)
        lost += len(set(acknowledged[:count]) - stored)
        log.close()
        shutil.rmtree(files)
    return len(acknowledged), lost


def test_a_power_cut_loses_no_acknowledged_event(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable[..., None]
) -> None:
    (tmp_path / "full").mkdir()
    events, lost = lost_in_power_cuts(disk, tmp_path / "full", CUTS, seed=0)
    assert lost == 0
    disk.synced.clear()
    weaker = [
        pragma.replace("synchronous = full", "synchronous = normal") for pragma in sqlite.PRAGMAS
    ]
    monkeypatch.setattr(sqlite, "PRAGMAS", weaker)
    (tmp_path / "normal").mkdir()
    _, lost_by_control = lost_in_power_cuts(disk, tmp_path / "normal", CUTS, seed=0)
    assert lost_by_control > 0  # otherwise the test could not fail
    keep("power cuts", cuts=CUTS, events=events, lost=lost, lost_by_the_control=lost_by_control)


def test_a_disk_error_is_never_acknowledged(
    disk: Disk, a: ServedModel, tmp_path: Path, keep: Callable[..., None]
) -> None:
    draw, refused, acknowledged = random.Random(1), 0, []

    def maybe_fail(action: str) -> None:
        if draw.random() < 0.05:
            raise draw.choice([apsw.IOError, apsw.FullError])(f"no {action}")

    path = tmp_path / "events.sqlite"
    engine = Engine(SQLiteLog(path), LocalCache(1000), a)
    engine.describe(("t", "u0")).result(60)  # the first look at the snapshots is over
    disk.before = maybe_fail
    for batch in event_batches(draw):
        try:
            outcomes = engine.record("t", batch).result(60)
        except StorageError:
            refused += 1
            assert engine.failure is not None
        else:
            assert {outcome.status for outcome in outcomes} <= {"accepted", "duplicate"}
            acknowledged += batch
        if refused == FAULTS:
            break
    disk.before = lambda action: None
    users = {event.user_id for event in acknowledged}
    counts = {user: engine.describe(("t", user)).result(60).count for user in users}
    engine.close()
    log = SQLiteLog(path)
    stored = {user: [event_id for _, event_id, *_ in log.events(("t", user))] for user in users}
    log.close()
    for event in acknowledged:
        assert event.event_id in stored[event.user_id]
    assert counts == {user: len(events) for user, events in stored.items()}
    keep("disk errors", refused=refused, acknowledged=len(acknowledged), lost=0)


# ---- killed processes ----------------------------------------------------------------------------


def test_a_kill_loses_no_acknowledged_event(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    draw = random.Random(2)
    acknowledged: list[dict[str, Any]] = []
    numbers = iter(range(1 << 30))
    rates = []

    def make_event() -> dict[str, Any]:
        return event_body(next(numbers), f"u{draw.randrange(20)}", str(draw.choice(a.item_ids)))

    for _ in range(KILLS):
        server = ServerProcess(models / "a", store)
        before, seconds = len(acknowledged), draw.uniform(0.2, 1.0)
        killer = threading.Timer(seconds, server.kill)
        killer.start()
        asyncio.run(send_until_killed(server.port, make_event, acknowledged))
        killer.join()
        rates.append((len(acknowledged) - before) / seconds)
    log = store.log()
    if isinstance(log, SQLiteLog):
        assert log._one("PRAGMA integrity_check") == ("ok",)
    stored = {event[1] for n in range(20) for event in log.events(("default", f"u{n}"))}
    log.close()
    assert acknowledged
    assert {event["event_id"] for event in acknowledged} <= stored

    # The states afterwards are those of the log.
    engine = store.engine(a)
    counts = [engine.describe(("default", f"u{n}")).result(60).count for n in range(20)]
    engine.close()
    assert sum(counts) == len(stored)
    keep(
        f"kills, {store.kind}", kills=KILLS, acknowledged=len(acknowledged), lost=0,
        events_a_second=round(sum(rates) / len(rates)),
    )  # fmt: skip


def swap_forever(server: ServerProcess, name: str) -> None:
    while True:
        server.client.post("/v1/models/swap", json={"name": name})


@slow
def test_a_kill_during_a_swap(models: Path, a: ServedModel, b: ServedModel, store: Store) -> None:
    """The next server answers by one of the two models, from all events."""
    if store.kind == "shared" and not SOAK:
        pytest.skip("takes long; `make soak` runs it, and the file is tested here")
    hashes = set()
    server = ServerProcess(models / "a", store)
    for number in range(2 + KILLS_IN_SWAPS):
        events = [event_body(number * 70 + n, "u", str(a.item_ids[0])) for n in range(70)]
        server.post("/v1/events", {"events": events})
        name = "ab"[(number + 1) % 2]
        if number < 2:  # these swaps complete, so that both models are seen
            server.post("/v1/models/swap", {"name": name})
            server.kill()
        else:
            killer = threading.Timer(0.002 * number, server.process.kill)
            killer.start()
            with pytest.raises(httpx.TransportError):
                swap_forever(server, name)
            killer.join()
            server.kill()  # closes the client too; the timer must not, while it is in use
        server = ServerProcess(models / "a", store)
        model = server.get("/v1/users/u/recommendations")["model"]
        assert model in (a.hash, b.hash)
        hashes.add(model)
        assert server.get("/v1/users/u")["events"] == 70 * (number + 1)
    server.stop()
    assert hashes == {a.hash, b.hash}
