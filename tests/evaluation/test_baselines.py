"""Popularity and the Markov chain, against plain loops."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from evaluation.scorers import constant, random_data, sequences
from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.evaluation.baselines import markov, popularity
from recblr.evaluation.evaluate import evaluate
from recblr.evaluation.ranking import rank_targets


def test_popularity_scores_are_training_counts() -> None:
    data = sequences([[0, 1, 2, 2, 2], [1, 1, 0, 3, 2]], 4)
    batch = PackedBatch(*map(torch.tensor, ([3, 3, 3], [0, 1, 3], [], [])))
    assert popularity(data)(batch).tolist() == [[2, 3, 1, 0]] * 2  # without the held-out events
    assert rank_targets(popularity(data), data, "test", 1)["unmasked"].tolist() == [3, 3]


def naive_markov(data: Sequences, last: int) -> list[tuple[int, int]]:
    """By item, how often it followed ``last`` in training, and how often it occurs in training."""
    followed, occurs = [0] * len(data.item_ids), [0] * len(data.item_ids)
    for begin, end in zip(data.offsets[:-1].tolist(), data.split.train_end.tolist(), strict=True):
        for item in data.items[begin:end].tolist():
            occurs[item] += 1
        for before, after in pairwise(data.items[begin:end].tolist()):
            followed[after] += before == last
    return list(zip(followed, occurs, strict=True))


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_the_markov_chain_equals_a_plain_loop(split: str) -> None:
    data = random_data(60, 12, split)
    histories = [[item, last] for item in (0, 7) for last in range(12)] + [[3]]
    items, offsets = np.concatenate(histories), np.cumsum([0, *map(len, histories)])
    batch = PackedBatch(*map(torch.tensor, (items, offsets, [], [])))
    all_scores = markov(data)(batch)
    assert all_scores.shape == (25, 12)
    assert all_scores.isfinite().all()
    for history, scores in zip(histories, all_scores.tolist(), strict=True):
        truth = naive_markov(data, history[-1])
        assert len(set(truth)) > 5
        for one, other in product(range(12), repeat=2):
            assert (scores[one] > scores[other]) == (truth[one] > truth[other])


def test_the_markov_chain_of_a_small_log() -> None:
    """No transitions between users or to held-out events; ties by popularity."""
    train = [[0, 1, 0, 1, 0, 2], [3, 3, 3], [2]]
    data = sequences([[*items, 1, 4] for items in train], 5)
    batch = PackedBatch(*map(torch.tensor, ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [], [])))
    scores = markov(data)(batch)
    assert [(-row).argsort(stable=True).tolist() for row in scores] == [
        [1, 2, 0, 3, 4],  # 1 twice, 2 once, then by training count: 0 and 3 three times, 4 never
        [0, 3, 1, 2, 4],
        [0, 3, 1, 2, 4],  # ends the training part of two users: nothing follows it
        [3, 0, 1, 2, 4],
        [0, 3, 1, 2, 4],
    ]
    assert scores[2].tolist() == [3, 2, 2, 3, 0]


def test_one_transition_outweighs_any_popularity() -> None:
    data = sequences([[0] * 50 + [1, 2, 0, 0], [1, 3, 1, 3, 0, 0]], 4)
    batch = PackedBatch(*map(torch.tensor, ([1], [0, 1], [], [])))
    assert (-markov(data)(batch)[0]).argsort().tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("lists", [[[0]], [[0, 1, 2]], [[0, 1, 2], [2], [1, 2, 0]], [[]]])
def test_without_transitions_the_markov_chain_is_popularity(lists: list[list[int]]) -> None:
    data = sequences(lists, 3)
    batch = PackedBatch(*map(torch.tensor, ([2, 0], [0, 1, 2], [], [])))
    assert markov(data)(batch).tolist() == popularity(data)(batch).tolist()


def test_the_markov_chain_of_a_large_catalogue() -> None:
    """A dense matrix would take 80 GB."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 100_000, 20).tolist() for _ in range(50)]
    data = sequences(lists, 100_000)
    ranks = rank_targets(markov(data), data, "test", 1)["unmasked"]
    assert ranks.shape == (50,)
    assert (ranks > 1).all()


def test_the_markov_chain_learns_a_simulated_chain() -> None:
    rng = np.random.default_rng(0)
    lists = [((start + np.arange(9)) % 30).tolist() for start in rng.integers(0, 30, 200)]
    for evaluation in evaluate(constant(0, 30), sequences(lists, 30), 5):
        assert evaluation.baselines["markov chain"]["MRR@10"] == 1
        assert evaluation.baselines["popularity"]["MRR@10"] < 0.3
