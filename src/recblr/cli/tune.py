"""The command ``recblr tune``."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from recblr.cli.options import (
    Columns,
    Core,
    Device,
    Format,
    Json,
    Log,
    Out,
    Separator,
    Settings,
    Split,
    print_json,
    read_source,
)
from recblr.cli.tables import show

if TYPE_CHECKING:
    from recblr.tuning_results import Tuning

SHOWN = 10  # trials of the table


def tune(
    log: Log,
    out: Out,
    model: Annotated[str, typer.Option(help="The kind of model.")] = "recblr",
    minutes: Annotated[
        float | None, typer.Option(help="How long to search. [20, if there is no --trials]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="End when the output folder has this many trials.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="K", help="Search in K processes.")] = 1,
    settings: Settings = [],  # noqa: B006 - typer reads it
    core: Core = None,
    split: Split = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Search the settings of a model on validation; repeat the command to go on."""
    from recblr.allocator import keep_freed_memory
    from recblr.config import apply_settings
    from recblr.tuning import tune as search
    from recblr.tuning_results import BEST, PICTURE

    source, names = read_source(log, columns, format, separator)
    keep_freed_memory()
    result = search(
        source, out, model, minutes=minutes, trials=trials, jobs=jobs,
        settings=apply_settings({}, settings), core=core, split=split, columns=names, device=device,
    )  # fmt: skip
    if as_json:
        print_json(asdict(result))
        return
    _print(result)
    picture = f"; importances in {out / PICTURE}" if result.importances else ""
    given = {
        "core": core, "split": split, "columns": columns, "format": format, "separator": separator
    }  # fmt: skip
    options = "".join(
        f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None
    )
    print(f"recblr train {log} -o DIR --model {model} --config {out / BEST}{options}{picture}")
    if result.interrupted:
        print("interrupted; repeat the command to go on")


def _print(tuning: "Tuning") -> None:
    """The best trials, and how the best one was chosen."""
    names = list(tuning.trials[0].settings)
    heads = [name.replace(".", ".\n").replace("_", "_\n") for name in names]
    table = Table("trial", "validation\nNDCG@10", "network\nalone", "epochs", "s", *heads, box=None)
    for trial in tuning.ranking[:SHOWN]:
        values = (f"{trial.settings[name]:g}" for name in names)
        table.add_row(
            str(trial.number), f"{trial.ndcg:.4f}", f"{trial.network:.4f}", str(trial.epochs),
            f"{trial.seconds:,.0f}", *values,
        )  # fmt: skip
    show(table)
    print(tuning.summary)
