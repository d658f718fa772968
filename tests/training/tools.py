"""Helpers and a fixture for the tests of training."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY_MODEL, TINY_TRAINING
from recblr.data.batches import PackedBatch, Spans
from recblr.data.sequences import Sequences
from recblr.models.model import Model
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops.cross_entropy import cross_entropy
from recblr.ranks import Ranks
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig
from recblr.training.examples import EXAMPLES, training_histories
from recblr.training.examples import training_batches as batches
from recblr.training.step import TrainingStep
from recblr.training.trainer import Trainer

LOSS = "recblr.training.step.cross_entropy"
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
    """The loss; ``act`` changes the result of call ``number``, counted from 1."""
    calls = 0

    def loss(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        value = cross_entropy(*arguments)
        return act(value) if calls == number else value

    return loss


def interrupt(value: Tensor) -> Tensor:
    raise KeyboardInterrupt


def recorded(calls: list[dict[str, Any]]) -> Loss:
    """The loss, which also records its calls."""

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None,
        smoothing: float, weights: Tensor | None, *others: Any,
    ) -> Tensor:  # fmt: skip
        value = cross_entropy(hidden, weight, targets, seen, smoothing, weights, *others)
        calls.append({"targets": targets, "seen": seen, "weights": weights, "loss": value.item()})
        return value

    return loss


@pytest.fixture(scope="module")
def steps(sequences: Sequences) -> int:
    """The updates of an epoch of the tiny training, at least 3."""
    events = int((sequences.split.train_end - sequences.offsets[:-1] - 1).sum())
    steps = round(events / TINY_TRAINING.batch_size)
    assert steps >= 3
    return steps


def zero_rate_step(model: RecBLR, config: TrainConfig) -> tuple[TrainingStep, Tensor]:
    """A training step with a learning rate of 0, and the sum of its losses. It keeps its gradients."""
    step = TrainingStep(model, deepcopy(model), config)
    return step, step.loss.total


def perturbed(data: Sequences) -> RecBLR:
    """A model without dropout, with weights large enough that earlier events affect the result."""
    model = fresh(data, replace(TINY_MODEL, dropout=0.0)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def gradients(model: RecBLR) -> list[Tensor]:
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None for grad in grads)
    return [grad.clone() for grad in grads if grad is not None]


def train(
    model: Model, data: Sequences, config: TrainConfig, folder: Path, resume: bool = False
) -> Trained:
    return Trainer(model, data, config).train(folder, resume)


def epoch_spans(data: Sequences, config: TrainConfig, epoch: int) -> list[Spans]:
    return EXAMPLES[config.examples if config.examples != "auto" else "all-positions"](
        training_histories(data), config, epoch
    )


def training_batches(
    items: Any, spans: list[Spans], config: TrainConfig
) -> Iterator[tuple[PackedBatch, bool]]:
    """Batches of fixed shapes if the log is a tensor, as on a GPU."""
    fixed = isinstance(items, Tensor) and not config.mask_seen_in_loss
    return batches(items, spans, config, fixed_shapes=fixed)


def scripted(
    values: list[float], kept: list[dict[str, Tensor]]
) -> Callable[..., dict[str, dict[str, float]]]:
    """A validation that returns ``values`` in turn as masked NDCG@10, and records the weights."""

    def validate(
        model: RecBLR, data: Sequences, config: TrainConfig, ranks: Ranks
    ) -> dict[str, dict[str, float]]:
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        masked = values[len(kept) - 1]
        return {"unmasked": {"NDCG@10": 1 - masked}, "masked": {"NDCG@10": masked}}

    return validate
