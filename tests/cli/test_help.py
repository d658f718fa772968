"""Help texts, and the errors of the option parser."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.fixtures import Run, names

COMMANDS = [
    [], ["demo"], ["prepare"], ["train"], ["evaluate"], ["compare"], ["recommend"], ["reproduce"],
    ["doctor"], ["export"], ["serve"], ["key"], ["replay"], ["verify"],
    ["bench"], ["bench", "ops"], ["bench", "step"], ["bench", "length"], ["bench", "train"],
    ["bench", "serve"], ["bench", "gpu"], ["tune"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_screen(run: Run, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run(*command, "--help")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(" ".join(["Usage: recblr", *command]))


def test_help_lists_every_command(run: Run) -> None:
    listed = set(re.findall(r"^  ([a-z]+)  ", run("--help").out, re.MULTILINE))
    assert {command[0] for command in COMMANDS if command} <= listed


def test_help_does_not_import_torch_or_polars() -> None:
    code = (
        "import sys; sys.argv = ['recblr', '--help']\n"
        "from recblr.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'polars' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


USAGE_ERRORS = {
    "nonsense": r"No such command 'nonsense'; see recblr --help",
    "train": r"Missing argument 'LOG'; see recblr train --help",
    "train LOG": r"Missing option .*; see recblr train --help",
    "train LOG -o new --core many": r"Invalid value for '--core': .*; see recblr train --help",
    "recommend MODEL -k few": r"Invalid value for '-k': .*; see recblr recommend --help",
    "demo --loud": r"No such option: --loud.*; see recblr demo --help",
    "bench nothing": r"No such command 'nothing'; see recblr bench --help",
}


@pytest.mark.parametrize("line", USAGE_ERRORS)
def test_a_usage_error_is_one_line(run: Run, line: str, tmp_path: Path) -> None:
    result = run(*line.split())
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"recblr: {USAGE_ERRORS[line]}\n", result.err), result.err
    assert names(tmp_path) == set()


@pytest.mark.parametrize("line", ["", "bench"])
def test_without_arguments_the_help_is_shown(run: Run, line: str) -> None:
    result = run(*line.split())
    assert result.code == 2
    assert result.err.startswith("Usage: recblr")
