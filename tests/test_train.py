"""Training: what it learns from, when it stops, and that an interruption changes nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY_MODEL, TINY_TRAINING, assert_same_tensors
from recblr import metrics
from recblr.data.log import Interactions
from recblr.data.sequences import Sequences, prepare
from recblr.errors import DivergedError, InputError
from recblr.evaluate import rank_targets
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops.cross_entropy import cross_entropy
from recblr.train import TrainConfig, Trained, learning_rate, train

LOSS = "recblr.train.cross_entropy"
VALIDATE = "recblr.train.validate"
Loss = Callable[..., Tensor]


def fresh(data: Sequences, config: RecBLRConfig = TINY_MODEL, seed: int = 0) -> RecBLR:
    torch.manual_seed(seed)
    return RecBLR(len(data.item_ids), config)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def at_call(number: int, act: Callable[[Tensor], Tensor]) -> Loss:
    """The loss, but its call ``number`` (from 1) goes through ``act``."""
    calls = 0

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None, smoothing: float
    ) -> Tensor:
        nonlocal calls
        calls += 1
        value = cross_entropy(hidden, weight, targets, seen, smoothing)
        return act(value) if calls == number else value

    return loss


def interrupt(value: Tensor) -> Tensor:
    raise KeyboardInterrupt


def recorded(calls: list[dict[str, Any]]) -> Loss:
    """The loss, which also notes what it is asked for."""

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None, smoothing: float
    ) -> Tensor:
        value = cross_entropy(hidden, weight, targets, seen, smoothing)
        calls.append({"targets": targets, "seen": seen, "loss": value.item()})
        return value

    return loss


@pytest.fixture(scope="module")
def steps(sequences: Sequences) -> int:
    """Updates of an epoch of the tiny training, several."""
    events = int((sequences.split.train_end - sequences.offsets[:-1] - 1).sum())
    steps = round(events / TINY_TRAINING.batch_size)
    assert steps >= 3
    return steps


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_both_kinds_of_examples_predict_every_event_but_the_first(
    examples: Any, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(LOSS, recorded(calls))
    # Windows of 5 cut most histories: every position has to come up all the same, once an epoch.
    config = replace(TINY_TRAINING, examples=examples, max_length=5)
    train(fresh(sequences), sequences, config, tmp_path)
    expected = np.sort(
        np.concatenate(
            [
                sequences.items[begin + 1 : end]
                for begin, end in zip(
                    sequences.offsets[:-1], sequences.split.train_end, strict=True
                )
            ]
        )
    )
    seen = np.sort(torch.cat([call["targets"] for call in calls]).numpy())
    np.testing.assert_array_equal(seen, np.sort(np.concatenate([expected, expected])))
    epochs = [line for line in lines(tmp_path) if line["event"] == "epoch"]
    assert [line["targets"] for line in epochs] == [len(expected)] * 2
    assert epochs[1]["loss"] < epochs[0]["loss"] < math.log(len(sequences.item_ids)) + 0.1


def test_one_causal_pass_has_the_loss_of_all_its_prefixes(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY_TRAINING, max_length=200, batch_size=10**6, epochs=1)
    losses = []
    for examples in ("all-positions", "prefixes"):
        calls: list[dict[str, Any]] = []
        monkeypatch.setattr(LOSS, recorded(calls))
        torch.manual_seed(0)
        model = fresh(sequences, replace(TINY_MODEL, dropout=0.0))
        train(model, sequences, replace(config, examples=examples), folder(tmp_path, examples))  # type: ignore[arg-type]
        (call,) = calls
        losses.append(call["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_a_resumed_run_is_the_uninterrupted_one(
    examples: Any, precision: Any, sequences: Sequences, steps: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = replace(TINY_TRAINING, epochs=4, examples=examples, precision=precision)
    one, other = folder(tmp_path, "one"), folder(tmp_path, "other")
    whole = fresh(sequences)
    told = train(whole, sequences, config, one)

    with monkeypatch.context() as patch:
        # In the middle of epoch 3; prefixes fill one batch more.
        patch.setattr(LOSS, at_call(2 * (steps + 1) + 2, interrupt))
        stopped = train(fresh(sequences), sequences, config, other)
    assert (stopped.epoch, stopped.ended) == (2, "interrupted")
    model = fresh(sequences, seed=7)
    resumed = train(model, sequences, config, other, resume=True)

    assert_same_tensors(model.state_dict(), whole.state_dict())
    assert replace(resumed, seconds=0.0) == replace(told, seconds=0.0)
    kept = [{**line, "time": 0, "seconds": 0} for line in lines(other) if line["event"] == "epoch"]
    truth = [{**line, "time": 0, "seconds": 0} for line in lines(one) if line["event"] == "epoch"]
    assert kept == truth
    assert (one / "checkpoint.safetensors").read_bytes()[-1000:] == (
        other / "checkpoint.safetensors"
    ).read_bytes()[-1000:]


def test_a_run_that_was_done_resumes_to_its_end(sequences: Sequences, tmp_path: Path) -> None:
    first, second = fresh(sequences), fresh(sequences, seed=1)
    told = train(first, sequences, TINY_TRAINING, tmp_path)
    again = train(second, sequences, TINY_TRAINING, tmp_path, resume=True)
    assert replace(again, seconds=told.seconds) == told
    assert_same_tensors(second.state_dict(), first.state_dict())


def scripted(values: list[float], kept: list[dict[str, Tensor]]) -> Callable[..., dict[str, float]]:
    """A validation that finds ``values`` in turn and keeps the weights it was shown."""

    def validate(model: RecBLR, data: Sequences, config: TrainConfig) -> dict[str, float]:
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"NDCG@10": values[len(kept) - 1]}

    return validate


def test_it_stops_without_progress_and_returns_to_its_best(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Tensor]] = []
    # Equal to the best is no better: epoch 4 does not count as progress.
    monkeypatch.setattr(VALIDATE, scripted([0.1, 0.3, 0.2, 0.3, 0.1, 0.9], kept))
    model = fresh(sequences)
    trained = train(model, sequences, replace(TINY_TRAINING, epochs=9, patience=3), tmp_path)
    assert (trained.epoch, trained.best_epoch, trained.ended) == (5, 2, "converged")
    assert trained.validation == {"NDCG@10": 0.3}
    assert_same_tensors(model.state_dict(), kept[1])
    assert not kept[1]["embedding.weight"].equal(kept[4]["embedding.weight"])
    assert not model.training


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


def test_ctrl_c_before_the_first_epoch_is_done_goes_on_up(
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


def test_weights_that_are_not_finite_are_no_checkpoint(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last step of an epoch spoils them, no loss tells, but validation does."""

    def spoil(loss: Tensor) -> Tensor:
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(LOSS, at_call(steps, spoil))
    with pytest.raises(DivergedError, match="not finite"):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_resuming_something_else_is_refused(
    sequences: Sequences, interactions: Interactions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True)
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    filtered = prepare(interactions, core=9)
    by_time = prepare(interactions, split="time")
    longer = replace(TINY_TRAINING, epochs=3)
    for data, model, config in (
        (sequences, TINY_MODEL, longer),
        (sequences, TINY_MODEL, replace(TINY_TRAINING, lr=0.011)),
        (sequences, replace(TINY_MODEL, dropout=0.3), TINY_TRAINING),
        (sequences, replace(TINY_MODEL, dim=8), TINY_TRAINING),
        (filtered, TINY_MODEL, TINY_TRAINING),
        (by_time, TINY_MODEL, TINY_TRAINING),
    ):
        with pytest.raises(InputError, match="another configuration or log"):
            train(fresh(data, model), data, config, tmp_path, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_the_run_log_is_a_line_of_json_for_each_epoch(sequences: Sequences, tmp_path: Path) -> None:
    trained = train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    start, *epochs, end = lines(tmp_path)
    assert [line["event"] for line in (start, *epochs, end)] == ["start", "epoch", "epoch", "end"]
    assert start.keys() == {"event", "time", "config", "data"}
    assert TrainConfig(**start["config"]) == TINY_TRAINING
    assert start["data"] == sequences.fingerprint
    for number, line in enumerate(epochs, 1):
        assert line.keys() == {
            "event", "time", "epoch", "loss", "targets", "seconds", "validation",
        }  # fmt: skip
        assert line["epoch"] == number
        assert line["validation"].keys() == {
            f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)
        }
    del end["event"], end["time"]
    assert Trained(**end) == trained
    assert trained.validation == epochs[trained.best_epoch - 1]["validation"]
    assert trained.best_epoch == 1 + np.argmax([line["validation"]["NDCG@10"] for line in epochs])
    assert 0 < epochs[0]["seconds"] < epochs[1]["seconds"]


