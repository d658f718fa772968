"""Settings for a log that nobody has tuned for, by its size. How they were found: docs/log.md.

The fewer events an item has, the sooner a model overfits: it gets more dropout, and smoothed targets.
Where items have many events, a wider model pays; and if no user ever comes back to an item, the loss
leaves out the items that a history holds, as serving does.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from recblr.data.sequences import Sequences
from recblr.models import find_model
from recblr.presets import for_model

SPARSE, DENSE = 20, 200  # training events an item: at most, at least
DROPOUT = (0.5, 0.25)  # of a sparse and of a dense log; between them by the logarithm


def by_size(
    data: Sequences, model: str, asked: Mapping[str, Mapping[str, Any]], memory: bool = True
) -> dict[str, dict[str, Any]]:
    """Settings ``{"model": …, "train": …}`` of ``model`` for a log; those that are asked for stay.

    Without a ``memory`` of transitions, which ranks repeats last, they stay in the loss.
    """
    lengths = data.split.train_end - data.offsets[:-1]
    an_item = lengths.sum() / max(1, np.count_nonzero(data.item_counts))
    density = math.log(max(SPARSE, min(DENSE, an_item)) / SPARSE) / math.log(DENSE / SPARSE)
    dense = density > 0.5
    cls, _ = find_model(model)
    wanted = asked.get("train", {})
    softmax = wanted.get("loss", "softmax") == "softmax"
    smooth = softmax and not dense and not wanted.get("hide_seen")
    hide = softmax and dense and memory and not data.has_repeats
    hide = hide and not wanted.get("label_smoothing")
    sized = {
        "model": {
            "dim": 128 if dense else 64,
            "dropout": round(DROPOUT[0] + density * (DROPOUT[1] - DROPOUT[0]), 2),
        },
        "train": {
            # Nine of ten histories whole, unless they are very long.
            "max_length": int(np.clip(50 * np.ceil(np.quantile(lengths, 0.9) / 50), 50, 200)),
            "batch_size": 2048 if dense else 1024,
            "lr": 2e-3 if dense else 1.5e-3,
            "epochs": 30,
            "weight_average": 0.99,
            "label_smoothing": 0.1 if smooth else 0.0,
            "hide_seen": hide and "cloze" not in cls.examples,
            "select": "masked",
            **cls.recipe,
        },
    }
    return {
        section: {**values, **asked.get(section, {})}
        for section, values in for_model(sized, model).items()
    }
