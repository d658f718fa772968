"""The data sets of the studies and their recipes, also of those that ``studies.toml`` makes."""

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from recblr.data import open_log
from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.data.datasets import load_dataset
from recblr.data.log import Interactions
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.simulate import Shop, simulate_shop
from recblr.data.split import k_core
from recblr.presets import for_model, read_preset

TABLES = tomllib.loads((Path(__file__).parent / "studies.toml").read_text())
MADE: dict[str, dict[str, Any]] = TABLES.pop("made")
"""By name: what makes a data set, with its settings; and its recipe, or the preset that it shares."""


def _thin(log: str, share: float) -> Sequences:
    """A data set from which events are removed at random: the same users and items, more sparsely."""
    whole = load_dataset(log)
    kept = k_core(whole.users, whole.items, 5)
    kept[kept] = np.random.default_rng(0).random(kept.sum()) < share
    times = None if whole.timestamps is None else whole.timestamps[kept]
    users, items, source = whole.users[kept], whole.items[kept], f"{share:.0%} of {whole.source}"
    return prepare(Interactions(users, items, times, whole.user_ids, whole.item_ids, source), 5)


def recall(name: str) -> AssociativeRecall:
    """The settings of a simulated data set that tests long memory."""
    return AssociativeRecall(**MADE[name]["recall"])


def recipe(name: str, model: str) -> dict[str, Any]:
    """The settings with which ``model`` is trained on a data set."""
    settings = MADE[name]["recipe"] if name in MADE else name
    return read_preset(settings, model) if isinstance(settings, str) else for_model(settings, model)


@lru_cache(maxsize=1)
def open_dataset(name: str) -> Sequences:
    """A data set by its name."""
    match MADE.get(name):
        case {"shop": dials}:
            return prepare(simulate_shop(Shop(**dials)).interactions)
        case {"recall": _}:
            return simulate_recall(recall(name))[0]
        case {"thin": share, "recipe": log}:
            return _thin(log, share)
        case {"split": split, "recipe": log}:
            return open_log(log, split=split)
    return open_log(name)
