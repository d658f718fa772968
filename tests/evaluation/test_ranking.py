"""Ranks against a naive loop over all scores, and figures that carry how they were measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.data.split import by_time, leave_one_out
from recblr.errors import DivergedError, InputError
from recblr.evaluation import metrics
from recblr.evaluation import ranking as module
from recblr.evaluation.ranking import (
    Evaluation,
    Scorer,
    evaluate,
    markov,
    popularity,
    rank_targets,
    transitions,
)

PARTS: tuple[Literal["validation", "test"], ...] = ("validation", "test")


def sequences(lists: list[list[int]], items: int, split: str = "leave-one-out") -> Sequences:
    """Histories of item indices; under the split by time, event n of everybody happens at n."""
    offsets = np.cumsum([0, *map(len, lists)])
    times = np.concatenate([np.arange(len(history)) for history in lists])
    return Sequences(
        np.array([item for history in lists for item in history], np.int32),
        offsets,
        pa.array([f"u{number}" for number in range(len(lists))]),
        pa.array([f"i{number}" for number in range(items)]),
        by_time(offsets, times, (4, 6)) if split == "time" else leave_one_out(offsets),
        1,
    )


def random_data(users: int = 40, items: int = 12, split: str = "leave-one-out") -> Sequences:
    rng = np.random.default_rng(users)
    lists = [rng.integers(0, items, rng.integers(1, 14)).tolist() for _ in range(users)]
    return sequences(lists, items, split)


def scores_of(history: list[int], items: int) -> Tensor:
    """Random, with ties, and a function of the history alone."""
    seed = sum((place + 1) * (item + 1) for place, item in enumerate(history))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, items, (items,), generator=generator).float() - 3


def scorer_of(items: int, shown: list[list[int]] | None = None) -> Scorer:
    """:func:`scores_of` each history of a batch; what it was shown is kept in ``shown``."""

    def score(batch: PackedBatch) -> Tensor:
        lists = [batch.items[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]
        if shown is not None:
            shown.extend(lists)
        return torch.stack([scores_of(history, items) for history in lists])

    return score


def naive_ranks(
    data: Sequences, part: Literal["validation", "test"], max_length: int
) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"users": [], "unmasked": [], "masked": []}
    catalogue = len(data.item_ids)
    for user, row in enumerate(getattr(data.split, part).tolist()):
        if row < 0:
            continue
        history = data.items[data.offsets[user] : row].tolist()
        target = data.items[row]
        scores = scores_of(history[-max_length:], catalogue).tolist()
        others = [item for item in range(catalogue) if item != target]
        found["users"].append(user)
        found["unmasked"].append(1 + sum(scores[item] >= scores[target] for item in others))
        for item in history:
            scores[item] = -float("inf")
        found["masked"].append(1 + sum(scores[item] >= scores[target] for item in others))
    return found


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_ranks_are_the_naive_loop(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    part: Literal["validation", "test"],
    split: str,
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    data = random_data(split=split)
    for max_length in (1, 3, 100):
        found = rank_targets(scorer_of(12), data, part, max_length)
        ours = {name: values.tolist() for name, values in found.items()}
        assert ours == naive_ranks(data, part, max_length)
        assert 10 < len(ours["users"]) < 40
        assert ours["masked"] != ours["unmasked"]


def test_the_scorer_is_shown_the_latest_events_before_the_target() -> None:
    data = sequences([[0, 1, 2, 3, 4], [5], [6, 7, 8]], 9)
    shown: list[list[int]] = []
    rank_targets(scorer_of(9, shown), data, "test", 2)
    rank_targets(scorer_of(9, shown), data, "validation", 10)
    assert shown == [[2, 3], [6, 7], [0, 1, 2], [6]]


@pytest.mark.parametrize("block", [1, 10, 1 << 22])
def test_blocks_hold_no_more_scores_than_they_may(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    sizes: list[int] = []

    def score(batch: PackedBatch) -> Tensor:
        sizes.append(len(batch.offsets) - 1)
        return torch.zeros(sizes[-1], 5)

    rank_targets(score, sequences([[0, 1, 2]] * 7, 5), "test", 3)
    assert sum(sizes) == 7
    assert max(sizes) <= max(1, block // 5)


def constant(value: float, items: int) -> Scorer:
    return lambda batch: torch.full((len(batch.offsets) - 1, items), float(value))


def test_a_constant_scorer_earns_nothing() -> None:
    data = random_data()
    found = rank_targets(constant(1.0, 12), data, "test", 5)
    assert set(found["unmasked"].tolist()) == {12}
    for user, rank in zip(found["users"].tolist(), found["masked"].tolist(), strict=True):
        row = data.split.test[user]
        history = set(data.items[data.offsets[user] : row].tolist())
        assert rank == (12 if data.items[row] in history else 12 - len(history))


def favourite(item: int, items: int) -> Scorer:
    return lambda batch: torch.eye(items)[[item] * (len(batch.offsets) - 1)]


def test_a_target_seen_before_comes_last_when_masked() -> None:
    data = sequences([[3, 1, 3], [0, 1, 3]], 6)
    found = rank_targets(favourite(3, 6), data, "test", 1)  # 3 is seen before what is shown
    assert found["unmasked"].tolist() == [1, 1]
    assert found["masked"].tolist() == [6, 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_not_finite_is_no_rank(value: float) -> None:
    def score(batch: PackedBatch) -> Tensor:
        scores = torch.zeros(len(batch.offsets) - 1, 12)
        scores[-1, 7] = value
        return scores

    with pytest.raises(DivergedError, match="not finite"):
        rank_targets(score, random_data(), "test", 5)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_one_score_that_is_not_finite_in_any_block_spoils_all(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
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


def test_without_targets_there_is_nothing_to_rank() -> None:
    with pytest.raises(InputError, match="no user has an event to predict in the test part"):
        rank_targets(constant(0, 3), sequences([[0, 1], [2]], 3), "test", 5)


# ---- a log in another vocabulary -----------------------------------------------------------------


def test_a_target_that_is_not_in_the_catalogue_ranks_behind_it() -> None:
    data = sequences([[0, 1, 2], [1, 0, 1]], 3).with_items(pa.array(["i0", "i1"]), "test")
    found = rank_targets(favourite(1, 2), data, "test", 5)
    assert found["unmasked"].tolist() == [3, 1]
    assert found["masked"].tolist() == [3, 2]


@pytest.mark.parametrize("part", PARTS)
def test_unknown_events_are_passed_over(part: Literal["validation", "test"]) -> None:
    """Also an unknown validation event, which stands in the history of the test event."""
    lists = [[0, 3, 1, 3, 2], [3, 0, 1, 2], [3, 3, 3, 0], [3, 1, 3], [0, 3, 1, 0]]
    data = sequences(lists, 4).with_items(pa.array(["i0", "i1", "i2"]), part)  # without i3
    shown: list[list[int]] = []
    found = rank_targets(scorer_of(3, shown), data, part, 10)
    truth: dict[str, list[int]] = {"users": [], "unmasked": []}
    histories = []
    for user, items in enumerate(lists):
        place = len(items) - (2 if part == "validation" else 1)
        history, target = [item for item in items[:place] if item != 3], items[place]
        if history:
            scores = [*scores_of(history, 3).tolist(), -float("inf")]
            better = sum(scores[item] >= scores[target] for item in range(4) if item != target)
            histories.append(history)
            truth["users"].append(user)
            truth["unmasked"].append(1 + better if target < 3 else 4)
    assert shown == histories
    assert found["users"].tolist() == truth["users"]
    assert found["unmasked"].tolist() == truth["unmasked"]
    assert 3 <= len(histories) < 5


def test_a_log_of_unknown_items_is_an_error() -> None:
    data = sequences([[0, 1, 2, 0]], 3).with_items(pa.array(["other"]), "test")
    with pytest.raises(InputError, match="no user has an event to predict"):
        evaluate(constant(0, 1), data, 5)


def test_evaluating_in_another_order_of_items_changes_nothing() -> None:
    data = random_data()
    other = data.with_items(data.item_ids[::-1], "test")

    def turned(batch: PackedBatch) -> Tensor:
        return scorer_of(12)(replace(batch, items=11 - batch.items)).flip(1)

    for ours, theirs in zip(
        evaluate(scorer_of(12), data, 5), evaluate(turned, other, 5), strict=True
    ):
        assert ours.metrics == theirs.metrics
        assert ours.ranks.tolist() == theirs.ranks.tolist()
        assert ours.protocol.data != theirs.protocol.data


# ---- figures -------------------------------------------------------------------------------------


def test_popularity_scores_by_training_count() -> None:
    data = sequences([[0, 1, 2, 2, 2], [1, 1, 0, 3, 2]], 4)
    batch = PackedBatch(*map(torch.tensor, ([3, 3, 3], [0, 1, 3], [], [])))
    assert popularity(data)(batch).tolist() == [[2, 3, 1, 0]] * 2  # not what validates and tests
    assert rank_targets(popularity(data), data, "test", 1)["unmasked"].tolist() == [3, 3]


def naive_markov(data: Sequences, last: int) -> list[tuple[int, int]]:
    """How often each item followed ``last`` in training, and how often it occurs there."""
    followed, occurs = [0] * len(data.item_ids), [0] * len(data.item_ids)
    for begin, end in zip(data.offsets[:-1].tolist(), data.split.train_end.tolist(), strict=True):
        for item in data.items[begin:end].tolist():
            occurs[item] += 1
        for before, after in pairwise(data.items[begin:end].tolist()):
            followed[after] += before == last
    return list(zip(followed, occurs, strict=True))


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_the_markov_chain_is_a_plain_loop(split: str) -> None:
    data = random_data(60, 12, split)
    histories = [[item, last] for item in (0, 7) for last in range(12)] + [[3]]
    items, offsets = np.concatenate(histories), np.cumsum([0, *map(len, histories)])
    batch = PackedBatch(*map(torch.tensor, (items, offsets, [], [])))
    found = markov(data)(batch)
    assert found.shape == (25, 12)
    assert found.isfinite().all()
    for history, scores in zip(histories, found.tolist(), strict=True):
        truth = naive_markov(data, history[-1])
        assert len(set(truth)) > 5
        for one, other in product(range(12), repeat=2):
            assert (scores[one] > scores[other]) == (truth[one] > truth[other])


def test_the_markov_chain_by_hand() -> None:
    """Never from one user to the next; nothing that validates or tests; ties by popularity."""
    train = [[0, 1, 0, 1, 0, 2], [3, 3, 3], [2]]
    data = sequences([[*items, 1, 4] for items in train], 5)
    batch = PackedBatch(*map(torch.tensor, ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [], [])))
    scores = markov(data)(batch)
    assert [(-row).argsort(stable=True).tolist() for row in scores] == [
        [1, 2, 0, 3, 4],  # 1 twice, 2 once, then by training count: 0 and 3 thrice, 4 never
        [0, 3, 1, 2, 4],
        [0, 3, 1, 2, 4],  # ends the training part of two users: nothing follows it
        [3, 0, 1, 2, 4],
        [0, 3, 1, 2, 4],
    ]
    assert scores[2].tolist() == [3, 2, 2, 3, 0]


def test_one_transition_outweighs_any_popularity_and_no_more() -> None:
    data = sequences([[0] * 50 + [1, 2, 0, 0], [1, 3, 1, 3, 0, 0]], 4)
    batch = PackedBatch(*map(torch.tensor, ([1], [0, 1], [], [])))
    assert (-markov(data)(batch)[0]).argsort().tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("lists", [[[0]], [[0, 1, 2]], [[0, 1, 2], [2], [1, 2, 0]], [[]]])
def test_a_log_without_transitions_leaves_popularity(lists: list[list[int]]) -> None:
    data = sequences(lists, 3)
    batch = PackedBatch(*map(torch.tensor, ([2, 0], [0, 1, 2], [], [])))
    assert markov(data)(batch).tolist() == popularity(data)(batch).tolist()


def test_the_markov_chain_of_a_large_catalogue() -> None:
    """A dense table of it would take 80 GB."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 100_000, 20).tolist() for _ in range(50)]
    data = sequences(lists, 100_000)
    ranks = rank_targets(markov(data), data, "test", 1)["unmasked"]
    assert ranks.shape == (50,)
    assert (ranks > 1).all()


