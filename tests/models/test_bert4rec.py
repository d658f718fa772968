"""BERT4Rec: vectors against NumPy in float64, and the masked items of a history."""

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

STATELESS = torch.zeros(1, 0)


def expected_vector(items: list[int], row: int, w: Weights, config: BERT4RecConfig) -> Array:
    """The vector that predicts the item at ``row``, and a one for the bias."""
    h = transformer(items, w, config, causal=False)[row]
    return np.append(layer_norm(gelu(linear(h, w, "dense")), w, "norm"), 1)


@torch.no_grad()
def perturbed(config: BERT4RecConfig, length: int = LENGTH) -> BERT4Rec:
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
def test_a_mask_after_each_prefix_predicts_the_next_item(config: BERT4RecConfig) -> None:
    """In a history of T events, [mask] replaces the oldest event."""
    model = perturbed(config)
    items, offsets = histories([4, 1, LENGTH, LENGTH - 1, 2, LENGTH + 3])
    every = torch.arange(len(items))
    hidden = model.hidden(PackedBatch(items, offsets, every, items))
    for first, last in pairwise(offsets.tolist()):
        for stop in range(first + 1, last + 1):
            seen = [*items[max(first, stop - LENGTH + 1) : stop].tolist(), ITEMS]
            truth = expected_vector(seen, len(seen) - 1, weights_of(model), config)
            np.testing.assert_allclose(hidden[stop - 1].numpy(), truth, rtol=0, atol=1e-5)
    ends = offsets[1:] - 1
    scores = model.score(PackedBatch(items, offsets, every[:0], every[:0]))
    expected = hidden[ends, :-1] @ model.embedding.weight[:-1].T + model.bias
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_masked_items_are_predicted_from_both_sides() -> None:
    config = BERT4RecConfig(dim=8)
    model = perturbed(config)
    lengths = [4, 1, LENGTH, 2, LENGTH - 1]
    batch = all_positions(lengths)
    torch.manual_seed(5)
    vectors, targets = model.training_pairs(batch, STATELESS)[:2]
    torch.manual_seed(5)
    masked = model.draw_masked(torch.tensor([0, *(min(n + 1, LENGTH) for n in lengths)]).cumsum(0))
    truth, expected_targets, row = [], [], 0
    for first, last in pairwise(batch.offsets.tolist()):
        whole = [*batch.items[first:last].tolist(), int(batch.targets[last - 1])][-LENGTH:]
        rows = masked[row : row + len(whole)].nonzero().squeeze(1).tolist()
        row += len(whole)
        inputs = [ITEMS if number in rows else item for number, item in enumerate(whole)]
        truth += [expected_vector(inputs, number, weights_of(model), config) for number in rows]
        expected_targets += [whole[number] for number in rows]
    assert row == len(masked)
    assert targets.tolist() == expected_targets
    np.testing.assert_allclose(vectors.numpy(), np.stack(truth), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prefix_trains_as_a_history_that_ends_with_its_target() -> None:
    model = perturbed(BERT4RecConfig(dim=8))
    whole = all_positions([4, 1, LENGTH])
    ends = whole.offsets[1:] - 1
    prefixes = PackedBatch(whole.items, whole.offsets, ends, whole.targets[ends])
    torch.manual_seed(5)
    vectors, targets = model.training_pairs(whole, STATELESS)[:2]
    torch.manual_seed(5)
    again = model.training_pairs(prefixes, STATELESS)[:2]
    assert again[0].equal(vectors)
    assert again[1].equal(targets)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_half_of_the_histories_mask_only_their_last_item(share: float) -> None:
    torch.manual_seed(0)
    count, length = 4000, 10
    model = BERT4Rec(ITEMS, BERT4RecConfig(hidden_share=share), max_length=length)
    masked = model.draw_masked(length * torch.arange(count + 1)).view(count, length)
    assert masked.any(1).all()
    only_last = masked[:, -1] & (masked.sum(1) == 1)
    by_chance = (1 - share) ** (length - 1)  # no other item is drawn
    assert only_last.double().mean().item() == pytest.approx(
        0.5 + 0.5 * by_chance, abs=2.5 / math.sqrt(count)
    )
    assert masked[:, :-1].double().mean().item() == pytest.approx(
        share / 2, abs=5 * math.sqrt(share / count / (length - 1)) + 1e-9
    )


def test_every_short_history_masks_an_item() -> None:
    model = BERT4Rec(ITEMS, BERT4RecConfig(), max_length=LENGTH)
    offsets = torch.tensor([0, 1, 3, 4, 6])
    for _ in range(20):
        masked = model.draw_masked(offsets)
        assert all(masked[first:last].any() for first, last in pairwise(offsets.tolist()))


def test_gradients_of_training_pass_gradcheck() -> None:
    model = perturbed(BERT4RecConfig(dim=4, inner=3, hidden_share=0.5)).double()
    batch = all_positions([1, 4])

    def training_pairs(*_: Tensor) -> Tensor:  # gradcheck changes the parameters in place
        torch.manual_seed(3)
        return model.training_pairs(batch, STATELESS)[0] @ model.item_embeddings.T

    assert torch.autograd.gradcheck(training_pairs, tuple(model.parameters()), fast_mode=True)


def test_a_model_of_one_event_sees_only_the_mask() -> None:
    model = perturbed(BERT4RecConfig(dim=8), length=1)
    batch = all_positions([3, 1])
    hidden = model.hidden(batch)
    assert hidden.equal(hidden[:1].expand_as(hidden))
    assert model.training_pairs(batch, STATELESS)[1].tolist() == [
        int(batch.targets[2]),
        int(batch.targets[3]),
    ]


@pytest.mark.parametrize(
    "values", [{"hidden_share": -0.1}, {"hidden_share": 1.1}, {"heads": 3}], ids=str
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        BERT4RecConfig(**values)  # type: ignore[arg-type]
