"""The logs that runs train on, and their recipes: data sets by name, and a few made for a study."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from recblr.data import open_log
from recblr.data.datasets import load_dataset
from recblr.data.log import Interactions
from recblr.data.sequences import Sequences, prepare
from recblr.data.simulate import Shop, simulate_shop
from recblr.data.split import k_core
from recblr.presets import for_model, read_preset

SIMULATED = "simulated"  # the log of a smoke run
XLONG_LIKE = "xlong-like"  # a shop with XLong's lengths: 300 users, about 800 events each


@dataclass(frozen=True)
class Made:
    """A log made for a study, and how models are trained on it."""

    open: Callable[[], Sequences]
    recipe: dict[str, Any] | str  # settings, or the data set whose preset it is


def _shop(**dials: Any) -> Sequences:
    return prepare(simulate_shop(Shop(**dials)).interactions)


def _thinned(name: str, share: float) -> Sequences:
    """A data set with each event kept by chance: the same people and things, less often seen."""
    log = load_dataset(name)
    kept = k_core(log.users, log.items, 5)
    kept[kept] = np.random.default_rng(0).random(kept.sum()) < share
    times = None if log.timestamps is None else log.timestamps[kept]
    thin = Interactions(
        log.users[kept], log.items[kept], times, log.user_ids, log.item_ids,
        f"{share:.0%} of {log.source}",
    )  # fmt: skip
    return prepare(thin, core=5)


_SHOP_RECIPE = {
    "model": {"dropout": 0.2},
    "train": {
        "epochs": 20, "batch_size": 1024, "lr": 6e-3, "warmup_steps": 50, "ema_decay": 0.95,
    },
}  # fmt: skip
MADE: dict[str, Made] = {
    XLONG_LIKE: Made(
        partial(
            _shop,
            users=300,
            categories=200,
            items_per_category=100,
            mean_length=1200,
            max_length=1000,
        ),
        "xlong",
    ),
    SIMULATED: Made(
        partial(_shop, users=300, categories=6, items_per_category=8, mean_length=16),
        {"train": {"epochs": 2, "batch_size": 512, "max_length": 32, "warmup_steps": 10}},
    ),
    "ml-1m-time-last": Made(partial(open_log, "ml-1m", split="time-last"), "ml-1m"),
    **{
        f"ml-1m-{share}%": Made(partial(_thinned, "ml-1m", share / 100), "ml-1m")
        for share in (10, 25, 50)
    },
    **{
        f"shop-{interests}-interests": Made(partial(_shop, interests=interests), _SHOP_RECIPE)
        for interests in (1, 3, 8)
    },
}


def recipe(name: str, model: str) -> dict[str, Any]:
    """The settings by which ``model`` is trained on a log, those that it has."""
    made = MADE.get(name)
    if made is None or isinstance(made.recipe, str):
        preset = name if made is None else str(made.recipe)
        return read_preset(preset, model)
    return for_model(made.recipe, model)


@lru_cache(maxsize=1)
def open_dataset(name: str) -> Sequences:
    """A log by its name."""
    return MADE[name].open() if name in MADE else open_log(name)
