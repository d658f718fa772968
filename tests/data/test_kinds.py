"""Kinds of events, and the gaps between them, from the file to the model and the artifact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from conftest import TINY_MODEL, TINY_TRAINING
from recblr.data import open_log, open_with_items
from recblr.data.columns import parse_columns
from recblr.data.features import GAPS, FeatureSet, gap_classes
from recblr.data.kinds import KindColumn
from recblr.data.large import prepare_large
from recblr.data.log import Interactions, read_log
from recblr.data.merge import add_events
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.recommender import Recommender

NAMES = ["view", None, "cart", "purchase"]


def shop(events: int = 400, seed: int = 0) -> pl.DataFrame:
    """A log whose event of item n has the kind n % 4 of NAMES."""
    rng = np.random.default_rng(seed)
    items = rng.integers(12, size=events)
    return pl.DataFrame({
        "user_id": rng.integers(30, size=events), "item_id": items,
        "timestamp": 1_000_000_000 + 100 * rng.permutation(events) + 1000 * seed,
        "kind": [NAMES[item % 4] for item in items],
    })  # fmt: skip


def assert_own_kinds(data: Sequences | Interactions) -> None:
    assert data.kinds is not None
    assert data.kinds.codes.dtype == np.uint8
    names = [None, *data.kinds.names]
    ids = data.item_ids.to_pylist()
    found = [names[code] for code in data.kinds.codes]
    assert found == [NAMES[int(ids[item]) % 4] for item in data.items]


def test_an_event_keeps_its_kind(tmp_path: Path) -> None:
    frame = shop()
    log = read_log(frame)
    assert log.kinds is not None
    assert log.kinds.names == ("cart", "purchase", "view"), "sorted"
    assert log.to_polars().select(frame.columns).equals(frame)
    frame.write_csv(tmp_path / "log.csv")  # null is an empty field
    lists = frame.sort("timestamp").group_by("user_id", maintain_order=True)
    lists.agg("item_id", "timestamp", "kind").write_ndjson(tmp_path / "lists.jsonl")
    placed = frame.sort("timestamp").select(
        "user_id", "item_id", "kind", order=pl.int_range(pl.len()).over("user_id")
    ).sample(fraction=1, shuffle=True, seed=0)  # fmt: skip
    sources: list[Any] = [
        tmp_path / "log.csv", tmp_path / "lists.jsonl", placed,
        frame.with_columns(pl.col("kind").cast(pl.Categorical)),
    ]  # fmt: skip
    for source in sources:
        assert_own_kinds(read_log(source))
    for split in ("leave-one-out", "time"):
        data = prepare(log, 5, split)
        assert_own_kinds(data)
    data.save(tmp_path / "prepared")
    loaded = Sequences.load(tmp_path / "prepared")
    assert_own_kinds(loaded)
    plain = prepare(read_log(frame.drop("kind")), 5, "time")
    assert loaded.fingerprint == data.fingerprint != plain.fingerprint
    named = replace(data, kinds=replace(data.kinds, names=("cart", "purchase", "visit")))
    assert named.fingerprint != data.fingerprint
    assert_own_kinds(data.with_items(data.item_ids.take(pa.array(range(11, -1, -1))), "test"))


def test_logs_with_other_kinds_are_joined() -> None:
    data = prepare(read_log(shop().filter(pl.col("kind") != "purchase")))
    assert data.kinds is not None
    longer, added = add_events(data, read_log(shop(90, seed=1)))
    assert_own_kinds(longer)
    assert longer.kinds is not None
    assert added.events == 90
    assert longer.kinds.names == (*data.kinds.names, "purchase"), "known kinds keep their codes"
    with pytest.warns(UserWarning, match="has no kinds, but the log of the model has"):
        longer, _ = add_events(data, read_log(shop(90, seed=1).drop("kind")))
    assert longer.kinds is not None
    assert (longer.kinds.codes == 0).sum() == 90
    plain = prepare(read_log(shop().drop("kind")))
    with pytest.raises(InputError, match="has kinds, but the log of the model has none"):
        add_events(plain, read_log(shop(90, seed=1)))
    views = prepare(read_log(shop().with_columns(kind=pl.lit("view"))))
    with pytest.warns(UserWarning, match="does not know the kinds cart, purchase; it reads"):
        other = open_with_items(shop(90, seed=1), views, "test")
    assert other.kinds is not None
    assert other.kinds.names == ("view",)
    assert open_with_items(shop(90, seed=1), plain, "test").kinds is None


def test_wrong_kinds_are_located(tmp_path: Path) -> None:
    rows = {"user_id": ["a"] * 300, "item_id": ["x"] * 300}
    for kinds, message in (
        (list(map(str, range(300))), "<frame>: row 256, .*'255' is one more than the 255 kinds"),
        ([1.5] * 300, "row 1, .*kinds of type double; write text or whole numbers"),
        (["view"] * 299 + ["x" * 300], "row 300, .*kind: has more than 256 bytes|row 300"),
    ):
        with pytest.raises(InputError, match=message):
            read_log(pl.DataFrame({**rows, "kind": kinds}))
    numbers = read_log(pl.DataFrame({**rows, "kind": [2] * 150 + [10] * 150})).kinds
    assert numbers is not None
    assert numbers.names == ("10", "2")
    assert read_log(shop(), columns=parse_columns("kind=")).kinds is None
    empty = KindColumn()
    empty.add(pa.array(["", None]))
    assert empty.finish() is None
    shop().write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"on disk cannot have kinds; .*--columns kind="):
        prepare_large(tmp_path / "log.parquet", tmp_path / "out")


def test_gaps_are_classes_of_doubling_seconds() -> None:
    gaps = [np.inf, 0, 0.4, 0.6, 1, 2, 3, 4, 7.4, 7.6, 2.0**20, 2.0**29 - 1, 2.0**60]
    expected = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 22, 30, 31]
    assert gap_classes(np.array(gaps)).tolist() == expected
    assert max(expected) == GAPS - 1
    data = prepare(read_log(shop())).with_gaps()
    assert data.feature_set == FeatureSet(3, gaps=True)
    assert data.feature_set.rows == GAPS + 4
    features, times = data.features, data.times
    assert features is not None
    assert times is not None
    assert data.kinds is not None
    for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        for row in range(start, stop):
            gap = 0 if row == start else int(times[row] - times[row - 1]).bit_length() + 1
            assert features[row].tolist() == [gap, GAPS + data.kinds.codes[row]]
    milliseconds = shop().with_columns(pl.col("timestamp") * 1000)
    again = prepare(read_log(milliseconds)).with_gaps().features
    assert np.array_equal(again, features)
    with pytest.raises(InputError, match="needs times, and the log has none"):
        prepare(read_log(shop().drop("timestamp"))).with_gaps()


def test_a_model_without_such_inputs_refuses_them() -> None:
    for model, inputs in (("fpmc", "kind="), ("bert4rec", "kind="), ("caser", "kind=")):
        with pytest.raises(InputError, match=f"{model} reads only the items of events; .*{inputs}"):
            Recommender(model, training=TINY_TRAINING).fit(shop())
    gaps = replace(TINY_TRAINING, gaps=True)
    with pytest.raises(
        InputError, match=r"fmlprec .*train\.gaps=false, or train one of narm, gru4rec"
    ):
        Recommender("fmlprec", training=replace(gaps, examples="auto")).fit(shop().drop("kind"))
    plain = Recommender(config=TINY_MODEL, training=replace(TINY_TRAINING, epochs=1))
    plain.fit(shop().drop("kind"))
    with pytest.raises(InputError, match="trained on a log without kinds"):
        plain.recommend(users=[1], kind="view")
    assert open_log(shop()).kinds is not None
