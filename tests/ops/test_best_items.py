"""The best items after one history in C, against plain NumPy in float64."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse

from recblr.ops import library, ranking

pytestmark = pytest.mark.skipif(not library.AVAILABLE, reason="the kernels are not compiled")


@pytest.mark.parametrize("items", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_transition_terms(items: int, length: int) -> None:
    rng = np.random.default_rng(items)
    dense = rng.lognormal(-3, 3, (items, items)) * (rng.random((items, items)) < 0.3)
    matrix = sparse.csr_array(dense.astype(np.float32))
    weights, w, c = 0.7 ** np.arange(5)[::-1], 1.5, 10.0
    terms = ranking.TransitionTerms(matrix, weights, w, c)
    for _ in range(3):  # the buffers are used again
        history = rng.integers(items, size=length).astype(np.int32)
        m = weights[5 - length :] @ matrix.toarray()[history].astype(np.float64)
        expected = np.flatnonzero(m)
        found, values = terms.after(history)
        assert found.tolist() == expected.tolist()
        np.testing.assert_allclose(values, w * np.log1p(c * m[expected]), rtol=2e-6)


@pytest.mark.parametrize("items", [1, 31, 32, 33, 500])
@pytest.mark.parametrize("k", [1, 2, 10, 1000])
def test_best_items(items: int, k: int) -> None:
    rng = np.random.default_rng(items)
    vectors = rng.integers(-2, 3, (items, 5)).astype(np.float32)  # many scores are equal
    best = ranking.BestItems(vectors)
    for added, hidden in ((0, 0), (items // 2, items // 3), (items, items), (0, 2 * items + 7)):
        query = rng.integers(-2, 3, 5).astype(np.float32)
        rows, out = rng.permutation(items)[:added], rng.integers(items, size=hidden)
        values = rng.integers(-2, 3, added).astype(np.float32)
        scores = vectors @ query
        scores[rows] += values
        left = np.setdiff1d(np.arange(items), out)
        expected = left[np.lexsort((left, -scores[left]))][:k]
        found = best.of(query, k, rows, values, out)
        assert found is not None
        assert found[1].tolist() == expected.tolist()
        assert found[0].tolist() == scores[expected].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_results(value: float) -> None:
    best, none = ranking.BestItems(np.ones((3, 2), np.float32)), np.zeros(0, np.int64)
    assert best.of(np.array([value, 1]), 1, none, none, none) is None
    assert best.of(np.ones(2), 1, np.array([2]), np.array([value]), none) is None


@pytest.mark.parametrize("item", [-1, 3])
def test_items_outside_the_catalogue_are_refused(item: int) -> None:
    best, none = ranking.BestItems(np.ones((3, 2), np.float32)), np.zeros(0, np.int64)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        best.of(np.ones(2), 1, np.array([item]), np.ones(1), none)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        best.of(np.ones(2), 1, none, none, np.array([item]))
    with pytest.raises(ValueError, match="1 items need 1 values"):
        best.of(np.ones(2), 1, np.array([1]), none, none)


def test_threads_do_not_mix_their_results() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(2000, 16)).astype(np.float32), rng.normal(size=(8, 16))
    matrix = sparse.csr_array(rng.random((2000, 2000)) * (rng.random((2000, 2000)) < 0.1))
    best, none = ranking.BestItems(vectors), np.zeros(0, np.int64)
    terms = ranking.TransitionTerms(matrix, 0.7 ** np.arange(8)[::-1], 1.5, 10.0)
    histories = rng.integers(2000, size=(8, 8))

    def both(n: int) -> list[list[float]]:
        found = best.of(queries[n], 50, none, none, none)
        assert found is not None
        return [part.tolist() for part in (*found, *terms.after(histories[n]))]

    expected = [both(n) for n in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(both, [n % 8 for n in range(400)]))
    sys.setswitchinterval(before)
    assert all(each == expected[n % 8] for n, each in enumerate(found))
