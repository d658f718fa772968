"""Similar items, by the model and by the memory."""

import numpy as np
import polars as pl
import pytest

from cli.fixtures import Run, answer
from conftest import Tiny
from recblr.errors import InputError


def test_similar_by_the_model_is_the_cosine_of_the_vectors(tiny: Tiny) -> None:
    recommender = tiny.recommender
    ids = recommender.data.item_ids.to_pylist()
    vectors = recommender.network.item_embeddings.detach().numpy().astype(float)
    frame = recommender.similar_items(ids[:3], k=5)
    assert frame.columns == ["item_id", "similar_item_id", "score", "rank"]
    for row, item in enumerate(ids[:3]):
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[row])
        cosines = dict(zip(ids, vectors @ vectors[row] / norms, strict=True))
        del cosines[item]
        best = sorted(cosines, key=lambda name: -cosines[name])[:5]
        ours = frame.filter(pl.col("item_id") == item)
        assert ours["similar_item_id"].to_list() == best
        assert ours["rank"].to_list() == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(ours["score"], [cosines[name] for name in best], atol=1e-5)
    assert len(recommender.similar_items([ids[0]], k=1000)) == len(ids) - 1, "not the item itself"
    assert recommender.similar_items([]).height == 0


def test_similar_by_the_memory_is_what_has_followed(tiny: Tiny) -> None:
    recommender = tiny.recommender
    ids, memory = recommender.data.item_ids.to_pylist(), recommender.memory
    assert memory is not None
    counts = dict(zip(ids, memory.matrix.toarray()[4], strict=True))
    del counts[ids[4]]
    frame = recommender.similar_items([ids[4]], k=3, by="memory")
    best = sorted(counts, key=lambda name: -counts[name])[:3]
    assert dict(frame.select("similar_item_id", "score").iter_rows()) == {
        name: counts[name] for name in best
    }


def test_the_command(run: Run, tiny: Tiny) -> None:
    item = tiny.frame["item_id"][0]
    rows = answer(run("similar", tiny.artifact, item, "-k", 2, "--json"))
    assert rows == tiny.recommender.similar_items([item], 2).to_dicts()
    assert rows[0]["similar_item_id"] in run("similar", tiny.artifact, item).out
    for arguments, message in (
        (["x"], "item 'x' is not in the log of the model"),
        ([item, "-k", 0], "k must be at least 1, found 0"),
        ([item, "--by", "x"], "by = 'x': choose one of model, memory"),
    ):
        result = run("similar", tiny.artifact, *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err


def test_a_model_without_a_memory_has_no_similar_items_by_it(tiny: Tiny) -> None:
    import copy

    recommender = copy.copy(tiny.recommender)
    recommender.memory = None
    with pytest.raises(InputError, match="no memory of transitions; pass by='model'"):
        recommender.similar_items([tiny.frame["item_id"][0]], by="memory")
