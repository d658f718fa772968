"""The commands that serve a model and look after its event log."""

from pathlib import Path
from typing import Annotated

import typer

from recblr.cli.options import Columns, Json, print_json, read_columns
from recblr.errors import InputError, from_extra

Model = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Store = Annotated[
    str,
    typer.Option(
        "--store", metavar="FILE|URL", envvar="RECBLR_STORE",
        help="The event log, made if it is not there; postgresql://… for several servers.",
    ),
]  # fmt: skip
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="URL", envvar="RECBLR_CACHE",
        help="redis://…, where the servers of a PostgreSQL log share states.",
    ),
]  # fmt: skip
STORE = "events.sqlite"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_commands(app: typer.Typer) -> None:
    """Add ``serve``, ``key``, ``replay`` and ``verify``."""
    for command in (serve, key, replay, verify):
        app.command()(command)


def serve(
    model: Model,
    store: Store = STORE,
    cache: Cache = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose keys are let in; see recblr key.")
    ] = None,
    titles: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV or Parquet of item_id and title.")
    ] = None,
) -> None:
    """Serve a model over HTTP: events in, recommendations out.

    / is a page to try it.
    """
    if keys is None and host not in LOOPBACK:
        raise InputError(
            f"--host {host} is open to others; make keys with recblr key and name them by --keys"
        )
    with from_extra("serve"):
        from recblr.serving.server import run
    run(model, store, host, port, keys, titles, cache)


def key(
    tenant: Annotated[str, typer.Argument(help="Whose; admin may swap models and read metrics.")],
    keys: Annotated[Path, typer.Argument(metavar="FILE", help="Keeps its hash.")],
) -> None:
    """Make a key for a tenant, print it once and keep its hash."""
    from recblr.serving.keys import add_key

    print(add_key(keys, tenant))


def replay(
    model: Model,
    store: Store = STORE,
    log: Annotated[
        str | None,
        typer.Option("--log", metavar="LOG", help="Put the events of this log in first."),
    ] = None,
    columns: Columns = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Make the states of all users anew from the event log."""
    with from_extra("serve"):
        from recblr.serving.replay import replay as run
    found = run(model, store, log, cache, read_columns(columns))
    if as_json:
        print_json(found)
    else:
        print(f"{found['users']:,} users, {found['events']:,} events, {found['seconds']:.1f} s")


def verify(model: Model, store: Store = STORE, cache: Cache = None, as_json: Json = False) -> None:
    """Compare the states of all users with the offline scorer's."""
    with from_extra("serve"):
        from recblr.serving.replay import verify as run
    found = run(model, store, cache)
    if as_json:
        print_json(found)
    else:
        print(
            f"{'equal' if found['equal'] else 'DIFFERENT'}: {found['users']:,} users, "
            f"{found['events']:,} events, scores differ by {found['largest']:.1e} at most, "
            f"{found['lists']:,} top-20 lists differ"
        )
    if not found["equal"]:
        raise typer.Exit(1)
