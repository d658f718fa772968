"""What several commands share: options, and how JSON is printed."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="[auto: a GPU if there is one]"),
]


def print_json(value: Any) -> None:
    """On standard output; a number that JSON does not have is an error."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
