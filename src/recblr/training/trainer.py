"""Training: one loop, top to bottom."""

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recblr import ops
from recblr.config import build, expect_sizes
from recblr.data.batches import (
    PackedBatch,
    Spans,
    Targets,
    all_positions,
    pack_each,
    prefixes,
    seen_pairs,
    sequence_padding,
    with_empty,
)
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError, InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.models.model import Model, RecurrentModel
from recblr.ops import cpu
from recblr.ops.cross_entropy import cross_entropy
from recblr.progress import progress
from recblr.training.cuda_graph import Graphed

Step = Callable[[PackedBatch, Tensor], Tensor]
"""An update on a batch, see :func:`training_step`."""

_LOGGER = logging.getLogger(__name__)
_SCANS: dict[str, ops.Implementation] = {
    "packed": "auto", "serial": "serial", "embedding-padding": "tree", "sequence-padding": "tree"
}  # fmt: skip
_CLOZE_PASSES = 5  # over the log in an epoch: each has a fifth of its items found, or fewer
_ASSEMBLED = 1 << 18  # rows of the log assembled at a time, for several batches at once
_BUCKET = 1 << 14  # rows of prefix samples are filled up to a multiple of this, for CUDA graphs
_LOOK = 50  # steps from one look at the loss to the next on a GPU, which has to be waited for


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults suit a log that nobody has tuned for."""

    # Predict at every position in one causal pass; from every prefix as a sample of its own (the
    # paper's way; on long histories about a hundred times the work); or items hidden within a history
    # (cloze). "auto" is the first of these that the model can be trained on.
    examples: Literal["auto", "all-positions", "prefixes", "cloze"] = "auto"
    loss: Literal["softmax", "own"] = "softmax"  # full softmax, or that of the model's own paper
    max_length: int = 200  # the latest events of a history that evaluation and serving look at
    # Events trained on from an empty state; longer histories are cut into windows of this length.
    # (Prefix samples, and windows of a model without a recurrent state, are max_length long.) However
    # long, a window takes the memory of a batch: what does not fit goes on in the next one.
    window: int = 1000
    batch_size: int = 4096  # predicted positions per update
    epochs: int = 40  # the most
    patience: int = 10  # epochs without a better validation NDCG@10 before it stops
    lr: float = 3e-3  # of Adam, at its highest
    weight_decay: float = 0.0  # this share of each weight is added to its gradient (L2)
    # The rate rises linearly over these, but at most over a fifth of all updates there can be.
    warmup_steps: int = 200
    # After the warm-up the rate falls to 0 at the last epoch along a cosine, or stays.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Decay an update of the moving average of the weights; the average is what is kept.
    weight_average: float = 0.0
    label_smoothing: float = 0.0  # share of each target that is spread over the catalogue
    # Leave a history's items out of its softmax, as serving leaves them out; where a batch begins
    # within a history, those since then.
    hide_seen: bool = False
    select: Literal["unmasked", "masked"] = "unmasked"  # the protocol that chooses the best epoch
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products in training
    # How the recurrence is computed, for the paper's study of padding (Table 5): by the fused kernels,
    # event after event, by its trees padded inside, or by its trees with every history of a batch
    # padded (what a batch severs then starts anew in the next). All train the same model.
    scan: Literal["packed", "serial", "embedding-padding", "sequence-padding"] = "packed"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_sizes(self, "train", "max_length", "window", "batch_size", "epochs", "patience")
        if self.seed >= 2**32:
            raise InputError(f"train.seed = {self.seed}: must be below 2**32")
        for name in ("warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be at least 0")
        if not 0 < self.lr < math.inf:
            raise InputError(f"train.lr = {self.lr}: must be positive and finite")
        for name in ("label_smoothing", "weight_average", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be in [0, 1)")
        if self.hide_seen and self.label_smoothing:
            raise InputError("train.hide_seen and train.label_smoothing do not go together")
        if self.loss == "own" and (self.hide_seen or self.label_smoothing):
            raise InputError(
                "train.hide_seen and train.label_smoothing, which a preset may have set, belong to the "
                "softmax; set train.loss=softmax, or train.hide_seen=false and train.label_smoothing=0"
            )


class OtherRunError(InputError):
    """The checkpoint is of another model, log or settings."""


@dataclass(frozen=True)
class Trained:
    """How a training run stands or ended. Epochs count from 1; 0 is none yet."""

    epoch: int = 0
    best_epoch: int = 0
    validation: Mapping[str, float] | None = None  # metrics of the best epoch
    seconds: float = 0.0
    ended: Literal["", "converged", "epochs", "interrupted"] = ""


def train(
    model: Model, data: Sequences, config: TrainConfig, folder: Path, resume: bool = False
) -> Trained:
    """Train ``model`` in place and leave it with the weights of its best validation epoch.

    Every epoch starts from a seed of its own and ends in a checkpoint, so that a resumed run takes the
    same steps as one that was never interrupted. Ctrl-C ends a run with the best weights so far.

    Args:
        model: a model of the items of ``data``, on the device to train on.
        data: the log, split.
        config: how to train.
        folder: where run.jsonl (one line an epoch) and checkpoint.safetensors are kept.
        resume: go on from the checkpoint in ``folder``, on whichever device it was written.

    Raises:
        DivergedError: the loss or a score is not finite; the last good checkpoint stays.
        InputError: the model cannot be trained on ``config.examples``, or the checkpoint is damaged
            or, as OtherRunError, another run's.
        KeyboardInterrupt: interrupted before the first epoch was done.
    """
    config = settled(config, model)
    device = model.item_embeddings.device
    average, optimizer = copy.deepcopy(model), adam(model, config.weight_decay)
    run, best = Trained(), dict[str, Tensor]()
    if resume:
        run, best = _load_checkpoint(folder, model, average, optimizer, config, data)
    started = time.perf_counter() - run.seconds
    _log(folder, "resume" if resume else "start", config=asdict(config), data=data.fingerprint)
    # An array may be a file larger than memory; a GPU holds the log itself.
    items = data.items if device.type == "cpu" else torch.tensor(data.items, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    step = training_step(model, average, optimizer, config, total)
    nothing = model.initial_state(1)
    static = isinstance(model, RecurrentModel) and model.static
    users = data.offsets if model.personal else None
    look = 1 if device.type == "cpu" else _LOOK
    try:
        while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience:
            torch.manual_seed(config.seed * 100_003 + run.epoch)
            epoch = epoch_spans(data, config, run.epoch)
            model.train()
            total.zero_()
            count, looked, state, note = 0, 0, nothing, ""
            with progress(f"epoch {run.epoch + 1}/{config.epochs}", len(epoch)) as advance:
                batches = training_batches(items, epoch, config, users, static)
                for done, (batch, goes_on) in enumerate(batches, 1):
                    rate = learning_rate(config, run.epoch, done - 1, len(epoch))
                    optimizer.param_groups[0]["lr"].fill_(rate)
                    state = step(batch, state if goes_on else nothing)
                    count += len(batch.targets)
                    if done % look == 0 or done == len(epoch):
                        loss = total.item() / count
                        if not math.isfinite(loss):
                            steps = f"step {done}" if look == 1 else f"steps {looked + 1} to {done}"
                            raise DivergedError(
                                f"the loss is {loss} in epoch {run.epoch + 1}, {steps}: training "
                                f"has diverged; lower train.lr (it is {config.lr:g})"
                            )
                        looked, note = done, f"loss {loss:.4f}"
                    advance(1, note)
            found = validate(average, data, config)
            run = replace(run, epoch=run.epoch + 1, seconds=time.perf_counter() - started)
            if run.validation is None or found["NDCG@10"] > run.validation["NDCG@10"]:
                run = replace(run, best_epoch=run.epoch, validation=found)
                best = {name: t.clone() for name, t in average.state_dict().items()}
            _save_checkpoint(folder, model, average, optimizer, best, run, config, data)
            _log(
                folder, "epoch", epoch=run.epoch, loss=loss, targets=count,
                seconds=round(run.seconds, 2), validation=found,
            )  # fmt: skip
            _LOGGER.info(
                "epoch %d/%d: loss %.4f, validation NDCG@10 %.4f%s, %.0f s", run.epoch,
                config.epochs, loss, found["NDCG@10"],
                ", the best so far" if run.best_epoch == run.epoch else "", run.seconds,
            )  # fmt: skip
        run = replace(run, ended="epochs" if run.epoch == config.epochs else "converged")
    except KeyboardInterrupt:
        if not best:
            raise
        run = replace(run, ended="interrupted")
    optimizer.zero_grad()  # gradients hold memory, of CUDA graphs too
    model.load_state_dict(best)
    model.eval()
    _log(folder, "end", **asdict(run))
    return run


def settled(config: TrainConfig, model: Model) -> TrainConfig:
    """The settings with what depends on the model put in: its examples, how far back it looks."""
    examples = model.examples[0] if config.examples == "auto" else config.examples
    if examples not in model.examples:
        raise InputError(
            f"train.examples = {examples!r}: this model is trained on {' or '.join(model.examples)}"
        )
    if "cloze" in model.examples and config.hide_seen:
        raise InputError(
            "train.hide_seen does not go with a model that is trained to find hidden items"
        )
    recurrent = isinstance(model, RecurrentModel)
    if config.scan != "packed" and not recurrent:
        raise InputError(f"train.scan = {config.scan!r}: this model has no recurrence to scan")
    window = config.window if recurrent else config.max_length
    return replace(config, examples=examples, window=window)


def adam(model: Model, weight_decay: float = 0.0) -> torch.optim.Adam:
    """The optimiser. Its learning rate is a tensor, which a CUDA graph reads anew at every step."""
    lr = torch.zeros((), device=model.item_embeddings.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=lr, weight_decay=weight_decay, fused=True, capturable=lr.is_cuda
    )
    # Or torch warns of the steps that do run outside of a graph.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def training_step(
    model: Model, average: Model, optimizer: torch.optim.Adam, config: TrainConfig, total: Tensor
) -> Step:
    """The update of ``model`` as a function of a batch and of the state before its first history.

    Args:
        model, average: the model and the moving average of its weights, of the same shape.
        optimizer: of ``model``, see :func:`adam`.
        config: how to train.
        total: () float64; the losses of all predicted positions are added to it.

    Returns:
        ``step(batch, before)``, before (1, …), which gives the state after the last history that has
        an event, valid until the next call. It is detached: a history that goes on in the next batch
        has the values of one pass, but the gradient stops at the seam (truncated backpropagation
        through time). On a GPU the step of a recurrent model is replayed as a CUDA graph.
    """
    ours, theirs = tuple(average.parameters()), tuple(model.parameters())

    def loss_of(hidden: Tensor, targets: Tensor, seen: Tensor | None) -> Tensor:
        if config.loss == "own":
            return model.own_loss(hidden, targets)
        return cross_entropy(hidden, model.item_embeddings, targets, seen, config.label_smoothing)

    def update(loss: Tensor, count: int) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ours, theirs, 1 - config.weight_average)
            total.add_(loss.double(), alpha=count)

    if not isinstance(model, RecurrentModel):

        def plain(batch: PackedBatch, before: Tensor) -> Tensor:
            with autocast(total.device, config.precision):
                hidden, targets = model.examined(batch)
                loss = loss_of(hidden, targets, batch.seen)
            update(loss, len(batch.targets))
            return before

        return plain

    def carry_on(
        before: Tensor, items: Tensor, offsets: Tensor, positions: Tensor, targets: Tensor,
        seen: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        with model.recurrence_by(_SCANS[config.scan]):
            with autocast(before.device, config.precision):
                states = model.initial_state(len(offsets) - 1)
                states[:1] = before
                hidden, states = model(items, offsets, states)
                if len(positions) < len(items):
                    hidden = hidden[positions]
                loss = loss_of(hidden, targets, seen)
            update(loss, len(targets))
        with torch.no_grad():
            last = (offsets < len(items)).sum(0, keepdim=True) - 1
            return states.index_select(0, last)

    run = Graphed(carry_on) if model.static and _shapes_recur(config) else carry_on

    def step(batch: PackedBatch, before: Tensor) -> Tensor:
        padded = config.scan == "sequence-padding"
        if padded:
            batch = sequence_padding(batch)
        seen = () if batch.seen is None else (batch.seen,)
        after = run(before, batch.items, batch.offsets, batch.positions, batch.targets, *seen)
        return torch.zeros_like(after) if padded else after  # else it is the state after the pads

    return step


def epoch_spans(data: Sequences, config: TrainConfig, epoch: int) -> list[Spans]:
    """Where in the log the batches of an epoch lie; epochs count from 0."""
    rng = np.random.default_rng([config.seed, epoch])
    begins, ends = data.offsets[:-1], data.split.train_end
    if config.examples == "prefixes":
        return prefixes(begins, ends, config.max_length, config.batch_size, rng)
    passes = _CLOZE_PASSES if config.examples == "cloze" else 1
    return [
        spans
        for number in range(epoch * passes, (epoch + 1) * passes)
        for spans in all_positions(begins, ends, config.window, config.batch_size, number, rng)
    ]


def training_batches(
    items: np.ndarray | Tensor, epoch: Sequence[Spans], config: TrainConfig,
    users: np.ndarray | None = None, static: bool = True,
) -> Iterator[tuple[PackedBatch, bool]]:  # fmt: skip
    """The batches of an epoch, each with whether its first history goes on where the last one of the
    batch before stopped.

    Args:
        items: the log; an array, or a tensor on the device that the batches are to be on.
        epoch: where the batches lie, from :func:`epoch_spans`.
        config: how to train.
        users: (U + 1,) where the histories of the log begin, if the batches are to name their users.
        static: give batches out of a tensor shapes that recur, for :class:`Graphed`: histories of no
            event at their end, and prefix samples some histories without a target.
    """
    by_prefix = config.examples == "prefixes"
    targets: Targets = "last" if by_prefix else "all"
    recur = static and isinstance(items, Tensor) and _shapes_recur(config)
    spans, histories = list(epoch), 0
    if recur and by_prefix:
        spans = [_filled(*some, min(config.max_length, len(items) - 1)) for some in spans]
    if recur:  # a power of two, as the most of an epoch varies from one to the next
        histories = 1 << (max(len(starts) for starts, _ in spans) - 1).bit_length()
    stop, several = -1, 1 if by_prefix else max(1, _ASSEMBLED // config.batch_size)
    for first in range(0, len(spans), several):
        group = slice(first, first + several)
        batches = pack_each(items, spans[group], targets)
        for batch, (starts, stops) in zip(batches, epoch[group], strict=True):
            if by_prefix:
                real = slice(len(starts))
                batch = replace(batch, positions=batch.positions[real], targets=batch.targets[real])
            if config.hide_seen:
                lengths = stops - starts
                pairs = lengths if by_prefix else lengths * (lengths + 1) // 2
                batch = replace(batch, seen=seen_pairs(batch, int(pairs.sum())))
            if users is not None:
                whose = torch.from_numpy(np.searchsorted(users, starts, side="right") - 1)
                batch = replace(batch, users=whose.to(batch.items.device))
            yield with_empty(batch, histories) if recur else batch, bool(starts[0] == stop)
            stop = -1 if by_prefix else stops[-1]


def _shapes_recur(config: TrainConfig) -> bool:
    """Whether a step can be a CUDA graph: nothing in it has a shape that depends on the items."""
    return config.scan == "packed" and not config.hide_seen


def _filled(starts: np.ndarray, stops: np.ndarray, longest: int) -> Spans:
    """Histories, and behind them the first events of the log, up to a multiple of _BUCKET rows."""
    missing = -int((stops - starts).sum()) % _BUCKET
    more = np.minimum(longest, missing - np.arange(0, missing, longest))
    return np.append(starts, np.zeros_like(more)), np.append(stops, more)


def validate(model: Model, data: Sequences, config: TrainConfig) -> dict[str, float]:
    """Validation metrics under the protocol ``config.select``."""
    model.eval()
    ranks = rank_targets(model.score, data, "validation", config.max_length)
    return metrics.means(ranks[config.select])


def learning_rate(config: TrainConfig, epoch: int, number: int, batches: int) -> float:
    """The rate of update ``number`` of ``batches`` in ``epoch``, both from 0."""
    done = epoch + number / batches
    rising = min(config.warmup_steps, batches * config.epochs // 5)
    warmup = min(1.0, (done * batches + 1) / max(1, rising))
    cosine = (1 + math.cos(math.pi * done / config.epochs)) / 2
    return config.lr * warmup * (cosine if config.schedule == "cosine" else 1.0)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is asked for, or "auto" and the processor has it."""
    native = device.type != "cpu" or cpu.native_bfloat16()
    narrow = precision == "bfloat16" or (precision == "auto" and native)
    # No narrow copy of a weight outlives its use: a CUDA graph has to make it anew at every replay.
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow, cache_enabled=False)


