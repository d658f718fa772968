"""Training: one loop, top to bottom."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recblr import metrics
from recblr.data.batches import all_positions, pack, prefixes, seen_pairs
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError, InputError
from recblr.evaluate import rank_targets
from recblr.models.recblr import RecBLR
from recblr.ops import cpu
from recblr.ops.cross_entropy import cross_entropy
from recblr.progress import progress


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults suit a log that nobody has tuned for."""

    # Predict at every position in one causal pass, or from every prefix as a sample of its own (the
    # paper's way; on long histories about a hundred times the work).
    examples: Literal["all-positions", "prefixes"] = "all-positions"
    max_length: int = 200  # the latest events of a history that evaluation and serving look at
    # Events trained in one pass from an empty state; longer histories are cut into windows of this
    # length. (Prefix samples are max_length long instead.)
    window: int = 1000
    batch_size: int = 4096  # predicted positions per update
    epochs: int = 40  # the most
    patience: int = 10  # epochs without a better validation NDCG@10 before it stops
    lr: float = 3e-3  # of Adam, at its highest
    warmup_steps: int = 200  # the rate rises linearly over these
    # After the warm-up the rate falls to 0 at the last epoch along a cosine, or stays.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Decay an update of the moving average of the weights; the average is what is kept.
    weight_average: float = 0.0
    label_smoothing: float = 0.0  # share of each target that is spread over the catalogue
    # Leave a history's items out of its softmax, as serving leaves them out.
    hide_seen: bool = False
    select: Literal["unmasked", "masked"] = "unmasked"  # the protocol that chooses the best epoch
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products in training
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "window", "batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be at least 0")
        if not 0 < self.lr < math.inf:
            raise InputError(f"train.lr = {self.lr}: must be positive and finite")
        for name in ("label_smoothing", "weight_average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be in [0, 1)")
        if self.hide_seen and self.label_smoothing:
            raise InputError("train.hide_seen and train.label_smoothing do not go together")


@dataclass(frozen=True)
class Trained:
    """How a training run stands or ended. Epochs count from 1; 0 is none yet."""

    epoch: int = 0
    best_epoch: int = 0
    validation: Mapping[str, float] | None = None  # metrics of the best epoch
    seconds: float = 0.0
    ended: Literal["", "converged", "epochs", "interrupted"] = ""


