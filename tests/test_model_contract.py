"""The same tests for every model: training, causality, packing, steps, saving, a Markov chain."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import TINY_TRAINING, assert_same_tensors, slow
from recblr.data.batches import PackedBatch
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.evaluation.ranking import rank_targets
from recblr.models import MODELS, create_model
from recblr.models.model import RecurrentModel
from recblr.recommender import Recommender, load
from recblr.training.config import TrainConfig
from recblr.training.trainer import Trainer

ITEMS, USERS, LONGEST = 23, 8, 512
LENGTHS = [5, 1, 12, 2, 30]
CAUSAL = [name for name, (model, _) in MODELS.items() if "all-positions" in model.examples]
RECURRENT = [name for name, (model, _) in MODELS.items() if issubclass(model, RecurrentModel)]

every_model = pytest.mark.parametrize("name", MODELS)
every_causal_model = pytest.mark.parametrize("name", CAUSAL)
every_recurrent_model = pytest.mark.parametrize("name", RECURRENT)


def configured(name: str, **values: Any) -> Any:
    """The default configuration, with those ``values`` that the model has settings for."""
    config = MODELS[name][1]()
    known = {field.name for field in fields(config)}
    return replace(config, **{key: value for key, value in values.items() if key in known})


def fresh(
    name: str, items: int = ITEMS, users: int = USERS, longest: int = LONGEST, **values: Any
) -> Any:
    torch.manual_seed(0)
    config = configured(name, **values)
    return create_model(name, config, items=items, users=users, max_length=longest)


def for_model(name: str, config: TrainConfig) -> TrainConfig:
    """With the recipe of the model. BERT4Rec has a lower rate: it must first learn the positions of the
    neighbours of a masked item."""
    config = replace(config, **MODELS[name][0].recipe)
    return replace(config, lr=3e-3) if name == "bert4rec" else config


def perturbed(name: str) -> Any:
    """A model with weights large enough that every part of it affects the result."""
    model = fresh(name, dim=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def histories(lengths: list[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(ITEMS, (length,), generator=generator) for length in lengths]


def packed(several: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(several), torch.tensor([0, *map(len, several)]).cumsum(0)


@torch.no_grad()
def hidden(model: Any, several: list[Tensor], users: list[int] | None = None) -> list[Tensor]:
    """The vectors of each history from one pass over all of them: at every position, or only at the
    last one for a model that is not causal. By default history b is that of user b."""
    items, offsets = packed(several)
    every = "all-positions" in model.examples
    positions = torch.arange(len(items)) if every else offsets[1:] - 1
    user_of = torch.arange(len(several)) if users is None else torch.tensor(users)
    vectors = model.hidden(PackedBatch(items, offsets, positions, items[positions], users=user_of))
    return list(vectors.split(offsets.diff().tolist() if every else 1))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def assert_far(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() > 1e-2


@every_model
@pytest.mark.parametrize("loss", ["softmax", "paper"])
def test_training_lowers_the_loss(
    name: str, loss: Any, sequences: Sequences, tmp_path: Path
) -> None:
    config = for_model(name, replace(TINY_TRAINING, epochs=10, loss=loss))
    model = fresh(name, len(sequences.item_ids), sequences.users, config.max_length, dim=16)
    Trainer(model, sequences, config).train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "epoch"]
    assert losses[-1] < losses[0] * 0.95
    if loss == "softmax":
        uniform = math.log(len(sequences.item_ids))
        assert losses[0] < uniform + 0.2
        assert losses[-1] < uniform - 0.3


@every_model
def test_scores_are_finite_and_have_the_right_shape(name: str) -> None:
    model, several = perturbed(name), histories()
    items, offsets = packed(several)
    none = torch.zeros(0, dtype=torch.int64)
    scores = model.score(PackedBatch(items, offsets, none, none, users=torch.arange(len(LENGTHS))))
    assert scores.shape == (len(LENGTHS), ITEMS)
    assert scores.isfinite().all()
    last = torch.stack([vectors[-1] for vectors in hidden(model, several)])
    assert_near(scores, last @ model.item_embeddings.detach().T)


@every_model
def test_a_user_outside_the_log_can_be_scored(name: str) -> None:
    """users=None has the same meaning as user -1."""
    model, several = perturbed(name), histories()
    items, offsets = packed(several)
    none = torch.zeros(0, dtype=torch.int64)
    scores = model.score(PackedBatch(items, offsets, none, none))
    last = torch.stack([vectors[-1] for vectors in hidden(model, several, [-1] * len(LENGTHS))])
    assert_near(scores, last @ model.item_embeddings.detach().T)


@every_causal_model
@pytest.mark.parametrize("change", [0, 1, 7, 29])
def test_later_items_do_not_change_earlier_vectors(name: str, change: int) -> None:
    model, several = perturbed(name), histories()
    before = hidden(model, several)
    several[-1][change:] = (several[-1][change:] + 1) % ITEMS
    after = hidden(model, several)
    for ours, theirs in zip(after[:-1], before[:-1], strict=True):
        assert ours.equal(theirs), "the vectors of another history changed"
    assert after[-1][:change].equal(before[-1][:change])
    assert_far(after[-1][change], before[-1][change])


@every_model
def test_packing_does_not_change_a_history(name: str) -> None:
    model, several = perturbed(name), histories()
    together = hidden(model, several)
    for user, (history, vectors) in enumerate(zip(several, together, strict=True)):
        assert_near(hidden(model, [history], [user])[0], vectors)
    order = [3, 0, 4, 2, 1]
    for number, vectors in zip(
        order, hidden(model, [several[i] for i in order], order), strict=True
    ):
        assert_near(vectors, together[number])


@every_model
def test_the_length_of_another_history_does_not_matter(name: str) -> None:
    """Padding to the longest history must not shift the positions of a shorter one."""
    model, (history,) = perturbed(name), histories([5])
    alone = hidden(model, [history])[0]
    for length in (5, 6, 8, 9, 16, 100):
        assert_near(hidden(model, [history, *histories([length], seed=1)])[0], alone)


@every_model
def test_save_and_load_keep_every_bit(name: str, sequences: Sequences, tmp_path: Path) -> None:
    config = configured(name, dim=16)
    ours = Recommender(name, config, replace(TINY_TRAINING, epochs=1)).fit(sequences)
    ours.save(tmp_path / "model")
    theirs = load(tmp_path / "model")
    assert theirs.config == config
    assert_same_tensors(ours.network.state_dict(), theirs.network.state_dict())
    users = sequences.user_ids.to_pylist()
    assert ours.recommend(users=users).equals(theirs.recommend(users=users))


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        *((name, "auto") for name in MODELS if name not in ("bert4rec", "fmlprec")),
        pytest.param("bert4rec", "auto", marks=slow),
        pytest.param("fmlprec", "auto", marks=slow),
        pytest.param("bert4rec", "prefixes", marks=slow),
    ],
)
def test_learns_a_markov_chain(name: str, examples: Any, tmp_path: Path) -> None:
    """Each item has three successors, with probabilities 0.6, 0.3 and 0.1; the best possible model
    ranks them in this order. Every model must come within 0.05 of its metrics.

    BERT4Rec must have seen the position of the next item in training, and test histories are longer
    than training histories, so it uses only the last part of them.
    """
    rng = np.random.default_rng(0)
    items, users, length = 25, 300, 25
    chances = np.zeros((items, items))
    for row in chances:
        row[rng.choice(items, 3, replace=False)] = 0.6, 0.3, 0.1
    walks = [rng.integers(items, size=users)]
    for _ in range(length - 1):
        walks.append((rng.random((users, 1)) > chances[walks[-1]].cumsum(1)).sum(1))
    codes = np.stack(walks, 1).ravel()
    frame = pl.DataFrame({"user_id": np.repeat(np.arange(users), length), "item_id": codes})
    data = prepare(read_log(frame))
    chances = chances[np.ix_(data.item_ids.to_numpy(), data.item_ids.to_numpy())]

    def oracle(batch: PackedBatch) -> Tensor:
        return torch.from_numpy(chances[batch.items[batch.offsets[1:] - 1].numpy()])

    longest = 10 if name == "bert4rec" else 30
    model = fresh(name, items, users, longest, dim=32, dropout=0.1)
    config = TrainConfig(
        examples, epochs=20 if examples == "prefixes" else 8, batch_size=256, max_length=longest,
        lr=1e-2, warmup_steps=20, precision="float32",
    )  # fmt: skip
    Trainer(model, data, for_model(name, config)).train(tmp_path)
    best, ours = (
        rank_targets(scorer, data, "test", longest)["unmasked"] for scorer in (oracle, model.score)
    )
    assert best.max() <= 3
    assert np.mean(best == 1) == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / users))
    assert np.mean(best == 1) - 0.05 < np.mean(ours == 1) < np.mean(best == 1) + 0.05
    assert np.mean(1 / np.log2(ours + 1)) > np.mean(1 / np.log2(best + 1)) - 0.05


@every_recurrent_model
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=6).map(sorted))
def test_a_history_in_pieces_equals_one_pass(name: str, cuts: list[int]) -> None:
    model, (history,) = perturbed(name), histories([30])
    with torch.no_grad():
        whole, end = model(history, torch.tensor([0, 30]))
        state, parts = model.initial_state(1), []
        for first, last in zip([0, *cuts], [*cuts, 30], strict=True):
            piece, state = model(history[first:last], torch.tensor([0, last - first]), state)
            parts.append(piece)
    assert_near(torch.cat(parts), whole)
    assert_near(state, end)


@every_recurrent_model
def test_each_history_of_a_batch_continues_from_its_state(name: str) -> None:
    """Ragged first pieces, then ragged second pieces, some of them empty."""
    model, several = perturbed(name), histories()
    cuts = [5, 0, 4, 1, 29]
    whole = hidden(model, several)
    firsts = [history[:cut] for history, cut in zip(several, cuts, strict=True)]
    seconds = [history[cut:] for history, cut in zip(several, cuts, strict=True)]
    with torch.no_grad():
        _, state = model(*packed(firsts))
        vectors, _ = model(*packed(seconds), state)
    after = vectors.split([len(piece) for piece in seconds])
    for ours, theirs, cut in zip(after, whole, cuts, strict=True):
        assert_near(ours, theirs[cut:])


@every_recurrent_model
def test_steps_equal_the_parallel_pass(name: str) -> None:
    model, several = perturbed(name), histories([20, 20, 20])
    whole = torch.stack(hidden(model, several))
    state, columns = model.initial_state(3), []
    with torch.no_grad():
        for items in torch.stack(several, 1):
            vectors, state = model.step(items, state)
            columns.append(vectors)
        _, end = model(*packed(several))
    assert_near(torch.stack(columns, 1), whole)
    assert_near(state, end)


@every_recurrent_model
def test_a_batch_of_steps_equals_each_user_alone(name: str) -> None:
    model, several = perturbed(name), histories()
    items = torch.arange(len(LENGTHS))
    with torch.no_grad():
        _, states = model(*packed(several))
        together, after = model.step(items, states)
        for user in range(len(LENGTHS)):
            one = slice(user, user + 1)
            vector, state = model.step(items[one], states[one])
            assert_near(vector, together[one])
            assert_near(state, after[one])


@every_recurrent_model
def test_a_step_keeps_no_state_of_its_own(name: str) -> None:
    model, (history,) = perturbed(name), histories([10])
    with torch.no_grad():
        _, state = model(history, torch.tensor([0, 10]))
        kept = state.clone()
        first, _ = model.step(history[:1], state)
        model.step(history[1:2], state)
        second, _ = model.step(history[:1], state)
        fresh, _ = model.step(history[:1], model.initial_state(1))
    assert state.equal(kept), "the step changed the state of the caller"
    assert first.equal(second)
    assert_far(first, fresh)


@every_recurrent_model
def test_the_state_is_zero_at_first_and_has_a_fixed_size(name: str) -> None:
    model = MODELS[name][0](ITEMS, MODELS[name][1]())
    size = model.initial_state(1).nbytes
    for users in (0, 1, 3):
        state = model.initial_state(users)
        assert state.nbytes == size * users
        assert (state == 0).all()
    for history in histories([1, 500]):
        with torch.no_grad():
            _, state = model(history, torch.tensor([0, len(history)]))
        assert state.nbytes == size


def test_the_default_state_of_recblr_is_4096_bytes() -> None:
    assert fresh("recblr").initial_state(1).nbytes == 4096
