"""The training loop: epochs, validation, early stopping, checkpoints."""

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recblr.data.batches import Beside, PackedBatch, Spans, ranges
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.models.model import Model
from recblr.progress import progress, report
from recblr.ranks import ALONE, Ranks, divide, undivide, undivided
from recblr.training import stored
from recblr.training.checkpoint import CHECKPOINT, Checkpoint, Trained
from recblr.training.config import TrainConfig, resolve
from recblr.training.cuda_graph import has_fixed_shapes
from recblr.training.examples import (
    EXAMPLES,
    asked_kinds,
    horizon_of,
    training_batches,
    training_histories,
)
from recblr.training.step import TrainingStep, learning_rate


@dataclass(frozen=True)
class Epoch:
    """An epoch of training with validation, after its checkpoint is written.

    Attributes:
        number: the epoch, from 1.
        loss: the mean loss of its batches.
        targets: the number of events it predicted.
        validation: metrics by protocol, ``{"unmasked": {"NDCG@10": …}, "masked": …}``.
        seconds: the time since training began, with that of resumed runs.
        best: whether it is the best epoch so far, by the protocol ``train.selection_protocol``.
    """

    number: int
    loss: float
    targets: int
    validation: Mapping[str, Mapping[str, float]]
    seconds: float
    best: bool


OnEpoch = Callable[[Epoch], object]


