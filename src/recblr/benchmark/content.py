"""Measure what content of items is worth, on a simulated shop whose items it describes.

A fifth of the items are new: nobody buys them before the last two events, which are held out. Another
fifth are rare: they keep 1 to 5 of their training events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Part, Sequences
from recblr.data.simulate import Shop, simulate_shop
from recblr.evaluation import metrics
from recblr.evaluation.baselines import popularity
from recblr.evaluation.ranking import Scorer, rank_targets
from recblr.evaluation.slices import column_slices, read_columns
from recblr.recommender import Recommender

SHOP = Shop(users=800, categories=12, items_per_category=20, mean_length=25)
TRAINING: Mapping[str, Any] = {
    "epochs": 10, "batch_size": 512, "lr": 5e-3, "warmup_steps": 50, "ema_decay": 0.95,
    "selection_protocol": "unmasked", "max_length": 100,
}  # fmt: skip
NOISE = 0.2  # standard deviation, beside numbers whose standard deviation is at most 1
GROUPS = ("0", "1-5", "6 or more")


def measure_content(
    settings: Mapping[str, Any], seeds: Sequence[int] = (0,), device: str = "auto",
    shop: Shop = SHOP,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy by the number of training events of the target.

    Args:
        settings: settings as for :meth:`Recommender.configured`.
        seeds: of the shop and of training.
        device: as for :class:`Recommender`.
        shop: the settings of the shop.

    Returns:
        A row for each seed, scorer and part, with the number of targets, HR@10 and NDCG@10 of each
        of :data:`GROUPS`.
    """
    rows = []
    train = {**TRAINING, **settings.get("train", {})}
    for seed in seeds:
        data, vectors, categories = simulate(replace(shop, seed=seed))
        rows += _accuracy(data, popularity(data), {"seed": seed, "scorer": "popularity"})
        trials: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "no content": ({}, {}),
            "categories": ({"item_categories": categories}, {}),
            "vectors": ({"item_vectors": vectors}, {}),
            "vectors, content_events 1": ({"item_vectors": vectors}, {"content_events": 1}),
        }
        for name, (content, more) in trials.items():
            chosen = {**settings, "train": {**train, "seed": seed, **more}}
            recommender = Recommender.configured("recblr", chosen, device).fit(data, **content)
            rows += _accuracy(data, recommender.score, {"seed": seed, "scorer": name})
    return {"shop": repr(shop), "settings": dict(settings), "rows": rows}


def simulate(shop: Shop) -> tuple[Sequences, pl.DataFrame, pl.DataFrame]:
    """The log with new and rare items, the vectors of all items, and their categories.

    A vector has the category of the item and its place in the category, mixed at random, with noise.
    """
    rng = np.random.default_rng([shop.seed, 1])
    log = simulate_shop(shop).interactions.to_polars().sort("timestamp", maintain_order=True)
    ids = pl.Series(sorted(log["item_id"].unique()))
    group = rng.permutation(len(ids)) * 5 // len(ids)  # 0: new, 1: rare
    kept = np.where(group == 0, 0, np.where(group == 1, rng.integers(1, 6, len(ids)), len(log)))
    held_out = pl.int_range(pl.len()).reverse().over("user_id") < 2
    items = pl.DataFrame({"item_id": ids, "kept": kept})
    log = (
        log.with_columns(held_out=held_out, drawn=pl.Series(rng.random(len(log))))
        .join(items, on="item_id", maintain_order="left")
        .with_columns(nth=pl.col("drawn").rank("ordinal").over("item_id", "held_out"))
        .filter(pl.col("held_out") | (pl.col("nth") <= pl.col("kept")))
        .select("user_id", "item_id", "timestamp")
    )
    category, place = (ids.str.extract(pattern, 1).cast(pl.Int64).to_numpy()
                       for pattern in (r"^c(\d+)", r"i(\d+)$"))  # fmt: skip
    angle = 2 * np.pi * place / shop.items_per_category
    tells = np.concatenate([
        np.eye(shop.categories)[category], np.sin(np.outer(angle, [1, 2])),
        np.cos(np.outer(angle, [1, 2])),
    ], 1)  # fmt: skip
    mixed = tells @ np.linalg.qr(rng.normal(size=(tells.shape[1],) * 2))[0]
    vectors = mixed + NOISE * rng.normal(size=mixed.shape)
    return (
        prepare(read_log(log)),
        pl.DataFrame({"item_id": ids, "vector": vectors.tolist()}),
        pl.DataFrame({"item_id": ids, "category": category.astype(str)}),
    )


def _accuracy(data: Sequences, score: Scorer, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part: the unmasked metrics of the targets of each group of items."""
    groups = [GROUPS[int(count > 0) + int(count > 5)] for count in data.item_counts]
    frame = pl.DataFrame({"item_id": pl.Series(data.item_ids), "events": groups})
    column, rows = read_columns([(frame, "events")], data)[0], []
    parts: tuple[Part, ...] = ("validation", "test")
    for part in parts:
        ranks = rank_targets(score, data, part, TRAINING["max_length"])
        masks = column_slices(column, data, part, ranks["users"])
        measured = {}
        for group in GROUPS:
            mask = masks[f"events {group}"]
            means = metrics.means(ranks["unmasked"][mask])
            shown = {name: round(means[name], 4) for name in ("HR@10", "NDCG@10")}
            measured[group] = {"targets": int(mask.sum()), **shown}
        rows.append({**row, "part": part, **measured})
    return rows
