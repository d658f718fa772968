"""Exact search against a sort of all scores in float64."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recblr import retrieval
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
        patch.setattr(retrieval, "_BLOCK", data.draw(st.sampled_from([16, 128])))
        patch.setattr(retrieval, "_SCORE_ALL", data.draw(st.sampled_from([0, 1 << 20])))
        scores, items = Exact(vectors).search(queries, k, hidden, allowed, added)
    best, order = truth(vectors, queries, k, hidden, allowed, added)
    assert items.dtype == np.int64
    assert items.tolist() == order.tolist()
    assert scores.tolist() == best.tolist()


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("numbers", [1 << 10, 1 << 20])
@pytest.mark.parametrize("size", [1, 127, 128, 129, 3000])
@pytest.mark.parametrize("width", [1, 64, 65])
def test_no_item_is_lost_to_rounding(
    monkeypatch: pytest.MonkeyPatch, width: int, size: int, numbers: int
) -> None:
    monkeypatch.setattr(retrieval, "_CHUNK", numbers)
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
@pytest.mark.parametrize("numbers", [1 << 10, 1 << 20])
def test_added_values_are_part_of_the_score(
    monkeypatch: pytest.MonkeyPatch, numbers: int, size: int, largest: float
) -> None:
    """From far smaller than the products to far larger."""
    monkeypatch.setattr(retrieval, "_CHUNK", numbers)
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


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("numbers", [1 << 10, 1 << 20])
def test_only_a_few_times_k_items_are_scored(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    vectors, queries, scored = normal(0, 20000, 64), normal(1, 8, 64), []
    index, scores = Exact(vectors), Exact._scores
    monkeypatch.setattr(retrieval, "_CHUNK", numbers)

    def spy(self: Exact, query: np.ndarray, items: np.ndarray) -> np.ndarray:
        scored.append(len(items))
        return scores(self, query, items)

    monkeypatch.setattr(Exact, "_scores", spy)
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


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize(("count", "numbers"), [(1, 1 << 10), (4, 1 << 10), (4, 64), (4, 1 << 20)])
def test_the_products_in_memory_are_limited(
    monkeypatch: pytest.MonkeyPatch, count: int, numbers: int
) -> None:
    sizes: list[int] = []

    def spied(multiply: object) -> object:
        def spy(a: Tensor, b: Tensor) -> Tensor:
            sizes.append(len(a) * b.shape[1])
            return multiply(a, b)  # type: ignore[operator]

        return spy

    index = Exact(normal(0, 3000, 8))
    monkeypatch.setattr(retrieval, "_CHUNK", numbers)
    for name in ("_int_mm", "mm"):
        monkeypatch.setattr(torch, name, spied(getattr(torch, name)))
    index.search(normal(1, count, 8), 7)
    assert sum(sizes) == count * 3072
    assert max(sizes) <= max(numbers, count * 128)
