"""One measurement of ``recblr bench gpu``, in a process of its own.

    python -m recblr.benchmark.gpu_steps FOLDER DEVICE [--quick] STEP [NAME]

With ``--quick`` the measurements are small; they try the command and are no results.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recblr.allocator import keep_freed_memory
from recblr.benchmark.gpu import write
from recblr.benchmark.length import time_lengths
from recblr.benchmark.ops import implementations, time_ops
from recblr.benchmark.peers import slow_to_build
from recblr.benchmark.step import time_steps
from recblr.benchmark.train import SAMPLE, default_log, describe, time_epoch, time_evaluation
from recblr.config import apply_settings
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.simulate import Shop, simulate_shop
from recblr.device import find_device
from recblr.presets import read_preset
from recblr.provenance import provenance
from recblr.recommender import Recommender
from recblr.training.config import TrainConfig

Keep = Callable[..., None]
"""Add figures to the result of a file."""

TINY = (4, 16, 8)  # (B, T, C)


def kernels(keep: Keep, device: torch.device, quick: bool) -> None:
    """The fused kernels, and the peers that need no long compilation."""
    kind = device.type
    names = [name for name in implementations(kind) if not slow_to_build(name)]
    if quick:
        time_ops(kind, TINY, 0.1, names[:2], partial(_keep_ops, keep))
    else:
        time_ops(kind, None, 30.0, names, partial(_keep_ops, keep))


def peer(keep: Keep, device: torch.device, quick: bool, name: str) -> None:
    """One more peer, added to the rows of :func:`kernels`."""
    shape, budget = (TINY, 0.1) if quick else (None, 4.0)
    keep("ops", rows=time_ops(device.type, shape, budget, [name])["rows"][-1:])


def _keep_ops(keep: Keep, result: dict[str, Any]) -> None:
    keep("ops", threads=1, **result)


def train(keep: Keep, device: torch.device, quick: bool) -> None:
    """An epoch of all positions, and an evaluation."""
    data, config = _open(quick)
    keep("train", **describe(data), all_positions=time_epoch(data, config, device))
    keep("train", evaluation_seconds=time_evaluation(data, device))


def prefixes(keep: Keep, device: torch.device, quick: bool) -> None:
    """An epoch of prefix samples, as in the paper."""
    data, config = _open(quick)
    batches = SAMPLE if device.type == "cpu" else None
    config = replace(config, examples="prefixes", batch_size=64 if quick else 2048)
    keep("train", **describe(data), prefixes=time_epoch(data, config, device, batches))


def run(keep: Keep, device: torch.device, quick: bool) -> None:
    """A whole training by the preset of MovieLens-1M, with its evaluation."""
    data, _ = _open(quick)
    settings = ["memory.enabled=false", *["train.epochs=2"] * quick]
    recipe = apply_settings(read_preset("ml-1m"), settings)
    recommender = Recommender.configured("recblr", recipe, str(device))
    begin = time.perf_counter()
    recommender.fit(data)
    evaluations = recommender.evaluate()
    keep(
        "train",
        run={
            "seconds": time.perf_counter() - begin,
            "epochs": recommender.trained.epoch,
            "metrics": {test.protocol.seen: test.to_json()["metrics"] for test in evaluations},
        },
    )


def step(keep: Keep, device: torch.device, quick: bool) -> None:
    """One more event of a user."""
    small: dict[str, Any] = {"histories": (10, 100, 1000), "repeats": 10} if quick else {}
    keep("step", threads=1, steps=time_steps(device, **small))


def length(keep: Keep, device: torch.device, quick: bool) -> None:
    """A layer by the length of the history."""
    small: dict[str, Any] = {"lengths": (64, 128), "events": 128, "repeats": 1} if quick else {}
    keep("length", **time_lengths(device, **small))


STEPS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (kernels, peer, train, prefixes, run, step, length)
}


def _open(quick: bool) -> tuple[Sequences, TrainConfig]:
    if not quick:
        return default_log(), TrainConfig()
    shop = Shop(users=50, categories=4, items_per_category=6, mean_length=8)
    return prepare(simulate_shop(shop).interactions), TrainConfig(batch_size=256)


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--quick"]
    quick = len(words) < len(sys.argv) - 1
    folder, device, (name, *more) = Path(words[0]), find_device(words[1]), words[2:]
    keep_freed_memory()  # as `recblr train` does
    about = provenance(f"recblr bench gpu{' --quick' * quick}", device.type)

    def keep(file: str, **figures: Any) -> None:
        path = folder / f"{file}-{device.type}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if file == "ops":  # the rows of other steps stay
            rows = {row["name"]: row for row in (*known.get("rows", ()), *figures["rows"])}
            figures["rows"] = [*rows.values()]
        write(path, {**known, **about, **figures})

    STEPS[name](keep, device, quick, *more)


if __name__ == "__main__":
    main()
