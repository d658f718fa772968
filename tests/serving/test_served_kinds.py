"""Kinds of events and gaps between them in the states of users, and recommendations for a kind."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY_MODEL, TINY_TRAINING
from data.test_kinds import shop
from recblr.data.batches import PackedBatch
from recblr.data.log import read_log
from recblr.errors import InputError
from recblr.recommender import Recommender, load
from recblr.serving.engine import Engine
from recblr.serving.maintenance import backup, export, restore
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.replay import replay, verify
from recblr.serving.requests import RankedItems
from recblr.serving.storage import Event
from serving.fixtures import ALL_ITEMS, OpenSite, Store, in_float64, send

KINDS = ("", "view", "cart", "purchase", "another")
NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads kinds and gaps."""
    out = tmp_path_factory.mktemp("models") / "kinds"
    training = replace(TINY_TRAINING, gaps=True, epochs=25, patience=25, batch_size=64)
    Recommender(config=TINY_MODEL, training=training).fit(shop(), out=out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return ServedModel(folder)


def some_events(user: str, count: int, seed: int) -> list[Event]:
    """Events at increasing, sometimes equal times; the model does not know some items and a kind."""
    draw, time, events = random.Random(seed), NOW, []
    for number in range(count):
        time += draw.choice((0, 1, 7.25, 3600, 5e5))
        item = str(draw.randrange(14))  # of 12
        events.append(Event(f"{user}{number:04}", user, item, time, draw.choice(KINDS)))
    return events


def assert_state_of(
    ranked: RankedItems, events: list[Event], model: ServedModel, code: int
) -> None:
    """``ranked`` has the scores of one pass of the network over all events, computed without the code
    of the server."""
    events = sorted(events, key=lambda event: event.key)
    rows, features, before = [], [], None
    names = [*load_names(model)]
    for event in events:
        gap = 0
        if before is not None:
            gap = 1 + int(np.rint(event.timestamp - before)).bit_length()
        before = event.timestamp
        if int(event.item_id) < 12:
            rows.append([str(name) for name in model.item_ids].index(event.item_id))
            known = event.kind in names
            features.append([min(gap, 31), 32 + (names.index(event.kind) + 1 if known else 0)])
    network, items = in_float64(model.network), torch.tensor(rows)
    empty, offsets = items[:0], torch.tensor([0, len(rows)])
    seen = torch.stack([torch.zeros_like(items), items])
    batch = PackedBatch(
        items, offsets, empty, empty, seen, features=torch.tensor(features),
        asked=torch.tensor([code]),
    )  # fmt: skip
    scores = network.score(batch)
    assert model.memory is not None
    scores = model.memory.add_to(scores, batch)[0].numpy()
    np.testing.assert_allclose(ranked.scores, scores[ranked.rows], atol=1e-4)
    assert len(ranked.rows) == 12


def load_names(model: ServedModel) -> tuple[str, ...]:
    assert model.kind_names == ("cart", "purchase", "view")
    return model.kind_names


def test_states_read_kinds_and_gaps(
    model: ServedModel, folder: Path, store: Store, tmp_path: Path
) -> None:
    """With late, repeated and removed events, restarts, rebuilt states, backups and replays."""
    draw, engine = random.Random(0), store.engine(model)
    events = {user: some_events(user, count, count) for user, count in (("u", 300), ("v", 9))}
    sent = [event for several in events.values() for event in several]
    sent.sort(key=lambda event: event.timestamp + draw.choice((0, 0, 0, 3e6)))
    for start in range(0, len(sent), 23):
        batch = sent[start : start + 23]
        assert set(send(engine, batch, "default")) == {"accepted"}
    assert send(engine, sent[:3], "default") == ["duplicate"] * 3
    other = sent[0]._replace(kind="" if sent[0].kind else "view")
    assert send(engine, [other], "default") == ["rejected"], "of another kind"
    for user, count in (("u", 200), ("v", 8)):
        removed = events[user].pop(count)
        assert engine.remove("default", removed.event_id).result(60)

    def assert_states() -> None:
        for user, its in events.items():
            for code, kind in enumerate(("", *model.kind_names)):
                query = replace(ALL_ITEMS, kind=kind)
                ranked = engine.recommend(("default", user), query).result(60)
                assert_state_of(ranked, its, model, code)

    assert_states()
    engine.close()
    assert verify(folder, store.name)["equal"]
    engine = store.engine(model)
    assert_states()
    history = engine.describe(("default", "v"), 9).result(60).events
    assert [kind for *_, kind in history] == [event.kind for event in events["v"]]
    with pytest.raises(InputError, match="knows no kind 'another'; there are cart, purchase, view"):
        engine.recommend(("default", "u"), replace(ALL_ITEMS, kind="another")).result(60)
    for user, its in events.items():  # and goes on
        its.append(Event(f"{user} last", user, "3", its[-1].timestamp + 5, "cart"))
        assert send(engine, its[-1:], "default") == ["accepted"]
    assert_states()
    engine.close()
    backup(store.name, tmp_path / "copy.sqlite")
    restored = str(tmp_path / "restored.sqlite")
    restore(tmp_path / "copy.sqlite", restored)
    assert export(restored, tmp_path / "log.parquet", "default")["events"] == 309
    replayed = str(tmp_path / "replayed.sqlite")
    with pytest.warns(UserWarning, match="2 items are not in the log of the model"):
        assert replay(folder, replayed, str(tmp_path / "log.parquet"))["added"] == 309
    for name in (restored, replayed):
        assert verify(folder, name)["equal"]
        engine = Engine(*open_storage(name, None), model)
        assert_states()
        engine.close()


def test_an_update_reads_the_kinds_of_an_export(folder: Path, file: Store, tmp_path: Path) -> None:
    log, out = file.log(), tmp_path / "log.parquet"
    log.add([("default", event) for event in some_events("7", 60, 1)])
    log.close()
    export(file.name, out)
    frame = read_log(out)
    assert frame.kinds is not None
    assert frame.kind_texts() == [event.kind for event in some_events("7", 60, 1)]
    updated = load(folder)
    added = updated.update(out, memory_only=True)
    assert (added.events, updated.data.kind_names[-1]) == (60, "another")


def test_http_takes_kinds(model: ServedModel, a: ServedModel, open_site: OpenSite) -> None:
    site = open_site(model=model)
    event: dict[str, Any] = {"event_id": "e", "user_id": "u", "item_id": 1, "timestamp": NOW}
    assert site.client.post("/v1/events", json={**event, "kind": "cart"}).status_code == 200
    assert site.client.post("/v1/events", json={**event, "kind": "view"}).status_code == 409
    assert site.client.post("/v1/events", json={**event, "kind": ""}).status_code == 422
    path = "/v1/users/u/recommendations"
    answers = {
        kind: site.client.get(path, params={"kind": kind}).json()["items"]
        for kind in ("", "purchase")
    }
    assert answers[""] != answers["purchase"]
    body = {"user_id": "u", "kind": "purchase"}
    assert site.client.post("/v1/recommend", json=body).json()["items"] == answers["purchase"]
    history = {"history": ["1"], "kind": "purchase"}
    assert site.client.post("/v1/recommend", json=history).status_code == 200
    batch = {"events": [{**event, "event_id": "f"}], "recommend": {"kind": "purchase"}}
    assert site.client.post("/v1/events", json=batch).json()["recommendations"]["items"]
    batch = {"events": [{**event, "event_id": "g"}], "recommend": {"kind": "buy"}}
    for answer in (
        site.client.get(path, params={"kind": "buy"}),
        site.client.post("/v1/recommend", json={"user_id": "u", "kind": "buy"}),
        site.client.post("/v1/events", json=batch),
    ):
        assert answer.status_code == 422
        assert "knows no kind 'buy'" in answer.json()["error"]
    described = site.client.get("/v1/users/u", params={"history": 9}).json()
    assert [each.get("kind") for each in described["history"]] == [None, "cart"], "no event g"
    influence = site.client.get("/v1/users/u/influence", params={"item_id": "3"}).json()
    assert len(influence["events"]) == 2


def test_a_model_without_kinds_stores_them(a: ServedModel, engine: Engine) -> None:
    item = str(a.item_ids[0])
    assert send(engine, [Event("e", "u", item, 1.0), Event("f", "v", item, 1.0, "view")]) == [
        "accepted", "accepted",
    ]  # fmt: skip
    plain, kind = (engine.recommend(("t", user), ALL_ITEMS).result(60) for user in "uv")
    assert np.array_equal(plain.scores, kind.scores)
    assert engine.describe(("t", "v"), 1).result(60).events[0][3] == "view"
    with pytest.raises(InputError, match="trained on a log without kinds; leave kind out"):
        engine.recommend(("t", "u"), replace(ALL_ITEMS, kind="view")).result(60)
