"""The checkpoint of a training run: one file, replaced atomically after every epoch."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recblr.config import build
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.models.model import Model
from recblr.training.config import TrainConfig

CHECKPOINT = "checkpoint.safetensors"


class OtherRunError(InputError):
    """The checkpoint belongs to another model, log or settings."""


@dataclass(frozen=True)
class Trained:
    """The progress or the end of a training run. Epochs count from 1; 0 means none yet."""

    epoch: int = 0
    best_epoch: int = 0
    validation: Mapping[str, float] | None = None  # metrics of the best epoch
    seconds: float = 0.0
    ended: Literal["", "converged", "epochs", "interrupted"] = ""

    def __repr__(self) -> str:
        ndcg = "" if self.validation is None else f", NDCG@10 {self.validation['NDCG@10']:.4f}"
        return (
            f"Trained(best epoch {self.best_epoch} of {self.epoch}{ndcg}, {self.seconds:,.0f} s, "
            f"{self.ended or 'not ended'})"
        )


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run that is saved and restored.

    Attributes:
        model, average: the model in training and the moving average of its weights, which may be the
            model itself.
        optimizer: the optimiser of the model.
        config: the training settings, resolved for the model.
        data: the log.
    """

    model: Model
    average: Model
    optimizer: torch.optim.Adam
    config: TrainConfig
    data: Sequences

    def save(self, folder: Path, run: Trained, best: Mapping[str, Tensor]) -> None:
        """Write the weights, the best weights, the optimiser state and the state of the run."""
        weights = {"model": self.model.state_dict()}
        if self.average is not self.model:
            weights["average"] = self.average.state_dict()
        tensors = {
            f"{part}/{name}": tensor
            for part, state in (*weights.items(), ("best", best))
            for name, tensor in state.items()
        }
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = tensor
        metadata = {
            "run": asdict(run), "name": type(self.model).__name__,
            "model": asdict(self.model.config), "config": asdict(self.config),
            "data": self.data.fingerprint, "content": self._content,
        }  # fmt: skip
        path = folder / CHECKPOINT
        temporary = path.with_suffix(".writing")
        save_file(tensors, temporary, {"about": json.dumps(metadata)})
        os.replace(temporary, path)

    def load(self, folder: Path) -> tuple[Trained, dict[str, Tensor]]:
        """Restore the weights and the optimiser; return the state of the run and its best weights.

        Raises:
            InputError: the checkpoint is missing or damaged, or (OtherRunError) of another run.
        """
        path = folder / CHECKPOINT
        if not path.exists():
            raise InputError(f"nothing to resume: {path} does not exist; train without --resume")
        parts: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads(file.metadata()["about"])
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    part, name = key.split("/", 1)
                    parts.setdefault(part, {})[name] = file.get_tensor(key)
            run = Trained(**metadata["run"])
            difference = self._difference(metadata)
            if not difference:
                self.model.load_state_dict(parts.pop("model"))
                average = parts.pop("average", {})  # absent if it is the model
                if self.average is not self.model:
                    self.average.load_state_dict(average)
                best = parts.pop("best", {})  # absent without validation
                for name, parameter in self.model.named_parameters():
                    self.optimizer.state[parameter] = {
                        key: tensors[name].to(parameter.device) for key, tensors in parts.items()
                    }
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} is damaged ({reason}); train without --resume") from error
        if difference:
            raise OtherRunError(
                f"{path} belongs to another run ({difference}); resume with the settings and the log "
                "of that run"
            )
        return run, best

    @property
    def _content(self) -> str:
        """A hash of the content of items, "" without content."""
        return "" if self.model.content is None else self.model.content.digest

    def _difference(self, metadata: Mapping[str, Any]) -> str:
        """The difference between the run of a checkpoint and this run, "" if there is none.

        Settings added after the checkpoint was written have their defaults.
        """
        if metadata.get("name", type(self.model).__name__) != type(self.model).__name__:
            return "another model"
        try:
            saved = {
                "model": build(type(self.model.config), metadata["model"], "model"),
                "train": build(TrainConfig, metadata["config"], "train"),
            }
        except InputError:
            return "settings of another version"
        for section, ours in (("model", self.model.config), ("train", self.config)):
            for name, value in asdict(saved[section]).items():
                if value != getattr(ours, name):
                    return f"{section}.{name} = {value!r}, not {getattr(ours, name)!r}"
        if metadata["data"] != self.data.fingerprint:
            return "another log"
        return "" if metadata.get("content", "") == self._content else "other content of items"
