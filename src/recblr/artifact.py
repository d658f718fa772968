"""The artifact: a trained model as a folder of safetensors, JSON and Parquet files, without pickle.

It is written completely or not at all. Its files are hashed, and a changed file is refused.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
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

import recblr
from recblr.artifact_checks import (
    check_config,
    check_data,
    check_files,
    check_format,
    check_rows,
    check_shapes,
    read_json,
)
from recblr.config import build
from recblr.data.sequences import MARKER as PREPARED
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError
from recblr.files import new_folder, sha256
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice, Trial
from recblr.models import MODELS, create_model
from recblr.models.model import Model
from recblr.renamed import current_evaluation
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig
from recblr.training.stage import Stage

MARKER = "model.safetensors"  # the file that identifies an artifact
FORMAT = 1
FILES = (MARKER, "config.json", "vocabulary.parquet", "histories.parquet")
MEMORY = "memory.safetensors"  # if the model has a memory
READ_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError, SafetensorError, pa.ArrowException,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Artifact:
    """The content of an artifact.

    Attributes:
        model: the name of the model.
        config, training, memory_config: the settings.
        data: the log, split.
        network: the model with its weights.
        trained: how training ended.
        measured: evaluations on the test part as JSON values.
        memory, memory_choice: as in :class:`Recommender`; None without a memory.
        stages: how the weights came about.
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
    stages: list[Stage] = field(default_factory=list)


def save(artifact: Artifact, folder: Path, overwrite: bool = False) -> None:
    """Write the folder, completely or not at all; it is loaded once before it is put in place.

    Raises:
        InputError: the folder exists, unless it is an artifact and ``overwrite`` is true; or it would
            not load, for example because a weight is not finite.
    """
    data = artifact.data
    starts = data.offsets[:-1]
    with new_folder(folder, overwrite, MARKER) as new:
        save_file(artifact.network.state_dict(), new / MARKER)
        settings = {
            "model": {"name": artifact.model, **asdict(artifact.config)},
            "train": asdict(artifact.training),
            "memory": asdict(artifact.memory_config),
            "data": {"core": data.core, "split": data.split.name},
        }
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        shutil.copymode(new / "config.json", new / MARKER)  # safetensors restricts it to the owner
        vocabulary = {"item_id": data.item_ids, "training_count": data.item_counts}
        pq.write_table(pa.table(vocabulary), new / "vocabulary.parquet")
        # Rows of the split are relative to the first row of the user, -1 for none.
        held_out = {
            part: np.where(rows >= 0, rows - starts, -1)
            for part, rows in (("validation", data.split.validation), ("test", data.split.test))
        }
        histories = {
            "user_id": data.user_ids,
            "items": pa.LargeListArray.from_arrays(data.offsets, pa.array(data.items)),
            "train_end": data.split.train_end - starts,
            **held_out,
        }
        if data.times is not None:
            times = pa.array(data.times)
            histories["times"] = pa.LargeListArray.from_arrays(data.offsets, times)
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
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"recblr": recblr.__version__, "torch": torch.__version__,
                         "python": platform.python_version()},
            "files": {name: sha256(new / name) for name in files},
            "data": {"fingerprint": data.fingerprint, **data.summary},
            "training": asdict(artifact.trained),
            "stages": [asdict(stage) for stage in artifact.stages],
            "measured": artifact.measured,
            "memory": None if memory is None else {
                "weight": memory.weight, "scale": memory.scale, "repeat": memory.repeat,
                "chosen": None if choice is None else asdict(choice),
            },
        }  # fmt: skip
        manifest["digest"] = _digest(manifest)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            load(new)
        except InputError as error:
            problem = str(error).replace(str(new), str(folder))
            raise InputError(f"the model was not saved, as it would not load: {problem}") from error