def test_the_chain_that_made_a_log_is_found() -> None:
    rng = np.random.default_rng(0)
    lists = [((start + np.arange(9)) % 30).tolist() for start in rng.integers(0, 30, 200)]
    for evaluation in evaluate(constant(0, 30), sequences(lists, 30), 5):
        assert evaluation.floors["markov chain"]["MRR@10"] == 1
        assert evaluation.floors["popularity"]["MRR@10"] < 0.3


@pytest.fixture(scope="module")
def measured() -> list[Evaluation]:
    return evaluate(scorer_of(30), random_data(200, 30), 7)


def test_both_protocols_are_stated(measured: list[Evaluation]) -> None:
    data = random_data(200, 30)
    assert [evaluation.protocol.seen for evaluation in measured] == ["unmasked", "masked"]
    for evaluation in measured:
        protocol = evaluation.protocol
        assert (protocol.split, protocol.part, protocol.core) == ("leave-one-out", "test", 1)
        assert (protocol.candidates, protocol.max_length) == (30, 7)
        assert protocol.users == (data.split.test >= 0).sum() == len(evaluation.ranks)
        assert protocol.data == data.fingerprint
        assert protocol.ties == "against the target"
        assert evaluation.users.tolist() == np.flatnonzero(data.split.test >= 0).tolist()
    (unmasked, _) = evaluate(scorer_of(30), data, 7, "validation")
    assert unmasked.protocol.part == "validation"