class Trainer:
    """Trains a model on the training part of a log.

    Every epoch has its own seed and ends with a checkpoint, so a resumed run takes the same steps as an
    uninterrupted run.

    Args:
        model: a model of the items of ``data``, on the device to train on.
        data: the log, split.
        config: the training settings.
        histories: the histories of an epoch, counted from 0; by default the training part.
        ranks: the processes that train the model together. Each gives the same arguments and ends with
            the whole model; only the first writes the run log.

    Attributes:
        config: the training settings, resolved for the model.
        average: the model with the moving average of the weights, which is validated and kept; the
            model itself if there is no average.
        loss: the mean loss of the current epoch.

    Raises:
        InputError: the model does not support a setting, or several processes.
    """

    def __init__(
        self, model: Model, data: Sequences, config: TrainConfig,
        histories: Callable[[int], Spans] | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.model, self.data, self._ranks = model, data, ranks
        self.config = with_usable_protocol(resolve(config, model), data)
        if self.config.horizon > 1 and data.kinds is not None:
            raise InputError(
                "train.horizon does not work with kinds of events; set train.horizon=1, or leave the "
                "kinds out with columns={'kind': None} (command line: --columns kind=)"
            )
        self._histories = histories or (lambda epoch: training_histories(data))
        if not ranks.alone:
            expect_divisible(model, self.config)
            divide(model, model.item_tables, ranks)
        self.average = copy.deepcopy(model) if config.ema_decay else model
        self._training_step = TrainingStep(model, self.average, self.config, ranks)
        self.loss = self._training_step.loss
        on_cpu = model.device.type == "cpu"
        # The array may be a memory-mapped file larger than memory; for a GPU it is copied.
        self._items = data.items if on_cpu else torch.tensor(data.items, device=model.device)
        self._weights = None if data.weights is None else _factors(data, model)
        self._features = self._on_device(data.features)
        self._fixed_shapes = not on_cpu and has_fixed_shapes(model, self.config, ranks)
        self._state = self._zero_state = model.initial_state(1)

    def train(self, folder: Path, resume: bool = False, on_epoch: OnEpoch | None = None) -> Trained:
        """Train the model in place; it ends with the weights of the best validation epoch. Ctrl-C ends
        the run with the best weights so far.

        Args:
            folder: the folder of run.jsonl (one line per epoch) and of the checkpoint.
            resume: continue from the checkpoint in ``folder``, which may be of another device.
            on_epoch: called after each epoch. An exception of it ends training and is raised again;
                the checkpoint holds the epoch.

        Raises:
            DivergedError: the loss or a score is not finite; the last checkpoint remains.
            InputError: the checkpoint is damaged or (OtherRunError) of another run.
            KeyboardInterrupt: the first epoch was interrupted.
        """
        config, checkpoint = self.config, self._checkpoint()
        run = checkpoint.load(folder) if resume else Trained()
        started = time.perf_counter() - run.seconds
        event = "resume" if resume else "start"
        self._log(folder, event, config=asdict(config), data=self.data.fingerprint)
        try:
            while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience:
                spans = self.spans(run.epoch)
                loss, targets = self._train_epoch(
                    run.epoch, spans, run.epoch * len(spans), len(spans)
                )
                with undivided(self.average, self.average.item_tables, self._ranks):
                    protocols = validate(self.average, self.data, config, self._ranks)
                validation = protocols[config.selection_protocol]
                seconds = time.perf_counter() - started
                run = replace(run, epoch=run.epoch + 1, seconds=seconds)
                if run.validation is None or validation["NDCG@10"] > run.validation["NDCG@10"]:
                    run = replace(run, best_epoch=run.epoch, validation=validation)
                checkpoint.save(folder, run)
                is_best = run.best_epoch == run.epoch
                epoch = Epoch(run.epoch, loss, targets, protocols, seconds, is_best)
                self._log_epoch(folder, epoch)
                if on_epoch is not None:
                    on_epoch(epoch)
            run = replace(run, ended="epochs" if run.epoch == config.epochs else "converged")
        except KeyboardInterrupt:
            if not run.best_epoch or not self._ranks.alone:  # others may wait for this process
                raise
            run = replace(run, ended="interrupted")
        return self._end(folder, run, checkpoint.best(folder))

    def train_without_validation(
        self, folder: Path, updates: int, per_epoch: int, resume: bool = False
    ) -> Trained:
        """Train the model in place for a number of updates; it ends with the average of the weights.

        Args:
            folder: the folder of run.jsonl and of the checkpoint; created if missing.
            updates: the number of updates.
            per_epoch: how many updates are an epoch for the schedule of the learning rate.
            resume: continue from the checkpoint in ``folder``, if there is one.

        Raises:
            DivergedError: the loss is not finite.
            InputError: as in :meth:`train`.
        """
        config, checkpoint = self.config, self._checkpoint()
        folder.mkdir(exist_ok=True)
        going_on = resume and stored.exists(folder / CHECKPOINT)
        run = checkpoint.load(folder) if going_on else Trained()
        started = time.perf_counter() - run.seconds
        done = sum(len(self.spans(epoch)) for epoch in range(run.epoch))
        values = {"config": asdict(config), "data": self.data.fingerprint, "updates": updates}
        self._log(folder, "start", **values)
        while spans := self.spans(run.epoch)[: updates - done]:
            loss, targets = self._train_epoch(run.epoch, spans, done, per_epoch)
            done += len(spans)
            run = replace(run, epoch=run.epoch + 1, seconds=time.perf_counter() - started)
            checkpoint.save(folder, run)
            seconds = round(run.seconds, 2)
            self._log(folder, "epoch", epoch=run.epoch, loss=loss, targets=targets, seconds=seconds)
            report(f"{done:,} of {updates:,} updates: loss {loss:.4f}, {run.seconds:,.0f} s")
        return self._end(folder, replace(run, ended="epochs"), self.average.state_dict())

    def _checkpoint(self) -> Checkpoint:
        optimizer = self._training_step.optimizer
        return Checkpoint(self.model, self.average, optimizer, self.config, self.data, self._ranks)

    def _end(self, folder: Path, run: Trained, weights: dict[str, Tensor]) -> Trained:
        """Give the model its final weights."""
        self._training_step.optimizer.zero_grad()  # frees the gradients, also those of CUDA graphs
        self.model.load_state_dict(weights)
        undivide(self.model, self.model.item_tables, self._ranks)
        self.model.eval()
        self._log(folder, "end", **asdict(run))
        return run

    def _log_epoch(self, folder: Path, epoch: Epoch) -> None:
        config = self.config
        self._log(
            folder, "epoch", epoch=epoch.number, loss=epoch.loss, targets=epoch.targets,
            seconds=round(epoch.seconds, 2), validation=epoch.validation[config.selection_protocol],
            **epoch.validation,
        )  # fmt: skip
        means = epoch.validation.items()
        ndcg = ", ".join(f"{values['NDCG@10']:.4f} {seen}" for seen, values in means)
        best = ", the best so far" * epoch.best
        sample = f" of {config.validation_users:,} users" if config.validation_users else ""
        report(
            f"epoch {epoch.number}/{config.epochs}: loss {epoch.loss:.4f}, validation "
            f"NDCG@10{sample} {ndcg}{best}, {epoch.seconds:,.0f} s"
        )

    def _log(self, folder: Path, event: str, **values: Any) -> None:
        if self._ranks.first:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
            with (folder / "run.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def _train_epoch(
        self, epoch: int, spans: list[Spans], done: int, per_epoch: int
    ) -> tuple[float, int]:
        """Train on the batches of an epoch, counted from 0.

        ``done`` updates are done, and ``per_epoch`` updates are an epoch for the learning rate.

        Returns:
            The mean loss and the number of targets.
        """
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        self.model.train()
        self.loss.start(epoch + 1)
        loss, note = 0.0, ""
        with progress(f"epoch {epoch + 1}/{self.config.epochs}", len(spans)) as advance:
            for number, (batch, continues) in enumerate(self.batches(spans, epoch), 1):
                place = divmod(done + number - 1, per_epoch)
                self.step(batch, continues, learning_rate(self.config, *place, per_epoch))
                measured = self.loss.read(number, last=number == len(spans))
                if measured is not None:
                    loss, note = measured, f"loss {measured:.4f}"
                advance(1, note)
        return loss, self.loss.count

    def spans(self, epoch: int) -> list[Spans]:
        """The spans of the batches of an epoch in the log; epochs count from 0."""
        return EXAMPLES[self.config.examples](self._histories(epoch), self.config, epoch)

    def batches(self, spans: Sequence[Spans], epoch: int = 0) -> Iterator[tuple[PackedBatch, bool]]:
        """The batches, each with whether its first history continues the last of the previous batch."""
        users = self.data.offsets if "users" in self.model.needs else None
        asked = self._on_device(asked_kinds(self.data, self.config.seed, epoch))
        horizon = horizon_of(self._histories(epoch), self.config, self.model.device)
        beside = Beside(self._weights, self._features, asked, horizon)
        return training_batches(
            self._items, spans, self.config, users, self._fixed_shapes, beside, self._ranks
        )

    def _on_device(self, values: np.ndarray | None) -> np.ndarray | Tensor | None:
        """An array of the log, for a model on a GPU as a tensor there."""
        if values is None or self.model.device.type == "cpu":
            return values
        return torch.tensor(values, device=self.model.device)

    def step(self, batch: PackedBatch, continues: bool, lr: float) -> None:
        """Update the weights on a batch at the learning rate ``lr``."""
        self._training_step.optimizer.param_groups[0]["lr"].fill_(lr)
        self._state = self._training_step(batch, self._state if continues else self._zero_state)


def expect_divisible(model: Model, config: TrainConfig) -> None:
    """InputError if several processes cannot train a model together."""
    if not model.embeds_events:
        raise InputError(
            f"{type(model).__name__} is trained in one process; start it without torchrun"
        )
    if model.content is not None or config.loss == "paper":
        reason = "train.loss=paper" if config.loss == "paper" else "content of items"
        raise InputError(f"{reason} needs one process; start it without torchrun")


def validate(
    model: Model, data: Sequences, config: TrainConfig, processes: Ranks = ALONE
) -> dict[str, dict[str, float]]:
    """Validation metrics under both protocols, ``{"unmasked": {…}, "masked": {…}}``."""
    model.eval()
    with parametrize.cached():  # tables with content are summed once
        ranks = rank_targets(
            model.score,
            data,
            "validation",
            config.max_length,
            sample=config.validation_users,
            processes=processes,
            device=model.device,
        )
    return {protocol: metrics.means(ranks[protocol]) for protocol in ("unmasked", "masked")}


def with_usable_protocol(config: TrainConfig, data: Sequences) -> TrainConfig:
    """The settings; unmasked, with a warning, if the masked protocol could not rank any target."""
    if config.selection_protocol == "masked" and _all_repeats(data):
        warnings.warn(
            "every validation target repeats an item of its user, and masked validation never ranks a "
            "repeat; the best epoch is chosen as by train.selection_protocol=unmasked",
            stacklevel=3,
        )
        return replace(config, selection_protocol="unmasked")
    return config


def _all_repeats(data: Sequences) -> bool:
    """Whether every validation target occurs earlier in the history of its user."""
    users = np.flatnonzero(data.split.validation > data.offsets[:-1])
    rows = zip(data.offsets[users], data.split.validation[users], strict=True)
    return len(users) > 0 and all(data.items[row] in data.items[start:row] for start, row in rows)


def _factors(data: Sequences, model: Model) -> Tensor | np.ndarray:
    """(N,) the weights of the events over their mean in the training part; on a GPU a tensor there.

    Raises:
        InputError: the model chooses the targets of training itself.
    """
    assert data.weights is not None
    if "cloze" in model.examples:
        raise InputError(
            "this model predicts masked items and cannot weight events; leave the weights out with "
            "columns={'weight': None} (command line: --columns weight=), or train another model"
        )
    starts = data.offsets[:-1]
    mean = data.weights[ranges(starts, data.split.train_end - starts)].mean(dtype=np.float64)
    factors = (data.weights / mean).astype(np.float32)
    return factors if model.device.type == "cpu" else torch.tensor(factors, device=model.device)
