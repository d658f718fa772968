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
    ["bench", "serve"],
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


@pytest.mark.parametrize(
    "line",
    ["nonsense", "train", "train LOG", "train LOG -o new --core many", "recommend MODEL -k few",
     "demo --loud", "bench nothing"],
)  # fmt: skip
def test_usage_errors(run: Run, line: str, tmp_path: Path) -> None:
    result = run(*line.split())
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert "Usage: recblr" in result.err
    assert names(tmp_path) == set()
