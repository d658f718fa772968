"""What several commands share: options, and how JSON is printed."""

import json
from typing import Annotated, Any

import typer

from recblr.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="[auto: a GPU if there is one]"),
]


Columns = Annotated[
    str | None,
    typer.Option(metavar="OURS=THEIRS,…", help="Column names, such as user_id=userId."),
]


def read_columns(text: str | None) -> dict[str, str] | None:
    """Column names as :data:`Columns` has them."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours and equals and theirs for ours, equals, theirs in pairs):
        raise InputError(f"--columns {text}: write user_id=theirs,item_id=theirs,timestamp=theirs")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def print_json(value: Any) -> None:
    """On standard output; a number that JSON does not have is an error."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
