"""The metrics of lists of recommended items, against plain loops over the lists."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.scorers import constant, random_data, scores_of, sequences
from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.evaluation.evaluate import Evaluation, evaluate

V = 15
VECTORS = torch.randn(V, 4, generator=torch.Generator().manual_seed(0))


def score(batch: PackedBatch) -> torch.Tensor:
    """Random scores without ties, by the last item of a history."""
    last = batch.items[batch.offsets[1:] - 1].tolist()
    distinct = torch.arange(V) / 1000
    return torch.stack([scores_of([item], V) + distinct for item in last])


def naive_lists(data: Sequences, seen: str, k: int) -> list[list[int]]:
    lists = []
    for user, row in enumerate(data.split.test.tolist()):
        history = data.items[data.offsets[user] : max(row, 0)].tolist()
        if history:
            scores = (scores_of([history[-1]], V) + torch.arange(V) / 1000).tolist()
            order = sorted(range(V), key=lambda item: -scores[item])
            hidden = set(history) if seen == "masked" else set()
            lists.append([item for item in order if item not in hidden][:k])
    return lists


def naive_metrics(data: Sequences, lists: list[list[int]]) -> dict[str, float]:
    users: list[set[int]] = [set() for _ in range(V)]
    for user, end in enumerate(data.split.train_end.tolist()):
        for item in data.items[data.offsets[user] : end].tolist():
            users[item].add(user)
    training_users = len(set().union(*users))
    share = [max(1, len(each)) / training_users for each in users]
    shown = [item for items in lists for item in items]
    counts = [shown.count(item) for item in range(V)]
    apart = sum(abs(one - other) for one in counts for other in counts)
    distances = []
    for items in lists:
        unit = [VECTORS[item].numpy() / np.linalg.norm(VECTORS[item]) for item in items]
        if len(items) > 1:
            distances.append(np.mean([1 - a @ b for a, b in combinations(unit, 2)]))
    return {
        "coverage": len(set(shown)) / V,
        "Gini": apart / (2 * V * sum(counts)),  # half the relative mean difference
        "popularity": sum(share[item] for item in shown) / len(shown),
        "novelty": -sum(math.log2(share[item]) for item in shown) / len(shown),
        "diversity": float(np.mean(distances)),
    }


@pytest.fixture(scope="module")
def measured() -> list[Evaluation]:
    return evaluate(score, random_data(200, V), 3, k=(2, 10, 40), lists=True, item_vectors=VECTORS)


@pytest.mark.parametrize("k", [2, 10, 40])  # 40 is more than the catalogue
def test_metrics_equal_plain_loops(measured: list[Evaluation], k: int) -> None:
    for evaluation in measured:
        lists = naive_lists(random_data(200, V), evaluation.protocol.seen, k)
        for name, value in naive_metrics(random_data(200, V), lists).items():
            assert evaluation.lists["model"][f"{name}@{k}"] == pytest.approx(value, abs=1e-5), name


def test_baselines_have_the_same_metrics(measured: list[Evaluation]) -> None:
    for evaluation in measured:
        names = evaluation.lists["model"].keys()
        assert list(evaluation.lists) == ["model", *evaluation.baselines]
        assert all(values.keys() == names for values in evaluation.lists.values())
        assert len(names) == 5 * 3
        assert evaluation.to_json()["lists"] == evaluation.lists
        html = evaluation._repr_html_()
        assert all(f"<td>{value:.4f}</td>" in html for value in evaluation.lists["model"].values())
    assert measured[0].lists["popularity"]["coverage@2"] == pytest.approx(2 / V)


def test_lists_are_measured_only_if_asked_for(measured: list[Evaluation]) -> None:
    for evaluation, with_lists in zip(
        evaluate(score, random_data(200, V), 3, k=(2, 10, 40)), measured, strict=True
    ):
        assert evaluation.lists == {}
        plain: dict[str, Any] = with_lists.to_json()
        del plain["lists"]
        assert evaluation.to_json() == plain


def test_without_vectors_there_is_no_diversity() -> None:
    (unmasked, _) = evaluate(score, random_data(50, V), 3, k=5, lists=True)
    assert list(unmasked.lists["model"]) == ["coverage@5", "Gini@5", "popularity@5", "novelty@5"]


def test_the_extremes_of_gini() -> None:
    data = sequences([[item, item, item] for item in range(4)], 4)
    unmasked, _ = evaluate(constant(0, 4), data, 3, k=(1, 4), lists=True)
    one_item, all_items = (unmasked.lists["model"][f"Gini@{k}"] for k in (1, 4))
    assert (one_item, all_items) == pytest.approx((3 / 4, 0))


def test_users_who_have_seen_every_item_get_empty_lists() -> None:
    data = sequences([[0, 0, 0], [0, 0, 0]], 1)
    _, masked = evaluate(constant(0, 1), data, 3, k=5, lists=True, item_vectors=torch.ones(1, 2))
    assert set(masked.lists["model"].values()) == {0}
