"""Progress of long work, on standard error and only where a person watches it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Advance]:
    """Yield ``advance(amount, note="")``; ``total`` is in the same unit, None when unknown."""
    if not sys.stderr.isatty():
        yield lambda amount, note="": None
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

        def advance(amount: float, note: str | None = None) -> None:
            fields = {} if note is None else {"note": note}
            bar.update(task, advance=amount, **fields)

        yield advance
