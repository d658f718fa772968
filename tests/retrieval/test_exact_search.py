"""Exact search against a sort of all scores in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recblr import retrieval
from recblr.ops.candidates import Candidates
from recblr.retrieval import Exact
from retrieval.tools import (
    added_values,
    assert_same_scores,
    by_item,
    integers,
    normal,
    truth,
)

pytestmark = pytest.mark.usefixtures("always_scan")


@pytest.mark.usefixtures("product")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_results_equal_a_sort_of_all_scores(data: st.DataObject) -> None:
    """Ties, k above V and above a block, partial blocks, several tiles, all filters."""
    size, width, count = (data.draw(st.integers(1, top)) for top in (300, 9, 4))
    k = data.draw(st.integers(1, size + 3))
    vectors, queries = integers(size, size, width), integers(width, count, width)
    rows = st.lists(st.integers(0, size - 1), max_size=size)
    filters = st.lists(rows, min_size=count, max_size=count)
    allow_lists = st.lists(st.none() | rows, min_size=count, max_size=count)
    hidden, allowed = data.draw(st.none() | filters), data.draw(st.none() | allow_lists)
    numbers = st.integers(-9, 9) | st.sampled_from([-1000, 1000, 20_000_000])
    values = st.dictionaries(st.integers(0, size - 1), numbers.map(lambda number: number / 2)).map(
        by_item
    )
    added = data.draw(st.none() | st.lists(st.none() | values, min_size=count, max_size=count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_CHUNK", data.draw(st.sampled_from([100, 1 << 20])))
        patch.setattr(retrieval, "_SCORE_ALL", data.draw(st.sampled_from([0, 1 << 20])))
        scores, items = Exact(vectors).search(queries, k, hidden, allowed, added)
    best, order = truth(vectors, queries, k, hidden, allowed, added)
    assert items.dtype == np.int64
    assert items.tolist() == order.tolist()
    assert scores.tolist() == best.tolist()


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("size", [1, 15, 64, 65, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("width", [1, 2, 3, 64, 65])
def test_no_item_is_lost_to_rounding(width: int, size: int) -> None:
    vectors, queries = normal(size, size, width), normal(1, 5, width)
    vectors[:, -1] *= 30  # like a bias
    hidden = [range(0, size, b + 2) for b in range(5)]
    index = Exact(vectors)
    for k in (1, 20, 500):
        scores, items = index.search(queries, k, hidden)
        best, _ = truth(vectors, queries, k, hidden)
        assert_same_scores(scores, best, vectors, queries)
        assert (items >= 0).sum(1).tolist() == [min(k, size - len(rows)) for rows in hidden]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("largest", [1e-30, 1e-3, 1.0, 30.0, 1e7])
@pytest.mark.parametrize("size", [129, 3000])
def test_added_values_are_part_of_the_score(size: int, largest: float) -> None:
    """From far smaller than the products to far larger."""
    vectors, queries = normal(size, size, 33), normal(1, 5, 33)
    added = [added_values(b, size, (0, 1, 40, 128, 100)[b], largest) for b in range(5)]
    hidden = [range(0, size, b + 2) for b in range(5)]
    index = Exact(vectors)
    for k in (1, 20, 500):
        for filters in (
            (None, None),
            (hidden, None),
            (None, hidden),
            (hidden, [None, *hidden[:4]]),
        ):
            scores, items = index.search(queries, k, *filters, added)
            best, order = truth(vectors, queries, k, *filters, added)
            np.testing.assert_allclose(scores, best, rtol=1e-6, atol=2e-5)
            assert ((items >= 0) == (order >= 0)).all()


@pytest.mark.usefixtures("product")
def test_the_added_values_rank_the_items_of_a_zero_query() -> None:
    vectors, added = normal(0, 3000, 16), by_item({7: 2.0, 70: -1.0, 700: 5.0, 2999: 2.0})
    scores, items = Exact(vectors).search(torch.zeros(2, 16), 4, None, None, [added, None])
    assert items.tolist() == [[700, 7, 2999, 0], [0, 1, 2, 3]]
    assert scores.tolist() == [[5, 2, 2, 0], [0] * 4]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("size", [3000, 20_000])
def test_the_best_items_are_found_at_the_end(size: int) -> None:
    """The limit rises with every item, so that the candidates are reduced, or too many."""
    vectors, queries = normal(0, size, 16), normal(1, 3, 16)
    vectors = vectors[(vectors @ queries[0]).argsort()]
    scores, _ = Exact(vectors).search(queries, 20)
    assert_same_scores(scores, truth(vectors, queries, 20)[0], vectors, queries)


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-4])
def test_items_that_int8_cannot_distinguish_are_found(spread: float) -> None:
    """The differences are below a step of int8, so rounded scores give other results."""
    vectors, queries = normal(0, 1, 32) + spread * normal(1, 2000, 32), normal(2, 8, 32)
    scores, _ = Exact(vectors).search(queries, 20)
    assert_same_scores(scores, truth(vectors, queries, 20)[0], vectors, queries)
    step = vectors.abs().amax(0) / 127
    _, rounded = truth((vectors / step).round(), queries * step, 20)
    theirs = (vectors[torch.from_numpy(rounded)] * queries[:, None]).sum(2).numpy()
    assert (scores.min(1) > theirs.min(1) + 1e-5 * spread).sum() >= 6


@pytest.mark.parametrize("role", ["item", "query"])
def test_an_item_that_rounding_ranks_lower_is_found(role: str) -> None:
    """A step is 1, and only the item or only the query is rounded: 10.49 down, 10.51 up."""
    one, other = torch.full((64,), 10.49), torch.tensor([10.51, 10.45]).repeat(32)
    if role == "item":
        vectors, query = torch.stack([one, other, one - 2]), torch.full((1, 64), 127.0)
    else:
        vectors, query = torch.zeros(3, 129), torch.cat([one, other, torch.tensor([127.0])])[None]
        vectors[0, :64] = vectors[1, 64:128] = 100.0
    vectors[2] = -127.0  # the largest number of each column
    rounded = query.round() @ vectors.round().t()
    assert rounded.argmax() == 1
    assert Exact(vectors).search(query, 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("product", ["vnni", "plain"], indirect=True)
def test_only_a_few_times_k_items_are_scored(
    monkeypatch: pytest.MonkeyPatch, product: None
) -> None:
    vectors, queries, scored = normal(0, 20000, 64), normal(1, 8, 64), []
    index, best_of = Exact(vectors), Exact._best_of

    def spy(self: Exact, items: np.ndarray, *others: Any) -> Any:
        scored.append(len(items))
        return best_of(self, items, *others)

    monkeypatch.setattr(Exact, "_best_of", spy)
    index.search(queries, 20)
    index.search(queries, 20, None, None, [added_values(b, 20000, 8192, 3.0) for b in range(8)])
    assert len(scored) == 16
    assert max(scored) < 200


@pytest.mark.usefixtures("product")
def test_a_very_long_vector_does_not_affect_other_items() -> None:
    vectors, queries = normal(0, 1000, 16), normal(1, 4, 16)
    vectors[500] = 1e6
    scores, _ = Exact(vectors).search(queries, 20, [[500]] * 4)
    assert_same_scores(scores, truth(vectors, queries, 20, [[500]] * 4)[0], vectors[:500], queries)


def test_scoring_all_items_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries, hidden = normal(0, 3000, 64), normal(1, 2, 64), [[5, 5, 6], list(range(2000))]
    scanned = Exact(vectors).search(queries, 20, hidden)
    monkeypatch.setattr(retrieval, "_SCORE_ALL", 8192)
    scored = Exact(vectors).search(queries, 20, hidden)
    assert scored[0].tolist() == scanned[0].tolist()
    assert scored[1].tolist() == scanned[1].tolist()


@pytest.mark.usefixtures("product")
def test_equal_scores_return_the_first_items() -> None:
    for vectors in (torch.zeros(300, 4), torch.ones(300, 4), integers(0, 1, 4).repeat(300, 1)):
        for queries in (torch.zeros(2, 4), -torch.ones(2, 4)):
            _, items = Exact(vectors).search(queries, 5, [[0], [2, 2, 7]])
            assert items.tolist() == [[1, 2, 3, 4, 5], [0, 1, 3, 4, 5]]


@pytest.mark.parametrize("product", ["vnni", "plain"], indirect=True)
def test_all_items_are_scored_if_most_are_candidates(product: None) -> None:
    """One very long vector: the others are the same in int8."""
    vectors, queries = normal(0, 3000, 16), normal(1, 4, 16)
    vectors[7] = 1e6
    found = Candidates(vectors.numpy()).find(
        queries.numpy(), 20, [np.array([7])] * 4, [(np.zeros(0, np.int64), np.zeros(0))] * 4
    )
    assert found == [None] * 4


def test_candidates_may_be_an_eighth_of_the_items() -> None:
    """Every eighth of 8,000 items is as good as the best, and then every third."""
    queries, nothing = np.ones((1, 4), np.float32), [(np.zeros(0, np.int64), np.zeros(0))]
    for step in (8, 3):
        vectors = np.zeros((8000, 4), np.float32)
        vectors[::step] = 1
        (found,) = Candidates(vectors).find(queries, 1, [np.zeros(0, np.int64)], nothing)
        if step == 8:
            assert found is not None
            assert found.tolist() == list(range(0, 8000, 8))
        else:
            assert found is None
