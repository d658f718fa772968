"""ItemKNN and EASE, against plain loops and a dense inverse."""

import math

import numpy as np
import pytest
import torch

from evaluation.scorers import constant, random_data, sequences
from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.evaluation import baselines
from recblr.evaluation.baselines import choose_baselines, ease, item_knn, popularity, user_items
from recblr.evaluation.evaluate import evaluate
from recblr.evaluation.ranking import rank_targets

HISTORIES = [[0, 7, 7, 3], [11], [5, 5], list(range(12))]


def batch_of(histories: list[list[int]]) -> PackedBatch:
    """Only the last event of each history is in ``items``; the scorers need ``seen``."""
    rows = [row for row, history in enumerate(histories) for _ in history]
    seen = torch.tensor([rows, [item for history in histories for item in history]])
    last = torch.tensor([history[-1] for history in histories])
    nothing = torch.tensor([], dtype=torch.int64)
    return PackedBatch(last, torch.arange(len(histories) + 1), nothing, nothing, seen=seen)


def users_of(data: Sequences) -> list[set[int]]:
    """For each item, the users who have it in the training part."""
    users: list[set[int]] = [set() for _ in data.item_ids]
    for user, end in enumerate(data.split.train_end.tolist()):
        for item in data.items[data.offsets[user] : end].tolist():
            users[item].add(user)
    return users


def naive_item_knn(
    data: Sequences, history: list[int], neighbours: int, shrinkage: float
) -> list[float]:
    users = users_of(data)
    scores = []
    for one in range(len(users)):
        similar = []
        for other in range(len(users)):
            shared = len(users[one] & users[other])
            norm = math.sqrt(len(users[one]) * len(users[other])) + shrinkage
            if one != other and shared:
                similar.append((-shared / norm, other))
        nearest = sorted(similar)[:neighbours]
        scores.append(-sum(negative for negative, other in nearest if other in history))
    return scores


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
@pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 10), (200, 0.5)])
def test_item_knn_equals_plain_loops(
    split: str, neighbours: int, shrinkage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_BLOCK_ITEMS", 5)  # the last block is shorter
    data = random_data(60, 12, split)
    scores = item_knn(data, neighbours, shrinkage)(batch_of(HISTORIES))
    for history, row in zip(HISTORIES, scores.numpy(), strict=True):
        truth = naive_item_knn(data, history, neighbours, shrinkage)
        np.testing.assert_allclose(row, truth, atol=1e-6)


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_ease_equals_a_dense_inverse(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_BLOCK_ITEMS", 5)
    data = random_data(60, 12, split)
    x = np.zeros((data.users, 12))
    for item, users in enumerate(users_of(data)):
        x[list(users), item] = 1
    inverse = np.linalg.inv(x.T @ x + 3 * np.eye(12))
    scores = ease(data, 3)(batch_of(HISTORIES)).numpy()
    for history, row in zip(HISTORIES, scores, strict=True):
        for item in range(12):
            others = [other for other in set(history) if other != item]
            truth = sum(-inverse[other, item] / inverse[item, item] for other in others)
            assert row[item] == pytest.approx(truth, abs=1e-5)


def test_ease_predicts_each_item_by_least_squares() -> None:
    """The weights of an item are the ridge regression of its column on all others."""
    data = random_data(40, 6)
    x = user_items(data).toarray().astype(float)
    others = [0, 1, 2, 4, 5]
    gram = x[:, others].T @ x[:, others] + 2 * np.eye(5)
    weights = np.linalg.solve(gram, x[:, others].T @ x[:, 3])
    scores = ease(data, 2)(batch_of([[item] for item in others]))[:, 3]
    np.testing.assert_allclose(scores, weights, atol=1e-5)


@pytest.mark.parametrize("baseline", [item_knn, ease])
def test_the_whole_history_counts_in_any_order_and_once(baseline: baselines.Fit) -> None:
    data = random_data(60, 12)
    score = baseline(data)
    ours, theirs = score(batch_of([[1, 2, 3], [4, 5]])), score(batch_of([[3, 1, 2, 2], [5, 4, 4]]))
    assert torch.equal(ours, theirs)
    ranks = rank_targets(score, data, "test", 1)
    for seen in ("unmasked", "masked"):
        assert ranks[seen].tolist() == rank_targets(score, data, "test", 9)[seen].tolist()


@pytest.mark.parametrize("baseline", [item_knn, ease])
@pytest.mark.parametrize("lists", [[[0]], [[0, 1, 2]], [[]], [[1, 1, 1, 0, 0], [2, 2, 0]]])
def test_without_shared_users_the_order_is_popularity(
    baseline: baselines.Fit, lists: list[list[int]]
) -> None:
    data, batch = sequences(lists, 3), batch_of([[2], [0, 1]])
    ours, truth = baseline(data)(batch), popularity(data)(batch)
    assert ours.argsort(stable=True).tolist() == truth.argsort(stable=True).tolist()


def test_repeats_count_once() -> None:
    data = sequences([[0, 0, 2, 1, 1], [3, 2]], 4)
    assert user_items(data).toarray().tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]


def test_further_baselines_are_chosen_by_name() -> None:
    data = random_data(60, 12)
    for evaluation in evaluate(constant(0, 12), data, 5, baselines="ease"):
        assert list(evaluation.baselines) == ["popularity", "markov chain", "transitions", "ease"]
    (unmasked, _) = evaluate(constant(0, 12), data, 5, baselines=["itemknn", "ease"])
    assert list(unmasked.baselines)[3:] == ["itemknn", "ease"]
    with pytest.raises(InputError, match=r"unknown baseline 'itemkn'; did you mean itemknn\?"):
        evaluate(constant(0, 12), data, 5, baselines=["itemkn"])


def test_ease_is_refused_for_a_large_catalogue() -> None:
    data = sequences([[0, 1, 2]], 30_001)
    with pytest.raises(
        InputError, match=r"ease needs a table of 3\.6 GB for 30,001 items; .*leave"
    ):
        choose_baselines("ease", data)
    choose_baselines("itemknn", data)
