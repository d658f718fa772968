"""The commands that look after an event log: recblr events."""

from pathlib import Path
from typing import Annotated, Any

import typer

from recblr.cli.options import Json, print_json
from recblr.cli.serve import STORE, Store, serving

events = typer.Typer(
    no_args_is_help=True, help="Back up, restore, export and shorten an event log. Servers may run."
)


@events.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Copy all events, as they are at one moment, into a file."""
    with serving():
        from recblr.serving import maintenance

        _print(maintenance.backup(store, out), f"in {out}", as_json)


@events.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A file of recblr events backup.")],
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Add the events of a backup to an event log without events."""
    with serving():
        from recblr.serving import maintenance

        _print(maintenance.restore(source, store), f"restored from {source}", as_json)


@events.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="The file to write.")],
    store: Store = STORE,
    tenant: Annotated[
        str | None, typer.Option(help="Whose events. [the only tenant]", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the events as a log that recblr train reads."""
    with serving():
        from recblr.serving import maintenance

        _print(maintenance.export(store, out, tenant), f"in {out}", as_json)


@events.command()
def compact(
    store: Store = STORE,
    keep_days: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="First remove the events that are older."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give back the space of removed events, and remove old ones if asked to.

    Requests to a server that uses the log may wait for some seconds.
    """
    with serving():
        from recblr.serving import maintenance

        result = maintenance.compact(store, keep_days)
    _print(result, f"left, {result['removed']:,} removed", as_json)


def _print(counts: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        print_json(counts)
    else:
        print(f"{counts['events']:,} events of {counts['users']:,} users {what}")
