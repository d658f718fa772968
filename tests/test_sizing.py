"""Settings by the size of a log."""

import json
import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from conftest import TINY_TRAINING, Tiny
from recblr.config import build
from recblr.data.kinds import Kinds
from recblr.data.sequences import Sequences
from recblr.data.split import leave_one_out
from recblr.models import MODELS, find_model
from recblr.recommender import Recommender
from recblr.sizing import by_size
from recblr.training.config import TrainConfig


def random_log(users: int, items: int, length: int, repeats: bool = False) -> Sequences:
    rng = np.random.default_rng(0)
    draw = (
        (lambda: rng.integers(0, items, length))
        if repeats
        else (lambda: rng.permutation(items)[:length])
    )
    offsets = np.arange(users + 1) * length
    ids = (pa.array(range(users)), pa.array(range(items)))
    events = np.concatenate([draw() for _ in range(users)]).astype(np.int32)
    return Sequences(events, offsets, *ids, leave_one_out(offsets), 1)


def test_a_sparse_log_gets_more_regularisation() -> None:
    settings = by_size(random_log(50, 100, 9), "recblr", {})
    assert settings["model"] == {"dim": 64, "dropout": 0.5}
    assert settings["train"]["label_smoothing"] == 0.1
    assert not settings["train"]["mask_seen_in_loss"]
    assert settings["train"]["max_length"] == 50


def test_a_dense_log_gets_a_wider_model() -> None:
    settings = by_size(random_log(400, 120, 110), "recblr", {})
    assert settings["model"] == {"dim": 128, "dropout": 0.25}
    assert settings["train"]["label_smoothing"] == 0
    assert settings["train"]["mask_seen_in_loss"]
    assert settings["train"]["max_length"] == 150


def test_a_log_between_leaves_out_seen_items_instead_of_smoothing() -> None:
    def loss(data: Sequences, memory: bool = True, **train: object) -> tuple[object, object]:
        chosen = by_size(data, "recblr", {"train": train}, memory)["train"]
        return chosen["mask_seen_in_loss"], chosen["label_smoothing"]

    data = random_log(300, 100, 19)  # 51 events an item
    assert by_size(data, "recblr", {})["model"] == {"dim": 64, "dropout": 0.4}
    assert loss(data) == (True, 0)
    assert loss(data, memory=False) == (False, 0.1)
    assert loss(data, mask_seen_in_loss=False) == (False, 0.1)
    assert loss(data, label_smoothing=0.2) == (False, 0.2)
    assert loss(random_log(300, 100, 19, repeats=True)) == (False, 0.1)
    assert loss(random_log(300, 100, 14)) == (False, 0.1)  # 36 events an item


def test_a_log_with_repeats_keeps_them_in_the_loss() -> None:
    assert not by_size(random_log(400, 120, 110, repeats=True), "recblr", {})["train"][
        "mask_seen_in_loss"
    ]


def test_without_a_memory_seen_items_stay_in_the_loss() -> None:
    data = random_log(400, 120, 110)
    assert by_size(data, "recblr", {}, memory=True)["train"]["mask_seen_in_loss"]
    assert not by_size(data, "recblr", {}, memory=False)["train"]["mask_seen_in_loss"]


def test_only_of_a_sparse_log_beside_a_memory_later_items_are_predicted() -> None:
    for dense in (random_log(400, 120, 110), random_log(300, 100, 10)):  # 360 and 24 events an item
        assert by_size(dense, "recblr", {})["train"]["horizon"] == 1
    data = random_log(50, 100, 9)
    assert by_size(data, "recblr", {}, memory=True)["train"]["horizon"] == 8
    assert by_size(data, "recblr", {}, memory=False)["train"]["horizon"] == 1
    assert by_size(data, "bert4rec", {})["train"]["horizon"] == 1
    kinds = Kinds(np.ones(len(data.items), np.uint8), ("view",))
    assert by_size(replace(data, kinds=kinds), "recblr", {})["train"]["horizon"] == 1


def test_items_start_from_the_transitions_of_a_log_that_is_not_dense() -> None:
    def init(name: str, data: Sequences) -> object:
        return by_size(data, name, {})["train"]["item_init"]

    for data in (random_log(50, 100, 9), random_log(300, 100, 19)):
        assert init("recblr", data) == "transitions"
        assert init("fpmc", data) == "random"
    assert init("recblr", random_log(400, 120, 110)) == "random"


def test_a_small_log_gets_more_epochs() -> None:
    def epochs(users: int, **train: int) -> object:
        return by_size(random_log(users, 2000, 102), "recblr", {"train": train})["train"]["epochs"]

    assert epochs(600) == 60  # no more
    assert epochs(900) == 46  # 90,000 training events: 88 updates an epoch
    assert epochs(1600) == 52  # 80 events an item: batches of 2,048
    assert epochs(3000) == 30
    assert epochs(900, batch_size=1500) == 60  # 60 updates an epoch
    assert epochs(900, epochs=7) == 7


def test_dropout_decreases_with_density() -> None:
    dropouts = [
        by_size(random_log(users, 100, 50), "recblr", {})["model"]["dropout"]
        for users in (30, 100, 200, 300, 500)
    ]
    assert dropouts == sorted(dropouts, reverse=True)
    assert len(set(dropouts)) == 5


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(
    "data", [random_log(50, 100, 9), random_log(400, 120, 110)], ids=["sparse", "dense"]
)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"loss": "paper"},
        {"label_smoothing": 0.2},
        {"mask_seen_in_loss": True},
        {"horizon": 3},
        {"batch_size": 7},
    ],
    ids=str,
)
def test_settings_are_valid_for_every_model_and_given_ones_stay(
    model: str, data: Sequences, given: dict[str, object]
) -> None:
    settings = by_size(data, model, {"train": given})
    build(find_model(model)[1], settings["model"], "model")
    build(TrainConfig, settings["train"], "train")
    assert given.items() <= settings["train"].items()
    assert json.loads(json.dumps(settings)) == settings  # plain values


def test_a_recommender_chooses_the_settings_not_given(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recblr")
    given = {"train": {"epochs": 1}, "model": {"dim": 8}}
    recommender = Recommender.configured("recblr", given, by_size=True).fit(tiny.log)
    sized = by_size(recommender.data, "recblr", given)
    assert recommender.settings["model"].items() >= sized["model"].items()
    assert recommender.settings["train"].items() >= sized["train"].items()
    assert (recommender.training.epochs, recommender.config.dim) == (1, 8)
    message, *_ = [r.getMessage() for r in caplog.records if "size of the log" in r.getMessage()]
    assert "model.dropout = " in message
    assert "model.dim" not in message


def test_a_recommender_keeps_the_settings_given(tiny: Tiny) -> None:
    recommender = Recommender("recblr", training=TINY_TRAINING).fit(tiny.log)
    assert recommender.training == TINY_TRAINING
    assert recommender.config.dropout == by_size(recommender.data, "recblr", {})["model"]["dropout"]
    assert Recommender.configured("recblr", {}).training == TrainConfig()
