"""Measure what kinds of events are worth, on a simulated shop with views, carts and purchases.

Each purchase of the simulated shop ends a visit: 7 in 10 items are put into the cart first, then come 0
to 4 views of other items, half of them of the same category, and then the purchase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from recblr.data.simulate import Shop, simulate_shop
from recblr.recommender import Recommender

SHOP = Shop(users=800, categories=12, items_per_category=20, mean_length=15)
TRAINING: Mapping[str, Any] = {
    "epochs": 12, "batch_size": 1024, "selection_protocol": "unmasked", "max_length": 100
}  # fmt: skip
MODEL: Mapping[str, Any] = {"dim": 64}
VIEWS = 4  # before a purchase at most
CARTED = 0.7  # share of the purchases
SECONDS = 60  # between two events of a visit


def measure_kinds(
    settings: Mapping[str, Any], seeds: Sequence[int] = (0,), device: str = "auto",
    shop: Shop = SHOP,
) -> dict[str, Any]:  # fmt: skip
    """The accuracy for each user's last event, a purchase.

    Args:
        settings: settings as for :meth:`Recommender.configured`.
        seeds: of the shop and of training.
        device: as for :class:`Recommender`.
        shop: the settings of the shop.

    Returns:
        A row for each seed and log, with the unmasked test HR@10 and NDCG@10: of the log without the
        kinds, of its purchases alone, and of the whole log, asked for any kind and for purchases.
    """
    rows = []
    train, model = (
        {**ours, **settings.get(name, {})} for name, ours in (("train", TRAINING), ("model", MODEL))
    )
    for seed in seeds:
        log = simulate(replace(shop, seed=seed))
        chosen = {**settings, "train": {**train, "seed": seed}, "model": model}
        logs = {
            "without kinds": log.drop("kind"),
            "purchases only": log.filter(pl.col("kind") == "purchase").drop("kind"),
            "any kind asked": log,
        }
        for name, frame in logs.items():
            recommender = Recommender.configured("recblr", chosen, device, by_size=True).fit(frame)
            asked = {name: None} | ({"purchase asked": "purchase"} if "kind" in frame else {})
            for trial, kind in asked.items():
                evaluation = recommender.evaluate(kind=kind)[0]
                means = {key: round(evaluation.metrics[key], 4) for key in ("HR@10", "NDCG@10")}
                rows.append({"seed": seed, "log": trial, "users": len(evaluation.users), **means})
    return {"shop": repr(shop), "settings": dict(settings), "rows": rows}


def simulate(shop: Shop) -> pl.DataFrame:
    """The log of a shop with the kinds "view", "cart" and "purchase"."""
    rng = np.random.default_rng([shop.seed, 2])
    log = simulate_shop(shop).interactions.to_polars().with_columns(kind=pl.lit("purchase"))
    items = log["item_id"].to_numpy()
    names = np.unique(items)
    number = rng.integers(VIEWS + 1, size=len(log))
    purchase = np.repeat(np.arange(len(log)), number)
    before = np.concatenate([np.arange(count, 0, -1) for count in number])
    category = {name: name.split("-")[0] for name in names}
    by_category: dict[str, list[str]] = {}
    for name in names:
        by_category.setdefault(category[name], []).append(name)
    viewed = [
        rng.choice(by_category[category[items[row]]] if related else names)
        for row, related in zip(purchase, rng.random(len(purchase)) < 0.5, strict=True)
    ]
    views = log[purchase].with_columns(
        item_id=pl.Series(viewed), kind=pl.lit("view"),
        timestamp=pl.col("timestamp") - SECONDS * pl.Series(before),
    )  # fmt: skip
    carts = log.with_columns(
        kind=pl.lit("cart"), timestamp=pl.col("timestamp") - SECONDS * pl.Series(number + 1)
    ).filter(pl.Series(rng.random(len(log)) < CARTED))
    return pl.concat([log, views, carts]).sort("timestamp", maintain_order=True)
