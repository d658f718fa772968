"""Long work reports lines where no terminal shows a bar."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cli.fixtures import FAST
from conftest import Tiny
from recblr import progress as module
from recblr.progress import progress, report

EPOCH = "epoch 1/1: loss "
SCRIPT = """
import logging, sys
import recblr
{before}
training = recblr.TrainConfig(epochs=1, batch_size=256, max_length=16)
recblr.Recommender("recblr", recblr.RecBLRConfig(dim=16, layers=1), training).fit(sys.argv[1])
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("before", "spoken"),
    [
        ("", True),
        ("logging.basicConfig(level='INFO', stream=sys.stdout)", False),
        ("logging.getLogger('recblr').setLevel('WARNING')", False),
    ],
    ids=["plain", "own logging", "turned off"],
)
def test_fit_reports_a_line_an_epoch(tiny: Tiny, before: str, spoken: bool) -> None:
    result = run("-c", SCRIPT.format(before=before), tiny.log)
    assert (EPOCH in result.stderr) == spoken
    assert (f"INFO:recblr:{EPOCH}" in result.stdout) == ("basicConfig" in before)
    if not spoken:
        assert result.stderr == ""


def test_train_reports_a_line_an_epoch_beside_its_json(tiny: Tiny, tmp_path: Path) -> None:
    main = "from recblr.cli.main import main; main()"
    result = run("-c", main, "train", tiny.log, "-o", tmp_path / "model", *FAST, "--json")
    assert [row["protocol"]["seen"] for row in json.loads(result.stdout)] == ["unmasked", "masked"]
    lines = result.stderr.splitlines()
    assert any(line.startswith(EPOCH) for line in lines)
    assert any(line.startswith("settings by the size of the log: ") for line in lines)


def test_long_work_reports_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recblr")
    with progress("reading", 8) as advance:
        advance(8)
    assert caplog.messages == [], "within the first seconds"
    monkeypatch.setattr(module, "_INTERVAL", 0.0)
    with progress("reading", 8) as advance:
        advance(2)
        advance(4, "loss 0.5")
    with progress("reading", None) as advance:
        advance(20_000)
    assert caplog.messages == ["reading: 25%", "reading: 75%, loss 0.5", "reading: 20,000"]


def test_a_notebook_shows_a_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("reading", 8) as advance:
        advance(8)
    assert stream.getvalue() == "", "within the first moment"
    monkeypatch.setattr(module, "_NOTEBOOK_INTERVAL", 0.0)
    with progress("reading", 8) as advance:
        advance(2, "loss 0.5")
        advance(4)
    first, second, cleared, end = stream.getvalue().split("\r")[1:]
    assert (first, second, end) == ("reading: 25%, loss 0.5", "reading: 75%          ", "")
    assert cleared == " " * len("reading: 75%")


def test_a_line_is_printed_if_logging_is_not_configured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = logging.getLogger("recblr")
    for logger in (logging.getLogger(), ours):  # other tests may have configured them
        monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(ours, "level", logging.NOTSET)
    report("one line")
    assert capsys.readouterr().err == "one line\n"
    monkeypatch.setattr(ours, "level", logging.WARNING)
    report("one line")
    assert capsys.readouterr().err == ""
