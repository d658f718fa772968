"""One measurement of what training costs, kept in a file as a training run is."""

import ctypes
import json
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recblr.allocator import keep_freed_memory
from recblr.data.sequences import Sequences
from recblr.evaluation.ranking import rank_targets
from recblr.models import create_model
from recblr.paper.logs import open_dataset
from recblr.paper.report import Record, read_record, replace_file
from recblr.paper.runs import configured, made_by
from recblr.provenance import provenance
from recblr.recommender import Recommender
from recblr.timing import medians, peak_bytes, seconds
from recblr.training.trainer import Trainer

BATCHES = {"cpu": 3, "cuda": 30}  # of an epoch that are timed


@dataclass(frozen=True)
class Timing:
    """A model that is to be timed on a log, training and, if ``inference``, ranking all users."""

    dataset: str
    model: str
    settings: tuple[str, ...]
    inference: bool = False

    def resolved(self, device: str) -> Recommender:
        """The recommender whose training is timed."""
        return configured(self.model, {}, self.settings, device)

    def path(self, folder: Path, device: str) -> Path:
        """The file of its record on a kind of device."""
        name = ",".join([self.model, *self.settings])
        return folder / "timings" / device / self.dataset / f"{name}.json"


def find(timing: Timing, device: str, folder: Path) -> Record | None:
    """What was measured; None if nothing was, or by other settings than today's."""
    return made_by(timing.resolved("cpu"), read_record(timing.path(folder, device)))


def make(timing: Timing, folder: Path, command: str, device: str) -> Record:
    """Measure and keep."""
    recommender = timing.resolved(device)
    record = {
        "dataset": timing.dataset,
        "model": timing.model,
        **provenance(command, recommender.device.type),
        "settings": recommender.settings,
        **measure(recommender, open_dataset(timing.dataset), timing.inference),
    }
    path = timing.path(folder, recommender.device.type)
    replace_file(path, json.dumps(record, indent=1) + "\n")
    return record


def measure(recommender: Recommender, data: Sequences, inference: bool) -> dict[str, Any]:
    """Cost of training, and of inference.

    Returns:
        ``epoch_seconds``, scaled from ``timed`` of ``batches``; ``peak_mib``, memory that training
        takes beyond the log and the weights (None where the system does not tell); with ``inference``
        also ``inference_seconds``, the ranking of all users' test events.
    """
    keep_freed_memory()  # as `recblr train` does
    device = recommender.device
    config = recommender.training
    torch.manual_seed(config.seed)
    network = create_model(
        recommender.model, recommender.config, items=len(data.item_ids), users=data.users,
        max_length=config.max_length,
    )  # fmt: skip
    model = network.to(device).train()
    trainer = Trainer(model, data, config)
    epoch = trainer.spans(0)
    some = epoch[: BATCHES[device.type]]

    def train(count: int = len(some)) -> None:
        for batch, continues in trainer.batches(some[:count]):
            trainer.step(batch, continues, config.lr)

    if device.type == "cpu":
        train(1)
        took = seconds(train, device)
        peak = _peak_mib(lambda: train(1))
    else:  # a GPU runs a shape the first time, records it the second, replays it from then on

        def warm_up() -> None:
            train()
            train()

        peak = peak_bytes(warm_up) / 2**20
        took = seconds(train, device)
    events, of_some = (
        sum(int((stops - starts).sum()) for starts, stops in it) for it in (epoch, some)
    )
    found = {
        "epoch_seconds": took / of_some * events,
        "timed": len(some),
        "batches": len(epoch),
        "peak_mib": peak,
    }
    if inference:
        model.eval()
        ranking = {"all users": lambda: rank_targets(model.score, data, "test", config.max_length)}
        found["inference_seconds"] = medians(ranking, device, repeats=5)["all users"]
    return found


def _peak_mib(work: Callable[[], object]) -> float | None:
    """Memory that the process takes at the peak of ``work``, beyond what it took before."""
    status, peaks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not peaks.exists() or platform.libc_ver()[0] != "glibc":
        return None

    def mib(kind: str) -> float:
        found = re.search(rf"{kind}:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 1024

    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier work left
    peaks.write_text("5")  # forget the peak so far
    before = mib("VmRSS")
    work()
    return mib("VmHWM") - before
