"""Vectors of items and users: their dot products are the scores of the model without the memory."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cli.fixtures import Run, answer
from conftest import Tiny
from helpers import history_of
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.models import MODELS
from recblr.recommender import Recommender


@pytest.mark.parametrize("model", MODELS)
def test_the_dot_product_is_the_score(sequences: Sequences, model: str) -> None:
    """Of every model, also of those with a bias and with vectors of users."""
    settings = {"train": {"epochs": 1, "max_length": 9}, "memory": {"enabled": False}}
    recommender = Recommender.configured(model, settings, "cpu").fit(sequences)
    users = sequences.user_ids.to_pylist()[:7]
    items = recommender.item_vectors()
    vectors = recommender.user_vectors(users)
    scores = vectors["vector"].to_numpy() @ items["vector"].to_numpy().T
    recommended = recommender.recommend(users, k=len(items), hide_seen=False)
    assert items["item_id"].to_list() == sequences.item_ids.to_pylist()
    assert vectors["user_id"].to_list() == users
    row_of = {item: row for row, item in enumerate(items["item_id"])}
    for user, item, score, _ in recommended.iter_rows():
        assert score == pytest.approx(scores[users.index(user), row_of[item]], abs=1e-4)


def test_vectors_of_histories_and_of_everybody(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()
    everybody = tiny.recommender.user_vectors()
    width = tiny.recommender.item_vectors()["vector"].to_numpy().shape[1]
    assert everybody.schema == {"user_id": pl.String, "vector": pl.Array(pl.Float32, width)}
    monkeypatch.setattr("recblr.vectors.block_size", lambda catalogue, length: 7)
    assert everybody["user_id"].to_list() == users
    histories = [history_of(tiny.frame, user) for user in users]
    by_history = tiny.recommender.user_vectors(histories=histories)
    assert by_history["user_id"].to_list() == list(range(len(users)))
    np.testing.assert_allclose(
        by_history["vector"].to_numpy(), everybody["vector"].to_numpy(), atol=1e-5
    )
    assert tiny.recommender.user_vectors([]).is_empty()
    for wrong, message in (
        ({"users": ["?"]}, r"user '\?' is not in the log"),
        ({"histories": [["?"]]}, "history 0 has no item that the model knows"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.recommender.user_vectors(**wrong)


def test_the_command(run: Run, tiny: Tiny) -> None:
    data, items = tiny.recommender.data, tiny.recommender.item_vectors()
    users = tiny.recommender.user_vectors()
    result = run("vectors", tiny.artifact, "-o", "out")
    width = items["vector"].to_numpy().shape[1]
    assert (
        result.out
        == f"vectors of {len(items)} items and {len(users)} users, {width} numbers each, in out\n"
    )
    assert pl.read_parquet("out/items.parquet").equals(items)
    written = pl.read_parquet("out/users.parquet")
    assert written["user_id"].equals(users["user_id"])
    about = answer(
        run("vectors", tiny.artifact, "-o", "out", "--format", "numpy", "--overwrite", "--json")
    )
    assert about == json.loads(Path("out/vectors.json").read_text())
    assert about["users"] == [len(users), width]
    for name, ids, frame in (("item", data.item_ids, items), ("user", data.user_ids, users)):
        assert np.load(f"out/{name}_ids.npy").tolist() == ids.to_pylist()
        np.testing.assert_allclose(
            np.load(f"out/{name}s.npy"), frame["vector"].to_numpy(), atol=1e-5
        )
    for arguments, message in (
        (["-o", "out"], "out exists already"),
        (["-o", "new", "--format", "x"], "format = 'x': choose one of parquet, numpy"),
    ):
        result = run("vectors", tiny.artifact, *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err
    assert not Path("new").exists()
