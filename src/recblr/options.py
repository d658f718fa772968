"""What several commands share: options, how JSON is printed, what an extra brings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from recblr.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="[auto: a GPU if there is one]"),
]


def print_json(value: Any) -> None:
    """On standard output; a number that JSON does not have is an error."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


@contextmanager
def from_extra(name: str) -> Iterator[None]:
    """Imports inside need the packages of an extra; without one of them it is an InputError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run pip install 'recblr[{name}]'"
        ) from error
