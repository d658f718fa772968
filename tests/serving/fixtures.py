"""Two models of one shop, and a server of the first."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from recblr.bench.provenance import provenance
from recblr.recommender import Recommender
from recblr.serving.app import Server, application
from recblr.serving.cache import LocalCache
from recblr.serving.engine import Engine
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.server import listen, server
from recblr.serving.sqlite import SQLiteLog

HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="session")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the artifacts ``a`` and ``b``, of the same items, and ``sasrec``."""
    folder = tmp_path_factory.mktemp("models")
    shape, training = tiny.recommender.config, replace(tiny.recommender.training, epochs=1)
    shapes = {"a": shape, "b": replace(shape, layers=2)}
    for name, shape in shapes.items():
        Recommender("recblr", shape, training).fit(tiny.log, out=folder / name)
    Recommender("sasrec", training=training).fit(tiny.log, out=folder / "sasrec")
    return folder


@pytest.fixture(scope="session")
def a(models: Path) -> ServedModel:
    return ServedModel(models / "a")


@pytest.fixture(scope="session")
def b(models: Path) -> ServedModel:
    return ServedModel(models / "b")


@dataclass
class Site:
    client: httpx.Client
    engine: Engine
    address: tuple[str, int]


Open = Callable[..., Site]


@pytest.fixture
def open_site(a: ServedModel, models: Path, tmp_path: Path) -> Iterator[Open]:
    stops = []

    def main(keys: Path | None = None) -> Site:
        engine = Engine(SQLiteLog(tmp_path / "events.sqlite"), LocalCache(), a)
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
