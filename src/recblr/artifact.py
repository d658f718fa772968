"""The artifact: a trained model as a folder of safetensors, JSON and Parquet, hashed, without pickle.

It appears whole or not at all, and is refused when anything in it has changed.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors import numpy as safe_arrays
from safetensors.torch import load_file, save_file
from scipy import sparse

from recblr.config import build
from recblr.data.sequences import MARK as PREPARED
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError
from recblr.files import new_folder, sha256
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice, Trial
from recblr.models import MODELS
from recblr.models.model import Model
from recblr.training.trainer import TrainConfig, Trained

MARK = "model.safetensors"  # what an artifact is known by
FILES = (MARK, "config.json", "vocabulary.parquet", "histories.parquet")
MEMORY = "memory.safetensors"  # where the model has one
BROKEN = (
    OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact holds: the model by name, its settings and weights, the log and the figures.

    ``measured`` are evaluations on the test part as JSON values. Without memory the last two are None.
    """

    model: str
    config: Any
    training: TrainConfig
    data: Sequences
    network: Model
    trained: Trained
    measured: list[dict[str, Any]]
    memory_config: MemoryConfig
    memory: Memory | None
    memory_choice: Choice | None


def save(artifact: Artifact, folder: Path, overwrite: bool = False) -> None:
    """Write the folder, all of it or nothing."""
    data = artifact.data
    starts = data.offsets[:-1]
    with new_folder(folder, overwrite, MARK) as new:
        save_file(artifact.network.state_dict(), new / MARK)
        settings = {
            "model": {"name": artifact.model, **asdict(artifact.config)},
            "train": asdict(artifact.training),
            "memory": asdict(artifact.memory_config),
            "data": {"core": data.core, "split": data.split.name},
        }
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        shutil.copymode(new / "config.json", new / MARK)  # which was written for its owner alone
        vocabulary = {"item_id": data.item_ids, "training_count": data.item_counts}
        pq.write_table(pa.table(vocabulary), new / "vocabulary.parquet")
        # Rows of the split are kept relative to the user's first, -1 for none.
        held = {
            part: np.where(rows >= 0, rows - starts, -1)
            for part, rows in (("validation", data.split.validation), ("test", data.split.test))
        }
        histories = {
            "user_id": data.user_ids,
            "items": pa.LargeListArray.from_arrays(data.offsets, pa.array(data.items)),
            "train_end": data.split.train_end - starts,
            **held,
        }
        pq.write_table(pa.table(histories), new / "histories.parquet")
        memory, choice = artifact.memory, artifact.memory_choice
        if memory is not None:
            matrix = {
                "ends": memory.matrix.indptr, "items": memory.matrix.indices,
                "values": memory.matrix.data,
            }  # fmt: skip
            safe_arrays.save_file(matrix, new / MEMORY)
            shutil.copymode(new / "config.json", new / MEMORY)
        files = FILES if memory is None else (*FILES, MEMORY)
        manifest = {
            "format": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"recblr": version("recblr"), "torch": torch.__version__,
                         "python": platform.python_version()},
            "files": {name: sha256(new / name) for name in files},
            "data": {"fingerprint": data.fingerprint, **data.summary},
            "training": asdict(artifact.trained),
            "measured": artifact.measured,
            "memory": None if memory is None else {
                "weight": memory.weight, "scale": memory.scale, "repeat": memory.repeat,
                "chosen": None if choice is None else asdict(choice),
            },
        }  # fmt: skip
        manifest["digest"] = _digest(manifest)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def load(folder: Path) -> Artifact:
    """Read the folder.

    Raises:
        InputError: it is no artifact, a file is missing or changed, or the weights do not fit or
            are not finite.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["digest"] != _digest(manifest):
            raise InputError(f"{folder / 'manifest.json'} is damaged: it does not match its digest")
        for file in (*FILES, *([MEMORY] if manifest.get("memory") else [])):
            if sha256(folder / file) != manifest["files"][file]:
                raise InputError(f"{folder / file} is damaged: its hash is not the manifest's")
        settings = json.loads((folder / "config.json").read_text())
        name = settings["model"].pop("name")
        config = build(MODELS[name][1], settings["model"], "model")
        training = build(TrainConfig, settings["train"], "train")
        data = _read_data(folder, settings["data"], manifest["data"])
        # Version 0.1.0 had no memory.
        memory_config = build(MemoryConfig, settings.get("memory", {"enabled": False}), "memory")
        memory, choice = _read_memory(folder, memory_config, manifest.get("memory"))
        trained, measured = Trained(**manifest["training"]), manifest["measured"]
        weights = load_file(folder / MARK)
    except InputError:
        raise
    except BROKEN as error:
        if not folder.exists():
            what = "there is no such folder; check the path"
        elif (folder / PREPARED).exists():
            what = "it is a prepared log; train a model on it"
        elif isinstance(error, FileNotFoundError):
            what = f"it has no {Path(error.filename).name}"
        else:
            what = str(error) if isinstance(error, OSError) else repr(error)
        raise InputError(f"{folder} is not a whole recblr artifact: {what}") from error
    network = MODELS[name][0](len(data.item_ids), config, data.users, training.max_length)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if expected != {key: tuple(tensor.shape) for key, tensor in weights.items()}:
        raise InputError(f"{folder}: the weights do not have the shapes of its configuration")
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise InputError(f"{folder}: a weight is not finite; train the model again")
    network.load_state_dict(weights)
    if memory is not None and memory.matrix.shape[0] != len(data.item_ids):
        raise InputError(f"{folder}: the memory is of another catalogue; train the model again")
    return Artifact(
        name,
        config,
        training,
        data,
        network.eval(),
        trained,
        measured,
        memory_config,
        memory,
        choice,
    )


def digest(folder: Path) -> str:
    """What names an artifact: the digest in its manifest, which :func:`load` has checked."""
    found: str = json.loads((folder / "manifest.json").read_text())["digest"]
    return found


def _read_data(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Sequences:
    item_ids = pq.read_table(folder / "vocabulary.parquet")["item_id"].combine_chunks()
    table = pq.read_table(folder / "histories.parquet").combine_chunks()
    lists = table["items"].combine_chunks()
    offsets = lists.offsets.to_numpy()
    starts = offsets[:-1]
    train_end, validation, test = (
        table[name].to_numpy() for name in ("train_end", "validation", "test")
    )
    split = Split(
        settings["split"],
        starts + train_end,
        np.where(validation >= 0, starts + validation, -1),
        np.where(test >= 0, starts + test, -1),
    )
    items = lists.values.to_numpy()
    user_ids = table["user_id"].combine_chunks()
    return Sequences(items, offsets, user_ids, item_ids, split, settings["core"], dict(about))


def _read_memory(
    folder: Path, config: MemoryConfig, about: Mapping[str, Any] | None
) -> tuple[Memory | None, Choice | None]:
    if about is None:
        return None, None
    found = safe_arrays.load_file(folder / MEMORY)
    size = len(found["ends"]) - 1
    matrix = sparse.csr_array((found["values"], found["items"], found["ends"]), (size, size))
    matrix.check_format(full_check=True)
    if not np.isfinite(matrix.data).all():
        raise InputError(f"{folder / MEMORY}: a value is not finite; train the model again")
    memory = Memory(config, matrix, *(float(about[name]) for name in ("weight", "scale", "repeat")))
    chosen = about["chosen"]
    if chosen is None:
        return memory, None
    return memory, Choice(chosen["users"], [Trial(**trial) for trial in chosen["trials"]])


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, but for the digest itself."""
    said = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
