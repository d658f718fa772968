"""The command line, run in this process."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recblr.cli.main import main

FAST = [
    "--set", "model.dim=16", "--set", "model.layers=1", "--set", "train.epochs=1",
    "--set", "train.batch_size=256", "--set", "train.max_length=16",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code and what it wrote to standard output and error."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run the command line in this process, in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run_command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["recblr", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    loggers = [logging.getLogger(name) for name in ("recblr", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield run_command
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate  # a server has set its own
        logger.setLevel(level)


def names(folder: Path) -> set[str]:
    """The names of the files and folders in a folder."""
    return {path.name for path in folder.iterdir()}


def answer(result: Result) -> Any:
    """The JSON that a successful command printed, and nothing else."""
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)
