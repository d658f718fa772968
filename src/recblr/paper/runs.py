"""One training run of a study, kept in a file: the run is made once, whichever studies ask for it."""

import base64
import json
import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recblr.allocator import keep_freed_memory
from recblr.config import apply_settings
from recblr.errors import InputError
from recblr.evaluation.metrics import CUTOFFS
from recblr.evaluation.ranking import evaluate, popularity
from recblr.paper.logs import open_dataset, recipe
from recblr.paper.report import Record, read_record, replace_file
from recblr.provenance import provenance
from recblr.recommender import Recommender, load
from recblr.training.checkpoint import OtherRunError
from recblr.training.config import resolve


@dataclass(frozen=True)
class Run:
    """A model trained on a data set by its recipe with some settings changed, from one seed.

    ``settings`` are written as on the command line, ``model.layers=1``. Those that the recipe has
    anyway do not count: runs that come to the same are the same run.
    """

    dataset: str
    model: str = "recblr"
    settings: tuple[str, ...] = ()
    seed: int = 0

    def resolved(self, device: str = "auto") -> Recommender:
        """The recommender that is to be trained."""
        settings = [*self.settings, f"train.seed={self.seed}"]
        return configured(self.model, recipe(self.dataset, self.model), settings, device)

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        plain = replace(self, settings=()).resolved("cpu").settings
        changes = [
            setting
            for setting in self.settings
            if replace(self, settings=(setting,)).resolved("cpu").settings != plain
        ]
        name = ",".join([self.model, *sorted(changes), f"seed={self.seed}"])
        return folder / self.dataset / f"{name}.json"


def configured(
    model: str, table: dict[str, Any], settings: Iterable[str], device: str
) -> Recommender:
    """A recommender of a study: without the memory of transitions unless a setting asks for it."""
    table = apply_settings(table, ["memory.enabled=false", *settings])
    return Recommender.configured(model, table, device)


def result(run: Run, folder: Path) -> Record | None:
    """What is known of a run: None if it has not been made, or by other settings than today's."""
    return made_by(run.resolved("cpu"), read_record(run.path(folder)))


def made_by(recommender: Recommender, record: Record | None) -> Record | None:
    """The record, None if it was made by other settings than the recommender's; one that has been added
    since counts as its default."""
    if record is None:
        return None
    settings = dict(record["settings"])
    if not settings.get("memory", {}).get("enabled"):  # version 0.1.0 had no memory
        settings["memory"] = {"enabled": False}  # and of a disabled one the numbers do not count
    try:
        then = Recommender.configured(recommender.model, settings, "cpu")
    except InputError:
        return None
    return record if then.settings == recommender.settings else None


def make(run: Run, folder: Path, command: str, device: str = "auto") -> Record:
    """The result of a run, made if it is not there; one that was interrupted goes on.

    With the memory of transitions it is the run without it, trained first if need be, and the memory
    fitted to its network. That network is trained again only where it no longer lies in ``folder``.

    Args:
        run: which.
        folder: where results are kept; the model and its training lie in ``.models`` in it.
        command: what to name as the command that made it.
        device: where to train.
    """
    if (found := result(run, folder)) is not None:
        return found
    keep_freed_memory()
    asked = run.resolved(device)
    # Before the training: the commit whose code is in memory, whatever is checked out meanwhile.
    origin = provenance(command, asked.device.type)
    seconds, memory = 0.0, {}
    if asked.memory_config.enabled:
        alone = (it for it in run.settings if not it.startswith("memory."))
        plain = replace(run, settings=tuple(alone))
        make(plain, folder, command, device)
        recommender = _kept(plain, folder, device) or _train(plain, folder, device)
        begun = time.perf_counter()
        recommender.fit_memory(asked.memory_config)
        seconds = time.perf_counter() - begun
        assert recommender.memory_choice is not None
        memory = {"memory": asdict(recommender.memory_choice.best)}
    else:
        recommender = _train(run, folder, device)
    evaluations = recommender.evaluate()
    training, trained = recommender.training, recommender.trained
    record = {
        "dataset": run.dataset,
        "model": run.model,
        "seed": run.seed,
        **origin,
        "settings": recommender.settings,
        "examples": resolve(training, recommender.network).examples,
        "parameters": sum(p.numel() for p in recommender.network.parameters()),
        "epochs": trained.epoch,
        "best_epoch": trained.best_epoch,
        "ended": trained.ended,
        "seconds": round(trained.seconds + seconds, 1),
        "validation": trained.validation,
        **memory,
        "test": [evaluation.to_json() for evaluation in evaluations],
        "ranks": {e.protocol.seen: pack_ranks(e.ranks) for e in evaluations},
    }
    replace_file(run.path(folder), json.dumps(record, indent=1) + "\n")
    return record


def find_floors(dataset: str, folder: Path) -> Record | None:
    """What :func:`make_floors` kept."""
    return read_record(folder / dataset / "floors.json")


def make_floors(dataset: str, folder: Path, command: str, device: str) -> Record:
    """Measure and keep what needs no training on a data set: the floors of any evaluation."""
    data = open_dataset(dataset)
    evaluations = evaluate(popularity(data), data, 1)
    record = {
        "dataset": dataset,
        **provenance(command, "cpu"),
        "test": [evaluation.to_json() for evaluation in evaluations],
    }
    replace_file(folder / dataset / "floors.json", json.dumps(record, indent=1) + "\n")
    return record


def _model(run: Run, folder: Path) -> Path:
    """Where the network of a run is kept."""
    return folder / ".models" / run.dataset / run.path(folder).stem


def _kept(run: Run, folder: Path, device: str) -> Recommender | None:
    """What was trained for a run; None if nothing, or not to the end, or on other data, or by other
    settings than today's."""
    try:
        found = load(_model(run, folder), device)
    except InputError:
        return None
    today = run.resolved("cpu").settings, open_dataset(run.dataset).fingerprint, False
    then = found.settings, found.data.fingerprint, found.trained.ended == "interrupted"
    return found if then == today else None


def _train(run: Run, folder: Path, device: str) -> Recommender:
    recommender, data = run.resolved(device), open_dataset(run.dataset)
    model = _model(run, folder)
    model.parent.mkdir(parents=True, exist_ok=True)
    begun = model.with_name(f"{model.name}.training") / "checkpoint.safetensors"
    try:
        recommender.fit(data, out=model, resume=begun.exists(), overwrite=not begun.exists())
    except OtherRunError:  # by settings that are no longer today's
        recommender.fit(data, out=model, overwrite=True)
    if recommender.trained.ended == "interrupted":  # a model, but no result: it goes on next time
        raise KeyboardInterrupt
    return recommender


def pack_ranks(ranks: np.ndarray) -> str:
    """Ranks (U,) as text; those behind the last cut-off, which no metric tells apart, as one."""
    small = np.minimum(ranks, max(CUTOFFS) + 1).astype(np.uint8)
    return base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()


def unpack_ranks(text: str) -> np.ndarray:
    """(U,) of :func:`pack_ranks`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)
