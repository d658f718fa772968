"""Recommender: fit a model on a log, refit and update it, load a saved one."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recblr import artifact, memory_search, updating
from recblr import memory as transitions
from recblr.data import open_log
from recblr.data.columns import Columns
from recblr.data.merge import Added
from recblr.data.sequences import Sequences
from recblr.device import find_device
from recblr.errors import InputError
from recblr.evaluation.evaluate import evaluate
from recblr.fitted import FittedModel
from recblr.memory import MemoryConfig
from recblr.models import find_model
from recblr.models.content import add_content, attached
from recblr.ops import cpu
from recblr.ranks import ALONE, Ranks, join, restarted
from recblr.sizing import SECTIONS, build_settings, by_size
from recblr.training.config import TrainConfig
from recblr.training.run_folder import (
    REFIT,
    check_run,
    copy_logs,
    has_checkpoint,
    locked_run,
)
from recblr.training.stage import Stage
from recblr.training.start import new_network
from recblr.training.trainer import OnEpoch, Trainer


class Recommender(FittedModel):
    """A model that is fitted on a log. :class:`FittedModel` has what a fitted model can be asked.

    Args:
        model: a name in :data:`recblr.models.MODELS`.
        config: the settings of the model; by default :meth:`fit` chooses them by the size of the log.
        training: the settings of training; by default chosen in the same way.
        memory_config: the settings of the memory of transitions, which adds to the model's scores.
        device: "cpu", "cuda", "cuda:N" or "auto", which is a GPU if there is one.

    Raises:
        InputError: the model, a setting or the device is unknown.
    """

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
        on_epoch: OnEpoch | None = None, item_vectors: Any = None, item_categories: Any = None,
    ) -> "Recommender":  # fmt: skip
        """Train on the training part of a log, with early stopping on its validation part.

        If ``torchrun`` started several processes with this call, they train together (see
        docs/scale.md), and the first one saves the model.

        Args:
            log: a log as for :func:`recblr.open_log`, as are ``core``, ``split`` and ``columns``.
            out: evaluate the model on the test part and save it to this folder. During training, the
                run log and the checkpoint are in ``<out>.training``.
            refit: after the evaluation, :meth:`refit` the model on all events.
            resume: continue from the checkpoint of an earlier run with the same ``out``.
            overwrite: replace the model in ``out``.
            on_epoch: called after each epoch with an :class:`recblr.training.trainer.Epoch`; not in a
                refit. An exception of it ends training and is raised again; with ``out``,
                ``resume=True`` can then go on.
            item_vectors: a table with ``item_id`` and ``vector``, a list of numbers, as for
                :func:`recblr.read_log`: what is known of items beside the events. Items of the table
                without an event can be recommended, too; see docs/content.md.
            item_categories: the same with columns of categories, a text or a list of texts in a cell.

        Raises:
            InputError: the log or the content cannot be read, or ``out`` exists or has nothing to
                resume.
            DivergedError: the loss or a weight is not finite.
        """
        ranks = join(self.device)
        if out is None:
            if resume or overwrite or not ranks.alone:
                raise InputError("resume, overwrite and several processes need a folder; give out")
            with tempfile.TemporaryDirectory() as temporary:
                data = open_log(log, core, split, columns)
                data, self.content = add_content(data, item_vectors, item_categories)
                self._fit(data, Path(temporary), False, on_epoch)
            return self.refit() if refit else self
        out = Path(out)
        resume = resume or (restarted() and has_checkpoint(out))
        work = check_run(out, resume, overwrite, artifact.MARKER)
        data = open_log(log, core, split, columns)
        data.expect_targets("validation", "test")
        data, self.content = add_content(data, item_vectors, item_categories)
        with locked_run(work, resume) if ranks.first else nullcontext():
            self._fit(data, work, resume, on_epoch, ranks)
            length = self.training.max_length
            measured = evaluate(self.score, self.data, length, processes=ranks, device=self.device)
            self.measured = [evaluation.to_json() for evaluation in measured]
            if refit and self.trained.ended != "interrupted":
                self._adopt(updating.refit(self._contents, work / REFIT, resume, ranks))
            if ranks.first:
                self.save(out, overwrite=True)
                copy_logs(work, out)
        if ranks.first and self.trained.ended != "interrupted":
            shutil.rmtree(work)
        return self

    def _fit(
        self, data: Sequences, folder: Path, resume: bool, on_epoch: OnEpoch | None,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        data.expect_targets("validation")
        if self.device.type == "cpu":
            cpu.warn_if_missing()
        self.data, self.measured = data, []
        if self._by_size:  # choose the settings that were not given
            settings = by_size(data, self.model, self._by_size, self.memory_config.enabled)
            config, training, _ = build_settings(self.model, settings)
            self.config = config if "model" in self._by_size else self.config
            self.training = training if "train" in self._by_size else self.training
        self.data = data = data.with_gaps(self.training.gaps)
        network = new_network(self.model, self.config, self.training, data, ranks)
        self.network = network.to(self.device)
        alone = self.training.content_dropout, self.training.content_events
        with attached(self.content, network, data.item_counts, *alone):
            trainer = Trainer(self.network, data, self.training, ranks=ranks)
            self.trained = trainer.train(folder, resume, on_epoch)
        self.stages = [Stage.of("fit", data, None, self.trained.seconds)]
        self.fit_memory(self.memory_config, ranks)

    def fit_memory(self, config: MemoryConfig, ranks: Ranks = ALONE) -> None:
        """Fit the memory of transitions on the training part, and choose its settings on validation.

        The trained model does not change. ``ranks`` are the processes that train the model together.
        """
        if not isinstance(config, MemoryConfig):
            raise InputError(f"fit_memory takes a MemoryConfig, not {config!r}")
        self.memory_config, self.memory, self.memory_choice = config, None, None
        if config.enabled:
            self.memory, self.memory_choice = memory_search.choose(
                transitions.fit(self.data, config, ranks), config, self.network.score, self.data,
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
        self, log: Any, *, memory_only: bool = False, columns: Columns | None = None,
        item_vectors: Any = None, item_categories: Any = None,
    ) -> Added:  # fmt: skip
        """Add the events of a new log, with its new users and items; return how much was added.

        Events that the log of the model has already are left out. The memory counts the new events, and
        the weights are trained on them and on a sample of older ones: see docs/fresh.md.

        Args:
            log: as for :func:`recblr.read_log`, as are ``columns``.
            memory_only: do not train; the weights see the events at the next update.
            item_vectors, item_categories: content of new items, as in :meth:`fit`. Items that have
                content keep it.

        Raises:
            InputError: the log or the content cannot be read or does not fit that of the model, or
                nothing is new.
            DivergedError: the loss is not finite.
        """
        with tempfile.TemporaryDirectory() as folder:
            contents, added = updating.update(
                self._contents, log, Path(folder), memory_only, columns, item_vectors,
                item_categories,
            )  # fmt: skip
        self._adopt(contents)
        return added

    def _adopt(self, contents: artifact.Artifact) -> None:
        """Take over all attributes of an artifact; they have the same names."""
        vars(self).update(vars(contents), network=contents.network.to(self.device))


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