def train(
    model: RecBLR, data: Sequences, config: TrainConfig, folder: Path, resume: bool = False
) -> Trained:
    """Train ``model`` in place and leave it with the weights of its best validation epoch.

    Every epoch starts from a seed of its own and ends in a checkpoint, so that a resumed run takes the
    same steps as one that was never interrupted. Ctrl-C ends a run with the best weights so far.

    Args:
        model: a model of the items of ``data``.
        data: the log, split.
        config: how to train.
        folder: where run.jsonl (one line an epoch) and checkpoint.safetensors are kept.
        resume: go on from the checkpoint in ``folder``.

    Raises:
        DivergedError: the loss or a score is not finite; the last good checkpoint stays.
        KeyboardInterrupt: interrupted before the first epoch was done.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    moving_average = get_ema_multi_avg_fn(config.weight_average)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=moving_average)
    averaged = cast(RecBLR, average.module)
    run, best = Trained(), dict[str, Tensor]()
    if resume:
        run, best = _load_checkpoint(folder, model, average, optimizer, config, data)
    started = time.perf_counter() - run.seconds
    _log(folder, "resume" if resume else "start", config=asdict(config), data=data.fingerprint)
    begins, ends = data.offsets[:-1], data.split.train_end
    by_prefix = config.examples == "prefixes"
    try:
        while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience:
            torch.manual_seed(config.seed * 100_003 + run.epoch)
            rng = np.random.default_rng([config.seed, run.epoch])
            if by_prefix:
                batches = prefixes(begins, ends, config.max_length, config.batch_size, rng)
            else:
                batches = all_positions(
                    begins, ends, config.window, config.batch_size, run.epoch, rng
                )
            model.train()
            total, count, title = 0.0, 0, f"epoch {run.epoch + 1}/{config.epochs}"
            with progress(title, len(batches)) as advance:
                for number, (starts, stops) in enumerate(batches):
                    batch = pack(data.items, starts, stops, "last" if by_prefix else "all")
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(config, run.epoch, number, len(batches))
                    with autocast(model.item_embeddings.device, config.precision):
                        hidden, _ = model(batch.items, batch.offsets)
                        if by_prefix:
                            hidden = hidden[batch.positions]
                        loss = cross_entropy(
                            hidden,
                            model.item_embeddings,
                            batch.targets,
                            seen_pairs(batch) if config.hide_seen else None,
                            config.label_smoothing,
                        )
                    if not math.isfinite(loss.item()):
                        raise DivergedError(
                            f"the loss is {loss.item()} in epoch {run.epoch + 1}, step {number + 1}: "
                            f"training has diverged; lower train.lr (it is {config.lr:g})"
                        )
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    average.update_parameters(model)
                    total += loss.item() * len(batch.targets)
                    count += len(batch.targets)
                    advance(1, f"loss {total / count:.4f}")
            found = validate(averaged, data, config)
            run = replace(run, epoch=run.epoch + 1, seconds=time.perf_counter() - started)
            if run.validation is None or found["NDCG@10"] > run.validation["NDCG@10"]:
                run = replace(run, best_epoch=run.epoch, validation=found)
                best = {name: t.clone() for name, t in averaged.state_dict().items()}
            _save_checkpoint(folder, model, average, optimizer, best, run, config, data)
            _log(
                folder, "epoch", epoch=run.epoch, loss=total / count, targets=count,
                seconds=round(run.seconds, 2), validation=found,
            )  # fmt: skip
        run = replace(run, ended="epochs" if run.epoch == config.epochs else "converged")
    except KeyboardInterrupt:
        if not best:
            raise
        run = replace(run, ended="interrupted")
    model.load_state_dict(best)
    model.eval()
    _log(folder, "end", **asdict(run))
    return run


def validate(model: RecBLR, data: Sequences, config: TrainConfig) -> dict[str, float]:
    """Validation metrics under the protocol ``config.select``."""
    model.eval()
    ranks = rank_targets(model.score, data, "validation", config.max_length)
    return metrics.means(ranks[config.select])


def learning_rate(config: TrainConfig, epoch: int, number: int, batches: int) -> float:
    """The rate of update ``number`` of ``batches`` in ``epoch``, both from 0."""
    done = epoch + number / batches
    warmup = min(1.0, (done * batches + 1) / max(1, config.warmup_steps))
    cosine = (1 + math.cos(math.pi * done / config.epochs)) / 2
    return config.lr * warmup * (cosine if config.schedule == "cosine" else 1.0)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is asked for, or "auto" and the processor has it."""
    native = device.type != "cpu" or cpu.native_bfloat16()
    narrow = precision == "bfloat16" or (precision == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow)


def _log(folder: Path, event: str, **values: Any) -> None:
    with (folder / "run.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")


def _identity(model: RecBLR, config: TrainConfig, data: Sequences) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {"model": asdict(model.config), "config": asdict(config), "data": data.fingerprint}


def _save_checkpoint(
    folder: Path, model: RecBLR, average: AveragedModel, optimizer: torch.optim.Adam,
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
    folder: Path, model: RecBLR, average: AveragedModel, optimizer: torch.optim.Adam,
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
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); train without --resume") from error
    run = Trained(**about.pop("run"))
    if about != _identity(model, config, data):
        raise InputError(
            f"{path} belongs to another configuration or log; resume with the same ones"
        )
    model.load_state_dict(parts.pop("model"))
    average.load_state_dict(parts.pop("average"))
    best = parts.pop("best")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {key: tensors[name] for key, tensors in parts.items()}
    return run, best
