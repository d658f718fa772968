"""Readiness is the truth: a store that fails or hangs is noticed, and calls to it have a deadline."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from recblr.serving import model_swaps, postgresql, redis, sqlite
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.storage import StorageError
from serving import fixtures
from serving.fixtures import Site, Store, make_events
from serving.server_process import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short deadlines."""
    monkeypatch.setattr(model_swaps, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(model_swaps, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "RETRY_SECONDS", 0.1)
    quick = partial(open_storage, postgresql_seconds=0.5, redis_seconds=0.3)
    monkeypatch.setattr(fixtures, "open_storage", quick)
    monkeypatch.setattr(redis, "RETRY_SECONDS", 0.1)


def is_ready(site: Site) -> bool:
    return site.client.get("/health/ready").status_code == 200


def event(number: int) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": "u", "item_id": "i", "timestamp": number}


# ---- a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_store_that_is_gone(site: Site, file: Store, how: str) -> None:
    path, away = Path(file.name), Path(file.name + ".away")
    assert is_ready(site)
    path.rename(away)
    if how == "replaced":
        path.write_bytes(b"")
    wait_until(lambda: not is_ready(site))
    refused = site.client.post("/v1/events", json=event(1))
    assert refused.status_code == 503  # it would be written to a file that is lost
    assert path.name in refused.json()["error"]
    assert site.client.get("/health/live").status_code == 200
    away.replace(path)
    wait_until(lambda: is_ready(site))
    assert site.client.post("/v1/events", json=event(1)).status_code == 200


def test_a_full_or_read_only_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite.os, "fsync", fail)
        wait_until(lambda: not is_ready(site))
        error = site.client.get("/health/ready").json()["error"]
        assert error.endswith("No space left on device")
    wait_until(lambda: is_ready(site))


def test_a_failure_lasts_until_a_write_succeeds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads, which go on, do not hide it."""

    def fail(events: Any) -> Any:
        raise StorageError("the event log failed: disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(site.engine._log, "add", fail)
        patch.setattr(site.engine._log, "check", lambda: fail([]))
        assert site.client.post("/v1/events", json=event(1)).status_code == 503
        for _ in range(20):
            assert site.client.get("/v1/users/u/recommendations").status_code == 200
            assert not is_ready(site)
    wait_until(lambda: is_ready(site))


def test_a_store_that_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    proceed, check = threading.Event(), site.engine._log.check

    def hang() -> None:
        proceed.wait(60)
        check()

    with monkeypatch.context() as patch:
        patch.setattr(site.engine._log, "check", hang)
        wait_until(lambda: not is_ready(site))
        assert site.client.get("/health/live").status_code == 200
        error = site.client.get("/health/ready").json()["error"]
        assert error == "the event log does not answer"
        proceed.set()
        wait_until(lambda: is_ready(site))


# ---- PostgreSQL and Redis ------------------------------------------------------------------------


class Proxy:
    """Passes connections to a server, unless it is frozen: then nothing passes in any direction."""

    def __init__(self, host: str, port: int) -> None:
        self._target, self._flows = (host, port), threading.Event()
        self._flows.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listening]
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.thaw()
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                self._flows.wait()
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxies(shared: Store) -> Iterator[tuple[Store, Proxy, Proxy]]:
    """A shared store behind proxies of PostgreSQL and of Redis."""
    urls = [urlsplit(shared.name), urlsplit(shared.cache_url or "")]
    ports = [5432, 6379]
    made = [
        Proxy(url.hostname or "", url.port or port) for url, port in zip(urls, ports, strict=True)
    ]
    through = []
    for url, proxy in zip(urls, made, strict=True):
        user = url.netloc.rpartition("@")[0]
        place = f"{user}@127.0.0.1:{proxy.port}" if user else f"127.0.0.1:{proxy.port}"
        through.append(url._replace(netloc=place).geturl())
    yield Store(*through), *made
    for proxy in made:
        proxy.close()


def test_a_frozen_postgresql_ends_the_call(a: ServedModel, proxies: Any) -> None:
    store, proxy, _ = proxies
    log = store.log()
    with log.transaction():
        log.add([("t", event) for event in make_events(a, "u", 3)])
    log.check()
    proxy.freeze()
    for _ in range(3):
        with pytest.raises(StorageError, match="the event log failed"):
            log.check()
    proxy.thaw()

    def works() -> bool:
        with suppress(StorageError):
            log.check()
            return True
        return False

    wait_until(works)
    assert len(log.events(("t", "u"))) == 3
    log.close()


def test_a_frozen_redis_ends_the_call(a: ServedModel, proxies: Any) -> None:
    store, _, proxy = proxies
    engine = store.engine(a)
    engine.record("t", make_events(a, "u", 3)).result(60)
    assert engine.check_storage().result(60) == ""
    proxy.freeze()
    wait_until(lambda: "cache of states" in engine.check_storage().result(60))
    assert engine.describe(("t", "u")).result(60).count == 3  # from the log
    proxy.thaw()
    wait_until(lambda: engine.check_storage().result(60) == "")
    engine.close()
