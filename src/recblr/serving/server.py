"""Start a server: load the model, open the storage, listen on a port."""

import gc
import logging
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from recblr.errors import InputError
from recblr.progress import report
from recblr.serving import logs
from recblr.serving.app import Application
from recblr.serving.connections import connections
from recblr.serving.engine import Engine
from recblr.serving.keys import DEFAULT_TENANT, Keys
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.operations import Operations
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import EventLog
from recblr.serving.workers import Workers

log = logging.getLogger("recblr.server")
SWITCH_SECONDS = 0.0002  # after which a thread that computes lets another run, instead of 0.005


def run(settings: ServerSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer the waiting requests and return.

    Raises:
        InputError: the model, the storage, the port or a file is not usable.
    """
    logs.configure()
    with listen(settings.host, settings.port) as bound:
        if settings.workers > 1:
            Workers(settings, bound).run()
        else:
            serve(settings, bound)


def serve(
    settings: ServerSettings,
    bound: socket.socket,
    ready: Callable[[], None] = lambda: None,
    announce: bool = True,
) -> None:
    """Serve on a socket in this process.

    Args:
        settings: of the server.
        bound: the socket.
        ready: called when everything is loaded.
        announce: whether to print what is served.
    """
    keys = Keys(Path(settings.keys)) if settings.keys else None
    titles = read_titles(Path(settings.titles)) if settings.titles else {}
    model = Path(settings.model).resolve()
    # A new log is created only for a model that can be served.
    served = None if Path(settings.store).exists() else ServedModel(model)
    events, states = open_storage(
        settings.store, settings.cache or None, settings.cached_users,
        postgresql_seconds=settings.postgresql_seconds, redis_seconds=settings.redis_seconds,
    )  # fmt: skip
    try:
        served = _load(events, model, served)
    except InputError:
        events.close()
        raise
    operations = Operations(Engine(events, states, served), served.path.parent, titles)
    app = Application(operations, keys, settings)
    if announce:
        empty = keys is None and not events.users_of(DEFAULT_TENANT, 1)
        advice = "; it is empty, recblr replay --log adds the events of a log" * empty
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        processes = f", {settings.workers} workers" if settings.workers > 1 else ""
        print(
            f"serving {served.name} {served.hash} from {served.path}\n"
            f"{len(served.item_ids):,} items by {served.index}, events in {events.name}{advice}\n"
            f"http://{name}:{bound.getsockname()[1]}{processes}",
            flush=True,
        )
        if served.unseen:
            report(served.unseen)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # keeps the collector from scanning all of torch, 0.1 s each time
    ready()
    http_server(app, settings).run([bound])


def _load(events: EventLog, model: Path, served: ServedModel | None) -> ServedModel:
    """The model to serve from a log by a server started with ``model``, which may be loaded already
    as ``served``."""
    recorded = events.served_model()
    swapped = recorded is not None and recorded.started == str(model)
    folder = Path(recorded.folder) if recorded is not None and swapped else model
    if not folder.exists() and folder != model:
        log.warning("the model in %s was served last, but is gone; serving %s", folder, model)
        folder = model
        events.record_swap(str(model), "")
    if served is None or served.path != folder:
        served = ServedModel(folder)
    events.record_start(str(model), str(folder), served.hash)
    return served


def http_server(app: Any, settings: ServerSettings) -> uvicorn.Server:
    """The HTTP server of an application."""
    return uvicorn.Server(uvicorn.Config(
        app, http=connections(settings), timeout_keep_alive=math.ceil(settings.idle_seconds),
        log_level="warning", access_log=False, server_header=False, date_header=False, ws="none",
        proxy_headers=False, timeout_graceful_shutdown=math.ceil(settings.stop_seconds),
    ))  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to a port; port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:  # a name of a host may be no text that can be encoded
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host}:{port}: {reason}; choose another address or port") from None
    return bound


def read_titles(path: Path) -> dict[str, str]:
    """Titles by item id, from a CSV or Parquet file with the columns ``item_id`` and ``title``."""
    import polars as pl

    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, columns=["item_id", "title"])
        else:
            frame = pl.read_csv(path, columns=["item_id", "title"], infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: the columns item_id and title cannot be read: {reason}"
        ) from None
    columns = (frame[name].cast(pl.String).fill_null("") for name in ("item_id", "title"))
    return dict(zip(*columns, strict=True))
