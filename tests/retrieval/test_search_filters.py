"""Filters, added values and limits of both indexes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from recblr.errors import DivergedError, InputError
from recblr.inverted_file import InvertedFile
from recblr.retrieval import Exact, Index
from retrieval.tools import (
    Rows,
    added_values,
    assert_same_scores,
    clustered,
    integers,
    inverted,
    normal,
    truth,
)

pytestmark = pytest.mark.usefixtures("always_scan")


@pytest.fixture(params=[Exact, inverted])
def index(request: pytest.FixtureRequest) -> Index:
    if request.param is inverted:
        pytest.importorskip("faiss")
    return request.param(clustered(0, 700)[0])


def again(index: Index, vectors: Tensor) -> Index:
    """An index of the same kind."""
    return inverted(vectors) if isinstance(index, InvertedFile) else Exact(vectors)


def test_only_allowed_items_are_returned_and_exactly(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    allowed = [[5, 3, 3, 600], range(0, 700, 3), [], None, [8]]
    hidden: list[Rows] = [[3], range(0, 700, 2), [1], range(690), [8]]
    scores, items = index.search(queries[:5], 12, hidden, allowed)
    best, order = truth(vectors, queries[:5], 12, hidden, allowed)
    assert items[[0, 1, 2, 4]].tolist() == order[[0, 1, 2, 4]].tolist()
    assert sorted(items[3].tolist()) == sorted(order[3].tolist())
    assert_same_scores(scores, best, vectors, queries[:5])


def test_values_are_added_to_allowed_items(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    added = [added_values(b, 700, 90, 4.0) for b in range(3)]
    allowed, hidden = [range(0, 700, 3), added[1][0], [5, 9]], [[9], added[1][0][:3], [5]]
    scores, items = index.search(queries[:3], 12, hidden, allowed, added)
    best, order = truth(vectors, queries[:3], 12, hidden, allowed, added)
    assert items.tolist() == order.tolist()
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)


def test_all_remaining_items_are_found_with_any_added_values(index: Index) -> None:
    """More than k negative values, and k above the number of remaining items."""
    vectors, queries = clustered(0, 700)
    items = np.arange(0, 690)
    for value in (-50.0, 50.0):
        added = [(items, np.full(690, value, np.float32))] * 2
        hidden = [range(300), range(695)]
        scores, results = index.search(queries[:2], 400, hidden, None, added)
        best, _ = truth(vectors, queries[:2], 400, hidden, None, added)
        assert (results >= 0).sum(1).tolist() == [400, 5]
        np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)
        assert sorted(results[1, :5].tolist()) == [695, 696, 697, 698, 699]


def test_filters_may_exclude_every_item(index: Index) -> None:
    queries = clustered(0, 700)[1][:2]
    for hidden, allowed in (
        ([range(700)] * 2, None),
        (None, [[], []]),
        ([[4], [5, 6]], [[4, 4], [6, 5]]),
    ):
        scores, items = index.search(queries, 3, hidden, allowed)
        assert items.tolist() == [[-1] * 3] * 2
        assert scores.tolist() == [[-np.inf] * 3] * 2


def test_a_score_does_not_depend_on_the_batch_or_the_filters(index: Index) -> None:
    """The same bits alone, in a batch, with filters and by exact search."""
    vectors, queries = clustered(0, 700)
    scores, items = index.search(queries, 9)
    for b in (0, 17):
        alone, rows = index.search(queries[b : b + 1], 9)
        assert alone.tolist() == scores[b : b + 1].tolist()
        assert rows.tolist() == items[b : b + 1].tolist()
        for other in (index, Exact(vectors)):
            named, _ = other.search(queries[b : b + 1], 9, allowed=[items[b]])
            assert named.tolist() == alone.tolist()


@pytest.mark.usefixtures("product")
def test_queries_may_have_any_strides() -> None:
    vectors, queries = normal(0, 900, 24), normal(1, 24, 6)
    index = Exact(vectors.T.contiguous().T)
    scores, items = index.search(queries.T, 5)
    assert_same_scores(scores, truth(vectors, queries.T, 5)[0], vectors, queries.T)
    for stride in (0, 1, 24):
        one = queries[:, 3].contiguous().as_strided((1, 24), (stride, 1))
        assert index.search(one, 5)[1].tolist() == items[3:4].tolist()


def test_no_queries(index: Index) -> None:
    scores, items = index.search(torch.zeros(0, 16), 4, [], [])
    assert (scores.shape, items.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize("kind", [Exact, inverted])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_k_may_exceed_the_items(kind: Callable[[Tensor], Index], size: int) -> None:
    if kind is inverted:
        pytest.importorskip("faiss")
    vectors, queries = integers(2, size, 5), integers(3, 2, 5)
    scores, items = kind(vectors).search(queries, 11)
    best, order = truth(vectors, queries, 11)
    assert items.tolist() == order.tolist()
    assert scores.tolist() == best.tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_an_error(index: Index, value: float) -> None:
    vectors, queries = clustered(0, 700)
    queries[3, 2] = value
    with pytest.raises(DivergedError, match="not finite"):
        index.search(queries, 2)
    vectors[699, 0] = value
    with pytest.raises(DivergedError, match="not finite"):
        again(index, vectors)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_beyond_float32_is_an_error(sign: int) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        Exact(torch.full((5, 2), 1e30)).search(torch.full((1, 2), sign * 1e30), 1)


def test_invalid_queries_and_filters_are_refused(index: Index) -> None:
    query = torch.zeros(1, 16)
    with pytest.raises(InputError, match="k must be at least 1, found 0"):
        index.search(query, 0)
    for queries in (torch.zeros(1, 15), torch.zeros(16)):
        with pytest.raises(ValueError, match=r"queries must be \(B, 16\)"):
            index.search(queries, 1)
    for rows in ([700], [3, -1]):
        with pytest.raises(ValueError, match=r"items must be 0 \.\. 699"):
            index.search(query, 1, [rows])
        with pytest.raises(ValueError, match=r"items must be 0 \.\. 699"):
            index.search(query, 1, None, [rows])
    for filters in ([], [[], []]):
        with pytest.raises(ValueError, match="one filter for each of the 1 queries"):
            index.search(query, 1, filters)
        with pytest.raises(ValueError, match="one filter for each of the 1 queries"):
            index.search(query, 1, None, filters)


def test_invalid_added_values_are_refused(index: Index) -> None:
    query, one = torch.zeros(1, 16), np.ones(1, np.float32)
    for items, values in (([3], [1.0, 2.0]), ([3, 3], [1.0, 2.0]), ([4, 3], [1.0, 2.0])):
        with pytest.raises(ValueError, match="distinct, ascending items, one for each value"):
            index.search(query, 1, None, None, [(np.array(items), np.array(values))])
    for item in (-1, 700):
        with pytest.raises(ValueError, match=r"items must be 0 \.\. 699"):
            index.search(query, 1, None, None, [(np.array([item]), one)])
    with pytest.raises(ValueError, match="one filter for each of the 1 queries"):
        index.search(query, 1, None, None, [])
    for value in (np.nan, np.inf):
        with pytest.raises(DivergedError, match="not finite"):
            index.search(query, 1, None, None, [(np.array([3]), value * one)])


def test_threads_search_while_other_threads_build(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    hidden = [range(b) for b in range(len(queries))]

    def find(number: int) -> list[list[int]]:
        if number % 4 == 0:
            again(index, vectors)
        return index.search(queries, 6, hidden)[1].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert all(items == find(1) for items in pool.map(find, range(24)))