def _log(folder: Path, event: str, **values: Any) -> None:
    with (folder / "run.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")


def _identity(model: Model, config: TrainConfig, data: Sequences) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {
        "name": type(model).__name__, "model": asdict(model.config), "config": asdict(config),
        "data": data.fingerprint,
    }  # fmt: skip


def _other(about: Mapping[str, Any], model: Model, config: TrainConfig, data: Sequences) -> str:
    """What in a checkpoint is not of this run, "" if all is; a setting added since counts as its
    default."""
    if about.get("name", type(model).__name__) != type(model).__name__:
        return "another model"
    try:
        shape = build(type(model.config), about["model"], "model")
        then = build(TrainConfig, about["config"], "train")
    except InputError:
        return "a version with other settings"
    for section, theirs, ours in (("model", shape, model.config), ("train", then, config)):
        for name, value in asdict(theirs).items():
            if value != getattr(ours, name):
                return f"{section}.{name} = {value!r}, not {getattr(ours, name)!r}"
    return "" if about["data"] == data.fingerprint else "another log"


def _save_checkpoint(
    folder: Path, model: Model, average: Model, optimizer: torch.optim.Adam,
    best: dict[str, Tensor], run: Trained, config: TrainConfig, data: Sequences,
) -> None:  # fmt: skip
    """One file, put in place at once: weights, best weights, the optimiser's moments, where we are."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = tensor
    about = {"run": asdict(run), **_identity(model, config, data)}
    path = folder / "checkpoint.safetensors"
    temporary = path.with_suffix(".writing")
    save_file(tensors, temporary, {"about": json.dumps(about)})
    os.replace(temporary, path)


def _load_checkpoint(
    folder: Path, model: Model, average: Model, optimizer: torch.optim.Adam,
    config: TrainConfig, data: Sequences,
) -> tuple[Trained, dict[str, Tensor]]:  # fmt: skip
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        raise InputError(f"nothing to resume: {path} does not exist; train without --resume")
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                part, name = key.split("/", 1)
                parts.setdefault(part, {})[name] = file.get_tensor(key)
        run = Trained(**about["run"])
        other = _other(about, model, config, data)
        if not other:
            model.load_state_dict(parts.pop("model"))
            average.load_state_dict(parts.pop("average"))
            best = parts.pop("best")
            for name, parameter in model.named_parameters():
                optimizer.state[parameter] = {
                    key: tensors[name].to(parameter.device) for key, tensors in parts.items()
                }
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is damaged ({what}); train without --resume") from error
    if other:
        raise OtherRunError(
            f"{path} is of another run, {other}; resume with the settings and the log it began with"
        )
    return run, best
