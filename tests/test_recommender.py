"""Configure and fit a recommender, resume and save it."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import recblr
from cli.fixtures import names
from conftest import TINY_MODEL, TINY_TRAINING, Tiny, assert_same_tensors
from helpers import untrained
from recblr.errors import DivergedError, InputError
from recblr.recommender import Recommender, load
from recblr.training.config import TrainConfig

LOSS = "recblr.training.step.cross_entropy"


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from recblr.ops.cross_entropy import cross_entropy

    calls = 0

    def loss(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return cross_entropy(*arguments)

    monkeypatch.setattr(LOSS, loss)


def test_out_has_the_model_its_evaluation_and_the_run_log(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "model"
    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(tiny.frame, out=str(out))
    assert names(tmp_path) == {"model"}
    assert [e["protocol"]["seen"] for e in recommender.measured] == ["unmasked", "masked"]
    assert load(out).measured == recommender.measured, "evaluations are saved with the model"
    assert_same_tensors(load(out).network.state_dict(), tiny.recommender.network.state_dict())
    run = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in run] == ["start", "epoch", "epoch", "end"]


def test_out_is_refused_before_training(tiny: Tiny, artifact_copy: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        untrained().fit(tiny.frame, out=artifact_copy)
    with pytest.raises(InputError, match="does not exist"):
        untrained().fit(tiny.frame, out=artifact_copy / "no" / "model")
    with pytest.raises(InputError, match="no such file"):
        untrained().fit(tiny.log.with_name("no.csv"), out=artifact_copy.parent / "new")
    with pytest.raises(InputError, match="nothing to resume"):
        untrained().fit(tiny.frame, out=artifact_copy.parent / "new", resume=True)
    assert names(artifact_copy.parent) == {"copy"}
    untrained().fit(tiny.frame, out=artifact_copy, overwrite=True)
    assert load(artifact_copy).trained.epoch == 1
    assert names(artifact_copy.parent) == {"copy"}


@pytest.mark.parametrize("out", ["model", None])
def test_a_log_without_held_out_events_is_refused_before_training(
    out: str | None, tmp_path: Path
) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2]})
    with pytest.raises(InputError, match="no user has an event to predict in the validation part"):
        untrained().fit(log, out=out and tmp_path / out)
    assert names(tmp_path) == set()


def test_interrupt_and_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = tmp_path / "model", tmp_path / "model.training"
    long = replace(TINY_TRAINING, epochs=3)

    def start(**options: Any) -> Recommender:
        return Recommender("recblr", TINY_MODEL, long).fit(tiny.frame, out=out, **options)

    with monkeypatch.context() as patch:
        interrupt_at(8, patch, KeyboardInterrupt())
        stopped = start()
    assert stopped.trained.ended == "interrupted"
    assert names(tmp_path) == {"model", "model.training"}
    assert names(work) == {"run.jsonl", "checkpoint.safetensors", "best.safetensors", "lock"}
    assert load(out).trained.epoch == 1
    with pytest.raises(InputError, match="exists already"):
        start()
    with pytest.raises(InputError, match="belongs to another run"):
        untrained().fit(tiny.frame, out=out, resume=True)

    resumed = start(resume=True)
    assert names(tmp_path) == {"model"}
    whole = Recommender("recblr", TINY_MODEL, long).fit(tiny.frame)
    assert_same_tensors(load(out).network.state_dict(), whole.network.state_dict())
    assert replace(resumed.trained, seconds=0) == replace(whole.trained, seconds=0)
    run = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in run] == (
        ["start", "epoch", "end", "resume", "epoch", "epoch", "end"]
    )
    with pytest.raises(InputError, match="nothing to resume"):
        start(resume=True)


def test_an_unfinished_run_is_dropped_only_if_told(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "model", tmp_path / "model.training"
    long = Recommender("recblr", TINY_MODEL, TINY_TRAINING)
    with monkeypatch.context() as patch:
        interrupt_at(8, patch, DivergedError("the loss is nan"))
        with pytest.raises(DivergedError):
            long.fit(tiny.frame, out=out)
    assert names(tmp_path) == {"model.training"}
    checkpoint = (work / "checkpoint.safetensors").read_bytes()
    with pytest.raises(InputError, match="unfinished run; pass --resume"):
        untrained().fit(tiny.frame, out=out)
    with pytest.raises(InputError, match="no such file"):
        untrained().fit(tmp_path / "no.csv", out=out, overwrite=True)
    assert (work / "checkpoint.safetensors").read_bytes() == checkpoint
    untrained().fit(tiny.frame, out=out, overwrite=True)
    assert names(tmp_path) == {"model"}


def test_a_run_stopped_in_its_first_epoch_starts_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            untrained().fit(tiny.frame, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(InputError, match="nothing to resume"):
        untrained().fit(tiny.frame, out=tmp_path / "model", resume=True)
    untrained().fit(tiny.frame, out=tmp_path / "model")
    assert names(tmp_path) == {"model"}
    run = (tmp_path / "model" / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in run] == ["start", "epoch", "end"]


def test_resume_needs_a_folder(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="give out"):
        untrained().fit(tiny.frame, resume=True)


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sasrec", TINY_MODEL), "config of sasrec must be a SASRecConfig, not RecBLRConfig"),
        (("recblr", {"dim": 16}), "config of recblr must be a RecBLRConfig"),
        (("recblr", None, {"epochs": 1}), "training of recblr must be a TrainConfig"),
    ],
)
def test_a_configuration_of_another_type_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recommender(*arguments)


def test_the_recipe_of_a_model_sets_its_defaults() -> None:
    assert Recommender("caser").training.weight_decay == 1e-5
    assert Recommender.configured("caser", {"train": {"lr": 0.1}}).training.weight_decay == 1e-5
    ours = Recommender.configured("caser", {"train": {"weight_decay": 0.0}})
    assert ours.training.weight_decay == 0.0
    assert Recommender("sasrec").training == TrainConfig()


def test_configured_takes_plain_values() -> None:
    recommender = Recommender.configured(
        "recblr", {"model": {"dim": 16, "dropout": 0}, "train": {"lr": 0.01, "seed": 3}}
    )
    assert recommender.config == replace(TINY_MODEL, layers=2, dropout=0.0)
    assert (recommender.training.lr, recommender.training.seed) == (0.01, 3)
    assert Recommender.configured("recblr", {}).training == recblr.TrainConfig()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("recbler", {}, "unknown model 'recbler'; did you mean recblr"),
        ("recblr", {"trian": {}}, "no such section of settings: trian; did you mean train"),
        ("recblr", {"train": {"learning_rate": 1}}, "train.learning_rate: no such setting"),
        (
            "recblr",
            {"train": {"examples": "all"}},
            "choose one of auto, all-positions, prefixes, cloze",
        ),
        (
            "recblr",
            {"train": {"hide_seen": "yes"}},
            "train.mask_seen_in_loss = 'yes': must be bool",
        ),
        ("recblr", {"train": {"epochs": True}}, "train.epochs = True: must be int"),
        ("recblr", {"model": {"layers": 1.5}}, "model.layers = 1.5: must be int"),
    ],
)
def test_configured_refuses_unknown_names_and_wrong_types(
    model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Recommender.configured(model, settings)


def test_a_missing_device_is_refused(tiny: Tiny) -> None:
    for use in (
        lambda: Recommender(device="cuda:99"),
        lambda: Recommender.configured("recblr", {}, "cuda:99"),
        lambda: load(tiny.artifact, "cuda:99"),
    ):
        with pytest.raises(InputError, match="no device 'cuda:99'"):
            use()
    on_cpu = load(tiny.artifact, "cpu")
    assert on_cpu.device == on_cpu.network.item_embeddings.device == torch.device("cpu")


def test_the_public_names_exist() -> None:
    for name in recblr.__all__:
        assert getattr(recblr, name).__name__ == name
    assert recblr.__version__ == version("recblr")
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = recblr.Recomender