def test_figures_are_those_of_the_ranks(measured: list[Evaluation]) -> None:
    data = random_data(200, 30)
    ours = rank_targets(scorer_of(30), data, "test", 7)
    floors = {
        name: rank_targets(floor(data), data, "test", 8)
        for name, floor in (
            ("popularity", popularity),
            ("markov chain", markov),
            ("transitions", transitions),
        )
    }
    for evaluation in measured:
        seen = evaluation.protocol.seen
        assert evaluation.ranks.tolist() == ours[seen].tolist()
        assert evaluation.metrics == metrics.means(ours[seen])
        assert evaluation.intervals == metrics.intervals(ours[seen])
        assert evaluation.floors == {name: metrics.means(floors[name][seen]) for name in floors}
    assert measured[0].metrics != measured[1].metrics


def users_of(evaluation: Evaluation, kind: str) -> list[dict[str, float]]:
    return [values for name, values in evaluation.slices.items() if kind in name]


def test_slices_partition_the_users(measured: list[Evaluation]) -> None:
    for evaluation in measured:
        for kind in ("history", "items"):
            slices = users_of(evaluation, kind)
            assert len(slices) >= 3
            assert sum(values["users"] for values in slices) == evaluation.protocol.users
            for name, mean in evaluation.metrics.items():
                total = sum(values["users"] * values[name] for values in slices)
                assert total / evaluation.protocol.users == pytest.approx(mean, rel=1e-12)


