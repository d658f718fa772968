"""Vectors of new users and items."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from conftest import assert_same_tensors
from recblr.data.batches import PackedBatch
from recblr.models import MODELS, create_model
from recblr.models.growth import grow

ITEMS, USERS, NEW, LENGTH = 12, 4, 3, 8
SIZES = {"users": USERS, "max_length": LENGTH}
# New item 0 is near items 2 and 5, item 1 near none, item 2 near item 11.
NEAR = sparse.csr_array(([1.0, 3.0, 2.0], ([0, 0, 2], [2, 5, 11])), (NEW, ITEMS))
every_model = pytest.mark.parametrize("name", MODELS)


def model(name: str) -> Any:
    torch.manual_seed(0)
    network = create_model(name, MODELS[name][1](dim=16), items=ITEMS, **SIZES).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network


def batch() -> PackedBatch:
    items = torch.tensor([1, 2, 3, 11, 0, 5])
    none = items[:0]
    return PackedBatch(
        items, torch.tensor([0, 4, 5, 6]), none, none, users=torch.tensor([3, 0, -1])
    )


@every_model
def test_tables_are_all_that_depends_on_the_numbers_of_items_and_users(name: str) -> None:
    network = model(name)
    for sizes, tables in (
        ({"items": ITEMS + 1, **SIZES}, network.item_tables),
        ({"items": ITEMS, **SIZES, "users": USERS + 1}, network.user_tables),
    ):
        other = create_model(name, network.config, **sizes).state_dict()
        differ = {key for key, old in network.state_dict().items() if old.shape != other[key].shape}
        assert differ == set(tables)


@every_model
def test_known_items_keep_their_scores(name: str) -> None:
    network = model(name)
    grown = grow(network, name, NEAR, users=USERS + 2, max_length=LENGTH)
    assert not grown.training
    before, after = network.score(batch()), grown.score(batch())
    assert after.shape == (3, ITEMS + NEW)
    torch.testing.assert_close(after[:, :ITEMS], before, rtol=0, atol=1e-5)


@every_model
def test_new_items_are_means_of_their_neighbours_and_new_users_are_0(name: str) -> None:
    network = model(name)
    grown = grow(network, name, NEAR, users=USERS + 2, max_length=LENGTH)
    vectors = network.item_embeddings.detach()
    wanted = [(vectors[2] + 3 * vectors[5]) / 4, vectors.mean(0), vectors[11]]
    torch.testing.assert_close(grown.item_embeddings[ITEMS:].detach(), torch.stack(wanted))
    for key in network.user_tables:
        assert (grown.state_dict()[key][-2:] == 0).all()


@every_model
def test_without_new_items_and_users_nothing_changes(name: str) -> None:
    network = model(name)
    nothing = sparse.csr_array((0, ITEMS), dtype=np.float32)
    grown = grow(network, name, nothing, **SIZES)
    assert_same_tensors(grown.state_dict(), network.state_dict())
