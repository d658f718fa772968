"""Checkpoints: a resumed run equals an uninterrupted one."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conftest import TINY_MODEL, TINY_TRAINING, assert_same_tensors
from recblr.data.log import Interactions
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError, InputError
from recblr.training.checkpoint import OtherRunError
from training.tools import LOSS, VALIDATE, at_call, folder, fresh, interrupt, lines, scripted, train


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    examples: Any, precision: Any, sequences: Sequences, steps: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = replace(TINY_TRAINING, epochs=4, examples=examples, precision=precision)
    one, other = folder(tmp_path, "one"), folder(tmp_path, "other")
    whole = fresh(sequences)
    result = train(whole, sequences, config, one)

    with monkeypatch.context() as patch:
        # In the middle of epoch 3; prefixes have one more batch.
        patch.setattr(LOSS, at_call(2 * (steps + 1) + 2, interrupt))
        stopped = train(fresh(sequences), sequences, config, other)
    assert (stopped.epoch, stopped.ended) == (2, "interrupted")
    model = fresh(sequences, seed=7)
    resumed = train(model, sequences, config, other, resume=True)

    assert_same_tensors(model.state_dict(), whole.state_dict())
    assert replace(resumed, seconds=0.0) == replace(result, seconds=0.0)
    kept = [{**line, "time": 0, "seconds": 0} for line in lines(other) if line["event"] == "epoch"]
    truth = [{**line, "time": 0, "seconds": 0} for line in lines(one) if line["event"] == "epoch"]
    assert kept == truth
    assert (one / "checkpoint.safetensors").read_bytes()[-1000:] == (
        other / "checkpoint.safetensors"
    ).read_bytes()[-1000:]


def test_resuming_a_finished_run_returns_its_result(sequences: Sequences, tmp_path: Path) -> None:
    first, second = fresh(sequences), fresh(sequences, seed=1)
    result = train(first, sequences, TINY_TRAINING, tmp_path)
    again = train(second, sequences, TINY_TRAINING, tmp_path, resume=True)
    assert replace(again, seconds=result.seconds) == result
    assert_same_tensors(second.state_dict(), first.state_dict())


def test_ctrl_c_keeps_the_best_model(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Tensor]] = []
    monkeypatch.setattr(VALIDATE, scripted([0.3, 0.2, 0.1], kept))
    monkeypatch.setattr(LOSS, at_call(2 * steps + 1, interrupt))
    model = fresh(sequences)
    trained = train(model, sequences, replace(TINY_TRAINING, epochs=9), tmp_path)
    assert (trained.epoch, trained.best_epoch, trained.ended) == (2, 1, "interrupted")
    assert len(kept) == 2
    assert_same_tensors(model.state_dict(), kept[0])
    assert not model.training


def test_ctrl_c_in_the_first_epoch_is_raised(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOSS, at_call(steps, interrupt))
    with pytest.raises(KeyboardInterrupt):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_keeps_its_last_good_checkpoint(
    value: float, sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, good = tmp_path / "checkpoint.safetensors", []

    def diverge(loss: Tensor) -> Tensor:
        good.append(checkpoint.read_bytes())
        return loss * value

    config = replace(TINY_TRAINING, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(LOSS, at_call(steps + 2, diverge))
        with pytest.raises(DivergedError, match=r"epoch 2, step 2: .* lower train\.lr"):
            train(fresh(sequences), sequences, config, tmp_path)
    assert [checkpoint.read_bytes()] == good
    assert [path.name for path in tmp_path.glob("checkpoint*")] == [checkpoint.name]
    assert train(fresh(sequences), sequences, config, tmp_path, resume=True).epoch == 3


def test_weights_that_are_not_finite_are_not_saved(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step of an epoch no loss shows them, but validation does."""

    def set_nan_gradients(loss: Tensor) -> Tensor:
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(LOSS, at_call(steps, set_nan_gradients))
    with pytest.raises(DivergedError, match="not finite"):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_resuming_another_run_is_refused(
    sequences: Sequences, interactions: Interactions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True)
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    filtered = prepare(interactions, core=9)
    reordered = prepare(interactions)
    reordered = reordered.with_items(reordered.item_ids[::-1], "test")
    longer = replace(TINY_TRAINING, epochs=3)
    for data, model, config, difference in (
        (sequences, TINY_MODEL, longer, "train.epochs = 2, not 3"),
        (sequences, TINY_MODEL, replace(TINY_TRAINING, lr=0.011), "train.lr = 0.01, not 0.011"),
        (
            sequences,
            replace(TINY_MODEL, dropout=0.3),
            TINY_TRAINING,
            "model.dropout = 0.2, not 0.3",
        ),
        (sequences, replace(TINY_MODEL, dim=8), TINY_TRAINING, "model.dim = 16, not 8"),
        (filtered, TINY_MODEL, TINY_TRAINING, "another log"),
        (reordered, TINY_MODEL, TINY_TRAINING, "another log"),
    ):
        with pytest.raises(InputError, match=rf"to another run \({difference}\);"):
            train(fresh(data, model), data, config, tmp_path, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change the metadata and the tensors of a checkpoint."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about, tensors)
    save_file(tensors, path, {"about": json.dumps(about)})


def test_a_checkpoint_without_a_new_setting_can_be_resumed(
    sequences: Sequences, tmp_path: Path
) -> None:
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    rewrite(path, lambda about, _: about["config"].pop("weight_decay"))
    assert train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True).epoch == 2
    rewrite(path, lambda about, _: about["config"].update(lr=0.5))
    with pytest.raises(OtherRunError, match=r"to another run \(train.lr = 0.5, not 0.01\); resume"):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about["run"].update(more=1),
        lambda about, tensors: about.pop("data"),
        lambda about, tensors: tensors.pop("model/embedding.weight"),
        lambda about, tensors: tensors.pop("exp_avg/embedding.weight"),
    ],
)
def test_an_incomplete_checkpoint_is_damaged(
    sequences: Sequences, tmp_path: Path, change: Any
) -> None:
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    rewrite(tmp_path / "checkpoint.safetensors", change)
    with pytest.raises(InputError, match="is damaged") as error:
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True)
    assert "\n" not in str(error.value)
