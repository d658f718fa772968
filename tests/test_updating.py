"""Refit a recommender on all events, and update it with new ones."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recblr
from conftest import TINY_MODEL, TINY_TRAINING, Tiny, assert_same_tensors
from data.builders import histories
from recblr import memory
from recblr.data.preparing import prepare
from recblr.data.split import leave_one_out
from recblr.errors import InputError
from recblr.models import MODELS
from recblr.presets import for_model
from recblr.recommender import Recommender, load
from recblr.training.start import new_network
from recblr.training.step import learning_rate
from recblr.training.trainer import Trainer
from training.tools import at_call, fresh, interrupt

LOSS = "recblr.training.step.cross_entropy"


@pytest.fixture(scope="module")
def parts(tiny: Tiny) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The log before and after a time. Users and items are first seen in both."""
    frame = tiny.frame.sort("timestamp", maintain_order=True)
    rare = frame["item_id"].value_counts().sort("count", "item_id")["item_id"][:2]
    old = frame[: len(frame) * 3 // 4].filter(~pl.col("item_id").is_in(rare.implode()))
    old = old.filter(~pl.col("user_id").is_in(frame["user_id"].unique().sort()[:5].implode()))
    return old, frame


@pytest.fixture(scope="module")
def fitted(parts: tuple[pl.DataFrame, pl.DataFrame]) -> Recommender:
    return Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(parts[0])


def copied(recommender: Recommender) -> Recommender:
    """A recommender to change; what it holds is replaced, not changed."""
    return copy.copy(recommender)


def entries(fitted_memory: memory.Memory | None) -> tuple[Any, ...]:
    assert fitted_memory is not None
    matrix = fitted_memory.matrix
    return matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()


# ---- refit ---------------------------------------------------------------------------------------


def test_refit_trains_on_all_events_for_the_updates_of_the_best_epoch(
    fitted: Recommender, tmp_path: Path
) -> None:
    refitted = copied(fitted).refit()
    data = fitted.data.all_for_training()
    assert refitted.data.fingerprint == data.fingerprint != fitted.data.fingerprint
    fit, stage = refitted.stages
    assert (fit.kind, fit.data, fit.trained_events) == (
        "fit", fitted.data.fingerprint, fitted.data.training_events
    )  # fmt: skip
    assert (stage.kind, stage.trained_events, stage.events) == ("refit", *[len(data.items)] * 2)
    batches = fitted.data.training_events - np.count_nonzero(np.diff(fitted.data.offsets))
    assert stage.updates == fitted.trained.best_epoch * round(batches / TINY_TRAINING.batch_size)
    counted = memory.fit(data, fitted.memory_config)
    assert entries(refitted.memory) == entries(counted) != entries(fitted.memory)
    assert fitted.memory is not None
    assert refitted.memory is not None
    assert refitted.memory.weight == fitted.memory.weight
    assert_same_tensors(copied(fitted).refit().network.state_dict(), refitted.network.state_dict())
    assert repr(refitted).startswith("Recommender('recblr', ")
    assert "fit, refit; trained on all" in repr(refitted)


def test_refit_starts_from_the_transitions_of_all_events(
    parts: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    training = replace(TINY_TRAINING, item_init="transitions", lr=1e-30)
    refitted = Recommender("recblr", TINY_MODEL, training).fit(parts[0]).refit()
    start = new_network("recblr", TINY_MODEL, training, refitted.data)
    assert torch.equal(start.embedding.weight, refitted.network.embedding.weight)
    fewer = replace(refitted.data, split=leave_one_out(refitted.data.offsets))
    other = new_network("recblr", TINY_MODEL, training, fewer)
    assert not torch.equal(other.embedding.weight, start.embedding.weight)


def test_refit_is_training_from_scratch_by_the_schedule_of_the_fit(fitted: Recommender) -> None:
    refitted, config = copied(fitted).refit(), fitted.training
    data = fitted.data.all_for_training()
    torch.manual_seed(config.seed)
    trainer = Trainer(fresh(data), data, config)
    per_epoch = len(Trainer(fresh(fitted.data), fitted.data, config).spans(0))
    assert len(trainer.spans(0)) > per_epoch, "there are more events, but not more updates"
    done = epoch = 0
    while done < fitted.trained.best_epoch * per_epoch:
        torch.manual_seed(config.seed * 100_003 + epoch)
        trainer.model.train()
        left = fitted.trained.best_epoch * per_epoch - done
        for batch, continues in trainer.batches(trainer.spans(epoch)[:left]):
            lr = learning_rate(config, done // per_epoch, done % per_epoch, per_epoch)
            trainer.step(batch, continues, lr)
            done += 1
        epoch += 1
    assert_same_tensors(trainer.average.state_dict(), refitted.network.state_dict())


def test_a_refitted_model_is_saved_with_its_stages_and_the_metrics_of_before(
    parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    out = tmp_path / "model"
    whole = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(parts[0], out=out, refit=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    loaded = load(out)
    assert loaded.stages == whole.stages
    assert [stage.kind for stage in loaded.stages] == ["fit", "refit"]
    assert loaded.measured[0]["protocol"]["data"] == loaded.stages[0].data
    assert loaded.data.fingerprint == loaded.stages[1].data
    assert_same_tensors(loaded.network.state_dict(), whole.network.state_dict())
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    starts = [number for number, line in enumerate(lines) if line["event"] == "start"]
    assert starts == [0, 4]
    assert lines[4]["updates"] == loaded.stages[1].updates
    with pytest.raises(InputError, match=r"no event .* is held out \(fit, refit; trained on all"):
        loaded.evaluate()
    with pytest.warns(UserWarning, match=f"trained on {whole.measured[0]['protocol']['users']} of"):
        loaded.evaluate(parts[0])
    with pytest.raises(InputError, match="is the result of refit"):
        loaded.refit()


def test_an_interrupted_refit_is_resumed_exactly(
    parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, training = tmp_path / "model", replace(TINY_TRAINING, batch_size=128)

    def start(**options: Any) -> Recommender:
        return Recommender("recblr", TINY_MODEL, training).fit(parts[0], refit=True, **options)

    whole = start()
    updates = whole.stages[1].updates
    assert updates is not None
    with monkeypatch.context() as patch:
        patch.setattr(
            LOSS, at_call(updates // whole.trained.best_epoch * 2 + updates - 1, interrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            start(out=out)
    assert not out.exists()
    start(out=out, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert_same_tensors(load(out).network.state_dict(), whole.network.state_dict())


# ---- update --------------------------------------------------------------------------------------


def test_update_adds_events_users_and_items(
    fitted: Recommender, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, frame = parts
    updated = copied(fitted)
    added = updated.update(frame)
    assert (added.known_events, added.users > 0, added.items) == (len(old), True, 2)
    whole = prepare(recblr.read_log(frame)).all_for_training()
    assert {user: sorted(items) for user, items in histories(updated.data).items()} == {
        user: sorted(items) for user, items in histories(whole).items()
    }
    assert updated.data.item_ids[: -added.items].equals(fitted.data.item_ids)
    assert updated.data.training_events == len(frame)
    assert [stage.kind for stage in updated.stages] == ["fit", "update"]
    assert entries(updated.memory) == entries(memory.fit(updated.data, fitted.memory_config))
    new = updated.data.item_ids[-1].as_py()
    assert updated.recommend(
        users=[frame["user_id"].sort()[0]], allow=[new], hide_seen=False
    ).height
    updated.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.stages == updated.stages
    assert_same_tensors(loaded.network.state_dict(), updated.network.state_dict())
    with pytest.raises(InputError, match=f"the model has all {len(frame):,} events already"):
        loaded.update(frame)
    again = copied(fitted)
    again.update(frame)
    assert_same_tensors(again.network.state_dict(), updated.network.state_dict())


def test_a_memory_only_update_counts_now_and_trains_at_the_next_update(
    fitted: Recommender, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    updated = copied(fitted)
    updated.update(parts[1], memory_only=True)
    known = len(fitted.data.item_ids)
    ours, theirs = updated.network.state_dict(), fitted.network.state_dict()
    ours["embedding.weight"] = ours["embedding.weight"][:known]
    assert_same_tensors(ours, theirs)
    union = updated.data.all_for_training()
    assert entries(updated.memory) == entries(memory.fit(union, fitted.memory_config))
    stage = updated.stages[-1]
    assert (stage.kind, stage.updates) == ("memory-only update", 0)
    assert 0 < stage.trained_events < fitted.data.training_events, "up to the first new event"
    updated.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    with pytest.raises(InputError, match="events already"):
        loaded.update(parts[1], memory_only=True)
    added = loaded.update(parts[1])
    assert added.events == 0
    assert loaded.stages[-1].trained_events == stage.events
    assert not loaded.network.embedding.weight.equal(updated.network.embedding.weight)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_updated(
    name: str, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    settings = for_model({"model": {"dim": 16}, "train": {
        "epochs": 1, "batch_size": 256, "max_length": 16, "precision": "float32",
    }}, name)  # fmt: skip
    old, frame = parts[0].head(400), parts[1].head(700)
    recommender = Recommender.configured(name, settings).fit(old)
    before = recommender.network.item_embeddings.detach().clone()
    added = recommender.update(frame)
    after = recommender.network.item_embeddings.detach()
    assert added.users > 0
    assert len(after) == len(before) + added.items > len(before)
    assert not after[: len(before)].equal(before)
    user = frame["user_id"].sort()[0]
    assert recommender.recommend(users=[user], k=3).height == 3
    recommender.save(tmp_path / "model")
    assert load(tmp_path / "model").recommend(users=[user]).height


def test_new_repeats_are_no_longer_ranked_last() -> None:
    rows = [(f"u{user}", f"i{(user + step) % 9}", step) for user in range(30) for step in range(5)]
    schema = ["user_id", "item_id", "timestamp"]
    fitted = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(
        pl.DataFrame(rows, schema=schema, orient="row")
    )
    assert fitted.memory is not None
    assert fitted.memory.repeat == memory.EXCLUDE_REPEATS
    repeats = pl.DataFrame([("u0", "i0", 9), ("u0", "i0", 10)], schema=schema, orient="row")
    with pytest.warns(UserWarning, match="users repeat items in the new events"):
        fitted.update(repeats, memory_only=True)
    assert fitted.memory.repeat == 0


def test_new_events_that_have_nothing_to_predict_train_nothing_new(fitted: Recommender) -> None:
    refitted = copied(fitted).refit()
    new = pl.DataFrame({"user_id": ["new"], "item_id": ["new"], "timestamp": [2_000_000_000]})
    ids = refitted.data.user_ids.type, refitted.data.item_ids.type
    new = new if str(ids[0]) == "string" else new.with_columns(user_id=-1, item_id=-1)
    added = refitted.update(new)
    assert (added.events, added.users, added.items) == (1, 1, 1)


def test_a_model_without_a_memory_is_updated(parts: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    without = memory.MemoryConfig(enabled=False)
    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING, without).fit(parts[0])
    recommender.update(parts[1])
    assert recommender.memory is None
    assert len(recommender.network.item_embeddings) == len(recommender.data.item_ids)
