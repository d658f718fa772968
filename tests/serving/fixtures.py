"""Two models of one shop, the stores they are served from, and a server of the first.

The shared store is tested where ``RECBLR_POSTGRESQL`` and ``RECBLR_REDIS`` name databases for it; what
is in them is removed.
"""

import copy
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from recblr.memory import MemoryConfig
from recblr.provenance import provenance
from recblr.recommender import Recommender
from recblr.serving.app import Server, application
from recblr.serving.engine import Engine
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.server import listen, server
from recblr.serving.store import Cache, Log
from recblr.serving.stores import open_stores

HOSTS = ["localhost", "127.0.0.1"]
SHARED = ("RECBLR_POSTGRESQL", "RECBLR_REDIS")


@pytest.fixture(scope="session")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the artifacts ``a``, ``b`` (without a memory) of the same items, and ``sasrec``."""
    folder = tmp_path_factory.mktemp("models")
    shape, training = tiny.recommender.config, replace(tiny.recommender.training, epochs=1)
    memory = MemoryConfig(weight=1.5, scale=10.0, repeat=-0.7)
    Recommender("recblr", shape, training, memory).fit(tiny.log, out=folder / "a")
    shape, nothing = replace(shape, layers=2), MemoryConfig(enabled=False)
    Recommender("recblr", shape, training, nothing).fit(tiny.log, out=folder / "b")
    Recommender("sasrec", None, training, nothing).fit(tiny.log, out=folder / "sasrec")
    return folder


@pytest.fixture(scope="session")
def a(models: Path) -> ServedModel:
    return ServedModel(models / "a")


@pytest.fixture(scope="session")
def b(models: Path) -> ServedModel:
    return ServedModel(models / "b")


def scores(model: ServedModel, rows: np.ndarray) -> np.ndarray:
    """(V,) after a history of item rows: the network's in float64, plus (1) and (2) of memory.py."""
    network = copy.deepcopy(model.network).double()
    offsets = torch.tensor([0, len(rows)])
    with torch.no_grad():
        hidden = network(torch.from_numpy(rows), offsets)[0][-1]
        found = (network.item_embeddings @ hidden).numpy()
    if (memory := model.memory) is not None:
        m = np.zeros(len(found))
        for age, row in enumerate(rows[::-1][: memory.config.reach].tolist()):
            m += memory.config.decay**age * memory.matrix[[row]].toarray()[0]
        found += memory.weight * np.log1p(memory.scale * m)
        found[np.unique(rows)] += memory.repeat
    return found


@dataclass(frozen=True)
class Store:
    """A log, and where its states are, by the names that the command line has for them."""

    name: str
    url: str | None

    @property
    def kind(self) -> str:
        return "file" if self.url is None else "shared"

    @property
    def workers(self) -> int:
        return 1 if self.url is None else 2

    def log(self) -> Log:
        return open_stores(self.name, None)[0]

    def cache(self) -> Cache:
        log, cache = open_stores(self.name, self.url)
        log.close()
        return cache

    def engine(self, model: ServedModel, size: int = 1000) -> Engine:
        return Engine(*open_stores(self.name, self.url, size), model)


@pytest.fixture
def file(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "events.sqlite"), None)


@pytest.fixture
def shared() -> Store:
    if missing := [name for name in SHARED if not os.environ.get(name)]:
        pytest.skip(f"needs {' and '.join(missing)}")
    store = Store(*(os.environ[name] for name in SHARED))
    import psycopg
    from redis import Redis

    with psycopg.connect(store.name) as connection:
        connection.execute("DROP SCHEMA IF EXISTS recblr CASCADE")
    with Redis.from_url(store.url or "") as redis:
        redis.flushdb()
    return store


@pytest.fixture(params=["file", "shared"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@dataclass
class Site:
    client: httpx.Client
    engine: Engine
    address: tuple[str, int]


Open = Callable[..., Site]


@pytest.fixture
def open_site(a: ServedModel, models: Path, file: Store) -> Iterator[Open]:
    stops = []

    def main(keys: Path | None = None) -> Site:
        engine = file.engine(a)
        known = None if keys is None else Keys(keys)
        app = Server(engine, known, models, {str(a.item_ids[0]): "A title"})
        running = server(application(app, HOSTS if known is None else ["*"]))
        bound = listen("127.0.0.1", 0)
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        address = bound.getsockname()
        client = httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30)

        def stop() -> None:
            client.close()
            running.should_exit = True
            thread.join()
            bound.close()

        stops.append(stop)
        return Site(client, engine, address)

    yield main
    for stop in stops:
        stop()


@pytest.fixture
def site(open_site: Open) -> Site:
    return open_site()


@pytest.fixture
def keep() -> Callable[..., None]:
    """Keep figures of a test among the results of the soak, in the file that RECBLR_SOAK names."""

    def main(promise: str, **figures: Any) -> None:
        if results := os.environ.get("RECBLR_SOAK"):
            path = Path(results)
            found = json.loads(path.read_text()) if path.exists() else provenance("make soak")
            path.write_text(json.dumps({**found, promise: figures}, indent=1) + "\n")

    return main
