"""Evaluations: metrics, intervals and slices, with their protocol."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evaluation.scorers import constant, random_data, scorer_of, sequences
from recblr.evaluation import metrics
from recblr.evaluation.baselines import markov, popularity, transitions
from recblr.evaluation.evaluate import Evaluation, Population, Protocol, evaluate
from recblr.evaluation.ranking import MISSED, rank_targets


@pytest.fixture(scope="module")
def measured() -> list[Evaluation]:
    return evaluate(scorer_of(30), random_data(200, 30), 7)


def test_evaluate_returns_both_protocols(measured: list[Evaluation]) -> None:
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


def test_figures_follow_from_the_ranks(measured: list[Evaluation]) -> None:
    data = random_data(200, 30)
    ours = rank_targets(scorer_of(30), data, "test", 7)
    baselines = {
        name: rank_targets(baseline(data), data, "test", 8)
        for name, baseline in (
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
        assert evaluation.baselines == {
            name: metrics.means(baselines[name][seen]) for name in baselines
        }
    assert measured[0].metrics != measured[1].metrics


def test_other_cutoffs_follow_from_the_same_ranks(measured: list[Evaluation]) -> None:
    others = evaluate(scorer_of(30), random_data(200, 30), 7, k=(50, 5))
    for evaluation, other in zip(measured, others, strict=True):
        assert other.ranks.tolist() == evaluation.ranks.tolist()
        assert other.metrics == metrics.means(evaluation.ranks, (50, 5))
        assert other.intervals.keys() == other.metrics.keys()
        for row in (*other.baselines.values(), *other.slices.values()):
            assert [name for name in row if name != "users"] == list(other.metrics)
        assert repr(other).startswith(f"Evaluation({other.protocol.seen}: HR@50 ")


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


def test_slices_by_history_length_equal_a_plain_loop(measured: list[Evaluation]) -> None:
    data = random_data(200, 30)
    evaluation = measured[0]
    lengths = [int(data.split.test[user] - data.offsets[user]) for user in evaluation.users]
    for name, values in evaluation.slices.items():
        if name.startswith("history"):
            low, high = map(int, name.removeprefix("history ").split("-"))
            inside = [low <= length <= high for length in lengths]
            assert values == {"users": sum(inside)} | metrics.means(evaluation.ranks[inside])


def test_histories_of_equal_length_are_one_slice() -> None:
    (unmasked, _) = evaluate(constant(0, 5), sequences([[0, 1, 2], [1, 2, 3]], 5), 5)
    assert users_of(unmasked, "history")[0]["users"] == 2
    assert "history 2-2" in unmasked.slices


def test_slices_by_popularity_of_a_small_log() -> None:
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
    assert unmasked.ranks.tolist() == [MISSED, 2]


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
def test_json_is_valid_and_complete(make: Callable[[], list[Evaluation]]) -> None:
    for evaluation in make():
        plain: dict[str, Any] = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        assert plain["metrics"] == evaluation.metrics
        assert plain["protocol"]["users"] == len(evaluation.ranks)
        assert plain["baselines"] == evaluation.baselines
        assert plain["slices"] == evaluation.slices
        assert plain["population"]["users"] == evaluation.population.users == len(evaluation.ranks)
        for name, mean in evaluation.metrics.items():
            low, high = plain["intervals"][name]
            assert low - 1e-12 <= mean <= high + 1e-12


def test_representations_are_short(measured: list[Evaluation]) -> None:
    for evaluation in measured:
        hit_rate, ndcg = (f"{name} {evaluation.metrics[name]:.4f}" for name in ("HR@10", "NDCG@10"))
        missed = int((evaluation.ranks == MISSED).sum())
        about = f"leave-one-out test, {len(evaluation.ranks)} users"
        about += f", {missed} missed" * (missed > 0)
        assert (
            repr(evaluation)
            == f"Evaluation({evaluation.protocol.seen}: {hit_rate}, {ndcg}; {about})"
        )
        assert max(map(len, (repr(evaluation), repr(evaluation.protocol)))) <= 120
        html = evaluation._repr_html_()
        assert html.count("<tr>") == 1 + len(evaluation.metrics)
        for baseline in evaluation.baselines.values():
            assert f"<td>{baseline['MRR@20']:.4f}</td>" in html
        assert str(evaluation.protocol) in html
        assert "left out (no event to predict)" in html


def test_a_missed_target_is_no_hit_in_a_small_catalogue() -> None:
    """Of three items all are among the first 20; a target that cannot be recommended is not."""
    lists = [
        [0, 1, 2],
        [1, 0, 1],
        [3, 3, 0],
        [0, 1, 3],
    ]  # i3 is unknown; user 1 has seen the target
    data = sequences(lists, 4).with_items(pa.array(["i0", "i1", "i2"]), "test")
    unmasked, masked = evaluate(constant(0, 3), data, 5)
    assert unmasked.ranks.tolist() == [3, 3, MISSED, MISSED]
    assert masked.ranks.tolist() == [1, MISSED, MISSED, MISSED]
    for evaluation, hits in ((unmasked, 2), (masked, 1)):
        baselines = evaluation.baselines.values()
        assert all(row["HR@20"] == hits / 4 for row in (evaluation.metrics, *baselines))
        assert repr(evaluation).endswith(f"4 users, {4 - hits} missed)")
        assert evaluation.population == Population(4, 1, 1, 0, 0, 1)
        for reason in ("no item of the history is known", "the target is in the history"):
            assert reason in str(evaluation.population)
            assert reason in evaluation._repr_html_()


def test_html_is_escaped(measured: list[Evaluation]) -> None:
    protocol = Protocol("<b>", "&", 1, 30, "masked", 7, 3, "x")
    html = replace(measured[0], protocol=protocol)._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt; &amp;" in html
