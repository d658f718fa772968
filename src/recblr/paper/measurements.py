"""The measurements of the studies: each is made once, and its record is kept in one file."""

import base64
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recblr.allocator import keep_freed_memory
from recblr.benchmark.training_cost import measure
from recblr.config import apply_settings
from recblr.device import find_device
from recblr.errors import InputError
from recblr.evaluation.baselines import popularity
from recblr.evaluation.evaluate import evaluate
from recblr.evaluation.metrics import CUTOFFS
from recblr.paper.logs import open_dataset, recipe
from recblr.paper.report import Record, read_record, write_record
from recblr.provenance import provenance
from recblr.recommender import Recommender, load
from recblr.training.checkpoint import OtherRunError
from recblr.training.config import resolve


@dataclass(frozen=True)
class Measurement:
    """A measurement for a row of a study on a data set. ``settings`` are those of a model and its
    training, as on the command line, ``model.layers=1``; ``model`` is "" where none is trained."""

    dataset: str
    row: str
    model: str = ""
    settings: Sequence[str] = ()

    @property
    def name(self) -> str:  # distinguishes it from the other measurements of a study
        return self.dataset if self.row == self.dataset else f"{self.dataset} {self.row}"

    @property
    def has_memory(self) -> bool:  # of transitions, fitted to the network of a run without it
        return "memory.enabled=true" in self.settings

    @property
    def file(self) -> str:  # of its record, in a folder of results
        raise NotImplementedError

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that :attr:`settings` change."""
        return {}

    def recommender(self, device: str) -> Recommender:
        """The recommender to train: as in the paper without the memory of transitions, and with
        unmasked validation, unless a setting changes that."""
        paper = ["memory.enabled=false", "train.selection_protocol=unmasked"]
        table = apply_settings(self.recipe, [*paper, *self.settings])
        return Recommender.configured(self.model, table, device)

    def find(self, folder: Path) -> Record | None:
        """Its record; None if there is none, or it was made with other settings than today's."""
        record = read_record(folder / self.file)
        if record is None or not self.model:
            return record
        settings = dict(record["settings"])  # a setting that was added since has its default
        if not settings.get("memory", {}).get("enabled"):  # version 0.1.0 had no memory
            settings["memory"] = {"enabled": False}  # its numbers do not count
        try:
            then = Recommender.configured(self.model, settings, "cpu")
        except InputError:
            return None
        return record if then.settings == self.recommender("cpu").settings else None

    def make(self, folder: Path, command: str, device: str) -> Record:
        """Measure and keep the record, which names the command."""
        kind = find_device(device).type if self.model else "cpu"
        record = {"dataset": self.dataset, **provenance(command, kind)}  # of the code that runs
        record |= self.measure(folder, command, device)
        write_record(folder / self.file, record)
        return record

    def measure(self, folder: Path, command: str, device: str) -> Record:
        """Measure, and return what is to be kept."""
        raise NotImplementedError


class Size(Measurement):
    """The size of a data set after its filter."""

    @property
    def file(self) -> str:
        return f"{self.dataset}/counts.json"

    def measure(self, folder: Path, command: str, device: str) -> Record:
        kept = open_dataset(self.dataset).summary["kept"]
        return {**kept, "average length": round(kept["interactions"] / kept["users"], 1)}


class Baselines(Measurement):
    """The baselines that need no training, which every evaluation has."""

    @property
    def file(self) -> str:
        return f"{self.dataset}/floors.json"

    def measure(self, folder: Path, command: str, device: str) -> Record:
        data = open_dataset(self.dataset)
        evaluations = evaluate(popularity(data), data, 1)
        return {"test": [evaluation.to_json() for evaluation in evaluations]}


@dataclass(frozen=True)
class Timing(Measurement):
    """What training on a kind of device costs, with histories of up to ``length`` events."""

    length: int = 0
    kind: str = "cpu"
    inference: bool = False

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.row}, {self.length} events"

    @property
    def file(self) -> str:
        return f"timings/{self.kind}/{self.dataset}/{','.join([self.model, *self.settings])}.json"

    def measure(self, folder: Path, command: str, device: str) -> Record:
        recommender = self.recommender(device)
        cost = measure(recommender, open_dataset(self.dataset), self.inference)
        return {"model": self.model, "settings": recommender.settings, **cost}


