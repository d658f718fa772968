"""Ranks, against a naive loop over all scores."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from evaluation.scorers import constant, favourite, random_data, scorer_of, scores_of, sequences
from recblr.data.batches import PackedBatch
from recblr.data.sequences import Part, Sequences
from recblr.errors import DivergedError, InputError
from recblr.evaluation import ranking as module
from recblr.evaluation.evaluate import evaluate
from recblr.evaluation.ranking import MISSED, rank_targets

PARTS: tuple[Part, ...] = ("validation", "test")


def naive_ranks(data: Sequences, part: Part, max_length: int) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {"users": [], "unmasked": [], "masked": []}
    catalogue = len(data.item_ids)
    for user, row in enumerate(getattr(data.split, part).tolist()):
        if row < 0:
            continue
        history = data.items[data.offsets[user] : row].tolist()
        target = data.items[row]
        scores = scores_of(history[-max_length:], catalogue).tolist()
        others = [item for item in range(catalogue) if item != target]
        ranks["users"].append(user)
        ranks["unmasked"].append(1 + sum(scores[item] >= scores[target] for item in others))
        for item in history:
            scores[item] = -float("inf")
        rank = 1 + sum(scores[item] >= scores[target] for item in others)
        ranks["masked"].append(MISSED if target in history else rank)
    return ranks


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_ranks_equal_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    part: Part,
    split: str,
) -> None:
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": block})
    data = random_data(split=split)
    for max_length in (1, 3, 100):
        arrays = rank_targets(scorer_of(12), data, part, max_length)
        ranks = {name: values.tolist() for name, values in arrays.items()}
        assert ranks == naive_ranks(data, part, max_length)
        assert 10 < len(ranks["users"]) < 40
        assert ranks["masked"] != ranks["unmasked"]


def test_the_scorer_gets_the_latest_events_before_the_target() -> None:
    data = sequences([[0, 1, 2, 3, 4], [5], [6, 7, 8]], 9)
    shown: list[list[int]] = []
    rank_targets(scorer_of(9, shown), data, "test", 2)
    rank_targets(scorer_of(9, shown), data, "validation", 10)
    assert shown == [[2, 3], [6, 7], [0, 1, 2], [6]]


@pytest.mark.parametrize("block", [1, 10, 1 << 22])
def test_blocks_have_a_bounded_number_of_scores(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": block})
    sizes: list[int] = []

    def score(batch: PackedBatch) -> Tensor:
        sizes.append(len(batch.offsets) - 1)
        return torch.zeros(sizes[-1], 5)

    rank_targets(score, sequences([[0, 1, 2]] * 7, 5), "test", 3)
    assert sum(sizes) == 7
    assert max(sizes) <= max(1, block // 5)


def test_a_constant_scorer_gets_the_worst_rank() -> None:
    data = random_data()
    ranks = rank_targets(constant(1.0, 12), data, "test", 5)
    assert set(ranks["unmasked"].tolist()) == {12}
    for user, rank in zip(ranks["users"].tolist(), ranks["masked"].tolist(), strict=True):
        row = data.split.test[user]
        history = set(data.items[data.offsets[user] : row].tolist())
        assert rank == (MISSED if data.items[row] in history else 12 - len(history))


def test_a_seen_target_is_missed_when_masked() -> None:
    data = sequences([[3, 1, 3], [0, 1, 3]], 6)
    ranks = rank_targets(favourite(3, 6), data, "test", 1)  # item 3 is before the last event
    assert ranks["unmasked"].tolist() == [1, 1]
    assert ranks["masked"].tolist() == [MISSED, 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    def score(batch: PackedBatch) -> Tensor:
        scores = torch.zeros(len(batch.offsets) - 1, 12)
        scores[-1, 7] = value
        return scores

    with pytest.raises(DivergedError, match="not finite"):
        rank_targets(score, random_data(), "test", 5)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_a_score_that_is_not_finite_is_refused_in_any_block(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": block})
    calls = 0

    def score(batch: PackedBatch) -> Tensor:
        nonlocal calls
        calls += 1
        scores = torch.zeros(len(batch.offsets) - 1, 12)
        if calls == 1:
            scores[0, 0] = torch.nan
        return scores

    with pytest.raises(DivergedError, match="not finite"):
        rank_targets(score, random_data(), "test", 5)


def test_a_log_without_targets_is_refused() -> None:
    with pytest.raises(InputError, match="no user has an event to predict in the test part"):
        rank_targets(constant(0, 3), sequences([[0, 1], [2]], 3), "test", 5)


# ---- a log in another vocabulary -----------------------------------------------------------------


def test_a_target_outside_the_catalogue_is_missed() -> None:
    data = sequences([[0, 1, 2], [1, 0, 1]], 3).with_items(pa.array(["i0", "i1"]), "test")
    ranks = rank_targets(favourite(1, 2), data, "test", 5)
    assert ranks["unmasked"].tolist() == [MISSED, 1]
    assert ranks["masked"].tolist() == [MISSED, MISSED]


@pytest.mark.parametrize("part", PARTS)
def test_unknown_items_are_ignored_in_histories(part: Part) -> None:
    """Also an unknown validation event, which is in the history of the test event."""
    lists = [[0, 3, 1, 3, 2], [3, 0, 1, 2], [3, 3, 3, 0], [3, 1, 3], [0, 3, 1, 0]]
    data = sequences(lists, 4).with_items(pa.array(["i0", "i1", "i2"]), part)  # without i3
    shown: list[list[int]] = []
    ranks = rank_targets(scorer_of(3, shown), data, part, 10)
    truth: dict[str, list[int]] = {"users": [], "unmasked": []}
    histories = []
    for user, items in enumerate(lists):
        row = len(items) - (2 if part == "validation" else 1)
        history, target = [item for item in items[:row] if item != 3], items[row]
        truth["users"].append(user)
        if not history or target == 3:
            truth["unmasked"].append(MISSED)
        else:
            scores = scores_of(history, 3).tolist()
            better = sum(scores[item] >= scores[target] for item in range(3) if item != target)
            truth["unmasked"].append(1 + better)
        histories += [history] * bool(history)
    assert shown == histories
    assert ranks["users"].tolist() == truth["users"]
    assert ranks["unmasked"].tolist() == truth["unmasked"]
    assert 3 <= len(histories) < 5


def test_a_log_of_unknown_items_is_refused() -> None:
    data = sequences([[0, 1, 2, 0]], 3).with_items(pa.array(["other"]), "test")
    with pytest.raises(InputError, match="no user has an event to predict"):
        evaluate(constant(0, 1), data, 5)


def test_the_order_of_items_does_not_change_the_ranks() -> None:
    data = random_data()
    other = data.with_items(data.item_ids[::-1], "test")

    def reversed_scorer(batch: PackedBatch) -> Tensor:
        return scorer_of(12)(replace(batch, items=11 - batch.items)).flip(1)

    for ours, theirs in zip(
        evaluate(scorer_of(12), data, 5), evaluate(reversed_scorer, other, 5), strict=True
    ):
        assert ours.metrics == theirs.metrics
        assert ours.ranks.tolist() == theirs.ranks.tolist()
        assert ours.protocol.data != theirs.protocol.data


def test_block_size_of_a_large_catalogue() -> None:
    assert module.block_size(1_000_000, 50) == 16
    assert module.block_size(1_000_000, 8192) == 2
    assert module.block_size(1_000_000, 1_000_000) == 1
    assert module.block_size(3416, 200) == 81
    assert module.block_size(3416, 200, torch.device("cuda")) == 2621  # ML-1M in three blocks
