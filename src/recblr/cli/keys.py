"""The commands that manage API keys: recblr key."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recblr.cli.options import Json, print_json
from recblr.cli.serve import serving

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys.")]
Tenant = Annotated[str, typer.Argument(help="The owner; admin may swap models and read metrics.")]


class _Group(TyperGroup):
    """``recblr key TENANT FILE`` means ``recblr key add TENANT FILE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["add", *args]
        return super().resolve_command(ctx, args)


key = typer.Typer(
    cls=_Group, no_args_is_help=True,
    help="Create, list and revoke API keys. A running server follows within seconds.",
)  # fmt: skip


@key.command()
def add(tenant: Tenant, keys: File) -> None:
    """Create a key for a tenant and store its hash. The key is printed once and not stored."""
    with serving():
        from recblr.serving.keys import add_key

        print(add_key(keys, tenant))


@key.command()
def rotate(
    tenant: Tenant,
    keys: File,
    grace: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="How long the other keys still work.")
    ] = 24.0,
) -> None:
    """Create a key for a tenant; its other keys expire."""
    with serving():
        from recblr.serving.keys import add_key

        print(add_key(keys, tenant, rotate=True, grace=3600 * grace))


@key.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name in recblr key list.")],
    keys: File,
) -> None:
    """Make a key invalid."""
    with serving():
        from recblr.serving.keys import revoke_key

        print(f"key {revoke_key(keys, name).name} revoked")


@key.command("list")
def list_keys(keys: File, as_json: Json = False) -> None:
    """List the keys: name, owner, and when they were created and expire."""
    with serving():
        from recblr.serving.keys import read_keys

        rows = [
            {
                "name": stored.name, "tenant": stored.tenant,
                "created": _date(stored.created), "expires": _date(stored.expires),
            }
            for stored in read_keys(keys)
        ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    for row in rows:
        expires = f", expires {row['expires']}" if row["expires"] else ""
        print(
            f"{row['name']}  {row['tenant']}  created {row['created'] or 'at an unknown time'}{expires}"
        )


def _date(seconds: float) -> str | None:
    if seconds in (0.0, float("inf")):
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
