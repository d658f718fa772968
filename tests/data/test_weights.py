"""Weights of events, from the file to the artifact."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recblr
from conftest import TINY_MODEL, TINY_TRAINING
from recblr.data import open_log
from recblr.data.columns import parse_columns
from recblr.data.log import read_log
from recblr.data.merge import add_events
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.recommender import Recommender


def weighted(events: int = 400, seed: int = 0) -> pl.DataFrame:
    """A log whose event of item n has the weight n + 0.5."""
    rng = np.random.default_rng(seed)
    items = rng.integers(12, size=events)
    return pl.DataFrame({
        "user_id": rng.integers(30, size=events), "item_id": items,
        "timestamp": 1_000_000_000 + rng.permutation(events) + 1000 * seed, "weight": items + 0.5,
    })  # fmt: skip


def assert_own_weights(data: Sequences) -> None:
    assert data.weights is not None
    assert data.weights.dtype == np.float32
    ids = np.array(data.item_ids.to_pylist())
    assert np.array_equal(data.weights, ids[data.items] + np.float32(0.5))


def test_an_event_keeps_its_weight(tmp_path: Path) -> None:
    frame = weighted()
    for split in ("leave-one-out", "time"):
        data = prepare(read_log(frame), 5, split)
        assert_own_weights(data)
    data.save(tmp_path / "prepared")
    loaded = Sequences.load(tmp_path / "prepared")
    assert_own_weights(loaded)
    assert loaded.fingerprint == data.fingerprint
    assert loaded.fingerprint != prepare(read_log(frame.drop("weight")), 5, "time").fingerprint
    weights = np.load(tmp_path / "prepared" / "weights.npy")
    weights[3] += 1
    np.save(tmp_path / "prepared" / "weights.npy", weights)
    with pytest.raises(InputError, match="damaged: its fingerprint differs"):
        Sequences.load(tmp_path / "prepared")
    longer, added = add_events(data, read_log(pl.concat([frame[:50], weighted(90, seed=1)])))
    assert added.events >= 90
    assert_own_weights(longer)
    fewer = data.with_items(data.item_ids[2:9], "test")
    assert fewer.weights is not None
    assert len(fewer.weights) == len(fewer.items) < len(data.items)


def test_orders_and_lists_keep_weights(tmp_path: Path) -> None:
    frame = weighted().sort("timestamp")
    placed = frame.select(
        "user_id", "item_id", "weight", order=pl.int_range(pl.len()).over("user_id")
    ).sample(fraction=1, shuffle=True, seed=0)
    assert_own_weights(prepare(read_log(placed)))
    lists = frame.group_by("user_id", maintain_order=True).agg("item_id", "timestamp", "weight")
    lists.write_ndjson(tmp_path / "lists.jsonl")
    assert_own_weights(prepare(read_log(tmp_path / "lists.jsonl")))
    with pytest.raises(InputError, match=r"row 1: found 1 weights for \d+ items|row 1, "):
        read_log(lists.with_columns(weight=pl.lit([1.0])))


@pytest.mark.parametrize(("weight", "problem"), [
    ("0", r"found the weight 0.*; write a positive, finite number"),
    ("-1.5", r"found the weight -1\.5"),
    ("nan", "found the weight nan"),
    ("1e60", r"found the weight 1e"),
    ("many", "found 'many'; write a positive number"),
    ("", "found ''; write a positive number"),
])  # fmt: skip
def test_a_wrong_weight_is_named_with_its_line(weight: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,weight\na,b,1\na,c,{weight}\n")
    with pytest.raises(InputError, match=rf"log\.csv: line 3, column 'weight': {problem}"):
        read_log(path)


def test_a_column_of_weights_can_be_mapped_and_left_out(tmp_path: Path) -> None:
    frame = weighted().rename({"weight": "stars"})
    assert open_log(frame).weights is None
    assert_own_weights(open_log(frame, columns={"weight": "stars"}))
    assert open_log(weighted(), columns=parse_columns("weight=")).weights is None
    data = open_log(weighted())
    with pytest.warns(
        match="has no weights, but the log of the model has; the new events get their mean"
    ):
        longer, _ = add_events(data, read_log(weighted(90, seed=1).drop("weight")))
    assert data.weights is not None
    assert longer.weights is not None
    assert np.isclose(longer.weights, data.weights.mean()).sum() == 90
    with pytest.raises(InputError, match=r"has weights, but the log of the model has none; leave"):
        add_events(open_log(frame), read_log(weighted(seed=1)))


def test_a_model_trains_by_weights_and_keeps_them(tmp_path: Path) -> None:
    frame = weighted()
    fit = {
        name: Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(log).network.state_dict()
        for name, log in {
            "none": frame.drop("weight"), "equal": frame.with_columns(weight=pl.lit(7)),
            "by item": frame,
        }.items()
    }  # fmt: skip
    for name, tensor in fit["none"].items():
        assert tensor.allclose(fit["equal"][name], atol=1e-4)
    assert not fit["none"]["embedding.weight"].allclose(
        fit["by item"]["embedding.weight"], atol=1e-3
    )
    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(frame)
    recommender.save(tmp_path / "model")
    loaded = recblr.load(tmp_path / "model")
    assert_own_weights(loaded.data)
    loaded.refit()
    loaded.update(weighted(60, seed=1))
    assert_own_weights(loaded.data)
    with pytest.raises(InputError, match="predicts masked items and cannot weight events"):
        Recommender("bert4rec", training=TINY_TRAINING).fit(frame)