@pytest.mark.parametrize("select", ["unmasked", "masked"])
def test_the_best_epoch_is_chosen_by_the_protocol_asked_for(
    select: Any, sequences: Sequences, tmp_path: Path
) -> None:
    model = fresh(sequences)
    config = replace(TINY_TRAINING, select=select)
    trained = train(model, sequences, config, tmp_path)
    ranks = rank_targets(model.score, sequences, "validation", config.max_length)
    assert trained.validation == metrics.means(ranks[select])
    assert metrics.means(ranks["masked"]) != metrics.means(ranks["unmasked"])


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(lr=0.5, epochs=10, warmup_steps=30)
    places = [(epoch, number) for epoch in range(10) for number in range(20)]
    rates = [learning_rate(config, *place, 20) for place in places]
    flat = [learning_rate(replace(config, schedule="constant"), *place, 20) for place in places]
    # Thirty equal steps up to the highest, by the thirtieth update, and there it stays.
    np.testing.assert_allclose(flat[:30], 0.5 * np.arange(1, 31) / 30)
    assert flat[30:] == [0.5] * 170
    # The cosine: half-way down at the middle, close to 0 in the last update.
    falls = 0.5 * (1 + np.cos(np.pi * np.arange(200) / 200))
    np.testing.assert_allclose(rates, np.array(flat) * falls)
    assert rates[100] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(replace(config, warmup_steps=0), 0, 0, 20) == 0.5