def test_slices_by_history_length_are_a_plain_loop(measured: list[Evaluation]) -> None:
    data = random_data(200, 30)
    evaluation = measured[0]
    lengths = [int(data.split.test[user] - data.offsets[user]) for user in evaluation.users]
    for name, values in evaluation.slices.items():
        if name.startswith("history"):
            low, high = map(int, name.removeprefix("history ").split("-"))
            inside = [low <= length <= high for length in lengths]
            assert values == {"users": sum(inside)} | metrics.means(evaluation.ranks[inside])


def test_equal_histories_are_one_slice() -> None:
    (unmasked, _) = evaluate(constant(0, 5), sequences([[0, 1, 2], [1, 2, 3]], 5), 5)
    assert users_of(unmasked, "history")[0]["users"] == 2
    assert "history 2-2" in unmasked.slices


def test_slices_by_popularity_by_hand() -> None:
    """Item 0 has 60% of the training events, 1 and 2 have 30 and 10%, 3 has none."""
    train = [[0, 0, 0], [0, 0, 0], [1, 1, 1], [2]]
    data = sequences(
        [[*items, 3, target] for items, target in zip(train, (0, 1, 2, 3), strict=True)], 4
    )
    (unmasked, _) = evaluate(constant(0, 4), data, 5)
    sizes = {name: values["users"] for name, values in unmasked.slices.items() if "items" in name}
    assert sizes == {
        "popular items (half of events)": 1,
        "middle items (next 30%)": 1,
        "rare items (last 20%)": 2,
    }


def test_an_unknown_target_counts_as_rare() -> None:
    data = sequences([[0, 1, 1, 2], [1, 0, 1, 0]], 3).with_items(pa.array(["i0", "i1"]), "test")
    (unmasked, _) = evaluate(constant(0, 2), data, 5)
    assert unmasked.slices["rare items (last 20%)"]["users"] == 1
    assert unmasked.ranks.tolist() == [3, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: evaluate(scorer_of(12), random_data(), 5),
        lambda: evaluate(scorer_of(12), random_data(split="time"), 5, "validation"),
        lambda: evaluate(constant(0, 3), sequences([[0, 1, 2]], 3), 5),  # one user
        lambda: evaluate(constant(0, 1), sequences([[0, 0, 0]] * 3, 1), 5),  # one item
    ],
    ids=["random", "time", "one user", "one item"],
)
def test_json_is_strict_and_whole(make: Callable[[], list[Evaluation]]) -> None:
    for evaluation in make():
        plain: dict[str, Any] = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        assert plain["metrics"] == evaluation.metrics
        assert plain["protocol"]["users"] == len(evaluation.ranks)
        assert plain["floors"] == evaluation.floors
        assert plain["slices"] == evaluation.slices
        for name, mean in evaluation.metrics.items():
            low, high = plain["intervals"][name]
            assert low - 1e-12 <= mean <= high + 1e-12


def test_a_large_catalogue_is_read_for_several_users_at_once_unless_histories_are_long() -> None:
    assert module.block_size(1_000_000, 50) == 16
    assert module.block_size(1_000_000, 8192) == 2
    assert module.block_size(1_000_000, 1_000_000) == 1
