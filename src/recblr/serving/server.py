"""One process that serves: a model, a log and a port."""

import gc
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn

from recblr.errors import InputError
from recblr.serving.app import ALONE, Server, application
from recblr.serving.engine import Engine
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.stores import open_stores


def run(
    model: Path,
    store: str,
    host: str,
    port: int,
    keys: Path | None = None,
    titles: Path | None = None,
    cache: str | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what waits."""
    known = None if keys is None else Keys(keys)
    names = {} if titles is None else read_titles(titles)
    with listen(host, port) as bound:
        model = model.resolve()
        served = None if Path(store).exists() else ServedModel(model)  # a mistake leaves no file
        log, states = open_stores(store, cache)
        try:
            now = log.served()
            folder = Path(now.folder) if now and now.started == str(model) else model
            if served is None or served.path != folder:
                served = ServedModel(folder)
            log.start(str(model), str(folder), served.hash)
        except InputError:
            log.close()
            raise
        engine = Engine(log, states, served)
        hosts = ["*"] if known else ["localhost", "127.0.0.1", "[::1]", host]
        app = application(Server(engine, known, folder.parent, names), hosts)
        name = f"[{host}]" if ":" in host else host
        empty = known is None and not log.users_of(ALONE, 1)
        none = ", none yet; `recblr replay --log` puts those of a log in" * empty
        print(
            f"serving {served.name} {served.hash} from {folder}\n"
            f"{len(served.item_ids):,} items by {served.index.kind}, events in {log.name}{none}\n"
            f"http://{name}:{bound.getsockname()[1]}",
            flush=True,
        )
        gc.collect()
        gc.freeze()  # or the collector looks at all of torch again and again, for 0.1 s each
        server(app).run([bound])


def server(app: Any) -> uvicorn.Server:
    """What speaks HTTP."""
    return uvicorn.Server(uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False,
        ws="none", proxy_headers=False, limit_concurrency=2048, timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    ))  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to a port; 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"{host}:{port}: {os.strerror(error.errno or 0)}; name another") from None
    return bound


def read_titles(path: Path) -> dict[str, str]:
    """Titles by item id, from CSV or Parquet with the columns ``item_id`` and ``title``."""
    import polars as pl

    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, columns=["item_id", "title"])
        else:
            frame = pl.read_csv(path, columns=["item_id", "title"], infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: no titles of items, item_id and title: {why}") from None
    columns = (frame[name].cast(pl.String).fill_null("") for name in ("item_id", "title"))
    return dict(zip(*columns, strict=True))
