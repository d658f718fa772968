"""Recommender: model, vocabulary and histories together; fit, recommend, evaluate, save, load."""

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from recblr import artifact, memory_search
from recblr import memory as transitions
from recblr.config import build, near
from recblr.data import open_log
from recblr.data.batches import PackedBatch, latest
from recblr.data.sequences import Part, Sequences, index_in
from recblr.device import find_device
from recblr.errors import InputError
from recblr.evaluation.ranking import Evaluation, block_size, evaluate, expect_finite, hide
from recblr.files import alone_in, check_absent
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice
from recblr.models import find_model
from recblr.models.model import Model
from recblr.parts import Parts
from recblr.progress import Advance, progress
from recblr.sizing import by_size
from recblr.training.trainer import TrainConfig, Trained, train

if TYPE_CHECKING:
    import polars as pl

_LOGGER = logging.getLogger(__name__)
SECTIONS = ("model", "train", "memory")  # of the settings
_PART = 4096  # users, about, whose recommendations a kill can cost


@dataclass(frozen=True, eq=False)
class _Offer:
    """What is recommended: ``k`` items, not those in ``hidden`` (V,), nor those of the history."""

    k: int
    hidden: np.ndarray
    hide_seen: bool


class Recommender:
    """Learns from a log and recommends by the log's own ids.

    Args:
        model: a name in :data:`recblr.models.MODELS`.
        config: the shape of the model; by default :meth:`fit` chooses it by the size of the log.
        training: how it is trained; by default likewise.
        memory_config: the memory of transitions that adds to the model's scores.
        device: where it trains and scores, "cpu", "cuda" or "cuda:N"; "auto" is a GPU if there is one.

    Attributes:
        data: the histories it was fitted on, with their split.
        network: the model itself, a ``torch.nn.Module``.
        trained: how training ended.
        memory: the memory of transitions, fitted; None where it is not enabled.
        memory_choice: the trials that chose its numbers; None without a memory.
        measured: evaluations on the test part as JSON values, kept in the artifact.
    """

    data: Sequences
    network: Model
    trained: Trained
    memory: Memory | None = None
    memory_choice: Choice | None = None

    def __init__(
        self,
        model: str = "recblr",
        config: Any = None,
        training: TrainConfig | None = None,
        memory_config: MemoryConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.model = model
        cls, kind = find_model(model)
        if not isinstance(config, kind | None):
            raise InputError(f"the config of {model} is a {kind.__name__}, not {config!r}")
        if not isinstance(training, TrainConfig | None):
            raise InputError(f"training is a TrainConfig, not {training!r}")
        if not isinstance(memory_config, MemoryConfig | None):
            raise InputError(f"memory_config is a MemoryConfig, not {memory_config!r}")
        # What the size of the log is to settle, and what of it was asked for.
        self._by_size: dict[str, Mapping[str, Any]] = {
            section: {}
            for section, given in zip(SECTIONS, (config, training), strict=False)
            if given is None
        }
        self.config = config or kind()
        self.memory_config = memory_config or MemoryConfig()
        self.training = training or TrainConfig(**cls.recipe)
        self.device = find_device(device)
        self.measured: list[dict[str, Any]] = []

    @staticmethod
    def configured(
        model: str, settings: Mapping[str, Any], device: str = "auto", by_size: bool = False
    ) -> "Recommender":
        """From plain values, ``{"model": {"dropout": 0.5}, "train": {"lr": 0.001}}``.

        What they do not set has the default of its class or, if ``by_size``, is chosen by the size of
        the log.
        """
        for section in settings:
            if section not in SECTIONS:
                raise InputError(f"no such section of settings: {section}{near(section, SECTIONS)}")
        cls, kind = find_model(model)
        config = build(kind, settings.get("model", {}), "model")
        training = build(TrainConfig, {**cls.recipe, **settings.get("train", {})}, "train")
        memory_config = build(MemoryConfig, settings.get("memory", {}), "memory")
        recommender = Recommender(model, config, training, memory_config, device)
        if by_size:
            recommender._by_size = {name: settings.get(name, {}) for name in ("model", "train")}
        return recommender

    @property
    def settings(self) -> dict[str, Any]:
        """The plain values that :meth:`configured` makes it from."""
        configs = (self.config, self.training, self.memory_config)
        return dict(zip(SECTIONS, map(asdict, configs), strict=True))

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
            if resume or overwrite:
                raise InputError("resume and overwrite are of a folder; name it by out")
            with tempfile.TemporaryDirectory() as temporary:
                return self._fit(open_log(log, core, split, columns), Path(temporary), False)
        out = Path(out)
        work = out.with_name(f"{out.name}.training")
        check_absent(out, overwrite or resume, artifact.MARK)
        unfinished = (work / "checkpoint.safetensors").exists()
        if resume and not unfinished:
            raise InputError(f"nothing to resume: {work} holds no checkpoint; leave out --resume")
        if unfinished and not resume and not overwrite:
            raise InputError(
                f"{work} holds an unfinished run; pass --resume to go on or --overwrite to drop it"
            )
        data = open_log(log, core, split, columns)
        _check_parts(data, "validation", "test")
        work.mkdir(exist_ok=True)
        with alone_in(work):
            if not resume:
                for name in ("checkpoint.safetensors", "run.jsonl"):
                    (work / name).unlink(missing_ok=True)
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
        if self._by_size:
            self._settle(data)
        torch.manual_seed(self.training.seed)
        network = find_model(self.model)[0](
            len(data.item_ids), self.config, data.users, self.training.max_length
        )
        self.network = network.to(self.device)
        self.trained = train(self.network, data, self.training, folder, resume)
        self.fit_memory(self.memory_config)
        return self

    def _settle(self, data: Sequences) -> None:
        """Choose by the size of the log what nobody has set."""
        kind = find_model(self.model)[1]
        settings = by_size(data, self.model, self._by_size, self.memory_config.enabled)
        if "model" in self._by_size:
            self.config = build(kind, settings["model"], "model")
        if "train" in self._by_size:
            self.training = build(TrainConfig, settings["train"], "train")
        chosen = ", ".join(
            f"{section}.{name} = {value}"
            for section in self._by_size
            for name, value in settings[section].items()
            if name not in self._by_size[section]
        )
        _LOGGER.info("settings by the size of the log: %s", chosen)

    def fit_memory(self, config: MemoryConfig) -> None:
        """Count the transitions of the training part, and choose on validation by which numbers they
        add to the trained model; the model itself stays as it is."""
        self.memory_config, self.memory, self.memory_choice = config, None, None
        if config.enabled:
            self.memory, self.memory_choice = memory_search.choose(
                transitions.fit(self.data, config), config, self.network.score, self.data,
                self.training.max_length,
            )  # fmt: skip

    def score(self, batch: PackedBatch) -> torch.Tensor:
        """Scores (B, V) of model and memory together, of histories as in :meth:`Model.score`."""
        scores = self.network.score(batch)
        return scores if self.memory is None else self.memory.add_to(scores, batch)

    def evaluate(
        self, log: Any = None, part: Part = "test", columns: Mapping[str, str] | None = None
    ) -> list[Evaluation]:
        """Metrics under both protocols, on the log it was fitted on or on another one.

        Another log is filtered and split as the first one was and read in this model's vocabulary:
        items it does not know leave the histories, and as targets count as missed.
        """
        data, score = self.data, self.score
        if log is None and columns is not None:
            raise InputError("columns belong to a log; name the log as well")
        if log is not None:
            other = open_log(log, data.core, data.split.name, columns)
            known = index_in(other.item_ids, data.item_ids) >= 0
            if not known.any():
                raise InputError(
                    f"the model knows none of the {len(known):,} items of that log; give one whose ids "
                    "are written as in the log it was trained on"
                )
            if not known.all():
                warnings.warn(
                    f"the model does not know {(~known).sum():,} of the {len(known):,} items of that "
                    "log; they leave the histories, and as targets count as missed",
                    stacklevel=2,
                )
            data = other.with_items(data.item_ids, part)

            ours = torch.from_numpy(index_in(data.user_ids, self.data.user_ids))

            def score(batch: PackedBatch) -> torch.Tensor:  # its users are not numbered as ours
                assert batch.users is not None
                return self.score(replace(batch, users=ours[batch.users]))

        measured = evaluate(score, data, self.training.max_length, part)
        if log is None and part == "test":
            self.measured = [evaluation.to_json() for evaluation in measured]
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
        for given in (users, allow, deny, *(histories or ())):
            if isinstance(given, str):  # its letters would be taken for ids
                raise InputError(f"{given!r} is one id where a list is due; write [{given!r}]")
        offer = self._offer(k, allow, deny, hide_seen)
        if users is not None:
            users = list(users)
            rows = np.array([self._user(name) for name in users], np.int64)
            ids, lists = pa.array(users, self.data.user_ids.type), self._events(rows)
        else:
            assert histories is not None
            lists = [self._history(number, items) for number, items in enumerate(histories)]
            rows = np.full(len(lists), -1)
            ids = pa.array(range(len(lists)), pa.int64())
        with progress("recommending", len(lists)) as advance:
            frame = pl.from_arrow(self._recommend(ids, rows, lists, offer, advance))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def recommend_all(
        self,
        out: str | Path,
        k: int = 10,
        *,
        allow: Iterable[str | int] | None = None,
        deny: Iterable[str | int] | None = None,
        hide_seen: bool = True,
    ) -> None:
        """:meth:`recommend` for every user of the log into a Parquet file, row for row the same.

        Memory does not grow with the users. What was killed goes on when called again: finished
        parts lie in ``<out>.parts`` and are used if model, log and arguments are the same.

        Raises:
            InputError: as in :meth:`recommend`, or ``out`` cannot be written, by this process or
                because another one is at it.
        """
        offer = self._offer(k, allow, deny, hide_seen)
        parts = Parts(Path(out), self._key(offer))
        size = max(1, _PART // self._block) * self._block
        firsts = range(0, self.data.users, size)
        with alone_in(parts.folder), progress("recommending", self.data.users) as advance:
            for number, first in enumerate(firsts):
                rows = np.arange(first, min(first + size, self.data.users))
                if number in parts:
                    advance(len(rows))
                    continue
                ids, lists = self.data.user_ids.slice(first, size), self._events(rows)
                parts.add(number, self._recommend(ids, rows, lists, offer, advance))
            parts.join(len(firsts))
        shutil.rmtree(parts.folder)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the artifact: safetensors, JSON and Parquet, hashed; the folder appears whole.

        It holds the histories of the log, so that users can be named.
        """
        contents = artifact.Artifact(
            self.model, self.config, self.training, self.data, self.network, self.trained,
            self.measured, self.memory_config, self.memory, self.memory_choice,
        )  # fmt: skip
        artifact.save(contents, Path(folder), overwrite)

    def user_ids(self, texts: Iterable[str]) -> list[str | int]:
        """User ids written as text, such as on a command line, in the type the log has."""
        return _as_ids(texts, self.data.user_ids.type)

    def item_ids(self, texts: Iterable[str]) -> list[str | int]:
        """Item ids written as text, in the type the log has."""
        return _as_ids(texts, self.data.item_ids.type)

    def _recommend(
        self, ids: pa.Array, users: np.ndarray, histories: list[np.ndarray], offer: _Offer,
        advance: Advance,
    ) -> pa.Table:  # fmt: skip
        """The table of :meth:`recommend` for B histories of at least one event, in blocks.

        Args:
            ids: (B,) what to call them. users: (B,) rows of the log, -1 for anybody's.
        """
        hidden = torch.from_numpy(offer.hidden).to(self.device)
        k = min(offer.k, len(hidden))
        # Filled in place: of small arrays kept of each block the heap would be left in pieces.
        best, items = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
        for first in range(0, len(ids), self._block):
            some = slice(first, first + self._block)
            block = histories[some]
            batch = self._batch(block, users[some])
            scores = self.score(batch)
            expect_finite(scores.isfinite())
            scores.masked_fill_(hidden, -torch.inf)
            if offer.hide_seen:
                hide(scores, batch)
            found = scores.topk(k, dim=1)
            best[some], items[some] = (tensor.cpu().numpy() for tensor in found)
            advance(len(block))
        row, place = np.nonzero(best > -np.inf)
        return pa.table(
            {
                "user_id": ids.take(pa.array(row)),
                "item_id": self.data.item_ids.take(pa.array(items[row, place])),
                "score": pa.array(best[row, place]),
                "rank": pa.array(place + 1),
            }
        )

    @property
    def _block(self) -> int:
        """How many users to score at a time."""
        return block_size(len(self.data.item_ids), self.training.max_length)

    def _batch(self, histories: list[np.ndarray], users: np.ndarray) -> PackedBatch:
        stops = np.cumsum([len(items) for items in histories])
        starts = np.concatenate([[0], stops[:-1]])
        batch = latest(np.concatenate(histories), starts, stops, self.training.max_length, "none")
        return replace(batch, users=torch.from_numpy(users))

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "network", "trained"):
            raise InputError("this recommender has not learned anything yet; fit or load it first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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

    def _events(self, users: np.ndarray) -> list[np.ndarray]:
        """The history of each of these rows of the log."""
        offsets = self.data.offsets
        return [self.data.items[offsets[user] : offsets[user + 1]] for user in users]

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

    def _offer(
        self, k: int, allow: Iterable[str | int] | None, deny: Iterable[str | int] | None,
        hide_seen: bool,
    ) -> _Offer:  # fmt: skip
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        hidden = np.zeros(len(self.data.item_ids), bool)
        if allow is not None:
            hidden[:] = True
            hidden[self._known_items(allow)] = False
        if deny is not None:
            hidden[self._known_items(deny)] = True
        if hidden.all():
            raise InputError("allow and deny leave no item that the model knows")
        return _Offer(k, hidden, hide_seen)

    def _key(self, offer: _Offer) -> str:
        """A hash of all that recommendations to the users of the log depend on."""
        plain = (
            self.model, self.settings, self.data.fingerprint, self._block, offer.k, offer.hide_seen,
        )  # fmt: skip
        digest = hashlib.sha256(json.dumps(plain).encode())
        digest.update(offer.hidden.tobytes())
        for weight in self.network.state_dict().values():
            digest.update(weight.cpu().numpy().tobytes())
        if self.memory is not None:
            digest.update(
                json.dumps([self.memory.weight, self.memory.scale, self.memory.repeat]).encode()
            )
            for array in (self.memory.matrix.indices, self.memory.matrix.data):
                digest.update(array.tobytes())
        return digest.hexdigest()


def load(folder: str | Path, device: str = "auto") -> Recommender:
    """Read an artifact, onto a device as in :class:`Recommender`.

    Raises:
        InputError: it is not one, a file is missing or changed, the weights do not fit or are not
            finite, or there is no such device.
    """
    contents = artifact.load(Path(folder))
    recommender = Recommender(
        contents.model, contents.config, contents.training, contents.memory_config, device
    )
    recommender.memory, recommender.memory_choice = contents.memory, contents.memory_choice
    recommender.data, recommender.network = contents.data, contents.network.to(recommender.device)
    recommender.trained, recommender.measured = contents.trained, contents.measured
    return recommender


def _check_parts(data: Sequences, *parts: Part) -> None:
    """Refuse before training, not after it, a log on which the result cannot be measured."""
    for part in parts:
        if not np.any(getattr(data.split, part) >= 0):
            raise InputError(
                f"no user has an event to predict in the {part} part; give a longer log"
            )


def _as_ids(texts: Iterable[str], kind: pa.DataType) -> list[str | int]:
    if not pa.types.is_integer(kind):
        return list(texts)
    found: list[str | int] = []
    for text in texts:
        try:
            found.append(int(text))
        except ValueError:
            raise InputError(f"ids of this log are whole numbers, {text!r} is none") from None
    return found
