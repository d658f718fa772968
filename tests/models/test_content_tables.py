"""Content of items: tables by hand, gradients, training of every model, growth."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from conftest import assert_same_tensors
from recblr.data.batches import PackedBatch, pack
from recblr.data.content import ItemContent
from recblr.models import MODELS, create_model
from recblr.models.content import Content, attached
from recblr.models.growth import grow
from recblr.models.model import Model
from recblr.training.config import TrainConfig, resolve
from recblr.training.step import TrainingStep

ITEMS, LENGTH = 7, 8
SIZES = {"users": 3, "max_length": LENGTH}
VECTORS = np.array(
    [[1, 0, 2], [0, 0, 0], [1, -1, 0], [0, 2, 1], [0, 0, 0], [2, 0, 1], [1, 1, 1]], np.float32
)
CATEGORIES = [[0], [], [0, 1], [1], [2], [], [1, 2]]  # 2: only of items without events
# Items 4 and 6 have content and no training event. Item 1 has events and no content.
COUNTS = np.array([2, 2, 1, 2, 0, 1, 0])
LOG = np.array([0, 1, 2, 3, 5, 3, 1, 0])
every_model = pytest.mark.parametrize("name", MODELS)


def content() -> Content:
    codes = np.array([code for codes in CATEGORIES for code in codes])
    offsets = np.cumsum([0, *map(len, CATEGORIES)])
    names = ["color=red", "color=blue", "size=large"]
    return Content(ItemContent(VECTORS, np.zeros(3), np.ones(3), names, codes, offsets))


def fresh(name: str, **values: Any) -> Model:
    torch.manual_seed(0)
    return create_model(name, MODELS[name][1](dim=8, **values), items=ITEMS, **SIZES)


def batch() -> PackedBatch:
    some = pack(LOG, np.array([0, 4]), np.array([3, 7]), "all")
    return PackedBatch(
        some.items, some.offsets, some.positions, some.targets, users=torch.arange(2)
    )


def projected(weight: Tensor, item: int) -> Tensor:
    rows = [number * weight[n] for n, number in enumerate(VECTORS[item])]
    return torch.stack([*rows, *(weight[3 + code] for code in CATEGORIES[item])]).sum(0)


def parameters(network: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


@every_model
def test_a_row_is_the_learned_one_plus_the_sum_of_the_projections(name: str) -> None:
    network, known = fresh(name).eval(), content()
    before = network.state_dict()
    with attached(known, network, COUNTS, 0.5, 1):
        during = network.item_embeddings.detach().clone()
    after = network.state_dict()
    assert network.content is None
    assert type(network) is MODELS[name][0]
    assert network.item_embeddings.equal(during)
    assert known.weights.keys() == network.item_tables.keys()
    for table, weight in known.weights.items():
        first = network.item_tables[table]
        for item in range(ITEMS):
            learned = before[table][first + item] * float(item not in (4, 6))
            expected = learned.view(-1) + projected(weight, item)
            torch.testing.assert_close(after[table][first + item].view(-1), expected)
        assert after[table][:first].equal(before[table][:first])
        assert after[table][first + ITEMS :].equal(before[table][first + ITEMS :])
    sums = deepcopy(after)
    with attached(known, network, COUNTS, 0.5, 1):
        pass
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, sums[key])


@every_model
def test_a_step_trains_the_projections_and_leaves_new_items_alone(name: str) -> None:
    network, known = fresh(name), content()
    config = resolve(TrainConfig(precision="float32"), network)
    with attached(known, network, COUNTS, 0.5, 1):
        before = parameters(network)
        step = TrainingStep(network, deepcopy(network), config)
        step.optimizer.param_groups[0]["lr"].fill_(0.01)
        for _ in range(3):
            step(batch(), network.initial_state(1))
        after = parameters(network)
        for table, first in network.item_tables.items():
            path, _, last = table.rpartition(".")
            place = f"{path}{'.' * bool(path)}parametrizations.{last}"
            assert not after[f"{place}.0.weight"].equal(before[f"{place}.0.weight"])
            learned = after[f"{place}.original"][first:]
            assert not learned[[4, 6]].any()
            assert (
                learned[[0, 1, 2, 3, 5]]
                .ne(before[f"{place}.original"][first:][[0, 1, 2, 3, 5]])
                .any()
            )
            assert not after[f"{place}.0.weight"][5].any()  # of a category without an event


def test_the_loss_and_its_gradients_are_those_of_the_sum_without_new_items() -> None:
    network, known = fresh("recblr", layers=1, dropout=0.0).train(), content()
    plain = deepcopy(network)
    config = resolve(TrainConfig(precision="float32", mask_seen_in_loss=True), network)
    seen = torch.tensor([[0, 1, 2, 5], [1, 0, 1, 3]])
    with attached(known, network, COUNTS, 0.0, 1):
        step = TrainingStep(network, deepcopy(network), config)  # at a rate of 0
        some = batch()
        step(
            PackedBatch(some.items, some.offsets, some.positions, some.targets, seen),
            network.initial_state(1),
        )
        gradient = network.get_parameter("embedding.parametrizations.weight.0.weight").grad
    weight = known.weights["embedding.weight"].clone().requires_grad_()
    learned = plain.embedding.weight.detach().clone()
    learned[[4, 6]] = 0
    table = learned + torch.stack([projected(weight, item) for item in range(ITEMS)])
    arguments = (some.items, some.offsets)
    hidden, _ = functional_call(plain, {"embedding.weight": table}, arguments)
    logits = (hidden @ table.t()).index_fill(1, torch.tensor([4, 6]), -torch.inf)
    for row, item in seen.t().tolist():
        if item != some.targets[row]:
            logits = logits.index_put(
                (torch.tensor(row), torch.tensor(item)), torch.tensor(-torch.inf)
            )
    loss = F.cross_entropy(logits, some.targets)
    torch.testing.assert_close(step.loss.total / 6, loss.detach().double(), check_dtype=False)
    loss.backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-6)


@every_model
def test_items_with_few_events_are_inputs_only(name: str) -> None:
    """Items 2 and 5 have content and one event: with two as the least they have no learned row, and
    are neither targets nor candidates. Item 1 has no content, so it stays."""
    network, known = fresh(name), content()
    config = resolve(TrainConfig(precision="float32"), network)
    with attached(known, network, COUNTS, 0.5, 2):
        step = TrainingStep(network, deepcopy(network), config)
        step.optimizer.param_groups[0]["lr"].fill_(0.01)
        step(batch(), network.initial_state(1))
        assert network.content is not None
        assert network.content.candidates.tolist() == [0, 1, 3]
    for item in (2, 4, 5, 6):
        for table, first in network.item_tables.items():
            row = network.state_dict()[table][first + item].view(-1)
            torch.testing.assert_close(row, projected(known.weights[table], item))


def test_a_target_with_few_events_has_no_loss() -> None:
    network, known = fresh("recblr", layers=1, dropout=0.0).train(), content()
    config = resolve(TrainConfig(precision="float32", mask_seen_in_loss=True), network)
    seen = torch.tensor([[0, 1, 2, 5], [0, 5, 1, 3]])  # item 5 is no candidate
    some = batch()
    with attached(known, network, COUNTS, 0.0, 2):
        step = TrainingStep(network, deepcopy(network), config)
        step(replace(some, seen=seen), network.initial_state(1))
        hidden, _ = network(some.items, some.offsets)  # type: ignore[operator]
        logits = hidden.detach() @ network.embedding.weight.detach().t()
    mask = torch.zeros(6, ITEMS, dtype=torch.bool)
    mask[:, [2, 4, 5, 6]] = True
    for row, item in seen.t().tolist():
        mask[row, item] |= item != some.targets[row]
    losses = F.cross_entropy(logits.masked_fill(mask, -torch.inf), some.targets, reduction="none")
    kept = losses[~torch.isin(some.targets, torch.tensor([2, 5]))]
    assert 0 < len(kept) < 6
    torch.testing.assert_close(step.loss.total / 6, kept.sum().double() / 6, rtol=1e-5, atol=1e-6)


def test_training_drops_learned_rows_of_items_with_content_only() -> None:
    network, known = fresh("recblr"), content()
    with attached(known, network, COUNTS, 0.5, 1):
        learned, full = (
            network.embedding.weight.detach()[1],
            network.eval().embedding.weight.detach(),
        )
        network.train()
        drawn = [network.embedding.weight.detach() for _ in range(40)]
    sums = {item: projected(known.weights["embedding.weight"], item) for item in (0, 2, 3, 5)}
    assert all(table[1].equal(learned) for table in drawn)
    for item, alone in sums.items():
        kept = [table[item].equal(full[item]) for table in drawn]
        assert 8 < sum(kept) < 32
        for table, is_kept in zip(drawn, kept, strict=True):
            assert is_kept or torch.allclose(table[item], alone)


@every_model
def test_new_items_start_as_their_content_and_the_learned_part_of_their_neighbours(
    name: str,
) -> None:
    network, known = fresh(name).eval(), content()
    with attached(known, network, COUNTS, 0.0, 1):
        pass
    items = known.items
    # The first new item has neighbours 0 and 3 and content, the second content, the third neighbours.
    more = Content(ItemContent(
        np.concatenate([VECTORS, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]]).astype(np.float32), items.mean,
        items.scale, items.names, items.codes, np.append(items.offsets, [len(items.codes)] * 3),
    ), known.weights)  # fmt: skip
    near = sparse.csr_array(([1.0, 3.0, 2.0], ([0, 0, 2], [0, 3, 5])), (3, ITEMS))
    grown = grow(network, name, near, content=more, **SIZES)
    for table, first in network.item_tables.items():
        old, new = (model.state_dict()[table][first:] for model in (network, grown))
        old, new = old.view(len(old), -1), new.view(len(new), -1)
        weight = known.weights[table]
        learned = [old[item] - projected(weight, item) for item in (0, 3)]
        expected = [weight[0] + (learned[0] + 3 * learned[1]) / 4, weight[1], old[5]]
        torch.testing.assert_close(
            new[ITEMS : ITEMS + 3], torch.stack(expected), rtol=1e-4, atol=1e-6
        )
        assert new[:ITEMS].equal(old[:ITEMS])


def test_without_content_nothing_happens() -> None:
    network = fresh("recblr")
    before = deepcopy(network.state_dict())
    with attached(None, network, COUNTS, 0.5, 1):
        assert network.content is None
    assert_same_tensors(network.state_dict(), before)
