"""The command ``recblr tune``."""

import re
import tomllib
from pathlib import Path

import pytest

from cli.fixtures import FAST, Run, answer, names
from conftest import Tiny, slow

pytest.importorskip("optuna")


@slow
def test_tune_in_processes_then_train(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    search = "tune", tiny.log, "-o", "tuned", "--trials", "2", *FAST
    result = answer(run(*search, "--jobs", "2", "--json"))
    first, second = result["trials"]
    assert [first["state"], second["state"]] == ["finished", "finished"]
    assert first["settings"] == result["default"]["settings"] != second["settings"]
    assert names(tmp_path / "tuned") >= {"best.toml", "lock", "study.db"}
    assert tomllib.loads((tmp_path / "tuned/best.toml").read_text())["train"]["epochs"] == 1

    again = run(*search)
    assert again.code == 0
    assert " trial  NDCG@10     alone    epochs" in again.out
    assert "is the best of 2 (2 finished): validation NDCG@10 (masked) 0." in again.out
    train = f"recblr train {tiny.log} -o DIR --model recblr --config tuned/best.toml"
    assert train in again.out
    assert run(*train.replace("DIR", "model").split()[1:]).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-o MODEL", r"holds something else, as it has no study\.db; choose another folder"),
        ("-o new --trials 0", "trials must be at least 1, found 0"),
        ("-o new --minutes 0", "minutes must be positive, found 0"),
        ("-o new --jobs 0", "jobs must be at least 1, found 0"),
        ("-o new --model gru", "unknown model 'gru'"),
        ("-o new --set train.epoch=1", "train.epoch: no such setting; did you mean epochs"),
    ],
)
def test_mistakes(run: Run, tiny: Tiny, options: str, message: str, tmp_path: Path) -> None:
    arguments = options.replace("MODEL", str(tiny.artifact)).split()
    result = run("tune", tiny.log, *arguments)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("recblr: ")
    assert re.search(message, line)
    assert names(tmp_path) == set()
