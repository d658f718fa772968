"""The training loop: early stopping, the best weights, the run log."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from conftest import TINY_MODEL, TINY_TRAINING, assert_same_tensors
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.models.bert4rec import BERT4Rec, BERT4RecConfig
from recblr.models.sasrec import SASRec, SASRecConfig
from recblr.ops.cross_entropy import cross_entropy
from recblr.recommender import Recommender
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig, resolve
from recblr.training.trainer import Epoch
from training.tools import LOSS, VALIDATE, folder, fresh, lines, scripted, train


def test_early_stopping_restores_the_best_weights(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Tensor]] = []
    # Epoch 4 equals the best epoch, which is not an improvement.
    monkeypatch.setattr(VALIDATE, scripted([0.1, 0.3, 0.2, 0.3, 0.1, 0.9], kept))
    model = fresh(sequences)
    trained = train(model, sequences, replace(TINY_TRAINING, epochs=9, patience=3), tmp_path)
    assert (trained.epoch, trained.best_epoch, trained.ended) == (5, 2, "converged")
    assert trained.validation == {"NDCG@10": 0.3}
    assert_same_tensors(model.state_dict(), kept[1])
    assert not kept[1]["embedding.weight"].equal(kept[4]["embedding.weight"])
    assert not model.training


def test_the_run_log_has_a_line_of_json_for_each_epoch(
    sequences: Sequences, tmp_path: Path
) -> None:
    trained = train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    start, *epochs, end = lines(tmp_path)
    assert [line["event"] for line in (start, *epochs, end)] == ["start", "epoch", "epoch", "end"]
    assert start.keys() == {"event", "time", "config", "data"}
    assert TrainConfig(**start["config"]) == replace(TINY_TRAINING, examples="all-positions")
    assert start["data"] == sequences.fingerprint
    for number, line in enumerate(epochs, 1):
        assert line.keys() == {
            "event", "time", "epoch", "loss", "targets", "seconds", "validation", "unmasked", "masked",
        }  # fmt: skip
        assert line["epoch"] == number
        assert line["validation"] == line["masked"] != line["unmasked"]
        for protocol in ("unmasked", "masked"):
            assert line[protocol].keys() == {
                f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)
            }
    del end["event"], end["time"]
    assert Trained(**end) == trained
    assert trained.validation == epochs[trained.best_epoch - 1]["validation"]
    assert trained.best_epoch == 1 + np.argmax([line["validation"]["NDCG@10"] for line in epochs])
    assert 0 < epochs[0]["seconds"] < epochs[1]["seconds"]


@pytest.mark.parametrize("protocol", ["unmasked", "masked"])
def test_the_selection_protocol_chooses_the_best_epoch(
    protocol: Any, sequences: Sequences, tmp_path: Path
) -> None:
    model = fresh(sequences)
    config = replace(TINY_TRAINING, selection_protocol=protocol)
    trained = train(model, sequences, config, tmp_path)
    ranks = rank_targets(model.score, sequences, "validation", config.max_length)
    assert trained.validation == metrics.means(ranks[protocol])
    best = lines(tmp_path)[trained.best_epoch]
    for name in ("unmasked", "masked"):
        assert best[name] == metrics.means(ranks[name])
    assert best["masked"] != best["unmasked"]


def test_validation_on_a_sample_of_users(
    sequences: Sequences, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recblr")
    model, config = fresh(sequences), replace(TINY_TRAINING, validation_users=50)
    trained = train(model, sequences, config, tmp_path)
    ranks = rank_targets(model.score, sequences, "validation", config.max_length, sample=50)
    everyone = rank_targets(model.score, sequences, "validation", config.max_length)
    rows = np.searchsorted(everyone["users"], ranks["users"])
    assert len(set(rows)) == 50 < len(everyone["users"])
    np.testing.assert_array_equal(ranks["masked"], everyone["masked"][rows])
    assert trained.validation == metrics.means(ranks[config.selection_protocol])
    assert "validation NDCG@10 of 50 users 0." in caplog.text


def test_masked_validation_needs_a_target_that_is_new_to_its_user(tmp_path: Path) -> None:
    """Users who hear the same songs again: masked, every epoch would have an NDCG of 0."""
    songs = {"user_id": np.repeat(range(20), 12), "item_id": np.tile(range(3), 80)}
    data = prepare(read_log(pl.DataFrame(songs)))
    config = replace(TINY_TRAINING, selection_protocol="masked")
    with pytest.warns(UserWarning, match=r"repeats an item.*selection_protocol=unmasked"):
        trained = train(fresh(data), data, config, tmp_path)
    assert trained.validation is not None
    assert trained.validation["NDCG@10"] > 0


def test_training_reports_a_line_an_epoch(
    sequences: Sequences, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recblr")
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    assert [record.name for record in caplog.records] == ["recblr"] * 2
    for number, (line, epoch) in enumerate(
        zip(caplog.messages, lines(tmp_path)[1:-1], strict=True)
    ):
        assert line.startswith(
            f"epoch {number + 1}/2: loss {epoch['loss']:.4f}, validation NDCG@10"
        )
        for protocol in ("unmasked", "masked"):
            assert f"{epoch[protocol]['NDCG@10']:.4f} {protocol}" in line


def test_on_epoch_gets_each_epoch_and_may_end_training(
    sequences: Sequences, tmp_path: Path
) -> None:
    epochs: list[Epoch] = []
    whole = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(sequences, on_epoch=epochs.append)
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert [epoch.best for epoch in epochs] == [True, whole.trained.best_epoch == 2]
    best = epochs[whole.trained.best_epoch - 1]
    assert best.validation["masked"] == whole.trained.validation != best.validation["unmasked"]
    assert epochs[1].seconds == whole.trained.seconds
    assert epochs[1].targets == epochs[0].targets == sequences.training_events - sequences.users

    def end(epoch: Epoch) -> None:
        raise RuntimeError("enough")

    half, out = Recommender("recblr", TINY_MODEL, TINY_TRAINING), tmp_path / "model"
    with pytest.raises(RuntimeError, match="enough"):
        half.fit(sequences, out=out, on_epoch=end)
    assert not out.exists()
    resumed: list[Epoch] = []
    half.fit(sequences, out=out, resume=True, on_epoch=resumed.append)
    assert replace(resumed[0], seconds=0) == replace(epochs[1], seconds=0)
    assert_same_tensors(half.network.state_dict(), whole.network.state_dict())


def test_the_seed_decides_the_weights(sequences: Sequences, tmp_path: Path) -> None:
    models = []
    for number, seed in enumerate((0, 0, 1)):
        model = fresh(sequences)  # the same initial weights
        config = replace(TINY_TRAINING, seed=seed, epochs=1)
        torch.rand(number)  # earlier random numbers do not matter
        train(model, sequences, config, folder(tmp_path, str(number)))
        models.append(model.state_dict())
    assert_same_tensors(models[0], models[1])
    assert not models[0]["embedding.weight"].equal(models[2]["embedding.weight"])


def test_every_epoch_has_its_own_order_and_dropout(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[tuple[int, ...]] = []
    seeds: list[int] = []

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *others: Any) -> Tensor:
        orders.append(tuple(targets.tolist()))
        seeds.append(torch.initial_seed())
        return cross_entropy(hidden, weight, targets, *others)

    monkeypatch.setattr(LOSS, loss)
    # One batch of whole histories per epoch: only their order can differ.
    config = replace(TINY_TRAINING, batch_size=10**6, max_length=200, epochs=2)
    for seed in (0, 1):
        other = replace(config, seed=seed)
        train(fresh(sequences), sequences, other, folder(tmp_path, str(seed)))
    assert len(set(orders)) == len(set(seeds)) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_the_window_of_a_model_without_a_state_is_max_length() -> None:
    model = SASRec(5, SASRecConfig(dim=4, heads=1), max_length=2000)
    assert resolve(TrainConfig(max_length=2000, window=1000), model).window == 2000
    with pytest.raises(InputError, match="this model has no recurrence"):
        resolve(TrainConfig(scan="serial"), model)


def test_a_model_that_predicts_masked_items_has_no_horizon() -> None:
    model = BERT4Rec(5, BERT4RecConfig(dim=4, heads=1), max_length=9)
    for values in ({"horizon": 2}, {"mask_seen_in_loss": True}):
        with pytest.raises(InputError, match=f"train.{next(iter(values))} does not work with"):
            resolve(TrainConfig(**values), model)


@pytest.mark.parametrize(
    "values",
    [{"max_length": 0}, {"batch_size": 0}, {"epochs": 0}, {"patience": 0}, {"warmup_steps": -1},
     {"seed": -1}, {"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"horizon": 0},
     {"horizon": 65}, {"horizon_power": -1.0}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^train\.{name} = .*: must be "):
        TrainConfig(**values)
