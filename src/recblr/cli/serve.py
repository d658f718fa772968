"""The commands that serve a model and manage its event log."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from recblr.cli.options import Columns, Format, Json, Model, Separator, print_json, read_source
from recblr.errors import InputError, from_extra
from recblr.progress import report


def _warn_of_password(context: typer.Context, parameter: typer.CallbackParam, url: str) -> None:
    """Warn of a password in the arguments, which other users of the machine can read."""
    given = context.get_parameter_source(parameter.name or "")
    if given is not None and given.name == "COMMANDLINE" and urlsplit(url).password:
        variable = "RECBLR_STORE" if parameter.name == "store" else "RECBLR_STATE_CACHE"
        report(
            f"the password in --{parameter.name} is visible to all users of this machine; put the URL "
            f"into the environment as {variable}"
        )


def _read_store(context: typer.Context, parameter: typer.CallbackParam, store: str) -> str:
    _warn_of_password(context, parameter, store)
    return store


def _read_cache(
    context: typer.Context, parameter: typer.CallbackParam, url: str | None
) -> str | None:
    if url is None and "://" in os.environ.get("RECBLR_CACHE", ""):
        raise InputError(
            "RECBLR_CACHE is the folder of downloads; put the URL of Redis into RECBLR_STATE_CACHE"
        )
    if url is not None:
        _warn_of_password(context, parameter, url)
    return url


Store = Annotated[
    str,
    typer.Option(
        "--store", metavar="FILE|URL", envvar="RECBLR_STORE", callback=_read_store,
        help="The event log: a file, created if missing, or postgresql://… for several servers.",
    ),
]  # fmt: skip
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="URL", envvar="RECBLR_STATE_CACHE",
        callback=_read_cache,
        help="redis://… to share user states between the servers of a PostgreSQL log.",
    ),
]  # fmt: skip
STORE = "events.sqlite"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Model,
    store: Store = STORE,
    cache: Cache = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 picks a free one.")
    ] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API keys to accept; recblr key creates the file."),
    ] = None,
    titles: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV or Parquet file with item_id and title."),
    ] = None,
    path_prefix: Annotated[
        str, typer.Option(metavar="/PATH", help="Serve below this path, as a proxy asks for it.")
    ] = "",
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log every request as a line of JSON.")
    ] = False,
) -> None:
    """Serve a model over HTTP: send events, get recommendations.

    A page for trying the model is at /.
    """
    if keys is None and host not in LOOPBACK:
        raise InputError(
            f"--host {host} accepts connections from other machines; create API keys with "
            "recblr key and pass them with --keys"
        )
    with serving():
        from recblr.serving.server import run

        run(model, store, host, port, keys, titles, cache, path_prefix, access_log)


def replay(
    model: Model,
    store: Store = STORE,
    log: Annotated[
        str | None,
        typer.Option("--log", metavar="LOG", help="First add the events of this log."),
    ] = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Rebuild the states of all users from the event log."""
    with serving():
        from recblr.serving.replay import replay as run

        source, names = read_source(log, columns, format, separator)
        result = run(model, store, source, cache, names)
    if as_json:
        print_json(result)
        return
    from_log = ""
    if log is not None:
        print(f"{log}: {result['order']}")
        from_log = f" ({result['added']:,} added, {result['present']:,} already there)"
    print(
        f"{result['users']:,} users, {result['events']:,} events{from_log}, "
        f"{result['seconds']:.1f} s"
    )


def verify(model: Model, store: Store = STORE, cache: Cache = None, as_json: Json = False) -> None:
    """Compare the states of all users with offline scoring."""
    with serving():
        from recblr.serving.replay import verify as run

        result = run(model, store, cache)
    if as_json:
        print_json(result)
    else:
        print(
            f"{'equal' if result['equal'] else 'DIFFERENT'}: {result['users']:,} users, "
            f"{result['events']:,} events, scores differ by {result['largest']:.1e} at most, "
            f"{result['lists']:,} top-20 lists differ"
        )
    if not result["equal"]:
        raise typer.Exit(1)


@contextmanager
def serving() -> Iterator[None]:
    """Turn a missing dependency or a failure of the storage into an InputError."""
    with from_extra("serve"):
        from recblr.serving.storage import StorageError

        try:
            yield
        except StorageError as error:
            raise InputError(
                f"{error}; restore it from a backup, or choose another --store"
            ) from None
