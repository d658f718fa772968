"""The training loop: epochs, validation, early stopping, checkpoints."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recblr.data.batches import PackedBatch, Spans
from recblr.data.sequences import Sequences
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.models.model import Model
from recblr.progress import progress
from recblr.training.checkpoint import Checkpoint, Trained
from recblr.training.config import TrainConfig, resolve
from recblr.training.cuda_graph import has_fixed_shapes
from recblr.training.examples import EXAMPLES, training_batches
from recblr.training.step import TrainingStep, learning_rate

_LOGGER = logging.getLogger(__name__)


class Trainer:
    """Trains a model on the training part of a log.

    Every epoch starts from a seed of its own and ends in a checkpoint, so that a resumed run takes the
    same steps as an uninterrupted one.

    Args:
        model: a model of the items of ``data``, on the device to train on.
        data: the log, split.
        config: how to train.

    Attributes:
        config: resolved for the model.
        average: the moving average of the model's weights, which is validated and kept.
        loss: the mean loss of the current epoch.

    Raises:
        InputError: the model cannot be trained in this way.
    """

    def __init__(self, model: Model, data: Sequences, config: TrainConfig) -> None:
        self.model, self.data, self.config = model, data, resolve(config, model)
        self.average = copy.deepcopy(model)
        self._training_step = TrainingStep(model, self.average, self.config)
        self.loss = self._training_step.loss
        on_cpu = model.device.type == "cpu"
        # An array may be a file larger than memory; a GPU holds the log itself.
        self._items = data.items if on_cpu else torch.tensor(data.items, device=model.device)
        self._fixed_shapes = not on_cpu and has_fixed_shapes(model, self.config)
        self._state = self._zero_state = model.initial_state(1)

    def train(self, folder: Path, resume: bool = False) -> Trained:
        """Train the model in place and leave it with the weights of its best validation epoch. Ctrl-C
        ends a run with the best weights so far.

        Args:
            folder: where run.jsonl (one line per epoch) and the checkpoint are kept.
            resume: continue from the checkpoint in ``folder``, whichever device wrote it.

        Raises:
            DivergedError: the loss or a score is not finite; the last good checkpoint stays.
            InputError: the checkpoint is damaged or, as OtherRunError, of another run.
            KeyboardInterrupt: interrupted before the end of the first epoch.
        """
        config, optimizer = self.config, self._training_step.optimizer
        checkpoint = Checkpoint(self.model, self.average, optimizer, config, self.data)
        run, best = checkpoint.load(folder) if resume else (Trained(), dict[str, Tensor]())
        started = time.perf_counter() - run.seconds
        event = "resume" if resume else "start"
        _log(folder, event, config=asdict(config), data=self.data.fingerprint)
        try:
            while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience:
                loss, targets = self._train_epoch(run.epoch)
                validation = validate(self.average, self.data, config)
                seconds = time.perf_counter() - started
                run = replace(run, epoch=run.epoch + 1, seconds=seconds)
                if run.validation is None or validation["NDCG@10"] > run.validation["NDCG@10"]:
                    run = replace(run, best_epoch=run.epoch, validation=validation)
                    best = {name: t.clone() for name, t in self.average.state_dict().items()}
                checkpoint.save(folder, run, best)
                _log_epoch(folder, run, config, loss, targets, validation)
            run = replace(run, ended="epochs" if run.epoch == config.epochs else "converged")
        except KeyboardInterrupt:
            if not best:
                raise
            run = replace(run, ended="interrupted")
        optimizer.zero_grad()  # frees the gradients, and those of CUDA graphs
        self.model.load_state_dict(best)
        self.model.eval()
        _log(folder, "end", **asdict(run))
        return run

    def _train_epoch(self, epoch: int) -> tuple[float, int]:
        """Train one epoch, counted from 0; return its mean loss and the number of targets."""
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        self.model.train()
        spans = self.spans(epoch)
        self.loss.start(epoch + 1)
        loss, note = 0.0, ""
        with progress(f"epoch {epoch + 1}/{self.config.epochs}", len(spans)) as advance:
            for number, (batch, continues) in enumerate(self.batches(spans), 1):
                self.step(
                    batch, continues, learning_rate(self.config, epoch, number - 1, len(spans))
                )
                measured = self.loss.read(number, last=number == len(spans))
                if measured is not None:
                    loss, note = measured, f"loss {measured:.4f}"
                advance(1, note)
        return loss, self.loss.count

    def spans(self, epoch: int) -> list[Spans]:
        """Where in the log the batches of an epoch lie; epochs count from 0."""
        return EXAMPLES[self.config.examples](self.data, self.config, epoch)

    def batches(self, spans: Sequence[Spans]) -> Iterator[tuple[PackedBatch, bool]]:
        """Each batch, with whether its first history continues the last one of the batch before."""
        users = self.data.offsets if "users" in self.model.needs else None
        return training_batches(self._items, spans, self.config, users, self._fixed_shapes)

    def step(self, batch: PackedBatch, continues: bool, lr: float) -> None:
        """Update the weights on a batch at the learning rate ``lr``."""
        self._training_step.optimizer.param_groups[0]["lr"].fill_(lr)
        self._state = self._training_step(batch, self._state if continues else self._zero_state)


def validate(model: Model, data: Sequences, config: TrainConfig) -> dict[str, float]:
    """Validation metrics under the protocol ``config.selection_protocol``."""
    model.eval()
    ranks = rank_targets(model.score, data, "validation", config.max_length)
    return metrics.means(ranks[config.selection_protocol])


def _log_epoch(
    folder: Path, run: Trained, config: TrainConfig, loss: float, targets: int,
    validation: dict[str, float],
) -> None:  # fmt: skip
    seconds = round(run.seconds, 2)
    _log(
        folder, "epoch", epoch=run.epoch, loss=loss, targets=targets, seconds=seconds,
        validation=validation,
    )  # fmt: skip
    _LOGGER.info(
        "epoch %d/%d: loss %.4f, validation NDCG@10 %.4f%s, %.0f s", run.epoch, config.epochs, loss,
        validation["NDCG@10"], ", the best so far" * (run.best_epoch == run.epoch), run.seconds,
    )  # fmt: skip


def _log(folder: Path, event: str, **values: Any) -> None:
    with (folder / "run.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
