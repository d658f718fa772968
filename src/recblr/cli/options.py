"""Options and arguments that several commands share, and how their text is read."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recblr.errors import InputError

Log = Annotated[
    str,
    typer.Argument(
        metavar="LOG",
        help="A file, a folder, a URI (s3://…), - (standard input), or the name of a data set.",
    ),
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
    typer.Option(
        metavar="NAME=COLUMN,…",
        help="Columns of the log by name, user_id=userId, or position, user_id=1.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT", help="Such as csv, jsonl or histories. [by the ending of the file]"
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The separator of a text file, such as ';'."),
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
ItemVectors = Annotated[
    str | None,
    typer.Option(
        "--item-vectors",
        metavar="FILE",
        help="Content of items: item_id and vector, a list of numbers.",
    ),
]
ItemCategories = Annotated[
    str | None,
    typer.Option(
        "--item-categories", metavar="FILE", help="Content of items: item_id and columns of texts."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def read_columns(text: str | None) -> dict[str, str | int | None] | None:
    """The columns of a log by our names, from the text of :data:`Columns`."""
    from recblr.data.columns import parse_columns

    return None if text is None else parse_columns(text)


def read_source(
    log: str | None, columns: str | None, format: str | None, separator: str | None
) -> tuple[Any, Any]:
    """A log to open and its columns. It is read at once if options say how, else where it is opened."""
    chosen = read_columns(columns)
    if format is None and separator is None:
        return log, chosen
    if log is None:
        raise InputError("--format and --separator describe a log; give the log, too")
    from recblr.data.log import read_log

    return read_log(log, columns=chosen, format=format, separator=separator), None


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a comma-separated list of whole numbers."""
    return read_numbers(text, "--seeds", "0,1,2")


def read_numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text}: write whole numbers, for example {example}") from error


def read_slice(text: str) -> tuple[str, str]:
    """A file and one of its columns."""
    file, _, column = text.rpartition(":")
    if not (file and column):
        raise InputError(f"--slice {text}: write FILE:COLUMN, for example users.parquet:country")
    return file, column


def print_json(value: Any) -> None:
    """Print a value on standard output; raises ValueError for NaN and infinity."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
