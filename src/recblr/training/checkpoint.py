"""The checkpoint of a training run: one file, replaced at once after every epoch."""

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
    """How a training run stands or ended. Epochs count from 1; 0 is none yet."""

    epoch: int = 0
    best_epoch: int = 0
    validation: Mapping[str, float] | None = None  # metrics of the best epoch
    seconds: float = 0.0
    ended: Literal["", "converged", "epochs", "interrupted"] = ""


@dataclass(frozen=True)
class Checkpoint:
    """What one run saves and restores.

    Attributes:
        model, average: the model in training and the moving average of its weights.
        optimizer: of the model.
        config: how it is trained, resolved for the model.
        data: the log.
    """

    model: Model
    average: Model
    optimizer: torch.optim.Adam
    config: TrainConfig
    data: Sequences

    def save(self, folder: Path, run: Trained, best: Mapping[str, Tensor]) -> None:
        """Write weights, best weights, the optimiser's moments and the state of the run."""
        weights = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        tensors = {
            f"{part}/{name}": tensor
            for part, state in (*weights.items(), ("best", best))
            for name, tensor in state.items()
        }
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = tensor
        about = {
            "run": asdict(run), "name": type(self.model).__name__,
            "model": asdict(self.model.config), "config": asdict(self.config),
            "data": self.data.fingerprint,
        }  # fmt: skip
        path = folder / CHECKPOINT
        temporary = path.with_suffix(".writing")
        save_file(tensors, temporary, {"about": json.dumps(about)})
        os.replace(temporary, path)

    def load(self, folder: Path) -> tuple[Trained, dict[str, Tensor]]:
        """Restore weights and optimiser; return the state of the run and its best weights.

        Raises:
            InputError: there is no checkpoint, or it is damaged or, as OtherRunError, of another run.
        """
        path = folder / CHECKPOINT
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
            difference = self._difference(about)
            if not difference:
                self.model.load_state_dict(parts.pop("model"))
                self.average.load_state_dict(parts.pop("average"))
                best = parts.pop("best")
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
                "that it began with"
            )
        return run, best

    def _difference(self, about: Mapping[str, Any]) -> str:
        """How the run of a checkpoint differs from this one, "" if it does not. A setting that is new
        since the checkpoint counts as its default."""
        if about.get("name", type(self.model).__name__) != type(self.model).__name__:
            return "another model"
        try:
            then = {
                "model": build(type(self.model.config), about["model"], "model"),
                "train": build(TrainConfig, about["config"], "train"),
            }
        except InputError:
            return "a version with other settings"
        for section, ours in (("model", self.model.config), ("train", self.config)):
            for name, value in asdict(then[section]).items():
                if value != getattr(ours, name):
                    return f"{section}.{name} = {value!r}, not {getattr(ours, name)!r}"
        return "" if about["data"] == self.data.fingerprint else "another log"
