"""Start a server: load the model, open the storage, listen on a port."""

import gc
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from recblr.errors import InputError
from recblr.progress import report
from recblr.serving import logs
from recblr.serving.app import Application
from recblr.serving.connections import IDLE_SECONDS, connection_limit, connections
from recblr.serving.engine import Engine
from recblr.serving.keys import DEFAULT_TENANT, Keys
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.operations import Operations
from recblr.serving.storage import EventLog

log = logging.getLogger("recblr.server")
SWITCH_SECONDS = 0.001  # after which a thread that computes lets another run, instead of 0.005


def run(
    model: Path,
    store: str,
    host: str,
    port: int,
    keys: Path | None = None,
    titles: Path | None = None,
    cache: str | None = None,
    prefix: str = "",
    access_log: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer the waiting requests and return.

    Arguments as for ``recblr serve``.

    Raises:
        InputError: the model, the storage, the port or a file is not usable.
    """
    logs.configure()
    prefix = prefix.rstrip("/")
    if prefix and not prefix.startswith("/"):
        raise InputError(f"--path-prefix {prefix}: begin it with a slash")
    known_keys = None if keys is None else Keys(keys)
    titles_by_id = {} if titles is None else read_titles(titles)
    with listen(host, port) as bound:
        model = model.resolve()
        # A new log is created only for a model that can be served.
        served = None if Path(store).exists() else ServedModel(model)
        events, states = open_storage(store, cache)
        try:
            served = _load(events, model, served)
        except InputError:
            events.close()
            raise
        operations = Operations(Engine(events, states, served), served.path.parent, titles_by_id)
        hosts = ["*"] if known_keys else ["localhost", "127.0.0.1", "[::1]", host]
        app = Application(operations, known_keys, hosts, prefix, access_log)
        empty = known_keys is None and not events.users_of(DEFAULT_TENANT, 1)
        advice = "; it is empty, recblr replay --log adds the events of a log" * empty
        name = f"[{host}]" if ":" in host else host
        print(
            f"serving {served.name} {served.hash} from {served.path}\n"
            f"{len(served.item_ids):,} items by {served.index.kind}, events in {events.name}{advice}\n"
            f"http://{name}:{bound.getsockname()[1]}",
            flush=True,
        )
        if served.unseen:
            report(served.unseen)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()  # keeps the collector from scanning all of torch, 0.1 s each time
        http_server(app).run([bound])


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


def http_server(app: Any) -> uvicorn.Server:
    """The HTTP server of an application."""
    return uvicorn.Server(uvicorn.Config(
        app, http=connections(connection_limit()), timeout_keep_alive=IDLE_SECONDS,
        log_level="warning", access_log=False, server_header=False, date_header=False, ws="none",
        proxy_headers=False, timeout_graceful_shutdown=30,
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
