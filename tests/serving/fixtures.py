"""Two models of one shop, the storage they are served from, and a server of the first.

The shared storage is tested where ``RECBLR_POSTGRESQL`` and ``RECBLR_REDIS`` name databases for it. The
tests delete what is in them.
"""

import copy
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from filelock import FileLock

from recblr.memory import MemoryConfig
from recblr.models.model import RecurrentModel
from recblr.recommender import Recommender
from recblr.serving.app import Application
from recblr.serving.engine import Engine
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.operations import Operations
from recblr.serving.requests import Query, RankedItems
from recblr.serving.server import http_server, listen
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import Event, EventLog, StateCache

SHARED = ("RECBLR_POSTGRESQL", "RECBLR_REDIS")
ALL_ITEMS = Query(k=1000, hide_seen=False)


# ---- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the artifacts ``a``, ``b`` (without a memory) of the same items, and ``sasrec``."""
    folder = tmp_path_factory.mktemp("models")
    config, training = tiny.recommender.config, replace(tiny.recommender.training, epochs=1)
    memory, no_memory = (
        MemoryConfig(weight=1.5, scale=10.0, repeat=-0.7),
        MemoryConfig(enabled=False),
    )
    Recommender("recblr", config, training, memory).fit(tiny.log, out=folder / "a")
    two_layers = replace(config, layers=2)
    Recommender("recblr", two_layers, training, no_memory).fit(tiny.log, out=folder / "b")
    Recommender("sasrec", None, training, no_memory).fit(tiny.log, out=folder / "sasrec")
    return folder


@pytest.fixture(scope="session")
def a(models: Path) -> ServedModel:
    return ServedModel(models / "a")


@pytest.fixture(scope="session")
def b(models: Path) -> ServedModel:
    return ServedModel(models / "b")


@cache
def in_float64(network: RecurrentModel) -> RecurrentModel:
    return copy.deepcopy(network).double()


def expected_scores(model: ServedModel, rows: np.ndarray) -> np.ndarray:
    """(V,) scores after item rows: the network in float64, plus equations (1) and (2) of memory.py."""
    network, offsets = in_float64(model.network), torch.tensor([0, len(rows)])
    with torch.no_grad():
        hidden = network(torch.from_numpy(rows), offsets)[0][-1]
        scores: np.ndarray = (network.item_embeddings @ hidden).numpy()
    if (memory := model.memory) is not None:
        m = np.zeros(len(scores))
        for age, row in enumerate(rows[::-1][: memory.config.reach].tolist()):
            m += memory.config.decay**age * memory.matrix[[row]].toarray()[0]
        scores += memory.weight * np.log1p(memory.scale * m)
        scores[np.unique(rows)] += memory.repeat
    return scores


def assert_scores(ranked: RankedItems, item_ids: list[str], model: ServedModel) -> None:
    """``ranked`` has all items with the scores of ``model`` after a history of item ids."""
    assert sorted(ranked.rows) == list(range(len(model.item_ids)))
    scores = ranked.scores[np.argsort(ranked.rows)]
    expected = expected_scores(model, model.rows(item_ids))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


# ---- events --------------------------------------------------------------------------------------


def make_events(model: ServedModel, user: str, count: int, seed: int = 0) -> list[Event]:
    """Random events of a user; two each have the same timestamp."""
    draw = random.Random(seed)
    return [
        Event(f"{user}-{number}", user, str(draw.choice(model.item_ids)), float(number // 2))
        for number in range(count)
    ]


def items_of(events: list[Event]) -> list[str]:
    return [event.item_id for event in events]


def send(engine: Engine, events: list[Event], tenant: str = "t") -> list[str]:
    """Record events; the status of each."""
    return [outcome.status for outcome in engine.record(tenant, events).result(60)]


# ---- storage and engine --------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """An event log and a cache, by the values of --store and --cache."""

    name: str
    cache_url: str | None

    @property
    def kind(self) -> str:
        return "file" if self.cache_url is None else "shared"

    @property
    def workers(self) -> int:
        """How many servers can use it."""
        return 1 if self.cache_url is None else 2

    def log(self) -> EventLog:
        return open_storage(self.name, None)[0]

    def cache(self) -> StateCache:
        log, cache = open_storage(self.name, self.cache_url)
        log.close()
        return cache

    def engine(self, model: ServedModel, cached_users: int = 1000) -> Engine:
        return Engine(*open_storage(self.name, self.cache_url, cached_users), model)


@pytest.fixture
def file(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "events.sqlite"), None)


@pytest.fixture
def shared() -> Iterator[Store]:
    if missing := [name for name in SHARED if not os.environ.get(name)]:
        pytest.skip(f"needs {' and '.join(missing)}")
    store = Store(*(os.environ[name] for name in SHARED))
    # Parallel processes of tests share these databases.
    with FileLock(Path(tempfile.gettempdir()) / "recblr-shared-tests.lock"):
        import psycopg
        from redis import Redis

        with psycopg.connect(store.name) as connection:
            connection.execute("DROP SCHEMA IF EXISTS recblr CASCADE")
        with Redis.from_url(store.cache_url or "") as redis:
            redis.flushdb()
        yield store


@pytest.fixture(params=["file", "shared"])
def store(request: pytest.FixtureRequest) -> Store:
    chosen: Store = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def engine(a: ServedModel, store: Store) -> Iterator[Engine]:
    engine = store.engine(a)
    yield engine
    engine.close()


# ---- a server in this process --------------------------------------------------------------------


@dataclass
class Site:
    client: httpx.Client
    engine: Engine
    address: tuple[str, int]


OpenSite = Callable[..., Site]


@pytest.fixture
def open_site(a: ServedModel, models: Path, file: Store) -> Iterator[OpenSite]:
    stops = []

    def start(
        key_file: Path | None = None,
        folder: Path = models,
        model: ServedModel | None = None,
        settings: ServerSettings = ServerSettings(),  # noqa: B008 - frozen
    ) -> Site:
        engine = file.engine(model or a)
        keys = None if key_file is None else Keys(key_file)
        operations = Operations(engine, folder, {str(a.item_ids[0]): "A title"})
        running = http_server(Application(operations, keys, settings), settings)
        bound = listen("127.0.0.1", 0)
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        address = bound.getsockname()
        client = httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=60)

        def stop() -> None:
            client.close()
            running.should_exit = True
            thread.join()
            bound.close()

        stops.append(stop)
        return Site(client, engine, address)

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def site(open_site: OpenSite) -> Site:
    return open_site()
