"""The life of a model with content: fit, recommend, save, refit, update, the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recblr
from cli.fixtures import FAST, Run, answer
from conftest import TINY_MODEL, TINY_TRAINING, Tiny, assert_same_tensors
from recblr.artifact_checks import check_content
from recblr.errors import InputError
from recblr.models.fused_step import FusedStep
from recblr.recommender import Recommender

NEW = "an item that nobody has bought"


@pytest.fixture(scope="module")
def tables(tiny: Tiny) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Vectors and categories of the items of a log, and of one item that it does not have. The new item
    is like the first of the log."""
    ids = tiny.frame["item_id"].unique(maintain_order=True).to_list()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(ids), 4))
    categories = [name.split("-")[0] for name in ids]
    return (
        pl.DataFrame({"item_id": [*ids, NEW], "vector": [*vectors.tolist(), vectors[0].tolist()]}),
        pl.DataFrame({"item_id": [*ids, NEW], "category": [*categories, categories[0]]}),
    )


@pytest.fixture(scope="module")
def fitted(tiny: Tiny, tables: tuple[pl.DataFrame, pl.DataFrame]) -> Recommender:
    training = replace(TINY_TRAINING, content_dropout=0.5)
    recommender = Recommender("recblr", TINY_MODEL, training)
    return recommender.fit(tiny.frame, item_vectors=tables[0], item_categories=tables[1])


def test_an_item_without_an_event_can_be_recommended(
    fitted: Recommender, tiny: Tiny, tmp_path: Path
) -> None:
    first = tiny.frame["item_id"][0]
    histories = [[each] for each in tiny.frame["item_id"].unique().to_list()]
    found = fitted.recommend(histories=histories, k=100)
    scores = {
        name: found.filter(pl.col("item_id") == name).sort("user_id")["score"].to_numpy()
        for name in (NEW, first)
    }
    new, like = (fitted.network.item_embeddings[fitted.data.item_vocabulary.rows([name])[0]]
                 for name in (NEW, first))  # fmt: skip
    assert torch.cosine_similarity(new, like, 0) > 0.2
    assert np.isfinite(scores[NEW]).all()
    fitted.save(tmp_path / "model")
    loaded = recblr.load(tmp_path / "model")
    assert loaded.recommend(histories=histories, k=100).equals(found)
    assert loaded.content is not None
    assert fitted.content is not None
    assert loaded.content.items.digest == fitted.content.items.digest
    assert_same_tensors(loaded.content.weights, fitted.content.weights)
    assert any(each.metrics["HR@20"] > 0 for each in loaded.evaluate(baselines=("itemknn", "ease")))
    state = loaded.network.initial_state(1)
    items = torch.tensor([loaded.data.item_vocabulary.rows([NEW])[0]])
    ours, theirs = (
        FusedStep(loaded.network).step(items, state)[0],
        loaded.network.step(items, state)[0],
    )
    torch.testing.assert_close(ours, theirs)
    (tmp_path / "model" / "content.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match=r"content\.safetensors is damaged"):
        recblr.load(tmp_path / "model")


DAMAGE: dict[str, dict[str, Any]] = {
    "rows": {"vectors": np.zeros((3, 4), np.float32)},
    "not finite": {"vectors": np.full((25, 4), np.nan, np.float32)},
    "scale": {"scale": np.zeros(4)},
    "names": {"names": ["a", "a", "b", "c"]},
    "offsets": {"offsets": np.arange(26)[::-1].copy()},
    "codes": {"codes": np.full(25, 4)},
}


@pytest.mark.parametrize("part", DAMAGE)
def test_content_that_does_not_fit_is_refused(fitted: Recommender, part: str) -> None:
    content, tables = fitted.content, {"embedding.weight": TINY_MODEL.dim}
    assert content is not None
    check_content(Path("x"), content, 25, tables)
    damaged = replace(content, items=replace(content.items, **DAMAGE[part]))
    with pytest.raises(InputError, match="x: the content does not fit the model"):
        check_content(Path("x"), damaged, 25, tables)
    with pytest.raises(InputError, match="does not fit the model"):
        check_content(Path("x"), content, 25, {"embedding.weight": 5})


def test_refit_and_update_keep_content(
    fitted: Recommender, tiny: Tiny, tables: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    recommender = Recommender("recblr")
    recommender._adopt(fitted._contents)
    recommender.refit()
    assert recommender.content is not None
    content = recommender.content
    assert content.items.digest == fitted.content.items.digest  # type: ignore[union-attr]
    before = recommender.network.item_embeddings.detach().clone()
    more = pl.DataFrame(
        {"item_id": ["later", NEW], "vector": [tables[0]["vector"][3].to_list()] * 2}
    )
    added = recommender.update(tiny.frame, memory_only=True, item_vectors=more)
    assert (added.events, added.items) == (0, 1)
    row = content.items.vectors[3] @ content.weights["embedding.weight"][:4].numpy()
    after = recommender.network.item_embeddings.detach()
    np.testing.assert_allclose(after[-1], row, atol=1e-5)
    assert after[:-1].equal(before)
    with pytest.raises(InputError, match="has all 1,842 events already"):
        recommender.update(tiny.frame, memory_only=True, item_vectors=more)
    new = pl.DataFrame(
        {"user_id": ["u"] * 3, "item_id": ["later", NEW, "unknown"], "timestamp": [2e9] * 3}
    )
    recommender.update(new.cast({"timestamp": pl.Int64}))
    recommender.save(tmp_path / "updated")
    loaded = recblr.load(tmp_path / "updated")
    assert loaded.content is not None
    assert loaded.content.items.given[-2:].tolist() == [True, False]


def test_a_checkpoint_of_other_content_is_refused(
    tiny: Tiny, tables: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    def stop(epoch: object) -> None:
        raise RuntimeError

    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING)
    out = tmp_path / "model"
    with pytest.raises(RuntimeError):
        recommender.fit(tiny.frame, out=out, item_vectors=tables[0], on_epoch=stop)
    other = tables[0].with_columns(pl.col("vector").list.reverse())
    with pytest.raises(InputError, match="other content of items"):
        recommender.fit(tiny.frame, out=out, item_vectors=other, resume=True)
    recommender.fit(tiny.frame, out=out, item_vectors=tables[0], resume=True)
    whole = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(tiny.frame, item_vectors=tables[0])
    assert_same_tensors(recommender.network.state_dict(), whole.network.state_dict())


def test_the_commands_take_content(
    run: Run, tiny: Tiny, tables: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    tables[0].write_parquet("vectors.parquet")
    tables[1].write_csv("categories.csv")
    content = ("--item-vectors", "vectors.parquet", "--item-categories", "categories.csv")
    trained = run("train", tiny.log, "-o", "model", *content, *FAST)
    assert trained.code == 0, trained.err
    assert "content of 25 of 25 items: vectors of 4 numbers, 4 categories; 1 of them" in trained.out
    (tmp_path / "more.csv").write_text("item_id,category\nlater,c001\n")
    updated = run(
        "update", "model", tiny.log, "-o", "new", "--item-categories", "more.csv", "--json"
    )
    assert answer(updated)["items"] == 1
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["content"].startswith("ItemContent(26 of 26 items")
    (tmp_path / "wrong.csv").write_text("item_id,category\na,b\na,b\n")
    wrong = run("train", tiny.log, "-o", "other", "--item-categories", "wrong.csv", *FAST)
    assert wrong.err == (
        "recblr: wrong.csv: line 3, column 'item_id': the item 'a' has a row already; give one row for "
        "each item\n"
    )
