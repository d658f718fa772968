"""Recommender: model, vocabulary and histories together; fit, recommend, evaluate, save, load."""

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recblr.config import build, near
from recblr.data import open_log
from recblr.data.batches import pack
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import DivergedError, InputError
from recblr.evaluate import Evaluation, Part, evaluate
from recblr.folders import check_absent, new_folder, sha256
from recblr.models import MODELS
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.train import TrainConfig, Trained, train

if TYPE_CHECKING:
    import polars as pl

_BLOCK = 1 << 22  # scores in memory at once
_FILES = ("model.safetensors", "config.json", "vocabulary.parquet", "histories.parquet")


class Recommender:
    """Learns from a log and recommends by the log's own ids.

    Args:
        model: a name in :data:`recblr.models.MODELS`.
        config: the shape of the model.
        training: how it is trained.

    Attributes:
        data: the histories it was fitted on, with their split.
        network: the model itself, a ``torch.nn.Module``.
        trained: how training ended.
        measured: evaluations kept with it, written into the artifact.
    """

    data: Sequences
    network: RecBLR
    trained: Trained

    def __init__(
        self,
        model: str = "recblr",
        config: RecBLRConfig | None = None,
        training: TrainConfig | None = None,
    ) -> None:
        if model not in MODELS:
            raise InputError(f"unknown model {model!r}{near(model, MODELS)}")
        self.model = model
        self.config = config or MODELS[model][1]()
        self.training = training or TrainConfig()
        self.measured: list[Evaluation] = []

    @staticmethod
    def configured(model: str, settings: Mapping[str, Any]) -> "Recommender":
        """From plain values, ``{"model": {"dropout": 0.5}, "train": {"lr": 0.001}}``."""
        for section in settings:
            if section not in ("model", "train"):
                raise InputError(
                    f"no such section of settings: {section}{near(section, ('model', 'train'))}"
                )
        recommender = Recommender(model)
        recommender.config = build(MODELS[model][1], settings.get("model", {}), "model")
        recommender.training = build(TrainConfig, settings.get("train", {}), "train")
        return recommender

    def fit(
        self, log: Any, *, core: int | None = None, split: str | None = None,
        columns: Mapping[str, str] | None = None, out: str | Path | None = None,
        resume: bool = False, overwrite: bool = False,
    ) -> "Recommender":  # fmt: skip
        """Train on the training part of a log and stop by its validation part.

        Args:
            log: whatever :func:`recblr.open_log` opens; ``core``, ``split`` and ``columns`` as there.
            out: measure the result on the test part and save it to this folder. While training
                lasts, its run log and checkpoint lie in ``<out>.training``.
            resume: go on from the checkpoint of an earlier run with the same ``out``.
            overwrite: replace what ``out`` holds.
        """
        if out is None:
            with tempfile.TemporaryDirectory() as temporary:
                return self._fit(open_log(log, core, split, columns), Path(temporary), False)
        out = Path(out)
        work = out.with_name(f"{out.name}.training")
        check_absent(out, overwrite or resume)
        unfinished = (work / "checkpoint.safetensors").exists()
        if resume and not unfinished:
            raise InputError(f"nothing to resume: {work} holds no checkpoint; leave out --resume")
        if unfinished and not resume and not overwrite:
            raise InputError(
                f"{work} holds an unfinished run; pass --resume to go on or --overwrite to drop it"
            )
        data = open_log(log, core, split, columns)
        _check_parts(data, "validation", "test")
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        self._fit(data, work, resume)
        self.evaluate()
        self.save(out, overwrite=True)
        shutil.copy(work / "run.jsonl", out)
        if self.trained.ended != "interrupted":
            shutil.rmtree(work)
        return self

    def _fit(self, data: Sequences, folder: Path, resume: bool) -> "Recommender":
        _check_parts(data, "validation")
        self.data, self.measured = data, []
        for index in ("_user_index", "_item_index"):  # of an earlier log
            self.__dict__.pop(index, None)
        torch.manual_seed(self.training.seed)
        self.network = MODELS[self.model][0](len(data.item_ids), self.config)
        self.trained = train(self.network, data, self.training, folder, resume)
        return self

    def evaluate(
        self, log: Any = None, part: Part = "test", columns: Mapping[str, str] | None = None
    ) -> list[Evaluation]:
        """Metrics under both protocols, on the log it was fitted on or on another one.

        Another log is filtered and split as the first one was and read in this model's vocabulary:
        items it does not know leave the histories, and as targets count as missed.
        """
        data = self.data
        if log is not None:
            data = open_log(log, data.core, data.split.name, columns).with_items(data.item_ids)
        measured = evaluate(self.network.score, data, self.training.max_length, part)
        if log is None and part == "test":
            self.measured = measured
        return measured

    def recommend(
        self,
        users: Iterable[str | int] | None = None,
        histories: Sequence[Sequence[str | int]] | None = None,
        k: int = 10,
        *,
        allow: Iterable[str | int] | None = None,
        deny: Iterable[str | int] | None = None,
        hide_seen: bool = True,
    ) -> "pl.DataFrame":
        """The best ``k`` items for users of the log, or for histories of anybody.

        Args:
            users: ids of users of the log; their whole history there is used.
            histories: item ids, oldest first; items the model does not know are passed over.
            k: at most this many each; fewer where fewer are left.
            allow: only these items. deny: not these; ids the model does not know are passed over.
            hide_seen: leave out what the history holds already.

        Returns:
            A frame ``user_id, item_id, score, rank``, rank from 1. For histories ``user_id`` is the
            number of the history, from 0. Like evaluation, scoring looks at the last
            ``training.max_length`` events.

        Raises:
            InputError: an unknown user, a history without any known item, nothing left to allow.
        """
        import polars as pl

        if (users is None) == (histories is None):
            raise InputError("give users or histories, one of the two")
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        if users is not None:
            users = list(users)
            rows = [self._user(name) for name in users]
            lists = [self.data.items[self.data.offsets[u] : self.data.offsets[u + 1]] for u in rows]
            ids = pa.array(users, self.data.user_ids.type)
        else:
            assert histories is not None
            lists = [self._history(number, items) for number, items in enumerate(histories)]
            ids = pa.array(range(len(lists)), pa.int64())

        hidden = self._hidden(allow, deny)
        block = max(1, _BLOCK // len(hidden))
        names = ("user_id", "item_id", "score", "rank")
        kinds = (ids.type, self.data.item_ids.type, pa.float32(), pa.int64())
        tables = [pa.schema(zip(names, kinds, strict=True)).empty_table()]
        with progress("recommending", len(lists)) as advance:
            for first in range(0, len(lists), block):
                some = lists[first : first + block]
                scores = self._scores(some)
                scores[:, hidden] = -torch.inf
                if hide_seen:
                    owner = np.repeat(np.arange(len(some)), [len(items) for items in some])
                    scores[owner, np.concatenate(some).astype(np.int64)] = -torch.inf
                best, items = (t.numpy() for t in scores.topk(min(k, scores.shape[1]), dim=1))
                row, place = np.nonzero(best > -np.inf)
                columns = (
                    ids.take(pa.array(first + row)),
                    self.data.item_ids.take(pa.array(items[row, place])),
                    pa.array(best[row, place]),
                    pa.array(place + 1),
                )
                tables.append(pa.table(dict(zip(names, columns, strict=True))))
                advance(len(some))
        frame = pl.from_arrow(pa.concat_tables(tables))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def user_ids(self, texts: Iterable[str]) -> list[str | int]:
        """User ids written as text, such as on a command line, in the type the log has."""
        return _as_ids(texts, self.data.user_ids.type)

    def item_ids(self, texts: Iterable[str]) -> list[str | int]:
        """Item ids written as text, in the type the log has."""
        return _as_ids(texts, self.data.item_ids.type)

    def _scores(self, histories: list[np.ndarray]) -> torch.Tensor:
        latest = [items[-self.training.max_length :] for items in histories]
        stops = np.cumsum([len(items) for items in latest])
        starts = np.concatenate([[0], stops[:-1]])
        scores = self.network.score(pack(np.concatenate(latest), starts, stops, "none")).cpu()
        if not torch.isfinite(scores).all():
            raise DivergedError("a score is not finite: the model has diverged; nothing is ranked")
        return scores

    @cached_property
    def _user_index(self) -> dict[str | int, int]:
        return {name: row for row, name in enumerate(self.data.user_ids.to_pylist())}

    @cached_property
    def _item_index(self) -> dict[str | int, int]:
        return {name: row for row, name in enumerate(self.data.item_ids.to_pylist())}

    def _user(self, name: str | int) -> int:
        row = self._user_index.get(name)
        if row is None:
            raise InputError(
                f"user {name!r} is not in the log this model was fitted on; give a history instead"
            )
        return row

    def _known_items(self, names: Iterable[str | int]) -> np.ndarray:
        index = self._item_index
        return np.array([index[name] for name in names if name in index], dtype=np.int64)

    def _history(self, number: int, names: Sequence[str | int]) -> np.ndarray:
        items = self._known_items(names)
        if not len(items):
            raise InputError(
                f"history {number} has no item that the model knows: {list(names)[:5]}"
            )
        return items

    def _hidden(
        self, allow: Iterable[str | int] | None, deny: Iterable[str | int] | None
    ) -> np.ndarray:
        """Mask (V,) of the items that may not be recommended to anybody."""
        hidden = np.zeros(len(self.data.item_ids), bool)
        if allow is not None:
            hidden[:] = True
            hidden[self._known_items(allow)] = False
        if deny is not None:
            hidden[self._known_items(deny)] = True
        if hidden.all():
            raise InputError("allow and deny leave no item that the model knows")
        return hidden

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the artifact: safetensors, JSON and Parquet, hashed; the folder appears whole."""
        data = self.data
        starts = data.offsets[:-1]
        with new_folder(Path(folder), overwrite) as new:
            save_file(self.network.state_dict(), new / "model.safetensors")
            settings = {
                "model": {"name": self.model, **asdict(self.config)},
                "train": asdict(self.training),
                "data": {"core": data.core, "split": data.split.name},
            }
            (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
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
            manifest = {
                "format": 1,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"recblr": version("recblr"), "torch": torch.__version__,
                             "python": platform.python_version()},
                "files": {name: sha256(new / name) for name in _FILES},
                "data": {"fingerprint": data.fingerprint, **data.summary},
                "training": asdict(self.trained),
                "measured": [evaluation.to_json() for evaluation in self.measured],
            }  # fmt: skip
            manifest["digest"] = _digest(manifest)
            (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def load(folder: str | Path) -> Recommender:
    """Read an artifact.

    Raises:
        InputError: it is not one, a file is missing or changed, or the weights do not fit or are not
            finite.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.get("digest", _digest(manifest)) != _digest(manifest):
            raise InputError(f"{folder / 'manifest.json'} is damaged: it does not match its digest")
        for name in _FILES:
            if sha256(folder / name) != manifest["files"][name]:
                raise InputError(f"{folder / name} is damaged: its hash is not the manifest's")
        settings = json.loads((folder / "config.json").read_text())
        name = settings["model"].pop("name")
        config = build(MODELS[name][1], settings["model"], "model")
        recommender = Recommender(name, config, build(TrainConfig, settings["train"], "train"))
        recommender.data = _read_data(folder, settings["data"], manifest["data"])
        recommender.trained = Trained(**manifest["training"])
        weights = load_file(folder / "model.safetensors")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        pa.ArrowException,
    ) as error:
        if isinstance(error, InputError):
            raise
        what = str(error) if isinstance(error, OSError) else repr(error)
        raise InputError(f"{folder} is not a whole recblr artifact: {what}") from error
    network = MODELS[name][0](len(recommender.data.item_ids), config)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if expected != {key: tuple(tensor.shape) for key, tensor in weights.items()}:
        raise InputError(f"{folder}: the weights do not have the shapes of its configuration")
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise InputError(f"{folder}: a weight is not finite; train the model again")
    network.load_state_dict(weights)
    recommender.network = network.eval()
    return recommender


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


def _check_parts(data: Sequences, *parts: Part) -> None:
    """Refuse before training, not after it, a log on which the result cannot be measured."""
    for part in parts:
        if not np.any(getattr(data.split, part) >= 0):
            raise InputError(
                f"no user has an event to predict in the {part} part; give a longer log"
            )


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, but for the digest itself."""
    said = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _as_ids(texts: Iterable[str], kind: pa.DataType) -> list[str | int]:
    if not pa.types.is_integer(kind):
        return list(texts)
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise InputError(f"ids of this log are whole numbers: {error}") from error
