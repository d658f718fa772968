"""The search for settings: trials, the study in its folder, what is written."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recblr import tuning as module
from recblr.config import Range
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError, InputError
from recblr.models import MODELS
from recblr.presets import read_preset
from recblr.recommender import Recommender
from recblr.sizing import build_settings
from recblr.tuning import tune
from recblr.tuning_results import BEST, PICTURE, Trial, Tuning

pytest.importorskip("optuna")
SMALL: dict[str, dict[str, Any]] = {
    "model": {"dim": 16, "layers": 1},
    "train": {"epochs": 4, "batch_size": 256, "max_length": 16, "lr": 1e-2, "precision": "float32"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned") / "a?b#c%41"


@pytest.fixture(scope="module")
def tuned(sequences: Sequences, folder: Path) -> Tuning:
    return tune(sequences, folder, trials=4, settings=SMALL)


def figures(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """What does not depend on the time."""
    return [
        (trial.state, trial.settings, trial.ndcg, trial.network, trial.epochs) for trial in trials
    ]


def test_the_first_trial_is_what_train_would_do(sequences: Sequences, tuned: Tuning) -> None:
    plain = Recommender.configured("recblr", SMALL, by_size=True).fit(sequences)
    first, choice = tuned.trials[0], plain.memory_choice
    assert choice is not None
    assert (first.state, first.ndcg) == ("finished", choice.best.masked)
    assert first.epochs == plain.trained.epoch
    assert plain.trained.validation is not None
    assert first.network == plain.trained.validation["NDCG@10"]
    assert first is tuned.default


def test_trials_search_what_is_not_given_and_stop_early(tuned: Tuning) -> None:
    assert [trial.number for trial in tuned.trials] == [0, 1, 2, 3]
    for trial in tuned.trials:
        assert set(trial.settings) == {"model.dropout", "train.label_smoothing"}
    assert len({trial.settings["model.dropout"] for trial in tuned.trials}) == 4
    for trial in tuned.trials:
        stopped = trial.state == "stopped"
        assert (trial.epochs, trial.ndcg is None) == ((3, True) if stopped else (4, False))
    first, *others = tuned.ranking
    assert first.ndcg is not None
    assert all(first.ndcg >= (other.ndcg or 0) for other in others)


def test_the_settings_are_those_of_the_best_trial(tuned: Tuning, folder: Path) -> None:
    settings = read_preset(str(folder / BEST))
    configs = build_settings("recblr", settings)
    assert configs == build_settings("recblr", tuned.settings)
    model, training, _ = configs
    assert model.dropout == tuned.ranking[0].settings["model.dropout"]
    assert {"dim": model.dim, "layers": model.layers} == SMALL["model"]
    assert all(getattr(training, name) == value for name, value in SMALL["train"].items())
    comment = (folder / BEST).read_text().splitlines()[0]
    assert comment == f"# {tuned.summary}."
    assert f"is the best of 4 ({len(tuned.ranking)} finished" in comment
    drawn = (folder / PICTURE).exists()
    assert drawn == (len({trial.ndcg for trial in tuned.ranking}) > 1)


def test_the_test_part_has_no_influence(
    sequences: Sequences, tuned: Tuning, tmp_path: Path
) -> None:
    items, rows = sequences.items.copy(), sequences.split.test[sequences.split.test >= 0]
    items[rows] = np.random.default_rng(0).integers(len(sequences.item_ids), size=len(rows))
    other = tune(replace(sequences, items=items), tmp_path / "new", trials=2, settings=SMALL)
    assert figures(other.trials) == figures(tuned.trials[:2])


@pytest.mark.usefixtures("tuned")
def test_a_repeated_call_goes_on_and_another_search_is_refused(
    sequences: Sequences, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train", lambda job, trial, values: 1.0)
    assert len(tune(sequences, folder, trials=4, settings=SMALL).trials) == 4
    assert len(tune(sequences, folder, trials=5, settings=SMALL).trials) == 5
    shorter = replace(sequences, items=sequences.items[::-1].copy())
    for what, log, model, settings in (
        ("log", shorter, "recblr", SMALL),
        ("model", sequences, "lrurec", SMALL),
        ("set of settings", sequences, "recblr", {}),
    ):
        with pytest.raises(InputError, match=f"holds a search with another {what}; choose"):
            tune(log, folder, model, trials=9, settings=settings)
    (folder / module.STUDY).write_text("no study" * 100)
    with pytest.raises(InputError, match=r"study\.db is not a study of Optuna"):
        tune(sequences, folder, trials=9, settings=SMALL)


def test_failures_and_ctrl_c_keep_what_has_finished(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Any] = [DivergedError("not finite"), MemoryError(), 0.5, 0.7, KeyboardInterrupt()]

    def train(job: Any, trial: Any, values: Any) -> float:
        result = results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return float(result)

    monkeypatch.setattr(module, "_train", train)
    with pytest.raises(InputError, match=r"no trial has finished \(2 begun, not finite\)"):
        tune(sequences, tmp_path / "new", trials=2, settings=SMALL)
    result = tune(sequences, tmp_path / "new", settings=SMALL)
    assert result.interrupted
    assert [trial.state for trial in result.trials] == [
        "failed", "failed", "finished", "finished", "stopped",
    ]  # fmt: skip
    assert [trial.number for trial in result.ranking] == [3, 2]
    assert result.default == result.trials[2], "tried again after its failure"
    assert (tmp_path / "new" / BEST).exists()
    assert (tmp_path / "new" / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_trial_is_stopped_at_the_end_of_the_time(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 20)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(clock)))
    with pytest.raises(InputError, match=r"no trial has finished \(1 begun\); call again with"):
        tune(sequences, tmp_path / "new", minutes=1, settings=SMALL)


@pytest.mark.parametrize("name", MODELS)
def test_the_space_of_a_model_has_its_settings_by_size(name: str, sequences: Sequences) -> None:
    job = module._prepare(Path("new"), sequences, name, {}, "cpu", 1, 0.0)
    first = job.first
    assert {"train.lr", "train.batch_size", "model.dim"} <= first.keys()
    for key, values in job.space.items():
        if isinstance(values, Range):
            assert values.low <= first[key] <= values.high, key
            assert module._rounded(first[key]) == first[key], key
        else:
            assert first[key] in values, key


def test_what_another_setting_forbids_is_not_searched(sequences: Sequences) -> None:
    given = {"train": {"mask_seen_in_loss": True}}
    job = module._prepare(Path("new"), sequences, "recblr", given, "cpu", 1, 0.0)
    assert "train.label_smoothing" not in job.space
    assert "train.lr" in job.space


def test_without_optuna_a_line_says_what_to_install(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"optuna is not installed; .*'recblr\[tune\]'"):
        tune(sequences, tmp_path / "new", trials=1)
    assert not (tmp_path / "new").exists()
