"""A training step: loss, state, gradient and scan."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensorMode,
)

from conftest import TINY_MODEL, TINY_TRAINING
from recblr.data.batches import pack, windows
from recblr.data.sequences import Sequences
from recblr.ops.cross_entropy import cross_entropy
from recblr.training.config import TrainConfig
from recblr.training.step import TrainingStep, learning_rate
from training.tools import (
    LOSS,
    epoch_spans,
    folder,
    fresh,
    gradients,
    lines,
    perturbed,
    recorded,
    train,
    training_batches,
    zero_rate_step,
)


def test_a_history_in_several_batches_has_the_vectors_of_one_pass(
    sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[Tensor] = []

    def loss(vectors: Tensor, *arguments: Any) -> Tensor:
        hidden.append(vectors.detach())
        return cross_entropy(vectors, *arguments)

    monkeypatch.setattr(LOSS, loss)
    model = perturbed(sequences)
    zero_state = model.initial_state(1)
    for batch_size in (4, 25, 10**6):  # smaller than most histories, larger, one batch
        config = replace(TINY_TRAINING, batch_size=batch_size, window=30)
        step, _ = zero_rate_step(model, config)
        for epoch in (0, 1):
            hidden.clear()
            vectors_of: dict[int, Tensor] = {}
            spans, state, continued = epoch_spans(sequences, config, epoch), zero_state, 0
            for batch, continues in training_batches(sequences.items, spans, config):
                state = step(batch, state if continues else zero_state)
                continued += continues
            for (starts, stops), vectors in zip(spans, hidden, strict=True):
                rows = [row for a, b in zip(starts, stops, strict=True) for row in range(a, b)]
                vectors_of |= dict(zip(rows, vectors, strict=True))
            assert continued > 0 or len(spans) == 1
            begins, ends = sequences.offsets[:-1], sequences.split.train_end
            whole = windows(begins, ends, 30, 15 * epoch)
            batch = pack(sequences.items, *whole, "none")
            with torch.no_grad():
                truth, _ = model(batch.items, batch.offsets)
            order = [row for a, b in zip(*whole, strict=True) for row in range(a, b)]
            assert sorted(order) == sorted(vectors_of)
            ours = torch.stack([vectors_of[row] for row in order])
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def test_cuts_between_batches_do_not_change_the_loss(sequences: Sequences, tmp_path: Path) -> None:
    """At a learning rate near 0."""
    config = replace(TINY_TRAINING, lr=1e-9, epochs=1, window=200)
    for batch_size in (10, 10**6):
        work = folder(tmp_path, str(batch_size))
        train(perturbed(sequences), sequences, replace(config, batch_size=batch_size), work)
    several, one = (lines(tmp_path / name)[1]["loss"] for name in ("10", "1000000"))
    assert several == pytest.approx(one, rel=1e-5)


def test_the_gradient_stops_between_batches(sequences: Sequences) -> None:
    model = perturbed(sequences)
    step, _ = zero_rate_step(model, TINY_TRAINING)
    items = sequences.items
    spans = [(np.array([50, 0]), np.array([53, 20])), (np.array([20]), np.array([29]))]
    first, second = (pack(items, *batch, "all") for batch in spans)
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_a_step_reads_no_value_of_a_tensor(
    examples: Any, masked: bool, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on fake tensors, so it does not wait for a GPU and a CUDA graph can capture it."""
    config = replace(TINY_TRAINING, examples=examples, mask_seen_in_loss=masked)
    log, spans = torch.tensor(sequences.items), epoch_spans(sequences, config, 0)
    batches = list(training_batches(log, spans, config))
    model, mode = perturbed(sequences), FakeTensorMode()
    with FakeCopyMode(mode):
        model, average, batches = deepcopy((model, deepcopy(model), batches))
    # On a CPU the optimiser reads its learning rate, unless it is a number.
    monkeypatch.setattr(
        "recblr.training.step.adam",
        lambda model, _: torch.optim.Adam(model.parameters(), fused=True),
    )
    with mode:
        step = TrainingStep(model, average, config)
        state = model.initial_state(1)
        for batch, _ in batches:
            state = step(batch, state)
        users = model.initial_state(7)
        hidden, after = model.step(torch.zeros(7, dtype=torch.int64), users)
    assert state.shape == model.initial_state(1).shape
    assert (len(hidden), after.shape) == (7, users.shape)
    with pytest.raises(DataDependentOutputException):
        step.loss.total.item()


