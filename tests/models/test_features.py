"""Kinds and gaps of events as inputs of the models, and recommendations for a kind."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from conftest import TINY_MODEL, TINY_TRAINING, assert_same_tensors
from data.test_kinds import shop
from recblr.data.batches import PackedBatch, pack, sequence_padding
from recblr.data.features import FeatureSet
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.errors import InputError
from recblr.export import export
from recblr.influence import influence
from recblr.models import MODELS, create_model
from recblr.models.fused_step import FusedStep
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.recommender import Recommender, load
from recblr.training.examples import asked_kinds

ITEMS = 23
READ = FeatureSet(kinds=3, gaps=True)
READERS = [name for name, (model, _) in MODELS.items() if model.embeds_events]
TRAINING = replace(TINY_TRAINING, gaps=True, epochs=25, patience=25, batch_size=64)


@torch.no_grad()
def perturbed(name: str, read: FeatureSet = READ) -> Any:
    """A model with weights large enough that every part of it affects the result."""
    torch.manual_seed(0)
    sizes = {"items": ITEMS, "users": 1, "max_length": 64}
    model = create_model(name, MODELS[name][1](dim=16), **sizes, feature_set=read)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    assert model.feature_embedding is not None
    if read.kinds:
        model.feature_embedding.scale[0], model.feature_embedding.shift[0] = 0, 0
    return model.eval()


def events(lengths: tuple[int, ...] = (5, 1, 12, 2)) -> PackedBatch:
    items = torch.randint(ITEMS, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    gaps = np.exp(rng.normal(5, 9, len(items)))
    features = torch.from_numpy(READ.encode(rng.integers(4, size=len(items)), gaps)).long()
    offsets, every = torch.tensor([0, *lengths]).cumsum(0), torch.arange(len(items))
    return PackedBatch(items, offsets, every, items, features=features)


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_features_are_added_to_the_vectors_of_items(name: str) -> None:
    model, batch = perturbed(name), events()
    hidden, features = model.hidden(batch), batch.features
    assert features is not None
    plain = copy.deepcopy(model)  # whose items are the events
    table = model.feature_embedding.embedding
    vectors = model.embedding.weight[batch.items] + table[features[:, 0]] + table[features[:, 1]]
    plain.embedding.weight, plain.feature_embedding = nn.Parameter(vectors), None
    same = replace(batch, items=torch.arange(len(vectors)), features=None)
    torch.testing.assert_close(hidden, plain.hidden(same), rtol=0, atol=1e-5)
    unknown = torch.tensor(READ.unknown.tolist()).expand(len(vectors), -1)
    nothing = model.hidden(replace(batch, features=None))
    assert nothing.equal(model.hidden(replace(batch, features=unknown)))
    assert (nothing - hidden).abs().max() > 0.01
    asked = torch.tensor([0, 3, 1, 0])
    answers, effect = model.history_vectors(replace(batch, asked=asked)), model.feature_embedding
    for answer, vector, kind in zip(answers, hidden[batch.offsets[1:] - 1], asked, strict=True):
        expected = vector * (1 + effect.scale[kind]) + effect.shift[kind]
        torch.testing.assert_close(answer, expected if kind else vector)
    if issubclass(MODELS[name][0], RecurrentModel):
        padded = sequence_padding(batch)
        torch.testing.assert_close(model.hidden(padded), hidden, rtol=0, atol=1e-5)
        assert_steps_give(hidden, model, batch)


def assert_steps_give(hidden: Tensor, model: Any, batch: PackedBatch) -> None:
    assert batch.features is not None
    fused = [FusedStep(model).step] if isinstance(model, RecBLR) else []
    for step in (model.step, *fused):
        state = model.initial_state(1)
        for row in range(12):
            at = slice(6 + row, 7 + row)  # the third history
            vector, state = step(batch.items[at], state, batch.features[at])
            torch.testing.assert_close(vector[0], hidden[6 + row], rtol=0, atol=1e-5)
        many = torch.arange(70) % len(batch.items)  # more than fit into one call
        states = state.expand(70, *state.shape[1:]).contiguous()
        together, _ = step(batch.items[many], states, batch.features[many])
        alone, _ = model.step(batch.items[:1], state, batch.features[:1])
        torch.testing.assert_close(together[::20], alone.expand(4, -1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_influence_explains_the_score_with_features() -> None:
    model, batch = perturbed("recblr"), events((9,))
    found = influence(model, batch.items, 3, features=batch.features)
    score = model.hidden(batch)[-1] @ model.item_embeddings[3]
    assert float(found.score.sum()) + found.rest == pytest.approx(float(score), abs=1e-4)
    assert float(found.first_layer.sum()) == pytest.approx(1, abs=1e-4)


def test_half_of_the_targets_are_asked_for_their_kind() -> None:
    data = prepare(read_log(shop(4000)))
    first, again, other = (asked_kinds(data, 0, epoch) for epoch in (1, 1, 2))
    assert data.kinds is not None
    assert first is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    kept = (first == data.kinds.codes) & (data.kinds.codes > 0)
    assert ((first == 0) | kept).all()
    assert kept.sum() / (data.kinds.codes > 0).sum() == pytest.approx(0.5, abs=0.05)
    batch = pack(data.items, np.array([0]), np.array([9]), "last")
    assert batch.features is batch.asked is None


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """A model that was interrupted after an epoch, and resumed."""
    out = tmp_path_factory.mktemp("kinds") / "model"

    def stop(_: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Recommender(config=TINY_MODEL, training=TRAINING).fit(shop(), out=out, on_epoch=stop)
    return Recommender(config=TINY_MODEL, training=TRAINING).fit(shop(), out=out, resume=True)


def share_of(number: int, model: Recommender, **asked: Any) -> float:
    """The share of recommended items whose events have a kind, by its number in NAMES."""
    users = list(range(20))
    found = model.recommend(users=users, k=3, hide_seen=False, **asked)
    return float((found["item_id"] % 4 == number).mean())


def test_a_model_recommends_for_the_kind_that_is_asked_for(
    fitted: Recommender, tmp_path: Path
) -> None:
    whole = Recommender(config=TINY_MODEL, training=TRAINING).fit(shop())
    assert_same_tensors(whole.network.state_dict(), fitted.network.state_dict())
    for number, kind in enumerate(("view", None, "cart", "purchase")):
        if kind is not None:
            assert share_of(number, fitted, kind=kind) > 0.55 > share_of(number, fitted) + 0.2
    with pytest.raises(InputError, match="knows no kind 'buy'; there are cart, purchase, view"):
        fitted.recommend(users=[1], kind="buy")
    with pytest.warns(UserWarning, match="a list of items does not have"):
        fitted.recommend(histories=[[1, 2]])
    fitted.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    asked = {"users": [3, 5], "k": 5, "kind": "cart"}
    assert loaded.recommend(**asked).equals(fitted.recommend(**asked))
    loaded.recommend_all(tmp_path / "all.parquet", 5, kind="cart")
    everyone = pl.read_parquet(tmp_path / "all.parquet")
    assert everyone.filter(pl.col("user_id").is_in([3, 5])).sort("user_id", "rank").equals(
        fitted.recommend(**asked)
    )  # fmt: skip
    own, (asked_for, _) = fitted.evaluate()[0], fitted.evaluate(kind="purchase")
    assert own.slices["kind purchase"]["users"] == len(asked_for.users) < len(own.users)
    assert asked_for.metrics["NDCG@10"] > own.slices["kind purchase"]["NDCG@10"]
    assert asked_for.protocol.part == "test, kind purchase"
    assert fitted.measured[0]["protocol"]["part"] == "test"
    with pytest.raises(InputError, match="which an export does not hold"):
        export(tmp_path / "model", tmp_path / "onnx")


def test_a_horizon_needs_a_log_without_kinds() -> None:
    training = replace(TRAINING, horizon=2, epochs=1)
    with pytest.raises(InputError, match=r"train\.horizon does not work with kinds of events"):
        Recommender(config=TINY_MODEL, training=training).fit(shop())
    Recommender(config=TINY_MODEL, training=training).fit(shop(), columns={"kind": None})


def test_new_kinds_grow_the_model(fitted: Recommender, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    updated = load(tmp_path / "model").refit()
    frame = shop(300, seed=1).with_columns(
        kind=pl.when(pl.col("item_id") % 4 == 1).then(pl.lit("return")).otherwise("kind")
    )
    added = load(tmp_path / "model")
    added.update(frame, memory_only=True)
    assert added.data.kind_names == ("cart", "purchase", "view", "return")
    for kind in ("view", "return", None):  # a new kind starts as any kind
        known = None if kind == "return" else kind
        scores = [
            model.network.score(batch_of(model, kind_asked))
            for model, kind_asked in ((added, kind), (fitted, known))
        ]
        torch.testing.assert_close(*scores)
    updated.update(frame)
    assert share_of(1, updated, kind="return") > 0.6
    assert share_of(2, updated, kind="cart") > 0.6


def batch_of(model: Recommender, kind: str | None) -> PackedBatch:
    """Three histories of the log of the fixture, asked for a kind."""
    data = prepare(read_log(shop())).with_gaps()
    starts, stops = data.offsets[:3], data.offsets[1:4]
    batch = pack(data.items, starts, stops - 1, "none")
    names = model.data.kind_names
    asked = torch.full((3,), names.index(kind) + 1) if kind else None
    return replace(batch, asked=asked)
