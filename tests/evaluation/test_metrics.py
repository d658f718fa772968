"""The metrics, against plain loops and known values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recblr.errors import InputError
from recblr.evaluation import metrics

RANKS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def naive(ranks: list[int], k: int) -> dict[str, list[float]]:
    """Search a list of recommendations for the relevant item."""
    values: dict[str, list[float]] = {"HR": [], "NDCG": [], "MRR": []}
    for rank in ranks:
        hit = gain = reciprocal = 0.0
        for position in range(1, k + 1):
            if position == rank:
                hit, gain, reciprocal = 1.0, math.log(2) / math.log(rank + 1), 1.0 / rank
        values["HR"].append(hit)
        values["NDCG"].append(gain)
        values["MRR"].append(reciprocal)
    return values


@settings(deadline=None)
@given(RANKS)
def test_metrics_equal_a_plain_loop(ranks: list[int]) -> None:
    ours, averages = metrics.per_user(np.array(ranks)), metrics.means(np.array(ranks))
    for k in (10, 20):
        for name, truth in naive(ranks, k).items():
            assert ours.pop(f"{name}@{k}").tolist() == pytest.approx(truth, rel=1e-14)
            average = sum(truth) / len(truth)
            assert averages.pop(f"{name}@{k}") == pytest.approx(average, rel=1e-12)
    assert ours == averages == {}


def test_metrics_of_known_ranks() -> None:
    ranks = np.array([1, 3, 10, 11, 20, 21])
    values = metrics.per_user(ranks)
    assert values["HR@10"].tolist() == [1, 1, 1, 0, 0, 0]
    assert values["HR@20"].tolist() == [1, 1, 1, 1, 1, 0]
    assert values["NDCG@10"][:2].tolist() == [1, 0.5]  # 1 / log2(2), 1 / log2(4)
    assert values["NDCG@10"][3:].tolist() == [0, 0, 0]
    assert values["MRR@20"].tolist() == pytest.approx([1, 1 / 3, 1 / 10, 1 / 11, 1 / 20, 0])
    assert metrics.means(ranks)["HR@10"] == 0.5


@pytest.mark.parametrize(
    ("k", "cutoffs"),
    [(5, (5,)), ((50, 5), (50, 5)), (np.int64(3), (3,)), (np.array([2, 1, 2]), (2, 1)), ("5", None),
     (0, None), ((5, -1), None), ((), None), (2.5, None), (True, None), (None, None)],
)  # fmt: skip
def test_cutoffs_are_one_or_more_whole_numbers(k: object, cutoffs: tuple[int, ...] | None) -> None:
    if cutoffs is None:
        with pytest.raises(InputError, match="k"):
            metrics.as_cutoffs(k)
    else:
        assert metrics.as_cutoffs(k) == cutoffs


@settings(deadline=None)
@given(RANKS, st.integers(1, 50))
def test_any_cutoff_equals_a_plain_loop(ranks: list[int], k: int) -> None:
    ours = metrics.per_user(np.array(ranks), (k,))
    assert {name: values.tolist() for name, values in ours.items()} == {
        f"{name}@{k}": pytest.approx(truth, rel=1e-14) for name, truth in naive(ranks, k).items()
    }


def test_metrics_equal_those_of_ir_measures() -> None:
    """Recall is HR, precision HR / k, and MAP is MRR, as there is a single target."""
    ir = pytest.importorskip("ir_measures")
    ranks = np.array([1, 2, 3, 7, 10, 11, 25, 60])
    targets = [ir.Qrel(str(user), "target", 1) for user in range(len(ranks))]
    lists = [
        ir.ScoredDoc(str(user), "target" if place == rank else f"item{place}", -float(place))
        for user, rank in enumerate(ranks.tolist())
        for place in range(1, 61)
    ]
    ours = metrics.means(ranks, (1, 5, 10, 50))
    for k in (1, 5, 10, 50):
        theirs = ir.calc_aggregate([ir.nDCG @ k, ir.R @ k, ir.P @ k, ir.AP @ k], targets, lists)
        assert theirs[ir.nDCG @ k] == pytest.approx(ours[f"NDCG@{k}"], abs=1e-6)
        assert theirs[ir.R @ k] == pytest.approx(ours[f"HR@{k}"], abs=1e-6)
        assert theirs[ir.P @ k] == pytest.approx(ours[f"HR@{k}"] / k, abs=1e-6)
        assert theirs[ir.AP @ k] == pytest.approx(ours[f"MRR@{k}"], abs=1e-6)


def test_intervals_contain_the_mean_and_shrink_with_users() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for users in (50, 5000):
        ranks = rng.integers(1, 41, users)
        intervals = metrics.intervals(ranks)
        assert intervals == metrics.intervals(ranks)
        hits = metrics.hit_rate(ranks, 10)
        assert metrics.mean_interval(hits) != metrics.mean_interval(hits, seed=1)
        assert intervals.keys() == metrics.means(ranks).keys()
        for name, mean in metrics.means(ranks).items():
            low, high = intervals[name]
            assert 0 <= low < mean < high <= 1
        widths.append(np.mean([high - low for low, high in intervals.values()]))
    assert widths[1] < widths[0] / 5  # about the root of 100


def test_an_interval_agrees_with_the_normal_distribution() -> None:
    hits = np.repeat([1, 30], [300, 700])
    low, high = metrics.intervals(hits)["HR@10"]
    spread = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - spread, abs=0.005)
    assert high == pytest.approx(0.3 + spread, abs=0.005)


@pytest.mark.parametrize("digits", [1, 15])  # few and many distinct values
def test_an_interval_agrees_with_scipy(digits: int) -> None:
    values = np.random.default_rng(0).exponential(size=400).round(digits)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    interval = np.mean([metrics.mean_interval(values, seed) for seed in range(20)], axis=0)
    assert interval == pytest.approx([theirs.low, theirs.high], abs=0.1 * values.std() / 20)


@pytest.mark.parametrize("ranks", [[7], [7, 7, 7]])
def test_the_interval_of_equal_values_is_that_value(ranks: list[int]) -> None:
    for name, (low, high) in metrics.intervals(np.array(ranks)).items():
        assert low == pytest.approx(metrics.means(np.array(ranks))[name], rel=1e-12)
        assert high == low
