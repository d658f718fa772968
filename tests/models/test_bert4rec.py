"""BERT4Rec: its vectors against NumPy in float64, what it hides of a history."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_sasrec import Array, Weights, gelu, histories, layer_norm, linear, transformer, weights_of
from torch import Tensor

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.bert4rec import BERT4Rec, BERT4RecConfig

ITEMS, LENGTH = 31, 12
CONFIGS = [
    BERT4RecConfig(dim=8, inner=12),
    BERT4RecConfig(dim=9, layers=3, heads=3, inner=5, dropout=0.0),
]


def found(items: list[int], place: int, w: Weights, config: BERT4RecConfig) -> Array:
    """The vector by which the item at a place is found, and a one for its bias."""
    h = transformer(items, w, config, causal=False)[place]
    return np.append(layer_norm(gelu(linear(h, w, "dense")), w, "norm"), 1)


@torch.no_grad()
def stirred(config: BERT4RecConfig, length: int = LENGTH) -> BERT4Rec:
    """A model with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = BERT4Rec(ITEMS, config, max_length=length)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def all_positions(lengths: list[int]) -> PackedBatch:
    """Histories with a target at every position, as in training."""
    items, offsets = histories([length + 1 for length in lengths])
    inputs = torch.ones(len(items), dtype=torch.bool)
    inputs[offsets[1:] - 1] = False
    rows = inputs.nonzero().squeeze(1)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return PackedBatch(items[rows], offsets, torch.arange(len(rows)), items[rows + 1])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_a_mask_behind_each_prefix_finds_its_next_item(config: BERT4RecConfig) -> None:
    """Of a history of T events the oldest makes room for [mask]."""
    model = stirred(config)
    items, offsets = histories([4, 1, LENGTH, LENGTH - 1, 2, LENGTH + 3])
    every = torch.arange(len(items))
    hidden = model.hidden(PackedBatch(items, offsets, every, items))
    for first, last in pairwise(offsets.tolist()):
        for stop in range(first + 1, last + 1):
            seen = [*items[max(first, stop - LENGTH + 1) : stop].tolist(), ITEMS]
            truth = found(seen, len(seen) - 1, weights_of(model), config)
            np.testing.assert_allclose(hidden[stop - 1].numpy(), truth, rtol=0, atol=1e-5)
    ends = offsets[1:] - 1
    scores = model.score(PackedBatch(items, offsets, every[:0], every[:0]))
    expected = hidden[ends, :-1] @ model.embedding.weight[:-1].T + model.bias
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_hidden_items_are_found_from_both_sides() -> None:
    config = BERT4RecConfig(dim=8)
    model = stirred(config)
    lengths = [4, 1, LENGTH, 2, LENGTH - 1]
    batch = all_positions(lengths)
    torch.manual_seed(5)
    vectors, targets = model.examined(batch)
    torch.manual_seed(5)
    hide = model.drawn(torch.tensor([0, *(min(n + 1, LENGTH) for n in lengths)]).cumsum(0))
    truth, wanted, row = [], [], 0
    for first, last in pairwise(batch.offsets.tolist()):
        whole = [*batch.items[first:last].tolist(), int(batch.targets[last - 1])][-LENGTH:]
        places = hide[row : row + len(whole)].nonzero().squeeze(1).tolist()
        row += len(whole)
        masked = [ITEMS if place in places else item for place, item in enumerate(whole)]
        truth += [found(masked, place, weights_of(model), config) for place in places]
        wanted += [whole[place] for place in places]
    assert row == len(hide)
    assert targets.tolist() == wanted
    np.testing.assert_allclose(vectors.numpy(), np.stack(truth), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prefix_is_a_history_that_ends_in_its_target() -> None:
    model = stirred(BERT4RecConfig(dim=8))
    whole = all_positions([4, 1, LENGTH])
    ends = whole.offsets[1:] - 1
    prefixes = PackedBatch(whole.items, whole.offsets, ends, whole.targets[ends])
    torch.manual_seed(5)
    vectors, targets = model.examined(whole)
    torch.manual_seed(5)
    again = model.examined(prefixes)
    assert again[0].equal(vectors)
    assert again[1].equal(targets)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_half_of_the_histories_hide_their_last_item_alone(share: float) -> None:
    torch.manual_seed(0)
    count, length = 4000, 10
    model = BERT4Rec(ITEMS, BERT4RecConfig(hidden_share=share), max_length=length)
    hide = model.drawn(length * torch.arange(count + 1)).view(count, length)
    assert hide.any(1).all()
    alone = hide[:, -1] & (hide.sum(1) == 1)
    by_chance = (1 - share) ** (length - 1)  # nothing else is hidden, with the last item or without
    assert alone.double().mean().item() == pytest.approx(
        0.5 + 0.5 * by_chance, abs=2.5 / math.sqrt(count)
    )
    assert hide[:, :-1].double().mean().item() == pytest.approx(
        share / 2, abs=5 * math.sqrt(share / count / (length - 1)) + 1e-9
    )


def test_short_histories_hide_an_item_each() -> None:
    model = BERT4Rec(ITEMS, BERT4RecConfig(), max_length=LENGTH)
    offsets = torch.tensor([0, 1, 3, 4, 6])
    for _ in range(20):
        hide = model.drawn(offsets)
        assert all(hide[first:last].any() for first, last in pairwise(offsets.tolist()))


def test_gradients_of_training_are_those_of_differences() -> None:
    model = stirred(BERT4RecConfig(dim=4, inner=3, hidden_share=0.5)).double()
    batch = all_positions([1, 4])

    def examined(*_: Tensor) -> Tensor:  # gradcheck changes the parameters in place
        torch.manual_seed(3)
        return model.examined(batch)[0] @ model.item_embeddings.T

    assert torch.autograd.gradcheck(examined, tuple(model.parameters()))


def test_a_single_event_of_memory_is_the_mask_alone() -> None:
    model = stirred(BERT4RecConfig(dim=8), length=1)
    batch = all_positions([3, 1])
    hidden = model.hidden(batch)
    assert hidden.equal(hidden[:1].expand_as(hidden))
    assert model.examined(batch)[1].tolist() == [int(batch.targets[2]), int(batch.targets[3])]


@pytest.mark.parametrize(
    "values", [{"hidden_share": -0.1}, {"hidden_share": 1.1}, {"heads": 3}], ids=str
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        BERT4RecConfig(**values)  # type: ignore[arg-type]
