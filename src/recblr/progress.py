"""Progress of long work, on standard error and only where a person watches it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Say that ``amount`` more is done, and optionally what to show beside the bar."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Advance]:
    """Yield ``advance(amount, note="")``; ``total`` is in the same unit, None when unknown."""
    if not sys.stderr.isatty():

        def silent(amount: float, note: str = "") -> None:
            pass

        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(amount: float, note: str = "") -> None:
            bar.update(task, advance=amount)
            if note:
                bar.update(task, note=note)

        yield advance
