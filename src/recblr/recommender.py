"""Recommender: fit a model on a log, evaluate it, recommend, save and load it."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recblr import artifact, memory_search, updating
from recblr import memory as transitions
from recblr.data import open_log, open_with_items
from recblr.data.batches import PackedBatch
from recblr.data.columns import Columns
from recblr.data.merge import Added
from recblr.data.sequences import Part, Sequences, index_in
from recblr.data.vocabulary import Id, as_ids
from recblr.device import find_device
from recblr.errors import InputError, NotFittedError
from recblr.evaluation.evaluate import Evaluation, evaluate
from recblr.evaluation.metrics import CUTOFFS
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice
from recblr.models import create_model, find_model
from recblr.models.model import Model
from recblr.ops import cpu
from recblr.progress import progress
from recblr.recommending import Audience, BatchRecommender, Selection, Unknown
from recblr.similar import Similarity, similar_items
from recblr.sizing import SECTIONS, build_settings, by_size
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig
from recblr.training.run_folder import REFIT, check_run, copy_logs, locked_run
from recblr.training.stage import Stage, describe, expect_held_out
from recblr.training.trainer import Trainer

if TYPE_CHECKING:
    import polars as pl


class Recommender:
    """A model with the log it was fitted on. Users and items are named by the ids of the log.

    Args:
        model: a name in :data:`recblr.models.MODELS`.
        config: the settings of the model; by default :meth:`fit` chooses them by the size of the log.
        training: the settings of training; by default chosen in the same way.
        memory_config: the settings of the memory of transitions, which adds to the model's scores.
        device: "cpu", "cuda", "cuda:N" or "auto", which is a GPU if there is one.

    Attributes:
        data: the histories of the log, with their split.
        network: the model, a ``torch.nn.Module``.
        trained: how training ended.
        memory: the fitted memory of transitions; None if it is not enabled.
        memory_choice: the trials that chose the settings of the memory; None without a memory.
        measured: evaluations on the test part as JSON values; they are saved in the artifact, and those
            of before a refit or an update are kept.
        stages: how the weights came about; the last one says what they were trained on.

    Raises:
        InputError: the model, a setting or the device is unknown.
    """

    data: Sequences
    network: Model
    trained: Trained
    stages: list[Stage]
    memory: Memory | None = None
    memory_choice: Choice | None = None

    def __init__(
        self, model: str = "recblr", config: Any = None, training: TrainConfig | None = None,
        memory_config: MemoryConfig | None = None, device: str | torch.device = "auto",
    ) -> None:  # fmt: skip
        self.model = model
        cls, kind = find_model(model)
        for name, value, expected in (
            ("config", config, kind),
            ("training", training, TrainConfig),
            ("memory_config", memory_config, MemoryConfig),
        ):
            if not isinstance(value, expected | None):
                raise InputError(f"{name} of {model} must be a {expected.__name__}, not {value!r}")
        # The sections that fit() chooses by the size of the log, with the values given for them.
        self._by_size: dict[str, Mapping[str, Any]] = {
            section: {} for section, given in (("model", config), ("train", training)) if given is None
        }  # fmt: skip
        self.config = config or kind()
        self.memory_config = memory_config or MemoryConfig()
        self.training = training or TrainConfig(**cls.recipe)
        self.device = find_device(device)
        self.measured: list[dict[str, Any]] = []

    @staticmethod
    def configured(
        model: str, settings: Mapping[str, Any], device: str = "auto", by_size: bool = False
    ) -> "Recommender":
        """Create a recommender from ``{"model": {"dropout": 0.5}, "train": {"lr": 0.001}}``.

        Other settings have their defaults, or with ``by_size`` follow from the size of the log.

        Raises:
            InputError: a section, a setting or its value is wrong.
        """
        recommender = Recommender(model, *build_settings(model, settings), device)
        if by_size:
            recommender._by_size = {name: settings.get(name, {}) for name in ("model", "train")}
        return recommender

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values, as :meth:`configured` takes them."""
        configs = (self.config, self.training, self.memory_config)
        return dict(zip(SECTIONS, map(asdict, configs), strict=True))

    def fit(
        self, log: Any, *, core: int | None = None, split: str | None = None,
        columns: Columns | None = None, out: str | Path | None = None,
        refit: bool = False, resume: bool = False, overwrite: bool = False,
    ) -> "Recommender":  # fmt: skip
        """Train on the training part of a log, with early stopping on its validation part.

        Args:
            log: a log as for :func:`recblr.open_log`, as are ``core``, ``split`` and ``columns``.
            out: evaluate the model on the test part and save it to this folder. During training, the
                run log and the checkpoint are in ``<out>.training``.
            refit: after the evaluation, :meth:`refit` the model on all events.
            resume: continue from the checkpoint of an earlier run with the same ``out``.
            overwrite: replace the model in ``out``.

        Raises:
            InputError: the log cannot be read, or ``out`` exists or has nothing to resume.
            DivergedError: the loss or a weight is not finite.
        """
        if out is None:
            if resume or overwrite:
                raise InputError("resume and overwrite need a folder; give out")
            with tempfile.TemporaryDirectory() as temporary:
                self._fit(open_log(log, core, split, columns), Path(temporary), False)
            return self.refit() if refit else self
        out = Path(out)
        work = check_run(out, resume, overwrite, artifact.MARKER)
        data = open_log(log, core, split, columns)
        data.expect_targets("validation", "test")
        with locked_run(work, resume):
            self._fit(data, work, resume)
            self.evaluate()
            if refit and self.trained.ended != "interrupted":
                self._adopt(updating.refit(self._contents, work / REFIT, resume))
            self.save(out, overwrite=True)
            copy_logs(work, out)
        if self.trained.ended != "interrupted":
            shutil.rmtree(work)
        return self

    def _fit(self, data: Sequences, folder: Path, resume: bool) -> None:
        data.expect_targets("validation")
        if self.device.type == "cpu":
            cpu.warn_if_missing()
        self.data, self.measured = data, []
        if self._by_size:  # choose the settings that were not given
            settings = by_size(data, self.model, self._by_size, self.memory_config.enabled)
            config, training, _ = build_settings(self.model, settings)
            self.config = config if "model" in self._by_size else self.config
            self.training = training if "train" in self._by_size else self.training
        torch.manual_seed(self.training.seed)
        network = create_model(
            self.model, self.config, items=len(data.item_ids), users=data.users,
            max_length=self.training.max_length,
        )  # fmt: skip
        self.network = network.to(self.device)
        self.trained = Trainer(self.network, data, self.training).train(folder, resume)
        self.stages = [Stage.of("fit", data, None, self.trained.seconds)]
        self.fit_memory(self.memory_config)

    def fit_memory(self, config: MemoryConfig) -> None:
        """Fit the memory of transitions on the training part, and choose its settings on validation.

        The trained model does not change.
        """
        if not isinstance(config, MemoryConfig):
            raise InputError(f"fit_memory takes a MemoryConfig, not {config!r}")
        self.memory_config, self.memory, self.memory_choice = config, None, None
        if config.enabled:
            self.memory, self.memory_choice = memory_search.choose(
                transitions.fit(self.data, config), config, self.network.score, self.data,
                self.training.max_length,
            )  # fmt: skip

    def refit(self) -> "Recommender":
        """Train new weights on all events, for as many updates as the best epoch of :meth:`fit` took.

        Settings and seed stay, as do the numbers of the memory, which counts all events. ``measured``
        keeps the evaluations of before; the new weights cannot be measured on their own log.

        Raises:
            InputError: the model is refitted or updated already.
            DivergedError: the loss is not finite.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._adopt(updating.refit(self._contents, Path(folder)))
        return self

    def update(
        self, log: Any, *, memory_only: bool = False, columns: Columns | None = None
    ) -> Added:
        """Add the events of a new log, with its new users and items; return how much was added.

        Events that the log of the model has already are left out. The memory counts the new events, and
        the weights are trained on them and on a sample of older ones: see docs/fresh.md.

        Args:
            log: as for :func:`recblr.read_log`, as are ``columns``.
            memory_only: do not train; the weights see the events at the next update.

        Raises:
            InputError: the log cannot be read, does not fit that of the model, or has no new event.
            DivergedError: the loss is not finite.
        """
        with tempfile.TemporaryDirectory() as folder:
            contents, added = updating.update(
                self._contents, log, Path(folder), memory_only, columns
            )
        self._adopt(contents)
        return added

    def score(self, batch: PackedBatch) -> torch.Tensor:
        """Scores (B, V) of the model and the memory together, as in :meth:`Model.score`."""
        scores = self.network.score(batch)
        return scores if self.memory is None else self.memory.add_to(scores, batch)

    def evaluate(
        self, log: Any = None, part: Part = "test", columns: Columns | None = None, *,
        k: Any = CUTOFFS, baselines: Any = (), lists: bool = False, slice_by: Any = (),
    ) -> list[Evaluation]:  # fmt: skip
        """The evaluations of ``part`` under both protocols, "unmasked" and "masked".

        Args:
            log: another log instead of the fitted one, with the same core and split. Unknown items are
                removed from its histories, and count as missed as targets; so do the targets of users
                without a known item before. ``Evaluation.population`` has the numbers.
            part: "validation" or "test".
            columns: our column names to those of ``log``.
            k, baselines, lists, slice_by: as in :func:`recblr.evaluation.evaluate.evaluate`.

        Raises:
            InputError: the log cannot be read, or the model knows none of its items.
            DivergedError: a score is not finite.
        """
        data, score = self.data, self.score
        if log is None and columns is not None:
            raise InputError("columns need a log; give the log as well")
        if log is None:
            expect_held_out(self.stages)
        else:
            data = open_with_items(log, data, part, columns)
            known_users = torch.from_numpy(index_in(data.user_ids, self.data.user_ids))

            def score(batch: PackedBatch) -> torch.Tensor:
                assert batch.users is not None
                return self.score(replace(batch, users=known_users[batch.users]))

        length, vectors = self.training.max_length, self.network.item_embeddings.detach()
        measured = evaluate(score, data, length, part, k, baselines, lists, vectors, slice_by)
        if log is None and part == "test":
            self.measured = [evaluation.to_json() for evaluation in measured]
        return measured

    def recommend(
        self, users: Any = None, histories: Any = None, k: Any = 10, *, allow: Any = None,
        deny: Any = None, hide_seen: bool = True, unknown: Unknown = "error",
    ) -> "pl.DataFrame":  # fmt: skip
        """Recommend the best ``k`` items to users of the log, or for other histories.

        Lists of ids may be lists, tuples, generators, arrays or series of any library; sets, too, where
        the order does not matter.

        Args:
            users: the ids of users of the log.
            histories: lists of item ids, oldest first; unknown items are ignored, with a warning. As in
                evaluation, the model reads the last ``training.max_length`` events.
            k: the number of items; a user gets fewer if fewer are allowed.
            allow: recommend only these items. deny: never these.
            hide_seen: do not recommend items of the history.
            unknown: what to do about unknown users, histories without a known item, and unknown items
                of ``allow`` and ``deny``. "error" refuses the call. "skip" leaves them out, with a
                warning. "popular" is "skip", but such users and histories get the most popular
                items, with the number of training events as their score.

        Returns:
            A frame ``user_id, item_id, score, rank``, rank from 1. For histories, ``user_id`` is the
            number of the history, from 0.

        Raises:
            InputError: an id is unknown and ``unknown`` is "error", an argument has the wrong type, or
                no known item is allowed.
            DivergedError: a score is not finite.
        """
        import polars as pl

        if (users is None) == (histories is None):
            raise InputError("give either users or histories")
        items = self.data.item_vocabulary
        selection = Selection.from_ids(items, k, allow, deny, hide_seen, unknown)
        if users is not None:
            audience = Audience.of_users(self.data, users, unknown)
        else:
            audience = Audience.of_histories(items, histories, unknown)
        with progress("recommending", len(audience.ids)) as advance:
            table = self._batches.table(audience, selection, advance)
        audience.warn_if_unserved(table)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def recommend_all(
        self, out: str | Path, k: Any = 10, *, allow: Any = None, deny: Any = None,
        hide_seen: bool = True, unknown: Unknown = "error",
    ) -> None:  # fmt: skip
        """Write the rows of :meth:`recommend` for every user of the log to a Parquet file.

        Memory does not grow with the number of users. A repeated call continues a killed one: finished
        parts are in ``<out>.parts`` and are used if model, log and arguments are the same.

        Raises:
            InputError: as in :meth:`recommend`, or ``out`` cannot be written.
        """
        selection = Selection.from_ids(
            self.data.item_vocabulary, k, allow, deny, hide_seen, unknown
        )
        self._batches.write_all(Path(out), self._contents, selection)

    def similar_items(self, items: Any, k: Any = 10, by: Similarity = "model") -> "pl.DataFrame":
        """The items most similar to each of ``items``, as :func:`recblr.similar.similar_items`."""
        return similar_items(self._contents, items, k, by)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the artifact, a folder with the model and the histories, complete or not at all.

        Raises:
            InputError: the folder exists, unless it is an artifact and ``overwrite`` is true.
        """
        artifact.save(self._contents, Path(folder), overwrite)

    def user_ids(self, texts: Any) -> list[Id]:
        """The ids of users that texts stand for, such as on a command line.

        If the log's ids are whole numbers, "7" becomes 7; other texts, such as "07", stay unknown ids.
        """
        return [self.data.user_vocabulary.from_text(str(text)) for text in as_ids(texts, "texts")]

    def item_ids(self, texts: Any) -> list[Id]:
        """The ids of items that texts stand for, as for :meth:`user_ids`."""
        return [self.data.item_vocabulary.from_text(str(text)) for text in as_ids(texts, "texts")]

    def __repr__(self) -> str:
        if "trained" not in self.__dict__:
            return f"Recommender({self.model!r}, not fitted, {self.device})"
        return (
            f"Recommender({self.model!r}, {self.data.users:,} users, {len(self.data.item_ids):,} "
            f"items, epoch {self.trained.best_epoch}, {describe(self.stages)}, {self.device})"
        )

    @property
    def _contents(self) -> artifact.Artifact:
        return artifact.Artifact(*(getattr(self, f.name) for f in fields(artifact.Artifact)))

    def _adopt(self, contents: artifact.Artifact) -> None:
        """Take over all attributes of an artifact; they have the same names."""
        vars(self).update(vars(contents), network=contents.network.to(self.device))

    @property
    def _batches(self) -> BatchRecommender:
        return BatchRecommender(self.score, self.data, self.training.max_length, self.device)

    def __getattr__(self, name: str) -> Any:
        # A property that reads one of the three attributes leads here, too.
        if name in ("data", "network", "trained") or hasattr(type(self), name):
            raise NotFittedError("this recommender is not fitted; call fit, or load a saved one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def load(folder: str | Path, device: str | torch.device = "auto") -> Recommender:
    """Load an artifact; ``device`` as in :class:`Recommender`.

    Raises:
        InputError: the folder is not an artifact, a file is missing or changed, the weights do not fit
            or are not finite, or the device is unknown.
    """
    contents = artifact.load(Path(folder))
    recommender = Recommender(
        contents.model, contents.config, contents.training, contents.memory_config, device
    )
    recommender._adopt(contents)
    return recommender
