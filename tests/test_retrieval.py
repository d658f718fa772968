"""Searches against a sort of all scores in float64: exact where exact is promised, filters always."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recblr import retrieval
from recblr.errors import DivergedError, InputError
from recblr.retrieval import Added, Exact, Index, InvertedFile, build

Rows = Sequence[int] | np.ndarray


@pytest.fixture(params=["int8", "float32"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to scan; torch multiplies int8 rightly everywhere, only not quickly."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: request.param == "int8")


@pytest.fixture(autouse=True)
def scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few they are, items are not all scored, but where a test asks for it."""
    monkeypatch.setattr(retrieval, "_FEW", 0)


@pytest.fixture
def faiss() -> None:
    pytest.importorskip("faiss")


def truth(
    vectors: Tensor,
    queries: Tensor,
    k: int,
    hidden: Sequence[Rows] | None = None,
    allowed: Sequence[Rows | None] | None = None,
    added: Sequence[Added | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sort all scores in float64, equal ones by item, and strike out what may not be shown."""
    scores = queries.double().numpy() @ vectors.double().numpy().T
    for row, values in zip(scores, added or (), strict=added is not None):
        if values is not None:
            row[values[0]] += values[1]
    best, items = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    for b, row in enumerate(scores):
        order = np.lexsort((np.arange(len(row)), -row)).tolist()
        only = None if allowed is None else allowed[b]
        shown = [
            item
            for item in order
            if (hidden is None or item not in hidden[b]) and (only is None or item in only)
        ][:k]
        best[b, : len(shown)], items[b, : len(shown)] = row[shown], shown
    return best, items


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(seed: int, *shape: int) -> Tensor:
    """Small whole numbers: products without rounding, many of them equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def clustered(seed: int, items: int, width: int = 16, clusters: int = 60) -> tuple[Tensor, Tensor]:
    """Vectors around centres, of unlike lengths, and queries towards some of them."""
    centres = normal(seed, clusters, width)
    vectors = centres[torch.arange(items) % clusters] + 0.3 * normal(seed + 1, items, width)
    vectors *= 1 + 0.2 * normal(seed + 2, items, 1).abs()
    return vectors, centres.repeat(4, 1) + 0.3 * normal(seed + 3, 4 * clusters, width)


def drawn_values(seed: int, size: int, count: int, most: float) -> Added:
    """Values up to ``most`` of some items, as a memory adds them, and a constant for two repeats."""
    draw = np.random.default_rng(seed)
    items = np.sort(draw.permutation(size)[:count])
    values = (most * draw.random(count) ** 4).astype(np.float32)
    values[:2] += (-1) ** seed * 3 * most
    return items, values


def assert_same_scores(ours: np.ndarray, exact: np.ndarray, vectors: Tensor, q: Tensor) -> None:
    """Within what float32 rounds. An item that was missed would leave a lower score in its place."""
    bound = 1e-6 * q.norm(dim=1, keepdim=True).numpy() * vectors.norm(dim=1).max().item()
    assert ours.dtype == np.float32
    shown = np.isfinite(exact)
    assert (np.isfinite(ours) == shown).all()
    assert (np.abs(np.where(shown, ours, 0) - np.where(shown, exact, 0)) <= bound).all()


def by_item(values: dict[int, float]) -> Added:
    items = np.array(sorted(values), np.int64)
    return items, np.array([values[item] for item in items.tolist()], np.float32)


# ---- exact ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("product")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_items_are_those_of_a_sort_of_all_scores(data: st.DataObject) -> None:
    """Ties, k above V and above a block, sizes that no block divides, several tiles, all filters."""
    size, width, count = (data.draw(st.integers(1, top)) for top in (300, 9, 4))
    k = data.draw(st.integers(1, size + 3))
    vectors, queries = whole(size, size, width), whole(width, count, width)
    rows = st.lists(st.integers(0, size - 1), max_size=size)
    filters = st.lists(rows, min_size=count, max_size=count)
    alone = st.lists(st.none() | rows, min_size=count, max_size=count)
    hidden, allowed = data.draw(st.none() | filters), data.draw(st.none() | alone)
    numbers = st.integers(-9, 9) | st.sampled_from([-1000, 1000, 20_000_000])
    values = st.dictionaries(st.integers(0, size - 1), numbers.map(lambda it: it / 2)).map(by_item)
    added = data.draw(st.none() | st.lists(st.none() | values, min_size=count, max_size=count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_NUMBERS", data.draw(st.sampled_from([100, 1 << 20])))
        patch.setattr(retrieval, "_BLOCK", data.draw(st.sampled_from([16, 128])))
        patch.setattr(retrieval, "_FEW", data.draw(st.sampled_from([0, 1 << 20])))
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
    monkeypatch.setattr(retrieval, "_NUMBERS", numbers)
    vectors, queries = normal(size, size, width), normal(1, 5, width)
    vectors[:, -1] *= 30  # as a bias may be
    hidden = [range(0, size, b + 2) for b in range(5)]
    index = Exact(vectors)
    for k in (1, 20, 500):
        scores, items = index.search(queries, k, hidden)
        best, _ = truth(vectors, queries, k, hidden)
        assert_same_scores(scores, best, vectors, queries)
        assert (items >= 0).sum(1).tolist() == [min(k, size - len(rows)) for rows in hidden]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("most", [1e-30, 1e-3, 1.0, 30.0, 1e7])
@pytest.mark.parametrize("size", [129, 3000])
@pytest.mark.parametrize("numbers", [1 << 10, 1 << 20])
def test_added_values_are_part_of_the_score(
    monkeypatch: pytest.MonkeyPatch, numbers: int, size: int, most: float
) -> None:
    """Far below the products, like them, and so large that the products hardly matter."""
    monkeypatch.setattr(retrieval, "_NUMBERS", numbers)
    vectors, queries = normal(size, size, 33), normal(1, 5, 33)
    added = [drawn_values(b, size, (0, 1, 40, 128, 100)[b], most) for b in range(5)]
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
def test_a_query_of_nothing_is_answered_by_the_added_values() -> None:
    vectors, added = normal(0, 3000, 16), by_item({7: 2.0, 70: -1.0, 700: 5.0, 2999: 2.0})
    scores, items = Exact(vectors).search(torch.zeros(2, 16), 4, None, None, [added, None])
    assert items.tolist() == [[700, 7, 2999, 0], [0, 1, 2, 3]]
    assert scores.tolist() == [[5, 2, 2, 0], [0] * 4]


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-4])
def test_items_that_int8_cannot_tell_apart_are_found(spread: float) -> None:
    """Alike but for less than a step of int8: the best by rounded numbers are others."""
    vectors, queries = normal(0, 1, 32) + spread * normal(1, 2000, 32), normal(2, 8, 32)
    scores, _ = Exact(vectors).search(queries, 20)
    assert_same_scores(scores, truth(vectors, queries, 20)[0], vectors, queries)
    step = vectors.abs().amax(0) / 127
    _, rounded = truth((vectors / step).round(), queries * step, 20)
    theirs = (vectors[torch.from_numpy(rounded)] * queries[:, None]).sum(2).numpy()
    assert (scores.min(1) > theirs.min(1) + 1e-5 * spread).sum() >= 6


@pytest.mark.parametrize("role", ["item", "query"])
def test_an_item_that_rounding_puts_behind_another_is_found(role: str) -> None:
    """A step is 1, and only the vectors of one role are rounded: 10.49 down, 10.51 up."""
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
def test_few_more_items_are_scored_than_are_wanted(
    monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    vectors, queries, scored = normal(0, 20000, 64), normal(1, 8, 64), []
    index, scores = Exact(vectors), Exact._scores
    monkeypatch.setattr(retrieval, "_NUMBERS", numbers)

    def spy(self: Exact, query: np.ndarray, items: np.ndarray) -> np.ndarray:
        scored.append(len(items))
        return scores(self, query, items)

    monkeypatch.setattr(Exact, "_scores", spy)
    index.search(queries, 20)
    index.search(queries, 20, None, None, [drawn_values(b, 20000, 8192, 3.0) for b in range(8)])
    assert len(scored) == 16
    assert max(scored) < 200


@pytest.mark.usefixtures("product")
def test_an_item_that_dwarfs_the_rest_hides_none() -> None:
    vectors, queries = normal(0, 1000, 16), normal(1, 4, 16)
    vectors[500] = 1e6
    scores, _ = Exact(vectors).search(queries, 20, [[500]] * 4)
    assert_same_scores(scores, truth(vectors, queries, 20, [[500]] * 4)[0], vectors[:500], queries)


def test_few_items_are_all_scored_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries, hidden = normal(0, 3000, 64), normal(1, 2, 64), [[5, 5, 6], list(range(2000))]
    scanned = Exact(vectors).search(queries, 20, hidden)
    monkeypatch.setattr(retrieval, "_FEW", 8192)
    scored = Exact(vectors).search(queries, 20, hidden)
    assert scored[0].tolist() == scanned[0].tolist()
    assert scored[1].tolist() == scanned[1].tolist()


@pytest.mark.usefixtures("product")
def test_without_any_difference_the_first_items_come() -> None:
    for vectors in (torch.zeros(300, 4), torch.ones(300, 4), whole(0, 1, 4).repeat(300, 1)):
        for queries in (torch.zeros(2, 4), -torch.ones(2, 4)):
            _, items = Exact(vectors).search(queries, 5, [[0], [2, 2, 7]])
            assert items.tolist() == [[1, 2, 3, 4, 5], [0, 1, 3, 4, 5]]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize(("count", "numbers"), [(1, 1 << 10), (4, 1 << 10), (4, 64), (4, 1 << 20)])
def test_no_more_products_are_in_memory_than_may_be(
    monkeypatch: pytest.MonkeyPatch, count: int, numbers: int
) -> None:
    sizes: list[int] = []

    def spied(multiply: object) -> object:
        def spy(a: Tensor, b: Tensor) -> Tensor:
            sizes.append(len(a) * b.shape[1])
            return multiply(a, b)  # type: ignore[operator]

        return spy

    index = Exact(normal(0, 3000, 8))
    monkeypatch.setattr(retrieval, "_NUMBERS", numbers)
    for name in ("_int_mm", "mm"):
        monkeypatch.setattr(torch, name, spied(getattr(torch, name)))
    index.search(normal(1, count, 8), 7)
    assert sum(sizes) == count * 3072
    assert max(sizes) <= max(numbers, count * 128)


# ---- filters and limits, whatever searches -------------------------------------------------------


@pytest.fixture(params=[Exact, InvertedFile])
def index(request: pytest.FixtureRequest) -> Index:
    if request.param is InvertedFile:
        pytest.importorskip("faiss")
    return request.param(clustered(0, 700)[0])


def test_allowed_items_alone_are_shown_and_exactly(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    allowed = [[5, 3, 3, 600], range(0, 700, 3), [], None, [8]]
    hidden: list[Rows] = [[3], range(0, 700, 2), [1], range(690), [8]]
    scores, items = index.search(queries[:5], 12, hidden, allowed)
    best, order = truth(vectors, queries[:5], 12, hidden, allowed)
    assert items[[0, 1, 2, 4]].tolist() == order[[0, 1, 2, 4]].tolist()
    assert sorted(items[3].tolist()) == sorted(order[3].tolist())
    assert_same_scores(scores, best, vectors, queries[:5])


def test_added_values_of_allowed_items_count(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    added = [drawn_values(b, 700, 90, 4.0) for b in range(3)]
    allowed, hidden = [range(0, 700, 3), added[1][0], [5, 9]], [[9], added[1][0][:3], [5]]
    scores, items = index.search(queries[:3], 12, hidden, allowed, added)
    best, order = truth(vectors, queries[:3], 12, hidden, allowed, added)
    assert items.tolist() == order.tolist()
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)


def test_all_that_is_left_is_found_whatever_is_added(index: Index) -> None:
    """More than k values below what others have, and k more than what is left."""
    vectors, queries = clustered(0, 700)
    items = np.arange(0, 690)
    for value in (-50.0, 50.0):
        added = [(items, np.full(690, value, np.float32))] * 2
        hidden = [range(300), range(695)]
        scores, found = index.search(queries[:2], 400, hidden, None, added)
        best, _ = truth(vectors, queries[:2], 400, hidden, None, added)
        assert (found >= 0).sum(1).tolist() == [400, 5]
        np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)
        assert sorted(found[1, :5].tolist()) == [695, 696, 697, 698, 699]


def test_nothing_is_left(index: Index) -> None:
    queries = clustered(0, 700)[1][:2]
    for hidden, allowed in (
        ([range(700)] * 2, None),
        (None, [[], []]),
        ([[4], [5, 6]], [[4, 4], [6, 5]]),
    ):
        scores, items = index.search(queries, 3, hidden, allowed)
        assert items.tolist() == [[-1] * 3] * 2
        assert scores.tolist() == [[-np.inf] * 3] * 2


def test_a_score_does_not_depend_on_what_else_is_asked(index: Index) -> None:
    """The same bits alone, in a batch, under filters and by other means."""
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
def test_queries_may_lie_anyhow_in_memory() -> None:
    vectors, queries = normal(0, 900, 24), normal(1, 24, 6)
    index = Exact(vectors.T.contiguous().T)
    scores, items = index.search(queries.T, 5)
    assert_same_scores(scores, truth(vectors, queries.T, 5)[0], vectors, queries.T)
    for stride in (0, 1, 24):
        one = queries[:, 3].contiguous().as_strided((1, 24), (stride, 1))
        assert index.search(one, 5)[1].tolist() == items[3:4].tolist()


def test_no_query_has_no_answer(index: Index) -> None:
    scores, items = index.search(torch.zeros(0, 16), 4, [], [])
    assert (scores.shape, items.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize("kind", [Exact, InvertedFile])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_k_may_exceed_the_items(kind: type[Index], size: int) -> None:
    if kind is InvertedFile:
        pytest.importorskip("faiss")
    vectors, queries = whole(2, size, 5), whole(3, 2, 5)
    scores, items = kind(vectors).search(queries, 11)
    best, order = truth(vectors, queries, 11)
    assert items.tolist() == order.tolist()
    assert scores.tolist() == best.tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_is_an_error(index: Index, value: float) -> None:
    vectors, queries = clustered(0, 700)
    queries[3, 2] = value
    with pytest.raises(DivergedError, match="not finite"):
        index.search(queries, 2)
    vectors[699, 0] = value
    with pytest.raises(DivergedError, match="not finite"):
        type(index)(vectors)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_beyond_float32_is_an_error(sign: int) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        Exact(torch.full((5, 2), 1e30)).search(torch.full((1, 2), sign * 1e30), 1)


def test_what_cannot_be_asked(index: Index) -> None:
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
        with pytest.raises(ValueError, match="a filter for each of 1 queries"):
            index.search(query, 1, filters)
        with pytest.raises(ValueError, match="a filter for each of 1 queries"):
            index.search(query, 1, None, filters)


def test_what_cannot_be_added(index: Index) -> None:
    query, one = torch.zeros(1, 16), np.ones(1, np.float32)
    for items, values in (([3], [1.0, 2.0]), ([3, 3], [1.0, 2.0]), ([4, 3], [1.0, 2.0])):
        with pytest.raises(ValueError, match="to distinct items in rising order, one to each"):
            index.search(query, 1, None, None, [(np.array(items), np.array(values))])
    for item in (-1, 700):
        with pytest.raises(ValueError, match=r"items must be 0 \.\. 699"):
            index.search(query, 1, None, None, [(np.array([item]), one)])
    with pytest.raises(ValueError, match="a filter for each of 1 queries"):
        index.search(query, 1, None, None, [])
    for value in (np.nan, np.inf):
        with pytest.raises(DivergedError, match="not finite"):
            index.search(query, 1, None, None, [(np.array([3]), value * one)])


def test_threads_search_while_others_build(index: Index) -> None:
    vectors, queries = clustered(0, 700)
    hidden = [range(b) for b in range(len(queries))]

    def find(number: int) -> list[list[int]]:
        if number % 4 == 0:
            type(index)(vectors)
        return index.search(queries, 6, hidden)[1].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert all(found == find(1) for found in pool.map(find, range(24)))


# ---- inverted file -------------------------------------------------------------------------------


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_finds_nearly_all_and_says_how_many() -> None:
    vectors, queries = clustered(7, 12000)
    measured, fresh = queries[:120], queries[120:]
    index = InvertedFile(vectors, measured)
    for some, least in ((measured, 0.99), (fresh, 0.985)):
        _, items = index.search(some, 20)
        _, exact = Exact(vectors).search(some, 20)
        shares = [
            len({*a} & {*b}) / 20 for a, b in zip(items.tolist(), exact.tolist(), strict=True)
        ]
        assert np.mean(shares) >= least
        if some is measured:
            assert index.recall == pytest.approx(np.mean(shares))
    assert InvertedFile(vectors).recall >= 0.99  # measured by the items


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_finds_all_that_a_value_lifts_and_nearly_all_others() -> None:
    vectors, queries = clustered(7, 12000)
    index, queries = InvertedFile(vectors, queries[:120]), queries[120:]
    added = [drawn_values(b, 12000, 3000, 6.0) for b in range(len(queries))]
    _, items = index.search(queries, 20, None, None, added)
    _, exact = Exact(vectors).search(queries, 20, None, None, added)
    shares = []
    for found, best, (of, values) in zip(items.tolist(), exact.tolist(), added, strict=True):
        assert set(best) & set(of[values > 0].tolist()) <= set(found)
        shares.append(len({*found} & {*best}) / 20)
    assert np.mean(shares) >= 0.985


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_orders_what_it_finds_by_float32_scores() -> None:
    vectors, queries = clustered(7, 1000)
    vectors = vectors.repeat(3, 1)  # so that every score occurs three times
    scores, items = InvertedFile(vectors, queries).search(queries, 20)
    found = (queries[:, None].double() * vectors[torch.from_numpy(items)].double()).sum(2)
    assert_same_scores(scores, found.numpy(), vectors, queries)
    assert (np.lexsort((items, -scores)) == np.arange(20)).all()
    assert all(len(set(row)) == 20 for row in items.tolist())


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("left", [1, 20, 40])
def test_an_inverted_file_probes_on_when_all_that_is_near_is_hidden(left: int) -> None:
    vectors, queries = clustered(7, 3000)
    index = InvertedFile(vectors, queries)
    order = truth(vectors, queries[:6], 3000)[1]
    _, items = index.search(queries[:6], 20, order[:, : 3000 - left])
    for found, rows in zip(items.tolist(), order[:, 3000 - left :].tolist(), strict=True):
        shown = [item for item in found if item >= 0]
        assert len(shown) == min(20, left)
        assert set(shown) <= set(rows)
        assert len(set(shown)) == len(shown)


# ---- which index ---------------------------------------------------------------------------------


def test_size_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = clustered(0, 700)
    index = build(vectors, queries)
    assert (index.kind, index.recall) == ("exact", 1.0)
    pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "_EXACT", 700)
    assert build(vectors, queries).kind == "exact"
    monkeypatch.setattr(retrieval, "_EXACT", 699)
    assert build(vectors, queries).kind == "inverted file"
    assert build(vectors, queries).recall >= 0.99


def test_a_missing_faiss_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert build(normal(0, 30, 4)).kind == "exact"
    monkeypatch.setattr(retrieval, "_EXACT", 10)
    with pytest.raises(InputError, match=r"needs faiss; .* 'recblr\[serve\]'"):
        build(normal(0, 30, 4))