SCANS: tuple[Any, ...] = ("packed", "serial", "embedding-padding", "sequence-padding")


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_every_scan_trains_the_same_model(examples: Any, sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, examples=examples, batch_size=60, mask_seen_in_loss=True)
    model = perturbed(sequences)
    (batch, _) = next(training_batches(sequences.items, epoch_spans(sequences, config, 0), config))
    assert len(set(batch.offsets.diff().tolist())) > 2
    results = []
    for scan in SCANS:
        step, total = zero_rate_step(model, replace(config, scan=scan))
        step(batch, model.initial_state(1))
        results.append([total, *gradients(model)])
    for theirs in results[1:]:
        torch.testing.assert_close(theirs, results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scan", SCANS[1:])
def test_the_scan_setting_selects_the_implementation(
    scan: Any, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward: the fused kernels are not called, and only sequence padding adds pads."""
    shapes: list[tuple[int, bool]] = []
    model = perturbed(sequences)
    forward = model.forward

    def recorded_forward(
        items: Tensor, offsets: Tensor, state: Tensor, features: None
    ) -> tuple[Tensor, Tensor]:
        lengths = offsets.diff()
        shapes.append((len(items), bool((lengths == lengths.max()).all())))
        return forward(items, offsets, state, features)

    def refuse(*_: Any) -> None:
        raise AssertionError("the fused kernel was called")

    monkeypatch.setattr(model, "forward", recorded_forward)
    for name in ("bd_lru", "bd_lru_backward"):
        monkeypatch.setattr(f"recblr.ops.cpu.{name}", refuse)
    batch = pack(sequences.items, np.array([0, 30]), np.array([9, 33]), "all")
    step, _ = zero_rate_step(model, replace(TINY_TRAINING, scan=scan))
    after = step(batch, torch.ones_like(model.initial_state(1)))
    if scan == "sequence-padding":
        assert shapes == [(32, True)]
        assert not after.any(), "the state after pads is not usable"
    else:
        assert shapes == [(12, False)]
        assert after.any()
    with pytest.raises(AssertionError, match="fused"):
        zero_rate_step(model, TINY_TRAINING)[0](batch, model.initial_state(1))


@pytest.mark.parametrize("scan", SCANS)
def test_a_run_with_each_scan(scan: Any, sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, scan=scan, epochs=2, batch_size=600)
    train(fresh(sequences), sequences, config, tmp_path)
    first, second = [line["loss"] for line in lines(tmp_path) if line["event"] == "epoch"]
    assert second < first < math.log(len(sequences.item_ids)) + 0.1


def test_training_keeps_the_average_of_the_weights(
    sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the moving average over the updates of one epoch."""
    model, decay = fresh(sequences), 0.9
    history = [[parameter.detach().clone() for parameter in model.parameters()]]
    update = torch.optim.Adam.step

    def recorded_update(self: torch.optim.Adam) -> None:
        update(self)
        history.append([parameter.detach().clone() for parameter in model.parameters()])

    monkeypatch.setattr(torch.optim.Adam, "step", recorded_update)
    config = replace(TINY_TRAINING, epochs=1, ema_decay=decay)
    train(model, sequences, config, folder(tmp_path, "run"))
    assert len(history) > 3
    average = history[0]
    for weights in history[1:]:
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for kept, expected, last in zip(model.parameters(), average, history[-1], strict=True):
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(kept, last)


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(lr=0.5, epochs=10, warmup_steps=30)
    updates = [(epoch, number) for epoch in range(10) for number in range(20)]
    rates = [learning_rate(config, *update, 20) for update in updates]
    flat = [learning_rate(replace(config, schedule="constant"), *update, 20) for update in updates]
    # Thirty equal steps up to the peak at the thirtieth update, then constant.
    np.testing.assert_allclose(flat[:30], 0.5 * np.arange(1, 31) / 30)
    assert flat[30:] == [0.5] * 170
    # The cosine: half of the peak in the middle, close to 0 at the last update.
    falls = 0.5 * (1 + np.cos(np.pi * np.arange(200) / 200))
    np.testing.assert_allclose(rates, np.array(flat) * falls)
    assert rates[100] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(replace(config, warmup_steps=0), 0, 0, 20) == 0.5
    # The warm-up takes at most a fifth of all updates: a small log has few.
    assert learning_rate(replace(config, schedule="constant"), 0, 9, 5) == 0.5
    assert learning_rate(replace(config, schedule="constant"), 0, 4, 5) == 0.25


def test_the_optimiser_uses_the_learning_rate(
    sequences: Sequences, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.Adam.step

    def recorded_step(self: torch.optim.Adam) -> Any:
        used.extend(float(group["lr"]) for group in self.param_groups)
        return step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded_step)
    train(fresh(sequences), sequences, replace(TINY_TRAINING, epochs=1), tmp_path)
    config = replace(TINY_TRAINING, epochs=1)
    rates = [learning_rate(config, 0, number, steps) for number in range(steps)]
    assert used == pytest.approx(rates, rel=1e-6)  # float32


def test_weight_decay_shrinks_the_weights(sequences: Sequences, tmp_path: Path) -> None:
    def norm(decay: float) -> float:
        model = fresh(sequences)
        config = replace(TINY_TRAINING, epochs=3, weight_decay=decay)
        train(model, sequences, config, folder(tmp_path, f"{decay}"))
        return model.embedding.weight.norm().item()

    assert norm(0.5) < 0.9 * norm(0.0)


def test_one_causal_pass_has_the_loss_of_all_prefixes(
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
