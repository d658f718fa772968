"""Our metrics of random lists, against those of RecTools and ranx where these are installed."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from evaluation.scorers import random_data
from recblr.data.batches import PackedBatch
from recblr.evaluation.evaluate import Evaluation, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the peers
V, K = 40, (1, 5, 10, 30)
VECTORS = normalize(torch.randn(V, 4, generator=torch.Generator().manual_seed(0)))


def score(batch: PackedBatch) -> torch.Tensor:
    """Random scores without ties; they depend on the history."""
    histories = [batch.items[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]
    return torch.stack([
        torch.randperm(V, generator=torch.Generator().manual_seed(hash(tuple(history)))).float()
        for history in histories
    ])  # fmt: skip


@dataclass
class Example:
    """The lists of all users in full, best first, their targets, and who had what in training."""

    ours: Evaluation
    lists: dict[int, list[int]]
    targets: dict[int, int]
    training: list[tuple[int, int]]


@pytest.fixture(scope="module", params=["unmasked", "masked"])
def example(request: pytest.FixtureRequest) -> Example:
    data = random_data(300, V)
    evaluations = evaluate(score, data, 99, k=K, lists=True, item_vectors=VECTORS)
    ours = evaluations[request.param == "masked"]
    items, ends, lists, targets = data.items.tolist(), data.split.test, {}, {}
    for user in ours.users.tolist():
        history = items[data.offsets[user] : ends[user]]
        batch = PackedBatch(
            torch.tensor(history), torch.tensor([0, len(history)]), *[torch.tensor([])] * 2
        )
        order = score(batch)[0].argsort(descending=True).tolist()
        hidden = history if request.param == "masked" else []
        lists[user] = [item for item in order if item not in hidden]
        targets[user] = items[ends[user]]
    training = {
        (user, item)
        for user, (begin, end) in enumerate(zip(data.offsets, data.split.train_end, strict=False))
        for item in items[begin:end]
    }
    return Example(ours, lists, targets, sorted(training))


def test_metrics_equal_those_of_ranx(example: Example) -> None:
    ranx = pytest.importorskip("ranx")
    qrels = ranx.Qrels({f"{user}": {f"{item}": 1} for user, item in example.targets.items()})
    run = ranx.Run({
        f"{user}": {f"{item}": float(-place) for place, item in enumerate(items)}
        for user, items in example.lists.items()
    })  # fmt: skip
    names = ["hit_rate", "recall", "precision", "map", "mrr", "ndcg"]
    theirs = ranx.evaluate(qrels, run, [f"{name}@{k}" for name in names for k in K])
    for k in K:
        ours = {name: example.ours.metrics[f"{name}@{k}"] for name in ("HR", "NDCG", "MRR")}
        expected = [ours["HR"], ours["HR"], ours["HR"] / k, ours["MRR"], ours["MRR"], ours["NDCG"]]
        assert [theirs[f"{name}@{k}"] for name in names] == pytest.approx(expected, abs=1e-9)


def test_metrics_equal_those_of_rectools(example: Example) -> None:
    """Masked lists differ in length, and RecTools averages over users where we average over items."""
    rectools = pytest.importorskip("rectools.metrics")

    class Cosine(rectools.PairwiseDistanceCalculator):  # type: ignore[misc, name-defined]
        def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> np.ndarray:
            return 1 - (VECTORS[items_0] * VECTORS[items_1]).sum(1).numpy()

    recommended = pd.DataFrame(
        [(user, item, rank) for user, items in example.lists.items()
         for rank, item in enumerate(items, 1)],
        columns=["user_id", "item_id", "rank"],
    )  # fmt: skip
    targets = pd.DataFrame(example.targets.items(), columns=["user_id", "item_id"])
    training = pd.DataFrame(example.training, columns=["user_id", "item_id"])
    users = training["user_id"].nunique()
    lists = example.ours.lists["model"]
    for k in K:
        ours = example.ours.metrics
        pairs = [
            (rectools.HitRate(k), ours[f"HR@{k}"]),
            (rectools.Recall(k), ours[f"HR@{k}"]),
            (rectools.Precision(k), ours[f"HR@{k}"] / k),
            (rectools.MAP(k), ours[f"MRR@{k}"]),
            (rectools.MRR(k), ours[f"MRR@{k}"]),
            (rectools.NDCG(k, divide_by_achievable=True), ours[f"NDCG@{k}"]),
            (rectools.CatalogCoverage(k, normalize=True), lists[f"coverage@{k}"]),
        ]
        if example.ours.protocol.seen == "unmasked":
            pairs += [
                (rectools.AvgRecPopularity(k), lists[f"popularity@{k}"] * users),
                (rectools.MeanInvUserFreq(k), lists[f"novelty@{k}"]),
            ]
            if k > 1:
                pairs.append((rectools.IntraListDiversity(k, Cosine()), lists[f"diversity@{k}"]))
        metrics = {f"{type(metric).__name__}@{k}": metric for metric, _ in pairs}
        theirs = rectools.calc_metrics(metrics, recommended, targets, training, range(V))
        expected = dict(zip(metrics, (value for _, value in pairs), strict=True))
        assert theirs == pytest.approx(expected, abs=1e-6)
