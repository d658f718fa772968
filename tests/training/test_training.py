"""Training: what it learns from, when it stops, and that an interruption changes nothing."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensorMode,
)

from conftest import TINY_MODEL, TINY_TRAINING, assert_same_tensors
from recblr.data.batches import Spans, pack, windows
from recblr.data.log import Interactions, read_log
from recblr.data.sequences import Sequences, prepare
from recblr.errors import DivergedError, InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.models.sasrec import SASRec, SASRecConfig
from recblr.ops.cross_entropy import cross_entropy
from recblr.training.trainer import (
    OtherRunError,
    Step,
    TrainConfig,
    Trained,
    adam,
    epoch_spans,
    learning_rate,
    settled,
    train,
    training_batches,
    training_step,
)

LOSS = "recblr.training.trainer.cross_entropy"
VALIDATE = "recblr.training.trainer.validate"
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
    for data, model, config, what in (
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
        (by_time, TINY_MODEL, TINY_TRAINING, "another log"),
    ):
        with pytest.raises(InputError, match=f"of another run, {what};"):
            train(fresh(data, model), data, config, tmp_path, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_the_run_log_is_a_line_of_json_for_each_epoch(sequences: Sequences, tmp_path: Path) -> None:
    trained = train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    start, *epochs, end = lines(tmp_path)
    assert [line["event"] for line in (start, *epochs, end)] == ["start", "epoch", "epoch", "end"]
    assert start.keys() == {"event", "time", "config", "data"}
    assert TrainConfig(**start["config"]) == replace(TINY_TRAINING, examples="all-positions")
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
    # It rises over a fifth of all updates at most: a small log has few.
    assert learning_rate(replace(config, schedule="constant"), 0, 9, 5) == 0.5
    assert learning_rate(replace(config, schedule="constant"), 0, 4, 5) == 0.25


def test_the_optimiser_is_given_the_learning_rate(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam) -> Any:
        used.extend(float(group["lr"]) for group in self.param_groups)
        return step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    train(fresh(sequences), sequences, replace(TINY_TRAINING, epochs=1), tmp_path)
    config = replace(TINY_TRAINING, epochs=1)
    rates = [learning_rate(config, 0, number, steps) for number in range(steps)]
    assert used == pytest.approx(rates, rel=1e-6)  # float32


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
    for row, item in hiding["seen"].t().tolist():
        hidden[row].append(item)
    found = sorted(
        (target, sorted(set(items)))
        for target, items in zip(hiding["targets"].tolist(), hidden, strict=True)
    )
    expected = []
    for begin, end in zip(sequences.offsets[:-1], sequences.split.train_end, strict=True):
        history = sequences.items[begin:end].tolist()
        for t in range(1, len(history)):
            expected.append((history[t], sorted(set(history[:t]))))  # noqa: PERF401
    assert found == sorted(expected)
    assert hiding["loss"] < plain["loss"] - 0.1


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change what a checkpoint says of itself, and its tensors."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about, tensors)
    save_file(tensors, path, {"about": json.dumps(about)})


def test_a_checkpoint_from_before_a_setting_was_added_goes_on(
    sequences: Sequences, tmp_path: Path
) -> None:
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    rewritten(path, lambda about, _: about["config"].pop("weight_decay"))
    assert train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True).epoch == 2
    rewritten(path, lambda about, _: about["config"].update(lr=0.5))
    with pytest.raises(OtherRunError, match=r"of another run, train.lr = 0.5, not 0.01; resume"):
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
def test_a_checkpoint_that_lacks_something_is_damaged(
    sequences: Sequences, tmp_path: Path, change: Any
) -> None:
    train(fresh(sequences), sequences, TINY_TRAINING, tmp_path)
    rewritten(tmp_path / "checkpoint.safetensors", change)
    with pytest.raises(InputError, match="is damaged") as error:
        train(fresh(sequences), sequences, TINY_TRAINING, tmp_path, resume=True)
    assert "\n" not in str(error.value)


def test_a_model_without_a_state_trains_on_as_much_as_it_looks_at() -> None:
    model = SASRec(5, SASRecConfig(dim=4, heads=1), max_length=2000)
    assert settled(TrainConfig(max_length=2000, window=1000), model).window == 2000
    with pytest.raises(InputError, match="this model has no recurrence to scan"):
        settled(TrainConfig(scan="serial"), model)


def test_batches_smaller_than_a_window(sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, batch_size=8, epochs=1, max_length=30)
    assert train(fresh(sequences), sequences, config, tmp_path).epoch == 1
    assert lines(tmp_path)[1]["loss"] < math.log(len(sequences.item_ids))


def test_weight_decay_shrinks_the_weights(sequences: Sequences, tmp_path: Path) -> None:
    def norm(decay: float) -> float:
        model = fresh(sequences)
        config = replace(TINY_TRAINING, epochs=3, weight_decay=decay)
        train(model, sequences, config, folder(tmp_path, f"{decay}"))
        return model.embedding.weight.norm().item()

    assert norm(0.5) < 0.9 * norm(0.0)


# ---- the step and its batches -------------------------------------------------------------------


def standing_still(model: RecBLR, config: TrainConfig) -> tuple[Step, Tensor]:
    """A step at a learning rate of 0 and the sum of its losses; it leaves its gradients behind."""
    total = torch.zeros((), dtype=torch.float64)
    return training_step(model, deepcopy(model), adam(model), config, total), total


def stirred(data: Sequences) -> RecBLR:
    """Without dropout, and with weights large enough that what came before matters."""
    model = fresh(data, replace(TINY_MODEL, dropout=0.0)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def gradients(model: RecBLR) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def test_pieces_of_a_history_have_the_vectors_of_one_pass(
    sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[Tensor] = []

    def loss(vectors: Tensor, *arguments: Any) -> Tensor:
        hidden.append(vectors.detach())
        return cross_entropy(vectors, *arguments)

    monkeypatch.setattr(LOSS, loss)
    model = stirred(sequences)
    nothing = model.initial_state(1)
    for batch_size in (4, 25, 10**6):  # smaller than most histories, larger, all in one
        config = replace(TINY_TRAINING, batch_size=batch_size, window=30)
        step, _ = standing_still(model, config)
        for epoch in (0, 1):
            hidden.clear()
            found: dict[int, Tensor] = {}
            spans, state, severed = epoch_spans(sequences, config, epoch), nothing, 0
            for batch, goes_on in training_batches(sequences.items, spans, config):
                state = step(batch, state if goes_on else nothing)
                severed += goes_on
            for (starts, stops), vectors in zip(spans, hidden, strict=True):
                rows = [row for a, b in zip(starts, stops, strict=True) for row in range(a, b)]
                found |= dict(zip(rows, vectors, strict=True))
            assert severed > 0 or len(spans) == 1
            begins, ends = sequences.offsets[:-1], sequences.split.train_end
            whole = windows(begins, ends, 30, 15 * epoch)
            batch = pack(sequences.items, *whole, "none")
            with torch.no_grad():
                truth, _ = model(batch.items, batch.offsets)
            order = [row for a, b in zip(*whole, strict=True) for row in range(a, b)]
            assert sorted(order) == sorted(found)
            ours = torch.stack([found[row] for row in order])
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def test_cuts_between_batches_do_not_change_the_loss(sequences: Sequences, tmp_path: Path) -> None:
    """Of weights that hardly move."""
    config = replace(TINY_TRAINING, lr=1e-9, epochs=1, window=200)
    for batch_size in (10, 10**6):
        work = folder(tmp_path, str(batch_size))
        train(stirred(sequences), sequences, replace(config, batch_size=batch_size), work)
    cut, whole = (lines(tmp_path / name)[1]["loss"] for name in ("10", "1000000"))
    assert cut == pytest.approx(whole, rel=1e-5)


def test_a_sample_never_goes_on_from_another(sequences: Sequences) -> None:
    spans = [(np.array([0]), np.array([5])), (np.array([5]), np.array([9]))]
    for examples, expected in (("all-positions", [False, True]), ("prefixes", [False, False])):
        config = replace(TINY_TRAINING, examples=examples)  # type: ignore[arg-type]
        batches = training_batches(sequences.items, spans, config)
        assert [goes_on for _, goes_on in batches] == expected


def test_the_gradient_stops_at_the_seam(sequences: Sequences) -> None:
    model = stirred(sequences)
    step, _ = standing_still(model, TINY_TRAINING)
    items = sequences.items
    spans = [(np.array([50, 0]), np.array([53, 20])), (np.array([20]), np.array([29]))]
    first, second = (pack(items, *some, "all") for some in spans)
    after = step(first, model.initial_state(1))
    with torch.no_grad():
        _, states = model(first.items, first.offsets)
    torch.testing.assert_close(after, states[1:], rtol=0, atol=1e-6)
    assert not after.requires_grad
    step(second, after)
    ours = gradients(model)
    hidden, _ = model(second.items, second.offsets, states[1:])
    loss = cross_entropy(hidden, model.item_embeddings, second.targets)
    theirs = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(ours, list(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_batches_out_of_a_tensor_have_shapes_that_recur_and_train_the_same(
    examples: Any, sequences: Sequences
) -> None:
    """A tensor is how a GPU holds the log."""
    size = 300 if examples == "prefixes" else 100
    config = replace(TINY_TRAINING, examples=examples, batch_size=size)
    model = stirred(sequences)
    step, total = standing_still(model, config)
    nothing, log = model.initial_state(1), torch.tensor(sequences.items)
    found: list[list[Any]] = [[], []]
    shapes = set()
    for epoch in range(2):
        spans = epoch_spans(sequences, config, epoch)
        for results, items in zip(found, (sequences.items, log), strict=True):
            state = nothing
            for batch, goes_on in training_batches(items, spans, config):
                total.zero_()
                state = step(batch, state if goes_on else nothing)
                count = torch.tensor(len(batch.targets))
                results.append([goes_on, state, total.clone(), count, *gradients(model)])
                if items is log:
                    shapes.add((len(batch.items), len(batch.offsets), len(batch.targets)))
    for theirs, ours in zip(*found, strict=True):
        assert ours[0] == theirs[0]
        # Of prefixes nothing goes on, and the state after the last row is that of a pad.
        first = 2 if examples == "prefixes" else 1
        torch.testing.assert_close(ours[first:], theirs[first:], rtol=1e-4, atol=1e-6)
    assert len(found[0]) >= 10 > 2 * len(shapes)
    if examples == "prefixes":
        assert {rows % 16384 for rows, _, _ in shapes} == {0}


def test_an_epoch_of_hidden_items_is_five_passes(sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, window=20)
    cloze = replace(config, examples="cloze")

    def rows(spans: list[Spans]) -> list[int]:
        each = [zip(starts, stops, strict=True) for starts, stops in spans]
        return sorted(row for some in each for a, b in some for row in range(a, b))

    once, every = rows(epoch_spans(sequences, config, 0)), epoch_spans(sequences, cloze, 1)
    assert rows(every) == sorted(5 * once)
    passes = [
        every[first : first + len(every) // 5] for first in range(0, len(every), len(every) // 5)
    ]
    assert all(rows(one) == once for one in passes)
    begins = [frozenset(start for starts, _ in one for start in starts) for one in passes]
    assert len(set(begins)) == 5, "each is shuffled, and every other one cut elsewhere"


def test_samples_are_filled_up_by_short_histories(sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, examples="prefixes", batch_size=64, max_length=12)
    log = torch.tensor(sequences.items)
    spans = epoch_spans(sequences, config, 0)
    plain = training_batches(sequences.items, spans, config)
    for (batch, _), (exact, _) in zip(training_batches(log, spans, config), plain, strict=True):
        rows = len(exact.items)
        assert rows < len(batch.items) == 16384
        assert batch.items[:rows].equal(exact.items)
        assert batch.positions.equal(exact.positions)
        assert batch.targets.equal(exact.targets)
        lengths = batch.offsets.diff()
        assert lengths.max() == 12
        assert lengths.min() == 0
        more = batch.items[rows : rows + 24]
        assert more.tolist() == 2 * sequences.items[:12].tolist()


@pytest.mark.parametrize("hide_seen", [False, True])
@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_nothing_in_a_step_looks_at_a_value(
    examples: Any, hide_seen: bool, sequences: Sequences
) -> None:
    """A tensor without values is enough: a GPU is not waited for, and a CUDA graph can hold it."""
    config = replace(TINY_TRAINING, examples=examples, hide_seen=hide_seen)
    log, spans = torch.tensor(sequences.items), epoch_spans(sequences, config, 0)
    batches = list(training_batches(log, spans, config))
    model, mode = stirred(sequences), FakeTensorMode()
    with FakeCopyMode(mode):
        model, average, batches = deepcopy((model, deepcopy(model), batches))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    with mode:
        total = torch.zeros((), dtype=torch.float64)
        step = training_step(model, average, optimizer, config, total)
        state = model.initial_state(1)
        for batch, _ in batches:
            state = step(batch, state)
        users = model.initial_state(7)
        hidden, after = model.step(torch.zeros(7, dtype=torch.int64), users)
    assert state.shape == model.initial_state(1).shape
    assert (len(hidden), after.shape) == (7, users.shape)
    with pytest.raises(DataDependentOutputException):
        total.item()


def test_a_long_history_trains_in_pieces(tmp_path: Path) -> None:
    """200,000 events in one window, a batch at a time: three in four events follow from the last."""
    rng, items, length = np.random.default_rng(0), 20, 200_000
    steps = np.where(rng.random(length) < 0.75, 1, rng.integers(items, size=length))
    walk = np.cumsum(steps) % items
    user = np.zeros(length, np.int64)
    data = prepare(read_log(pl.DataFrame({"user_id": user, "item_id": walk})))
    config = replace(TINY_TRAINING, epochs=1, window=length, batch_size=2048)
    assert all(len(starts) == 1 for starts, _ in epoch_spans(data, config, 0))
    train(fresh(data), data, config, tmp_path)
    chance = 0.75 + 0.25 / items
    others = 0.25 / items
    entropy = -chance * math.log(chance) - (items - 1) * others * math.log(others)
    (epoch,) = [line for line in lines(tmp_path) if line["event"] == "epoch"]
    assert epoch["targets"] == length - 3
    assert entropy - 0.01 < epoch["loss"] < (entropy + math.log(items)) / 2


SCANS: tuple[Any, ...] = ("packed", "serial", "embedding-padding", "sequence-padding")


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_every_way_to_scan_trains_the_same_model(examples: Any, sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, examples=examples, batch_size=60, hide_seen=True)
    model = stirred(sequences)
    (batch, _) = next(training_batches(sequences.items, epoch_spans(sequences, config, 0), config))
    assert len(set(batch.offsets.diff().tolist())) > 2
    found = []
    for scan in SCANS:
        step, total = standing_still(model, replace(config, scan=scan))
        step(batch, model.initial_state(1))
        found.append([total, *gradients(model)])
    for theirs in found[1:]:
        torch.testing.assert_close(theirs, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scan", SCANS[1:])
def test_the_scan_is_the_one_asked_for(
    scan: Any, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the gradient: the fused kernels are never called, and pads are where they belong."""
    shapes: list[tuple[int, bool]] = []
    model = stirred(sequences)
    forward = model.forward

    def noted(items: Tensor, offsets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        lengths = offsets.diff()
        shapes.append((len(items), bool((lengths == lengths.max()).all())))
        return forward(items, offsets, state)

    def refuse(*_: Any) -> None:
        raise AssertionError("the fused kernel was called")

    monkeypatch.setattr(model, "forward", noted)
    for name in ("bd_lru", "bd_lru_backward"):
        monkeypatch.setattr(f"recblr.ops.cpu.{name}", refuse)
    batch = pack(sequences.items, np.array([0, 30]), np.array([9, 33]), "all")
    step, _ = standing_still(model, replace(TINY_TRAINING, scan=scan))
    after = step(batch, torch.ones_like(model.initial_state(1)))
    if scan == "sequence-padding":
        assert shapes == [(32, True)]
        assert not after.any(), "a state after pads is none to go on from"
    else:
        assert shapes == [(12, False)]
        assert after.any()
    with pytest.raises(AssertionError, match="fused"):
        standing_still(model, TINY_TRAINING)[0](batch, model.initial_state(1))


@pytest.mark.parametrize("scan", SCANS)
def test_a_run_with_each_scan(scan: Any, sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, scan=scan, epochs=2, batch_size=600)
    train(fresh(sequences), sequences, config, tmp_path)
    first, second = [line["loss"] for line in lines(tmp_path) if line["event"] == "epoch"]
    assert second < first < math.log(len(sequences.item_ids)) + 0.1


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
    history = [[parameter.detach().clone() for parameter in model.parameters()]]
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
