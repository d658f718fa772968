"""Build settings, and choose those of an untuned log by its size.

docs/experiments.md describes how they were chosen.

With few events per item a model overfits sooner, so it gets more dropout and label smoothing; with
very few, several next items as targets. With more, the loss leaves out seen items, as serving does, if
no user has an item twice. With many events per item the model is wider, and learns the vectors of the
items from any start; else they start from the transitions. A small log gets more epochs, because a
model needs some thousand updates.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from recblr.config import build, did_you_mean
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.memory import MemoryConfig
from recblr.models import find_model
from recblr.models.model import ITEM_VECTORS
from recblr.presets import for_model
from recblr.progress import report
from recblr.renamed import current_settings
from recblr.training.config import TrainConfig

SECTIONS = ("model", "train", "memory")  # of settings
SPARSE, DENSE = 20, 200  # training events per item
MASK_SEEN = 40  # training events per item from which the loss leaves out seen items
HORIZON = 8  # next items to predict
EPOCHS = (30, 60)  # the fewest and the most
UPDATES = 4000  # about so many, if the epochs allow it
DROPOUT = (0.5, 0.25)  # of a sparse and a dense log, with logarithmic interpolation


def build_settings(
    model: str, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[Any, TrainConfig, MemoryConfig]:
    """The configurations of a model, of training and of the memory from settings by section.

    Raises:
        InputError: a section, a setting or its value is wrong.
    """
    for section in settings:
        if section not in SECTIONS:
            raise InputError(
                f"no such section of settings: {section}{did_you_mean(section, SECTIONS)}"
            )
    settings = {name: current_settings(name, values) for name, values in settings.items()}
    cls, kind = find_model(model)
    return (
        build(kind, settings.get("model", {}), "model"),
        build(TrainConfig, {**cls.recipe, **settings.get("train", {})}, "train"),
        build(MemoryConfig, settings.get("memory", {}), "memory"),
    )


def by_size(
    data: Sequences, model: str, given: Mapping[str, Mapping[str, Any]], memory: bool = True
) -> dict[str, dict[str, Any]]:
    """Choose settings ``{"model": …, "train": …}`` by the training part of a log.

    Args:
        data: the log.
        model: the name of the model.
        given: settings that stay, by section.
        memory: whether the model has a memory of transitions. It ranks repeated items last, so that
            the loss may leave them out; and it knows what comes next, so that the network may learn
            what comes later.
    """
    lengths = data.split.train_end - data.offsets[:-1]
    events = max(1, int(lengths.sum()))
    per_item = events / max(1, int(np.count_nonzero(data.item_counts)))
    density = math.log(max(SPARSE, min(DENSE, per_item)) / SPARSE) / math.log(DENSE / SPARSE)
    dense = density > 0.5
    cls, _ = find_model(model)
    train = given.get("train", {})
    softmax = train.get("loss", "softmax") == "softmax"
    several_tables = ITEM_VECTORS not in cls.item_tables
    predicts_masked = "cloze" in cls.examples
    mask_seen = softmax and per_item >= MASK_SEEN and memory and not data.has_repeats
    mask_seen = mask_seen and not predicts_masked and not train.get("label_smoothing")
    smooth = softmax and not dense and not train.get("mask_seen_in_loss", mask_seen)
    batch_size = train.get("batch_size", 2048 if dense else 1024)
    far = softmax and density == 0 and memory and data.kinds is None and not predicts_masked
    sized = {
        "model": {
            "dim": 128 if dense else 64,
            "dropout": round(DROPOUT[0] + density * (DROPOUT[1] - DROPOUT[0]), 2),
        },
        "train": {
            # Nine of ten histories fit, up to 200 events.
            "max_length": int(np.clip(50 * np.ceil(np.quantile(lengths, 0.9) / 50), 50, 200)),
            "batch_size": batch_size,
            "lr": 2e-3 if dense else 1.5e-3,
            "epochs": int(np.clip(np.ceil(UPDATES * batch_size / events), *EPOCHS)),
            "ema_decay": 0.99,
            "label_smoothing": 0.1 if smooth else 0.0,
            "mask_seen_in_loss": mask_seen,
            "horizon": HORIZON if far else 1,
            "item_init": "random" if dense or several_tables else "transitions",
            **cls.recipe,
        },
    }
    sized = for_model(sized, model)
    chosen = ", ".join(
        f"{section}.{name} = {value}"
        for section in given
        for name, value in sized[section].items()
        if name not in given[section]
    )
    report(f"settings by the size of the log: {chosen}")
    return {section: {**values, **given.get(section, {})} for section, values in sized.items()}
