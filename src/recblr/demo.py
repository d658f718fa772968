"""The demo: train and recommend on a simulated log, for which the best possible score is known."""

from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from recblr.data.batches import PackedBatch
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.simulate import Shop, SimulatedLog, simulate_shop
from recblr.evaluation import metrics
from recblr.evaluation.baselines import popularity
from recblr.evaluation.ranking import Scorer, rank_targets
from recblr.models.recblr import RecBLRConfig
from recblr.recommender import Recommender
from recblr.training.config import TrainConfig

# Customers buy items again, so seen items stay candidates.
PROTOCOL = "leave-one-out test, full ranking, seen items unmasked, ties against the target"
SHOWN = ("HR@10", "NDCG@10", "MRR@10", "HR@20", "NDCG@20", "MRR@20")


def run_demo(console: Console) -> dict[str, Any]:
    """Simulate a log, train, measure and recommend; print the results to ``console``.

    Returns:
        The metrics of popularity, of RecBLR and of the true probabilities (the best expected ones),
        their protocol, and recommendations for one customer.
    """
    simulated = simulate_shop(Shop())
    data = prepare(simulated.interactions)
    kept = data.summary["kept"]
    console.print(
        f"A simulated shop: {kept['users']:,} customers made {kept['interactions']:,} purchases of "
        f"{kept['items']:,} items. Their interests drift, and one purchase leads to another."
    )
    config = TrainConfig(
        epochs=14, batch_size=1024, lr=6e-3, warmup_steps=50, ema_decay=0.95,
        selection_protocol="unmasked",
    )  # fmt: skip
    recommender = Recommender("recblr", RecBLRConfig(dropout=0.2), config).fit(data)
    console.print(
        f"RecBLR trained for {recommender.trained.seconds:.0f} s. Metrics on the last purchases:\n"
    )

    scorers = {
        "popularity": popularity(data),
        "RecBLR": recommender.network.score,
        "best possible": oracle(simulated, data),
    }
    table = Table("", *SHOWN, box=None)
    result: dict[str, Any] = {"protocol": PROTOCOL, "metrics": {}}
    for name, scorer in scorers.items():
        ranks = rank_targets(scorer, data, "test", config.max_length, name)
        result["metrics"][name] = means = metrics.means(ranks["unmasked"])
        table.add_row(name, *(f"{means[metric]:.4f}" for metric in SHOWN))
    console.print(table)
    console.print(f"({PROTOCOL})\n", style="dim")

    customer = data.user_ids[0].as_py()
    bought = data.items[data.offsets[0] : data.offsets[1]][-5:]
    names = [data.item_ids[int(item)].as_py() for item in bought]
    offers = recommender.recommend(users=[customer], k=5)
    console.print(f"Last purchases of {customer}: {', '.join(names)}. Recommendations:\n")
    table = Table("rank", "item", "score", box=None)
    for row in offers.iter_rows(named=True):
        table.add_row(str(row["rank"]), row["item_id"], f"{row['score']:.2f}")
    console.print(table)
    result["recommendations"] = offers.to_dicts()
    return result


def oracle(simulated: SimulatedLog, data: Sequences) -> Scorer:
    """A scorer with the true probabilities of each user's last event; it takes the users in order."""
    rows = iter(torch.from_numpy(simulated.oracle[data.split.test >= 0].astype(np.float32)))

    def score(batch: PackedBatch) -> torch.Tensor:
        return torch.stack([next(rows) for _ in range(len(batch.offsets) - 1)])

    return score
