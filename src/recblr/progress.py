"""Progress of long work: a bar on a terminal, a changing line in a notebook, and lines.

Lines go through logging, to the logger "recblr" at level INFO. If the program does not configure
logging, they are printed to standard error; ``logging.getLogger("recblr").setLevel("WARNING")`` turns
all of this off.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LOGGER = logging.getLogger("recblr")
_INTERVAL = 30.0  # seconds between the lines of one piece of work
_NOTEBOOK_INTERVAL = 0.5  # seconds between the changes of the line in a notebook


class Advance(Protocol):
    """Report that ``amount`` more is done, with an optional note to show beside the bar."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Advance]:
    """Show a progress bar. Where standard error is no terminal, report a line every 30 seconds instead,
    or in a notebook show a line that changes.

    Yields ``advance(amount, note="")``. ``total`` is None if it is unknown.
    """
    if type(sys.stderr).__module__ == "ipykernel.iostream" and _LOGGER.level <= logging.INFO:
        with _changing_line() as show:
            yield _lines(description, total, show, _NOTEBOOK_INTERVAL)
        return
    if not sys.stderr.isatty() or _LOGGER.level > logging.INFO:
        yield _lines(description, total, report, _INTERVAL)
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


class NamedLines:
    """Standard error whose lines begin with a name; not a terminal, so that no bars are drawn."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name, self._stream, self._rest = name, stream, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._name}: {line}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


@contextmanager
def _changing_line() -> Iterator[Callable[[str], None]]:
    """Yield ``show(line)``, which replaces the line before in the output of a notebook."""
    width = 0

    def show(line: str) -> None:
        nonlocal width
        print(f"\r{line:<{width}}", end="", file=sys.stderr, flush=True)
        width = len(line)

    yield show
    if width:
        print(f"\r{'':<{width}}", end="\r", file=sys.stderr, flush=True)


def _lines(
    description: str, total: float | None, show: Callable[[str], None], interval: float
) -> Advance:
    done, last = 0.0, time.monotonic()

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if (now := time.monotonic()) - last >= interval:
            last = now
            share = f"{done / total:.0%}" if total else f"{done:,.0f}"
            show(f"{description}: {share}{', ' * bool(note)}{note}")

    return advance
