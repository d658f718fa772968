"""The artifact: a trained model as a folder of safetensors, JSON and Parquet files, without pickle.

It is written completely or not at all. Its files are hashed, and a changed file is refused.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safe_arrays
from safetensors.torch import load_file, save_file
from scipy import sparse

import recblr
from recblr.artifact_checks import (
    check_config,
    check_content,
    check_data,
    check_files,
    check_format,
    check_lists,
    check_rows,
    check_shapes,
    read_json,
)
from recblr.config import build
from recblr.data.batches import pack_latest
from recblr.data.content import ItemContent
from recblr.data.kinds import Kinds
from recblr.data.sequences import MARKER as PREPARED
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError
from recblr.files import new_folder, sha256
from recblr.inverted_file import QUERIES, Lists, divide_if_large
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice, Trial
from recblr.models import MODELS, empty_model
from recblr.models.content import Content
from recblr.models.model import Model
from recblr.renamed import current_evaluation
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig
from recblr.training.stage import Stage

MARKER = "model.safetensors"  # the file that identifies an artifact
FORMAT = 1
FILES = (MARKER, "config.json", "vocabulary.parquet", "histories.parquet")
MEMORY = "memory.safetensors"  # if the model has a memory
CONTENT = "content.safetensors"  # if it was trained with content of items
LISTS = "lists.safetensors"  # if it has so many items that a search looks through lists of them
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
        content: the content of the items, with its projections; None without content.
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
    content: Content | None = None


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
        if data.kinds is not None:
            settings["data"]["kinds"] = data.kinds.names
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
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
        codes = None if data.kinds is None else data.kinds.codes
        for name, array in (("times", data.times), ("weights", data.weights), ("kinds", codes)):
            if array is not None:
                lists = pa.LargeListArray.from_arrays(data.offsets, pa.array(array))
                histories[name] = lists
        pq.write_table(pa.table(histories), new / "histories.parquet")
        memory, choice = artifact.memory, artifact.memory_choice
        if memory is not None:
            matrix = {
                "ends": memory.matrix.indptr, "items": memory.matrix.indices,
                "values": memory.matrix.data,
            }  # fmt: skip
            safe_arrays.save_file(matrix, new / MEMORY)
        if artifact.content is not None:
            _save_content(artifact.content, new / CONTENT)
        lists = divide_if_large(artifact.network.item_embeddings, lambda: _some_vectors(artifact))
        if lists is not None:
            arrays = {"centres": lists.centres, "list_of": lists.list_of}
            safe_arrays.save_file(arrays, new / LISTS)
        optional = ((MEMORY, memory), (CONTENT, artifact.content), (LISTS, lists))
        files = (*FILES, *(name for name, value in optional if value is not None))
        for name in files:  # safetensors restricts them to the owner
            shutil.copymode(new / "config.json", new / name)
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
            "content": None if artifact.content is None else repr(artifact.content.items),
            "lists": None if lists is None else {"probes": lists.probes, "recall": lists.recall},
        }  # fmt: skip
        manifest["digest"] = _digest(manifest)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            load(new)
        except InputError as error:
            problem = str(error).replace(str(new), str(folder))
            raise InputError(f"the model was not saved, as it would not load: {problem}") from error


def load(folder: Path, histories: bool = True) -> Artifact:
    """Read the folder.

    Args:
        folder: the artifact.
        histories: whether to read the histories. Without them ``data`` has no users; a server, whose
            events are in its own log, needs less memory so.

    Raises:
        InputError: it is not an artifact, a file is missing or changed, or the weights do not fit or
            are not finite.
    """
    try:
        check_files(folder, (*FILES, MEMORY, CONTENT, LISTS, "manifest.json"))
        manifest = read_json(folder / "manifest.json")
        check_format(folder, manifest, FORMAT)
        if manifest["digest"] != _digest(manifest):
            raise InputError(f"{folder / 'manifest.json'} is damaged: it does not match its digest")
        optional = ((MEMORY, "memory"), (CONTENT, "content"), (LISTS, "lists"))
        for file in (*FILES, *(name for name, part in optional if manifest.get(part))):
            if sha256(folder / file) != manifest["files"][file]:
                raise InputError(
                    f"{folder / file} is damaged: it does not match its hash in the manifest"
                )
        settings = read_json(folder / "config.json")
        name = settings["model"].pop("name")
        config = build(MODELS[name][1], settings["model"], "model")
        training = build(TrainConfig, settings["train"], "train")
        counts = {key: value for key, value in manifest["data"].items() if key != "fingerprint"}
        read = _read_data if histories else _read_items
        data = read(folder, {**settings["data"], "gaps": training.gaps}, counts)
        # Version 0.1.0 had no memory.
        memory_config = build(MemoryConfig, settings.get("memory", {"enabled": False}), "memory")
        memory, choice = _read_memory(folder, memory_config, manifest.get("memory"))
        trained = Trained(**manifest["training"])
        stages = [Stage(**stage) for stage in manifest.get("stages", [])]
        events = len(data.items), data.training_events
        if not histories:
            kept = counts.get("kept", {})
            events = kept.get("interactions", 0), counts.get("training_interactions", 0)
        first = Stage("fit", manifest["data"]["fingerprint"], *events, None, trained.seconds)
        measured = [current_evaluation(evaluation) for evaluation in manifest["measured"]]
        weights = load_file(folder / MARKER)
        check_config(folder, config, weights)
        sizes = {
            "items": len(data.item_ids), "max_length": training.max_length,
            "users": pq.read_metadata(folder / "histories.parquet").num_rows,
            "feature_set": data.feature_set,
        }  # fmt: skip
        network = empty_model(name, config, **sizes)
        expected = network.state_dict()
        check_shapes(folder, expected, weights)
        content = None
        if manifest.get("content"):
            content = _read_content(folder / CONTENT)
            tables = {
                table: expected[table].shape[1:].numel() for table in MODELS[name][0].item_tables
            }
            check_content(folder / CONTENT, content, len(data.item_ids), tables)
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
    network.load_state_dict(weights, assign=True)
    if memory is not None and memory.matrix.shape[0] != len(data.item_ids):
        raise InputError(f"{folder}: the memory has another number of items; train the model again")
    return Artifact(
        name, config, training, data, network.eval(), trained, measured, memory_config, memory, choice,
        stages or [first], content,
    )  # fmt: skip


def read_lists(folder: Path, vectors: torch.Tensor) -> Lists | None:
    """The lists of the items of a loaded artifact, whose vectors are (V, D); None if it has none.

    Raises:
        InputError: the lists do not fit.
    """
    if (values := read_json(folder / "manifest.json").get("lists")) is None:
        return None
    arrays: dict[str, Any] = safe_arrays.load_file(folder / LISTS)
    lists = Lists(**arrays, **values)
    check_lists(folder / LISTS, lists, vectors.shape)
    return lists


def _some_vectors(artifact: Artifact) -> torch.Tensor:
    """Vectors of a few users, as queries for items."""
    data = artifact.data
    users = np.linspace(0, data.users - 1, min(data.users, QUERIES)).astype(np.int64)
    begins, ends = data.offsets[users], data.offsets[users + 1]
    length = artifact.training.max_length
    batch = pack_latest(data.items, begins, ends, length, "none", data.features)
    return artifact.network.history_vectors(replace(batch, users=torch.from_numpy(users))).cpu()


def digest(folder: Path) -> str:
    """The digest in the manifest, which identifies an artifact; :func:`load` checks it."""
    value: str = json.loads((folder / "manifest.json").read_text())["digest"]
    return value


def _read_items(folder: Path, settings: Mapping[str, Any], summary: dict[str, Any]) -> Sequences:
    """The items of the log, without its users."""
    check_rows(folder / "vocabulary.parquet")
    table = pq.read_table(folder / "vocabulary.parquet").combine_chunks()
    nobody = np.empty(0, np.int64)
    split = Split(settings["split"], nobody, nobody, nobody)
    item_ids, user_ids = table["item_id"].combine_chunks(), pa.array([], pa.string())
    items, offsets = np.empty(0, np.int32), np.zeros(1, np.int64)
    kinds = _kinds(settings, np.empty(0, np.uint8))
    data = Sequences(
        items, offsets, user_ids, item_ids, split, settings["core"], summary, kinds=kinds,
        gaps=settings["gaps"],
    )  # fmt: skip
    check_data(folder, data)
    counts = table["training_count"].to_numpy()
    if counts.dtype.kind != "i" or (counts < 0).any():
        raise InputError(f"{folder}: the training counts are damaged; train the model again")
    data.__dict__["item_counts"] = counts  # the cached property
    return data


def _read_data(folder: Path, settings: Mapping[str, Any], summary: dict[str, Any]) -> Sequences:
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
    times, weights, codes = (  # absent in version 0.1.0
        table[name].combine_chunks().values.to_numpy() if name in table.column_names else None
        for name in ("times", "weights", "kinds")
    )
    data = Sequences(
        items, offsets, user_ids, item_ids, split, settings["core"], summary, times, weights,
        _kinds(settings, codes), settings["gaps"],
    )  # fmt: skip
    check_data(folder, data)
    return data


def _kinds(settings: Mapping[str, Any], codes: np.ndarray | None) -> Kinds | None:
    """The kinds of the events, whose names are in the settings of the data."""
    if codes is None or "kinds" not in settings:
        return None
    return Kinds(codes, tuple(settings["kinds"]))


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


def _save_content(content: Content, path: Path) -> None:
    items = content.items
    arrays = {
        "vectors": items.vectors, "mean": items.mean, "scale": items.scale, "codes": items.codes,
        "offsets": items.offsets,
    }  # fmt: skip
    weights = {f"weights/{name}": weight.numpy() for name, weight in content.weights.items()}
    safe_arrays.save_file({**arrays, **weights}, path, {"names": json.dumps(items.names)})


def _read_content(path: Path) -> Content:
    with safe_open(path, "np") as file:
        names = json.loads(file.metadata()["names"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    weights = {
        key.removeprefix("weights/"): torch.from_numpy(arrays.pop(key))
        for key in list(arrays) if key.startswith("weights/")
    }  # fmt: skip
    return Content(ItemContent(names=names, **arrays), weights)


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its digest."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
