"""Tests of significance, against enumeration, SciPy and known values."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recblr.evaluation import significance
from recblr.evaluation.significance import difference_interval, holm, paired_test

GAINS = st.sampled_from([0.0, 0.5, 1.0, 1 / 3, 0.1, 0.25])  # few values, so that flips tie


def enumerated(ours: list[float], theirs: list[float]) -> float:
    """p by enumerating every sign of every user, also of users with equal values."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(value >= observed - 1e-9 for value in sums) / len(sums)


# ---- the paired test -----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(GAINS, GAINS), max_size=9))
def test_flips_of_few_users_are_enumerated(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    p = paired_test(np.array(ours), np.array(theirs))
    assert p == enumerated(ours, theirs)
    assert p == paired_test(np.array(theirs), np.array(ours))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_enumeration_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(significance, "_BLOCK", block)
    ours = np.random.default_rng(0).normal(0.3, 1, 11)  # more than a byte of signs
    assert paired_test(ours, np.zeros(11)) == enumerated(ours.tolist(), [0.0] * 11)


def test_drawn_flips_agree_with_enumeration_and_scipy() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.2, 0.5):
        ours, theirs = rng.normal(shift, 1, 16), rng.normal(0, 1, 16)
        exact = paired_test(ours, theirs, flips=2**16)
        scipys = stats.permutation_test(
            (ours, theirs), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples",
            n_resamples=np.inf, vectorized=True,
        )  # fmt: skip
        assert exact == pytest.approx(scipys.pvalue, rel=1e-12)
        drawn = paired_test(ours, theirs, flips=10_000)
        assert drawn != exact
        assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5 + 2e-4)


def test_many_users_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(2)
    ours = rng.normal(0.03, 1, 2000)
    expected = stats.ttest_1samp(ours, 0).pvalue
    assert 0.05 < expected < 0.5
    assert paired_test(ours, np.zeros(2000)) == pytest.approx(expected, abs=0.02)


def test_users_with_equal_values_change_nothing() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(50), rng.random(50)
    same = rng.random(1000)
    alone = paired_test(ours, theirs)
    assert alone == paired_test(np.append(same, ours), np.append(same, theirs))


@pytest.mark.parametrize("users", [0, 1, 5, 100])
def test_equal_values_are_not_significant(users: int) -> None:
    values = np.random.default_rng(0).random(users)
    assert paired_test(values, values) == 1


def test_one_user_is_not_significant() -> None:
    assert paired_test(np.array([1.0]), np.array([0.0])) == 1


def test_rounding_does_not_break_ties() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floats, but all flips of these values count as extreme."""
    ours = np.array([0.1, 0.2, 0.3, -0.1, -0.2, -0.3] * 2)
    assert paired_test(ours, np.zeros(12)) == 1


def test_p_is_never_0() -> None:
    ours = np.ones(500)
    assert paired_test(ours, np.zeros(500), flips=99) == 1 / 100
    assert paired_test(np.ones(10), np.zeros(10)) == 2 / 2**10


def test_the_seed_determines_p() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = rng.random(300), rng.random(300)
    assert paired_test(ours, theirs) == paired_test(ours, theirs)
    assert paired_test(ours, theirs) != paired_test(ours, theirs, seed=1)


def gains(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def test_the_false_positive_rate_is_the_level() -> None:
    """Of 400 comparisons of a model with itself, a share of the level ± 3 deviations is significant."""
    rng = np.random.default_rng(5)
    p = [
        paired_test(*gains(rng.integers(1, 41, (2, 200))), flips=999, seed=trial)
        for trial in range(400)
    ]
    for level in (0.05, 0.2):
        spread = 3 * (level * (1 - level) / 400) ** 0.5
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=spread)


def test_a_real_difference_is_significant() -> None:
    rng = np.random.default_rng(6)
    ranks = rng.integers(1, 41, 2000)
    worse = gains(ranks + rng.integers(0, 4, 2000))
    assert paired_test(gains(ranks), worse) < 0.001


def test_100_000_users_in_bounded_memory() -> None:
    ours = np.random.default_rng(7).normal(size=100_000)
    tracemalloc.start()
    paired_test(ours, np.zeros(len(ours)), flips=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([np.nan], [1.0]), ([np.inf], [np.inf])],
)
def test_wrong_shapes_and_values_are_refused(ours: list[float], theirs: list[float]) -> None:
    for function in (paired_test, difference_interval):
        with pytest.raises(ValueError, match=r"one value per user|not finite"):
            function(np.array(ours), np.array(theirs))


# ---- Holm ----------------------------------------------------------------------------------------


def test_holm_of_known_values() -> None:
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.5])).tolist() == [1, 1]
    assert holm(np.array([0.2])).tolist() == [0.2]
    assert holm(np.array([])).tolist() == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_as_its_steps_do(p: list[float], level: float) -> None:
    """From the smallest p, compare with level / (hypotheses left), until one is not rejected."""
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(np.array(p))) if value <= level} == rejected


# ---- the interval --------------------------------------------------------------------------------


def test_an_interval_agrees_with_the_normal_distribution() -> None:
    rng = np.random.default_rng(8)
    theirs = rng.normal(0, 5, 4000)
    ours = theirs + rng.normal(0.1, 1, 4000)  # paired: common variance does not widen it
    low, high = difference_interval(ours, theirs)
    mean, spread = (ours - theirs).mean(), 1.96 * (ours - theirs).std() / 4000**0.5
    assert low == pytest.approx(mean - spread, abs=0.1 * spread)
    assert high == pytest.approx(mean + spread, abs=0.1 * spread)
    assert difference_interval(ours, theirs) == (low, high)
    swapped = difference_interval(theirs, ours)
    assert swapped == pytest.approx((-high, -low), abs=0.1 * spread)  # other draws


@pytest.mark.parametrize("users", [1, 3])
def test_the_interval_of_equal_differences_is_that_difference(users: int) -> None:
    ours = np.full(users, 0.75)
    assert difference_interval(ours, np.full(users, 0.5)) == (0.25, 0.25)


def test_an_interval_of_no_users_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one user"):
        difference_interval(np.array([]), np.array([]))


def test_rare_flips_use_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice([-1.0, -0.5, 0.5, 1.0], 4000)
    ours = (
        differences - differences.mean() + 0.0425
    )  # 3.4 deviations: enough drawn flips are extreme
    drawn = paired_test(ours, np.zeros(4000), flips=200_000)
    few = paired_test(ours, np.zeros(4000), flips=100)
    assert 4e-4 < drawn < 1e-3
    assert few == pytest.approx(drawn, rel=0.3)
    assert 0 < paired_test(ours + 10, np.zeros(4000)) < 1e-300
    assert paired_test(ours[:500] + 10, np.zeros(500), flips=99) == 1 / 100  # too few users
