"""Verdicts on hand-made ranks, intervals against resampling user by user."""

import numpy as np
import pytest

from recblr.paper.verdict import best, contradictions, judge, judged, order, per_user


def draw(users: int, seeds: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40, (seeds, users)).clip(max=21)


def test_per_user_is_the_mean_over_seeds() -> None:
    found = per_user(np.array([[1, 21, 3], [2, 21, 21]]))
    np.testing.assert_allclose(found["HR@10"], [1, 0, 0.5])
    np.testing.assert_allclose(found["MRR@20"], [0.75, 0, 1 / 6])
    np.testing.assert_allclose(found["NDCG@10"], [(1 + 1 / np.log2(3)) / 2, 0, 0.25])


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_drawing_users(seeds: int) -> None:
    ranks = draw(301, seeds)
    found, rng = judged(ranks, {}), np.random.default_rng(7)
    chosen = rng.integers(301, size=(4000, 301))
    for name, values in per_user(ranks).items():
        low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
        error = values.std() / 301**0.5
        assert found[name]["interval"] == pytest.approx([low, high], abs=0.3 * error)
        assert found[name]["mean"] == pytest.approx(values.mean())


def test_seeds_that_agree_count_as_one() -> None:
    ranks = draw(60, 1)
    one, three = judged(ranks, {}), judged(np.repeat(ranks, 3, 0), {})
    for name in one:
        assert three[name]["interval"] == pytest.approx(one[name]["interval"])
        assert three[name]["deviation"] == pytest.approx(0, abs=1e-15)


def test_judge() -> None:
    interval = (0.2, 0.3)
    assert [judge(0.25, interval, value) for value in (0.2, 0.25, 0.3)] == ["reproduced"] * 3
    assert judge(0.25, interval, 0.31) == "worse"
    assert judge(0.25, interval, 0.19) == "better"


def test_judged() -> None:
    ranks = np.array([[1, 1, 21, 21], [1, 1, 1, 21]])
    found = judged(ranks, {"HR@10": 0.5, "MRR@10": 0.1, "HR@20": 1.1})
    hits = found["HR@10"]
    assert hits["mean"] == 0.625
    assert hits["deviation"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    assert (hits["difference"], hits["verdict"]) == (0.125, "reproduced")
    assert hits["percent"] == pytest.approx(25)
    assert found["MRR@10"]["verdict"] == "better"
    assert found["HR@20"]["verdict"] == "worse"
    assert "published" not in found["NDCG@10"]
    assert "verdict" not in found["NDCG@10"]
    assert judged(ranks[:1], {})["HR@10"]["deviation"] is None


def test_best() -> None:
    assert best({"a": np.array([0.0, 1.0]), "b": np.array([0.6, 0.6])}) == "b"


def test_order_counts_pairs() -> None:
    published = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    ours = {"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.5}
    assert order(ours, published) == pytest.approx((5 - 1) / 6)
    assert contradictions(ours, published) == [("b", "c")]
    assert order({"a": 1.0, "b": 0.5, "c": 0.1, "d": 0.0}, published) == -1
    assert order({"b": 0.1, "d": 0.9}, published) == 1
    assert order({"a": 0.1}, published) is None
    assert order({"a": 0.1, "b": 0.1}, published) is None  # no order at all
    assert contradictions({"a": 0.1, "b": 0.1}, published) == []
