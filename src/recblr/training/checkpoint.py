"""The checkpoint of a training run, replaced after every epoch, and the weights of its best epoch."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from recblr.config import build
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.models.model import Model
from recblr.ranks import ALONE, Ranks
from recblr.training import stored
from recblr.training.config import TrainConfig

CHECKPOINT = "checkpoint"
BEST = "best"


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
        ranks: the processes that train the model.
    """

    model: Model
    average: Model
    optimizer: torch.optim.Adam
    config: TrainConfig
    data: Sequences
    ranks: Ranks = ALONE

    def save(self, folder: Path, run: Trained) -> None:
        """Write the weights, the optimiser state and the state of the run; with those of the best
        epoch, its weights, too."""
        if run.best_epoch == run.epoch:
            best = self.average.state_dict()
            stored.write(folder / BEST, best, run.epoch, self._is_divided, self.ranks)
        weights = {"model": self.model.state_dict()}
        if self.average is not self.model:
            weights["average"] = self.average.state_dict()
        tensors = {
            f"{part}/{name}": tensor
            for part, state in weights.items()
            for name, tensor in state.items()
        }
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = tensor
        about = {
            "run": asdict(run), "name": type(self.model).__name__,
            "model": asdict(self.model.config), "config": asdict(self.config),
            "data": self.data.fingerprint, "content": self._content,
        }  # fmt: skip
        stored.write(folder / CHECKPOINT, tensors, about, self._is_divided, self.ranks)

    def load(self, folder: Path) -> Trained:
        """Restore the weights and the optimiser; return the state of the run.

        Raises:
            InputError: the checkpoint is missing or damaged, or (OtherRunError) of another run.
        """
        path = folder / CHECKPOINT
        if not stored.exists(path):
            raise InputError(f"nothing to resume: {path} does not exist; train without --resume")
        parts: dict[str, dict[str, Tensor]] = {}
        with _damage(path):
            tensors, about = stored.read(path, self._is_divided, self.ranks)
            for key, tensor in tensors.items():
                part, name = key.split("/", 1)
                parts.setdefault(part, {})[name] = tensor
            run = Trained(**about["run"])
            difference = self._difference(about)
            if not difference:
                self.model.load_state_dict(parts.pop("model"))
                average = parts.pop("average", {})  # absent if it is the model
                if self.average is not self.model:
                    self.average.load_state_dict(average)
                if "best" in parts:  # as in version 0.1
                    best = parts.pop("best")
                    stored.write(folder / BEST, best, run.best_epoch, self._is_divided, self.ranks)
                for name, parameter in self.model.named_parameters():
                    self.optimizer.state[parameter] = {
                        key: tensors[name].to(parameter.device) for key, tensors in parts.items()
                    }
        if difference:
            raise OtherRunError(
                f"{path} belongs to another run ({difference}); resume with the settings and the log "
                "of that run"
            )
        return run

    def best(self, folder: Path) -> dict[str, Tensor]:
        """The weights of the best epoch; InputError if they are missing or damaged."""
        with _damage(folder / BEST):
            return stored.read(folder / BEST, self._is_divided, self.ranks)[0]

    def _is_divided(self, name: str, axes: int) -> bool:
        return axes > 0 and name.rpartition("/")[2] in self.model.item_tables

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


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn an error about the contents of stored tensors into an InputError."""
    try:
        yield
    except (
        SafetensorError, ValueError, TypeError, KeyError, RuntimeError, EOFError, OSError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is damaged ({reason}); train without --resume") from error
