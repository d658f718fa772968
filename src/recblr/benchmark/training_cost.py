"""The cost of training a recommender on a data set: seconds per epoch, memory, and inference."""

import ctypes
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recblr.allocator import keep_freed_memory
from recblr.data.sequences import Sequences
from recblr.evaluation.ranking import rank_targets
from recblr.models import create_model
from recblr.recommender import Recommender
from recblr.timing import medians, peak_bytes, seconds
from recblr.training.trainer import Trainer

BATCHES = {"cpu": 3, "cuda": 30}  # the timed batches of an epoch


def measure(recommender: Recommender, data: Sequences, inference: bool) -> dict[str, Any]:
    """Measure the cost of training and, with ``inference``, of ranking the test events.

    Returns:
        ``epoch_seconds``, scaled from ``timed`` of the ``batches`` by their events; ``peak_mib``, the
        peak memory of training without the data and the weights (None if the system does not report
        it); with ``inference`` also ``inference_seconds``, to rank the test events of all users.
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
    sample = epoch[: BATCHES[device.type]]

    def train(count: int = len(sample)) -> None:
        for batch, continues in trainer.batches(sample[:count]):
            trainer.step(batch, continues, config.lr)

    if device.type == "cpu":
        train(1)
        sample_seconds = seconds(train, device)
        peak = _peak_mib(lambda: train(1))
    else:  # a GPU runs a shape the first time, captures it the second, and then replays it

        def warm_up() -> None:
            train()
            train()

        peak = peak_bytes(warm_up) / 2**20
        sample_seconds = seconds(train, device)
    epoch_events, sample_events = (
        sum(int((stops - starts).sum()) for starts, stops in spans) for spans in (epoch, sample)
    )
    cost = {
        "epoch_seconds": sample_seconds / sample_events * epoch_events,
        "timed": len(sample),
        "batches": len(epoch),
        "peak_mib": peak,
    }
    if inference:
        model.eval()
        ranking = {
            "all users": lambda: rank_targets(
                model.score, data, "test", config.max_length, device=model.device
            )
        }
        cost["inference_seconds"] = medians(ranking, device, repeats=5)["all users"]
    return cost


def _peak_mib(work: Callable[[], object]) -> float | None:
    """The peak memory of the process during ``work`` minus its memory before."""
    status, peaks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not peaks.exists() or platform.libc_ver()[0] != "glibc":
        return None

    def mib(kind: str) -> float:
        match = re.search(rf"{kind}:\s+(\d+) kB", status.read_text())
        assert match is not None
        return int(match[1]) / 1024

    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system first
    peaks.write_text("5")  # reset the recorded peak
    before = mib("VmRSS")
    work()
    return mib("VmHWM") - before
