"""The repr of every public object is one short line."""

from dataclasses import fields, replace
from typing import Any

import polars as pl
import pytest
import torch

from conftest import Tiny
from recblr.data.batches import PackedBatch
from recblr.data.log import read_log
from recblr.data.simulate import Shop, simulate_shop
from recblr.influence import Influence
from recblr.memory import MemoryConfig
from recblr.models import MODELS, find_model
from recblr.recommender import Recommender
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig

WIDTH = 130


def assert_short(value: object) -> None:
    assert "\n" not in repr(value)
    assert len(repr(value)) <= WIDTH, repr(value)


@pytest.mark.parametrize(
    "kind", [TrainConfig, MemoryConfig, Shop, *(find_model(m)[1] for m in MODELS)]
)
def test_settings(kind: Any) -> None:
    assert_short(kind())
    changed = {f.name: f.default * 2 for f in fields(kind) if type(f.default) is int and f.default}
    assert_short(kind(**changed))


def test_settings_show_what_differs_from_the_defaults() -> None:
    assert repr(TrainConfig()) == "TrainConfig()"
    assert repr(TrainConfig(epochs=2, lr=0.5)) == "TrainConfig(epochs=2, lr=0.5)"
    many = dict.fromkeys(("max_length", "window", "batch_size", "epochs", "seed", "patience"), 7)
    shown = repr(TrainConfig(**many, ema_decay=0.123456, weight_decay=0.0123456))  # type: ignore[arg-type]
    assert shown.endswith(", …)")


def test_what_a_recommender_holds(tiny: Tiny) -> None:
    recommender = tiny.recommender
    assert_short(recommender)
    for name in (
        "data",
        "trained",
        "memory",
        "memory_choice",
        "memory_config",
        "training",
        "config",
    ):
        assert_short(getattr(recommender, name))
    assert_short(recommender.data.split)
    assert_short(Recommender("sasrec"))
    assert repr(Trained()) == "Trained(best epoch 0 of 0, 0 s, not ended)"
    for evaluation in recommender.evaluate():
        for value in (evaluation, evaluation.protocol, evaluation.population):
            assert_short(value)
    summary = {**recommender.data.summary, "source": f"/{'folder/' * 50}{'x' * 100}.csv"}
    assert_short(replace(recommender.data, summary=summary))


def test_logs(tmp_path: Any) -> None:
    frame = pl.DataFrame(
        {"user_id": ["u" * 200], "item_id": ["i" * 200], "timestamp": [1_700_000_000]}
    )
    path = tmp_path / f"{'long' * 20}.csv"
    frame.write_csv(path)
    assert_short(read_log(path))
    simulated = simulate_shop(Shop(users=5))
    assert_short(simulated)
    with pytest.warns(UserWarning, match="not used"):
        strange = read_log(frame.rename({"timestamp": "a_date"}).with_columns(
            pl.col("a_date").alias(f"date_{number}") for number in range(30)))  # fmt: skip
    assert_short(strange)


def test_arrays_are_not_shown() -> None:
    items = torch.arange(10_000)
    batch = PackedBatch(items, torch.tensor([0, 10_000]), items[:0], items[:0])
    assert repr(batch) == "PackedBatch(1 histories, 10,000 events, 0 targets, cpu)"
    assert_short(Influence(items.double(), items.double(), 0.5, items.double(), 1.0))
