"""Options and arguments that several commands share, and how their text is read."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recblr.errors import InputError

Log = Annotated[
    str,
    typer.Argument(metavar="LOG", help="A log file, a prepared folder, or a data set's name."),
]
OtherLog = Annotated[
    str | None,
    typer.Argument(metavar="LOG", help="A log. [the log the model was trained on]"),
]
Model = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the output folder if it exists.")]
Core = Annotated[
    int | None,
    typer.Option(
        help="Keep users and items with at least this many events. [named data sets: 5, files: 1]"
    ),
]
Split = Annotated[str | None, typer.Option(help="leave-one-out (default), time or time-last.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAME=COLUMN,…", help="Columns of the log, for example user_id=userId."),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, for example train.lr=0.001. Repeatable."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="auto|cpu|cuda|cuda:N", help="auto uses a GPU if there is one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def read_columns(text: str | None) -> dict[str, str] | None:
    """The columns of a log by our names, from the text of :data:`Columns`."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and equals and column for name, equals, column in pairs):
        raise InputError(f"--columns {text}: write user_id=COLUMN,item_id=COLUMN,timestamp=COLUMN")
    return {name.strip(): column.strip() for name, _, column in pairs}


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a comma-separated list of whole numbers."""
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise InputError(f"--seeds {text}: write whole numbers, for example 0,1,2") from error


def print_json(value: Any) -> None:
    """Print a value on standard output; raises ValueError for NaN and infinity."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