@dataclass(frozen=True)
class Run(Measurement):
    """A model trained by the recipe of a data set with some settings changed, and tested. Settings
    that equal the recipe's do not count: runs with the same resulting settings are the same run."""

    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.row} seed {self.seed}"

    @property
    def recipe(self) -> dict[str, Any]:
        return apply_settings(recipe(self.dataset, self.model), [f"train.seed={self.seed}"])

    @property
    def file(self) -> str:
        def resolved(*settings: str) -> Any:
            return replace(self, settings=settings).recommender("cpu").settings

        plain = resolved()
        changes = sorted(setting for setting in self.settings if resolved(setting) != plain)
        return f"{self.dataset}/{','.join([self.model, *changes, f'seed={self.seed}'])}.json"

    def measure(self, folder: Path, command: str, device: str) -> Record:
        """Train, or resume an interrupted training, and test.

        With the memory of transitions: the same run without it, made first if need be, and the memory
        fitted to its network, which is trained again only if ``folder`` no longer has it.
        """
        keep_freed_memory()
        memory, seconds = {}, 0.0
        config = self.recommender("cpu").memory_config
        if config.enabled:
            others = [setting for setting in self.settings if not setting.startswith("memory.")]
            plain = replace(self, settings=others)
            if plain.find(folder) is None:
                plain.make(folder, command, device)
            recommender = plain.kept(folder, device) or plain.train(folder, device)
            begin = time.perf_counter()
            recommender.fit_memory(config)
            seconds = time.perf_counter() - begin
            assert recommender.memory_choice is not None
            memory = {"memory": asdict(recommender.memory_choice.best)}
        else:
            recommender = self.train(folder, device)
        network, trained = recommender.network, recommender.trained
        return {
            "model": self.model,
            "seed": self.seed,
            "settings": recommender.settings,
            "examples": resolve(recommender.training, network).examples,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "epochs": trained.epoch,
            "best_epoch": trained.best_epoch,
            "ended": trained.ended,
            "seconds": round(trained.seconds + seconds, 1),
            "validation": trained.validation,
            **memory,
            **self.test(recommender),
        }

    def test(self, recommender: Recommender) -> Record:
        """The evaluations on the test part, and by protocol the rank of every user's target."""
        evaluations = recommender.evaluate()
        ranks = {test.protocol.seen: pack_ranks(test.ranks) for test in evaluations}
        return {"test": [test.to_json() for test in evaluations], "ranks": ranks}

    def kept(self, folder: Path, device: str) -> Recommender | None:
        """Its trained network; None if it is absent, unfinished, or of other data or settings."""
        try:
            kept = load(folder / ".models" / self.file.removesuffix(".json"), device)
        except InputError:
            return None
        wanted = self.recommender("cpu").settings, open_dataset(self.dataset).fingerprint
        same = (kept.settings, kept.data.fingerprint) == wanted
        return kept if same and kept.trained.ended != "interrupted" else None

    def train(self, folder: Path, device: str) -> Recommender:
        """Train and keep its network, or resume an interrupted training."""
        recommender, data = self.recommender(device), open_dataset(self.dataset)
        out = folder / ".models" / self.file.removesuffix(".json")
        out.parent.mkdir(parents=True, exist_ok=True)
        begun = (out.with_name(f"{out.name}.training") / "checkpoint.safetensors").exists()
        try:
            recommender.fit(data, out=out, resume=begun, overwrite=not begun)
        except OtherRunError:  # the checkpoint is of other settings
            recommender.fit(data, out=out, overwrite=True)
        if recommender.trained.ended == "interrupted":  # the next call resumes it
            raise KeyboardInterrupt
        return recommender


def pack_ranks(ranks: np.ndarray) -> str:
    """Ranks (U,) as text; those behind the last cut-off, which count for no metric, become equal."""
    small = np.minimum(ranks, max(CUTOFFS) + 1).astype(np.uint8)
    return base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()


def unpack_ranks(text: str) -> np.ndarray:
    """(U,) of :func:`pack_ranks`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)
