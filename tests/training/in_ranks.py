"""Train models in one of several processes: ``python in_ranks.py DATA PLAN``.

DATA is a prepared folder. PLAN is a list of trainings: the name of a model, its settings, a folder,
whether to resume, and whether this process ends in the second epoch.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from scipy import sparse

import recblr
from recblr import memory as transitions
from recblr.ranks import ALONE, Ranks, join
from recblr.sizing import build_settings
from recblr.training.start import new_network
from recblr.training.trainer import Epoch, Trainer

transitions._BLOCK_EVENTS = 50  # so that there are rows for all processes


def train(data: Any, plan: list[dict[str, Any]], ranks: Ranks = ALONE) -> None:
    for each in plan:
        config, training, _ = build_settings(each["model"], each["settings"])
        network = new_network(each["model"], config, training, data, ranks)
        folder = Path(each["folder"])
        if ranks.first:
            folder.mkdir(exist_ok=True)
        trainer = Trainer(network, data, training, ranks=ranks)

        def stop(epoch: Epoch, number: int | None = each.get("stop_after")) -> None:
            if epoch.number == number:
                raise InterruptedError

        try:
            trainer.train(folder, each.get("resume", False), stop)
        except InterruptedError:
            continue
        memory = transitions.fit(data, transitions.MemoryConfig(pairs=5), ranks).matrix
        if ranks.first:
            save_file(network.state_dict(), folder / "weights.safetensors")
            sparse.save_npz(folder / "memory.npz", memory)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    log = recblr.open_log(sys.argv[1])
    train(log, json.loads(sys.argv[2]), join(torch.device("cpu")))
