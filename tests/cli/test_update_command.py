"""The life of a model on the command line: refit, recommend, update."""

import json
from pathlib import Path

import pytest

from cli.fixtures import FAST, Run, answer
from conftest import Tiny


@pytest.fixture
def logs(tiny: Tiny, tmp_path: Path) -> tuple[Path, Path]:
    """The older three quarters of a log, and the newer half of it."""
    frame = tiny.frame.sort("timestamp", maintain_order=True)
    old, new, size = tmp_path / "old.csv", tmp_path / "new.csv", len(frame)
    frame[: size * 3 // 4].write_csv(old)
    frame[size // 2 :].write_csv(new)
    return old, new


def test_train_refit_update(
    run: Run, logs: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recblr")

    def notes(folder: str, user: str) -> bool:
        caplog.clear()
        assert run("recommend", folder, "--user", user).code == 0
        return "events of its log, not on the newest ones; recblr train --refit" in caplog.text

    old, new = logs
    plain = run("train", old, "-o", "plain", *FAST)
    assert plain.code == 0
    user = old.read_text().splitlines()[-1].split(",")[0]
    assert notes("plain", user)
    assert answer(run("recommend", "plain", "--user", user, "--json"))

    refitted = run("train", old, "-o", "monday", "--refit", *FAST)
    assert "refitted on all 1,381 events" in refitted.out
    assert refitted.out.splitlines()[3:] == plain.out.splitlines()[2:], "the metrics of before"
    assert not notes("monday", user)
    refused = run("evaluate", "monday")
    assert refused.code == 2
    assert (
        "held out (fit, refit; trained on all 1,381 events of its log); give a log" in refused.err
    )

    updated = run("update", "monday", new, "-o", "tuesday")
    assert updated.code == 0
    assert f"{new}: 461 new events (460 were there already), " in updated.out
    assert "(fit, refit, update; trained on all 1,842 events of its log)" in updated.out
    manifest = json.loads((tmp_path / "tuesday" / "manifest.json").read_text())
    assert [stage["kind"] for stage in manifest["stages"]] == ["fit", "refit", "update"]
    assert manifest["measured"][0]["protocol"]["data"] == manifest["stages"][0]["data"]

    counted = answer(run("update", "monday", new, "-o", "noon", "--memory-only", "--json"))
    assert counted["events"] == 461
    assert counted["stage"]["updates"] == 0
    assert counted["stage"]["trained_events"] < counted["stage"]["events"] == 1842
    assert notes("noon", user)


def test_mistakes_are_one_line(run: Run, tiny: Tiny, logs: tuple[Path, Path]) -> None:
    for arguments, message in (
        ((tiny.artifact, logs[1], "-o", tiny.artifact), "exists already; choose another folder"),
        ((tiny.artifact, "no.csv", "-o", "new"), "no.csv: no such file"),
        (("nothing", logs[1], "-o", "new"), "there is no such folder"),
    ):
        result = run("update", *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err
    assert run("update", tiny.artifact, tiny.log, "-o", "noon", "--memory-only").code == 0
    again = run("update", "noon", tiny.log, "-o", "new", "--memory-only")
    assert (again.code, again.out) == (2, "")
    assert "the model has all 1,842 events already" in again.err
