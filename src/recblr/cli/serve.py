"""The commands that serve a model and manage its event log."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from recblr.cli.options import Columns, Format, Json, Model, Separator, print_json, read_source
from recblr.errors import InputError, from_extra
from recblr.serving.settings import (
    ServerSettings,
    as_toml,
    kinds,
    read_settings,
    refuse_folder_of_downloads,
    refuse_password,
)


def _read_url(
    context: typer.Context, parameter: typer.CallbackParam, url: str | None
) -> str | None:
    """The value of --store or --cache of the commands that have no other settings."""
    name = parameter.name or ""
    if name == "cache" and url is None:
        refuse_folder_of_downloads(os.environ)
    source = context.get_parameter_source(name)
    if source is not None and source.name == "COMMANDLINE":
        refuse_password(name, url)
    return url


Store = Annotated[
    str,
    typer.Option(
        "--store", metavar="FILE|URL", envvar=["RECBLR_SERVE_STORE", "RECBLR_STORE"],
        callback=_read_url, help="The event log: a file, or postgresql://… for several servers.",
    ),
]  # fmt: skip
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="URL", envvar=["RECBLR_SERVE_CACHE", "RECBLR_STATE_CACHE"],
        callback=_read_url, help="redis://… with the user states of a PostgreSQL log.",
    ),
]  # fmt: skip
STORE = ServerSettings.store


def _option(setting: Field[Any]) -> inspect.Parameter:
    """The option of a setting."""
    flag, kind = f"--{setting.name.replace('_', '-')}", kinds()[setting.name]
    default = f" [{setting.default}]" if setting.default else ""
    help = setting.metadata["meaning"] + default
    option = typer.Option(flag, metavar=setting.metadata["metavar"] or None, help=help)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[kind | None, option],
    )  # fmt: skip


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="DIR", help="The folder of a trained model.")
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Settings; options and the environment are stronger."
        ),
    ] = None,
    changes: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any setting, such as max_waiting=100. Repeatable."
        ),
    ] = [],  # noqa: B006 - typer reads it
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print the settings as TOML, and exit.")
    ] = False,
    **options: Any,
) -> None:
    """Serve a model over HTTP: send events, get recommendations.

    A page for trying the model is at /. Every setting can also be given by the environment, such as
    RECBLR_SERVE_PORT=8001.
    """
    settings = read_settings({"model": model, **options}, changes, config)
    if show_settings:
        print(as_toml(settings), end="")
        return
    if not settings.model:
        raise InputError("no model to serve: give its folder, or model = … in the settings")
    with serving():
        from recblr.serving.server import run

        run(settings)


# For typer, the settings take the place of ``**options``.
_folder, *_others, _ = inspect.signature(serve).parameters.values()
_settings = [_option(f) for f in fields(ServerSettings) if f.metadata["metavar"] is not None]
serve.__signature__ = inspect.Signature([_folder, *_settings, *_others])  # type: ignore[attr-defined]


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