def test_the_optimiser_is_given_the_learning_rate(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam) -> Any:
        used.extend(group["lr"] for group in self.param_groups)
        return step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    train(fresh(sequences), sequences, replace(TINY_TRAINING, epochs=1), tmp_path)
    config = replace(TINY_TRAINING, epochs=1)
    assert used == [learning_rate(config, 0, number, steps) for number in range(steps)]


def test_the_seed_decides_the_weights(sequences: Sequences, tmp_path: Path) -> None:
    models = []
    for number, seed in enumerate((0, 0, 1)):
        model = fresh(sequences)  # all begin alike
        config = replace(TINY_TRAINING, seed=seed, epochs=1)
        torch.rand(number)  # what was drawn before does not matter
        train(model, sequences, config, folder(tmp_path, str(number)))
        models.append(model.state_dict())
    assert_same_tensors(models[0], models[1])
    assert not models[0]["embedding.weight"].equal(models[2]["embedding.weight"])


def test_every_epoch_has_an_order_and_a_dropout_of_its_own(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[tuple[int, ...]] = []
    seeds: list[int] = []

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None, smoothing: float
    ) -> Tensor:
        orders.append(tuple(targets.tolist()))
        seeds.append(torch.initial_seed())
        return cross_entropy(hidden, weight, targets, seen, smoothing)

    monkeypatch.setattr(LOSS, loss)
    # One batch an epoch, whole histories: only their order can differ.
    config = replace(TINY_TRAINING, batch_size=10**6, max_length=200, epochs=2)
    for seed in (0, 1):
        other = replace(config, seed=seed)
        train(fresh(sequences), sequences, other, folder(tmp_path, str(seed)))
    assert len(set(orders)) == len(set(seeds)) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_hide_seen_leaves_the_histories_items_out_of_the_softmax(
    examples: Any, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(LOSS, recorded(calls))
    config = replace(TINY_TRAINING, examples=examples, max_length=200, epochs=1, batch_size=10**6)
    train(fresh(sequences), sequences, replace(config, hide_seen=True), folder(tmp_path, "on"))
    train(fresh(sequences), sequences, config, folder(tmp_path, "off"))
    hiding, plain = calls
    assert plain["seen"] is None
    # What each target hides, whatever the order of the targets.
    hidden: list[list[int]] = [[] for _ in hiding["targets"]]
    for row, item in hiding["seen"].tolist():
        hidden[row].append(item)
    found = sorted(
        (target, sorted(set(items)))
        for target, items in zip(hiding["targets"].tolist(), hidden, strict=True)
    )
    expected = []
    for begin, end in zip(sequences.offsets[:-1], sequences.split.train_end, strict=True):
        history = sequences.items[begin:end].tolist()
        for t in range(1, len(history)):
            expected.append((history[t], sorted(set(history[:t]) - {history[t]})))  # noqa: PERF401
    assert found == sorted(expected)
    assert hiding["loss"] < plain["loss"] - 0.1


def test_batches_smaller_than_a_window(sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, batch_size=8, epochs=1, max_length=30)
    assert train(fresh(sequences), sequences, config, tmp_path).epoch == 1
    assert lines(tmp_path)[1]["loss"] < math.log(len(sequences.item_ids))


@pytest.mark.parametrize(
    "values",
    [{"max_length": 0}, {"batch_size": 0}, {"epochs": 0}, {"patience": 0}, {"warmup_steps": -1},
     {"seed": -1}, {"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^train\.{name} = .*: must be "):
        TrainConfig(**values)


def test_the_average_of_the_weights_is_what_is_kept(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the moving average written out, over the updates of one epoch."""
    model, decay = fresh(sequences), 0.9
    history: list[list[Tensor]] = []
    update = torch.optim.Adam.step

    def watched(self: torch.optim.Adam) -> None:
        update(self)
        history.append([parameter.detach().clone() for parameter in model.parameters()])

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    config = replace(TINY_TRAINING, epochs=1, weight_average=decay)
    train(model, sequences, config, folder(tmp_path, "run"))
    assert len(history) > 3
    average = history[0]
    for weights in history[1:]:
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for kept, expected, last in zip(model.parameters(), average, history[-1], strict=True):
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(kept, last)
