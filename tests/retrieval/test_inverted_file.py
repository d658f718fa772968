"""The inverted file against exact search, and the choice between both."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Tiny
from recblr import artifact, inverted_file
from recblr.artifact_checks import check_lists
from recblr.errors import InputError
from recblr.inverted_file import build, divide_if_large
from recblr.retrieval import Exact
from recblr.serving.model import ServedModel
from retrieval.tools import added_values, assert_same_scores, clustered, inverted, truth

pytestmark = pytest.mark.usefixtures("always_scan")


@pytest.fixture
def faiss() -> None:
    pytest.importorskip("faiss")


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_reaches_and_reports_its_recall() -> None:
    vectors, queries = clustered(7, 12000)
    measured, fresh = queries[:120], queries[120:]
    index = inverted(vectors, measured)
    for sample, least in ((measured, 0.99), (fresh, 0.985)):
        _, items = index.search(sample, 20)
        _, exact = Exact(vectors).search(sample, 20)
        shares = [
            len({*a} & {*b}) / 20 for a, b in zip(items.tolist(), exact.tolist(), strict=True)
        ]
        assert np.mean(shares) >= least
        if sample is measured:
            assert index.recall == pytest.approx(np.mean(shares))


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_finds_all_items_with_an_added_value() -> None:
    vectors, queries = clustered(7, 12000)
    index, queries = inverted(vectors, queries[:120]), queries[120:]
    added = [added_values(b, 12000, 3000, 6.0) for b in range(len(queries))]
    _, items = index.search(queries, 20, None, None, added)
    _, exact = Exact(vectors).search(queries, 20, None, None, added)
    shares = []
    for ours, best, (rows, values) in zip(items.tolist(), exact.tolist(), added, strict=True):
        assert set(best) & set(rows[values > 0].tolist()) <= set(ours)
        shares.append(len({*ours} & {*best}) / 20)
    assert np.mean(shares) >= 0.985


@pytest.mark.usefixtures("faiss")
def test_an_inverted_file_sorts_its_results_by_float32_scores() -> None:
    vectors, queries = clustered(7, 1000)
    vectors = vectors.repeat(3, 1)  # so that every score occurs three times
    scores, items = inverted(vectors, queries).search(queries, 20)
    exact = (queries[:, None].double() * vectors[torch.from_numpy(items)].double()).sum(2)
    assert_same_scores(scores, exact.numpy(), vectors, queries)
    assert (np.lexsort((items, -scores)) == np.arange(20)).all()
    assert all(len(set(row)) == 20 for row in items.tolist())


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("left", [1, 20, 40])
def test_an_inverted_file_probes_more_lists_if_the_nearest_items_are_hidden(left: int) -> None:
    vectors, queries = clustered(7, 3000)
    index = inverted(vectors, queries)
    order = truth(vectors, queries[:6], 3000)[1]
    _, items = index.search(queries[:6], 20, order[:, : 3000 - left])
    for results, rows in zip(items.tolist(), order[:, 3000 - left :].tolist(), strict=True):
        found = [item for item in results if item >= 0]
        assert len(found) == min(20, left)
        assert set(found) <= set(rows)
        assert len(set(found)) == len(found)


def test_the_size_of_the_catalogue_decides_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = clustered(0, 700)
    index = build(vectors, None)
    assert (index.kind, index.recall) == ("exact", 1.0)
    pytest.importorskip("faiss")
    monkeypatch.setattr(inverted_file, "MAX_EXACT", 700)
    assert divide_if_large(vectors, lambda: queries) is None
    monkeypatch.setattr(inverted_file, "MAX_EXACT", 699)
    index = build(vectors, divide_if_large(vectors, lambda: queries))
    assert index.kind == "inverted file"
    assert index.recall >= 0.99


def test_without_faiss_a_large_catalogue_is_scanned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors, queries = clustered(0, 70)
    monkeypatch.setattr(inverted_file, "MAX_EXACT", 10)
    pytest.importorskip("faiss")
    lists = divide_if_large(vectors, lambda: queries)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with caplog.at_level("INFO", "recblr"):
        assert divide_if_large(vectors, lambda: queries) is None
    assert "scans all of them: a catalogue of this size needs faiss" in caplog.text
    with pytest.raises(InputError, match=r"needs faiss; .* 'recblr\[serve\]'"):
        build(vectors, lists)


@pytest.mark.usefixtures("faiss")
def test_an_artifact_keeps_the_lists_of_its_items(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inverted_file, "MAX_EXACT", 10)
    folder = tmp_path / "model"
    tiny.recommender.save(folder)
    model = ServedModel(folder)
    assert model.index.kind == "inverted file"
    assert model.index.recall >= 0.99
    vectors = tiny.recommender.network.item_embeddings
    lists = artifact.read_lists(folder, vectors)
    assert lists is not None
    assert lists.list_of.shape == (len(model.item_ids),)
    for damage in (
        replace(lists, list_of=lists.list_of[1:]),
        replace(lists, list_of=lists.list_of + len(lists.centres)),
        replace(lists, centres=lists.centres[:, 1:]),
        replace(lists, centres=lists.centres * np.float32(np.nan)),
        replace(lists, probes=0),
    ):
        with pytest.raises(InputError, match="lists of items do not fit"):
            check_lists(folder, damage, vectors.shape)
