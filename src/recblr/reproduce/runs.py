"""One training run of a study, kept in a file: the run is made once, whichever studies ask for it."""

import base64
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recblr.bench.provenance import provenance
from recblr.config import apply_settings
from recblr.errors import InputError
from recblr.memory import keep_freed_memory
from recblr.metrics import CUTOFFS
from recblr.recommender import Recommender
from recblr.reproduce.logs import open_dataset, recipe
from recblr.reproduce.report import Record, read_record, replace_file
from recblr.train import OtherRunError, settled


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
        table = apply_settings(
            recipe(self.dataset, self.model), [*self.settings, f"train.seed={self.seed}"]
        )
        return Recommender.configured(self.model, table, device)

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


def result(run: Run, folder: Path) -> Record | None:
    """What is known of a run: None if it has not been made, or by other settings than today's."""
    return made_by(run.resolved("cpu"), read_record(run.path(folder)))


def made_by(recommender: Recommender, record: Record | None) -> Record | None:
    """The record, None if it was made by other settings than the recommender's; one that has been added
    since counts as its default."""
    if record is None:
        return None
    try:
        then = Recommender.configured(recommender.model, record["settings"], "cpu")
    except InputError:
        return None
    return record if then.settings == recommender.settings else None


def make(run: Run, folder: Path, command: str, device: str = "auto") -> Record:
    """The result of a run, made if it is not there; one that was interrupted goes on.

    Args:
        run: which.
        folder: where results are kept; the model and its training lie in ``.models`` in it.
        command: what to name as the command that made it.
        device: where to train.
    """
    if (found := result(run, folder)) is not None:
        return found
    keep_freed_memory()
    recommender, path = run.resolved(device), run.path(folder)
    # Before the training: the commit whose code is in memory, whatever is checked out meanwhile.
    origin = provenance(command, recommender.device.type)
    data = open_dataset(run.dataset)
    model = folder / ".models" / run.dataset / path.stem
    model.parent.mkdir(parents=True, exist_ok=True)
    begun = model.with_name(f"{model.name}.training") / "checkpoint.safetensors"
    try:
        recommender.fit(data, out=model, resume=begun.exists(), overwrite=not begun.exists())
    except OtherRunError:  # by settings that are no longer today's
        recommender.fit(data, out=model, overwrite=True)
    if recommender.trained.ended == "interrupted":  # a model, but no result: it goes on next time
        raise KeyboardInterrupt
    evaluations = recommender.evaluate()
    training, trained = recommender.training, recommender.trained
    record = {
        "dataset": run.dataset,
        "model": run.model,
        "seed": run.seed,
        **origin,
        "settings": recommender.settings,
        "examples": settled(training, recommender.network).examples,
        "parameters": sum(p.numel() for p in recommender.network.parameters()),
        "epochs": trained.epoch,
        "best_epoch": trained.best_epoch,
        "ended": trained.ended,
        "seconds": round(trained.seconds, 1),
        "validation": trained.validation,
        "test": [evaluation.to_json() for evaluation in evaluations],
        "ranks": {e.protocol.seen: pack_ranks(e.ranks) for e in evaluations},
    }
    replace_file(path, json.dumps(record, indent=1) + "\n")
    return record


def pack_ranks(ranks: np.ndarray) -> str:
    """Ranks (U,) as text; those behind the last cut-off, which no metric tells apart, as one."""
    small = np.minimum(ranks, max(CUTOFFS) + 1).astype(np.uint8)
    return base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()


def unpack_ranks(text: str) -> np.ndarray:
    """(U,) of :func:`pack_ranks`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)