def load(folder: Path) -> Artifact:
    """Read the folder.

    Raises:
        InputError: it is not an artifact, a file is missing or changed, or the weights do not fit or
            are not finite.
    """
    try:
        check_files(folder, (*FILES, MEMORY, "manifest.json"))
        manifest = read_json(folder / "manifest.json")
        check_format(folder, manifest, FORMAT)
        if manifest["digest"] != _digest(manifest):
            raise InputError(f"{folder / 'manifest.json'} is damaged: it does not match its digest")
        for file in (*FILES, *([MEMORY] if manifest.get("memory") else [])):
            if sha256(folder / file) != manifest["files"][file]:
                raise InputError(
                    f"{folder / file} is damaged: it does not match its hash in the manifest"
                )
        settings = read_json(folder / "config.json")
        name = settings["model"].pop("name")
        config = build(MODELS[name][1], settings["model"], "model")
        training = build(TrainConfig, settings["train"], "train")
        data = _read_data(folder, settings["data"], manifest["data"])
        # Version 0.1.0 had no memory.
        memory_config = build(MemoryConfig, settings.get("memory", {"enabled": False}), "memory")
        memory, choice = _read_memory(folder, memory_config, manifest.get("memory"))
        trained = Trained(**manifest["training"])
        stages = [Stage(**stage) for stage in manifest.get("stages", [])]
        counts = len(data.items), data.training_events
        first = Stage("fit", manifest["data"]["fingerprint"], *counts, None, trained.seconds)
        measured = [current_evaluation(evaluation) for evaluation in manifest["measured"]]
        weights = load_file(folder / MARKER)
        check_config(folder, config, weights)
        sizes = {
            "items": len(data.item_ids), "users": data.users, "max_length": training.max_length,
        }  # fmt: skip
        with torch.device("meta"):  # without memory, until it is known that the weights fit
            expected = create_model(name, config, **sizes).state_dict()
        check_shapes(folder, expected, weights)
    except InputError:
        raise
    except READ_ERRORS as error:
        if not folder.exists():
            reason = "there is no such folder; check the path"
        elif (folder / PREPARED).exists():
            reason = "it is a prepared log; train a model on it"
        elif isinstance(error, FileNotFoundError):
            reason = f"it has no {Path(error.filename).name}"
        else:
            reason = str(error) if isinstance(error, OSError) else repr(error)
        raise InputError(f"{folder} is not a whole recblr artifact: {reason}") from error
    network = create_model(name, config, **sizes)
    network.load_state_dict(weights)
    if memory is not None and memory.matrix.shape[0] != len(data.item_ids):
        raise InputError(f"{folder}: the memory has another number of items; train the model again")
    return Artifact(
        name, config, training, data, network.eval(), trained, measured, memory_config, memory, choice,
        stages or [first],
    )  # fmt: skip


def digest(folder: Path) -> str:
    """The digest in the manifest, which identifies an artifact; :func:`load` checks it."""
    value: str = json.loads((folder / "manifest.json").read_text())["digest"]
    return value


def _read_data(folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> Sequences:
    for name in ("vocabulary.parquet", "histories.parquet"):
        check_rows(folder / name)
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
    times = None
    if "times" in table.column_names:  # absent in version 0.1.0
        times = table["times"].combine_chunks().values.to_numpy()
    counts = {name: value for name, value in summary.items() if name != "fingerprint"}
    data = Sequences(items, offsets, user_ids, item_ids, split, settings["core"], counts, times)
    check_data(folder, data)
    return data


def _read_memory(
    folder: Path, config: MemoryConfig, values: Mapping[str, Any] | None
) -> tuple[Memory | None, Choice | None]:
    if values is None:
        return None, None
    arrays = safe_arrays.load_file(folder / MEMORY)
    size = len(arrays["ends"]) - 1
    matrix = sparse.csr_array((arrays["values"], arrays["items"], arrays["ends"]), (size, size))
    matrix.check_format(full_check=True)
    if not (np.isfinite(matrix.data).all() and (matrix.data >= 0).all()):
        raise InputError(
            f"{folder / MEMORY}: a value is not finite, or negative; train the model again"
        )
    weight, scale, repeat = (float(values[name]) for name in ("weight", "scale", "repeat"))
    if not (
        matrix.has_canonical_format and scale >= 0 and max(map(abs, (weight, scale, repeat))) < 1e6
    ):
        raise InputError(f"{folder}: the memory is damaged; train the model again")
    memory = Memory(config, matrix, weight, scale, repeat)
    chosen = values["chosen"]
    if chosen is None:
        return memory, None
    return memory, Choice(chosen["users"], [Trial(**trial) for trial in chosen["trials"]])


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its digest."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
