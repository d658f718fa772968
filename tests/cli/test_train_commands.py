"""From a log to a trained model and its metrics: prepare, train and evaluate."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cli.fixtures import FAST, Result, Run, answer, names
from conftest import Tiny
from recblr.cli.main import OUT_OF_MEMORY

METRICS = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)}


def assert_evaluations(evaluations: Any) -> None:
    assert [row["protocol"]["seen"] for row in evaluations] == ["unmasked", "masked"]
    for row in evaluations:
        assert row["metrics"].keys() == METRICS
        assert list(row["baselines"]) == ["popularity", "markov chain", "transitions"]
        assert all(baseline.keys() == METRICS for baseline in row["baselines"].values())
        assert all(0 <= value <= 1 for value in row["metrics"].values())
        assert row["metrics"]["HR@10"] <= row["metrics"]["HR@20"]
        assert row["protocol"]["part"] == "test"


def test_prepare_train_evaluate_recommend(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    users, items = tiny.frame["user_id"].n_unique(), tiny.frame["item_id"].n_unique()
    prepared = answer(run("prepare", tiny.log, "-o", "ready", "--json"))
    assert prepared["users"] == users
    assert prepared["items"] == items
    assert prepared["interactions"] == tiny.frame.height
    assert (prepared["core"], prepared["split"]) == (1, "leave-one-out")
    assert prepared["training_interactions"] == tiny.frame.height - 2 * users

    trained = answer(run("train", "ready", "-o", "model", *FAST, "--json"))
    assert_evaluations(trained)
    assert names(tmp_path) == {"ready", "model"}
    assert answer(run("evaluate", "model", "--json")) == trained
    assert answer(run("evaluate", "model", tiny.log, "--json")) == trained
    assert answer(run("evaluate", "model", "ready", "--json")) == trained

    user = tiny.frame["user_id"][0]
    rows = answer(run("recommend", "model", "--user", user, "-k", 4, "--json"))
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert {tuple(row) for row in rows} == {("user_id", "item_id", "score", "rank")}
    assert {row["user_id"] for row in rows} == {user}
    seen = set(tiny.frame.filter(pl.col("user_id") == user)["item_id"])
    assert not seen & {row["item_id"] for row in rows}


def test_training_on_a_file_and_on_a_prepared_folder_agree(run: Run, tiny: Tiny) -> None:
    run("prepare", tiny.log, "-o", "ready", "--core", "4")
    from_folder = answer(run("train", "ready", "-o", "a", *FAST, "--json"))
    from_file = answer(run("train", tiny.log, "-o", "b", "--core", "4", *FAST, "--json"))
    assert from_folder == from_file
    assert from_file[0]["protocol"]["core"] == 4


def test_options_override_the_settings_of_a_file(run: Run, tiny: Tiny) -> None:
    Path("my.toml").write_text("[model]\ndim = 8\nlayers = 1\n[train]\nepochs = 1\nlr = 0.02\n")
    arguments = [
        "--config",
        "my.toml",
        "--set",
        "model.dim=12",
        "--set",
        "train.mask_seen_in_loss=true",
    ]
    assert run("train", tiny.log, "-o", "model", *arguments).code == 0
    settings = json.loads(Path("model/config.json").read_text())
    assert (settings["model"]["dim"], settings["model"]["layers"]) == (12, 1)
    assert settings["train"]["lr"] == 0.02
    assert settings["train"]["mask_seen_in_loss"] is True


def test_columns(run: Run, tiny: Tiny) -> None:
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    tiny.frame.rename(columns).write_csv("other.csv")
    option = ",".join(f"{name}={column}" for name, column in columns.items())
    renamed = answer(run("prepare", "other.csv", "-o", "a", "--columns", option, "--json"))
    plain = answer(run("prepare", tiny.log, "-o", "b", "--json"))
    order = str(plain["order"]).replace("timestamp", "when")
    assert renamed == {**plain, "source": "other.csv", "order": order}
    evaluated = answer(run("evaluate", tiny.artifact, "other.csv", "--columns", option, "--json"))
    assert evaluated == answer(run("evaluate", tiny.artifact, "--json"))


def test_text_output(run: Run, tiny: Tiny) -> None:
    result = run("prepare", tiny.log, "-o", "ready")
    assert (result.code, result.err) == (0, "")
    assert f"{tiny.frame.height:,}" in result.out
    result = run("train", "ready", "-o", "model", *FAST)
    assert (result.code, result.err) == (0, "")
    assert "best epoch 1 of 1 (epochs)" in result.out
    assert "model in model" in result.out
    assert re.search(
        r"^memory of transitions: weight .*validation NDCG@10", result.out, re.MULTILINE
    )
    evaluated = run("evaluate", "model")
    assert evaluated.code == 0
    assert result.out.endswith(evaluated.out)
    for evaluation in answer(run("evaluate", "model", "--json")):
        for name, value in evaluation["metrics"].items():
            low, high = evaluation["intervals"][name]
            baselines = " +".join(
                f"{baseline[name]:.4f}" for baseline in evaluation["baselines"].values()
            )
            numbers = rf"{value:.4f} +{low:.4f}-{high:.4f} +{baselines}"
            seen = evaluation["protocol"]["seen"]
            assert re.search(rf"^ {seen} +{name} +{numbers} *$", evaluated.out, re.MULTILINE)
    assert "protocol: leave-one-out test, 1-core, full ranking of 24 items" in evaluated.out
    user = tiny.frame["user_id"][0]
    result = run("recommend", "model", "--user", user, "-k", 2)
    assert len(result.out.splitlines()) == 3
    assert result.out.count(user) == 2


def test_overwrite(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    run("train", tiny.log, "-o", "model", *FAST, "--set", "train.seed=1")
    assert run("train", tiny.log, "-o", "model", *FAST, "--overwrite").code == 0
    assert json.loads((tmp_path / "model/config.json").read_text())["train"]["seed"] == 0
    refused = run("prepare", tiny.log, "-o", "model", "--overwrite")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "something else, as it has no prepared.json" in refused.err
    assert (tmp_path / "model/model.safetensors").exists()
    assert run("prepare", tiny.log, "-o", "log").code == 0
    assert run("prepare", tiny.log, "-o", "log", "--overwrite").code == 0
    assert names(tmp_path) == {"model", "log"}


def test_a_log_without_events_to_predict_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,1\n1,2\n2,1\n2,2\n")
    result = run("train", "log.csv", "-o", "model", *FAST)
    assert result.code == 2
    assert re.fullmatch(r"recblr: .*no user has an event to predict.*\n", result.err)
    assert names(tmp_path) == {"log.csv"}


def test_divergence_exits_with_1(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    result = run("train", tiny.log, "-o", "model", *FAST, "--set", "train.lr=1e30", "--json")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"recblr: .*diverged.*\n", result.err)
    assert not (tmp_path / "model").exists()
    # The next run does not find anything left of this one.
    assert run("train", tiny.log, "-o", "model", *FAST).code == 0
    assert names(tmp_path) == {"model"}


def test_a_model_larger_than_memory(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    result = run("train", tiny.log, "-o", "model", "--set", "model.dim=1000000000000")
    assert result == Result(1, "", f"recblr: {OUT_OF_MEMORY}\n")
    assert names(tmp_path) <= {"model.training"}


def test_ctrl_c_and_resume(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from recblr.training.trainer import validate

    calls = 0

    def interrupt_once(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    arguments = ["train", tiny.log, "-o", "model", *FAST, "--set", "train.epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr("recblr.training.trainer.validate", interrupt_once)
        result = run(*arguments)
    assert result.code == 0
    assert "best epoch 1 of 1 (interrupted)" in result.out
    result = run(*arguments, "--resume")
    assert result.code == 0
    assert "of 2 (epochs)" in result.out
    assert names(Path()) == {"model"}
