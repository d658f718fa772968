"""Progress of long work: bars on a terminal, and lines.

Lines go through logging, to the logger "recblr" at level INFO. If the program does not configure
logging, they are printed to standard error; ``logging.getLogger("recblr").setLevel("WARNING")`` turns
them off.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LOGGER = logging.getLogger("recblr")
_INTERVAL = 30.0  # seconds between the lines of one piece of work


class Advance(Protocol):
    """Report that ``amount`` more is done, with an optional note to show beside the bar."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Advance]:
    """Show a progress bar, or report a line every 30 seconds where standard error is no terminal.

    Yields ``advance(amount, note="")``. ``total`` is None if it is unknown.
    """
    if not sys.stderr.isatty():
        yield _lines(description, total)
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


def report(line: str) -> None:
    """Log a line at level INFO, or print it to standard error if logging is not configured."""
    if _LOGGER.hasHandlers() or _LOGGER.level > logging.INFO:
        _LOGGER.info(line)
    else:
        print(line, file=sys.stderr, flush=True)


def _lines(description: str, total: float | None) -> Advance:
    done, last = 0.0, time.monotonic()

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if (now := time.monotonic()) - last >= _INTERVAL:
            last = now
            share = f"{done / total:.0%}" if total else f"{done:,.0f}"
            report(f"{description}: {share}{', ' * bool(note)}{note}")

    return advance
