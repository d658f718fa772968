"""FPMC (Rendle et al., WWW 2010) against the sum over its factors."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.fpmc import FPMC, FPMCConfig


def model(dim: int, items: int = 11, users: int = 4) -> FPMC:
    torch.manual_seed(0)
    ours = FPMC(items, FPMCConfig(dim), users).eval()
    with torch.no_grad():
        for table in (ours.user.weight[1:], ours.user_item.weight, ours.last.weight):
            table += 0.5 * torch.randn_like(table)
    return ours


def batch(lengths: list[int], users: list[int] | None) -> PackedBatch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(11, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    every = torch.arange(len(items))
    user_of = None if users is None else torch.tensor(users, dtype=torch.int64)
    return PackedBatch(items, offsets, every, items, users=user_of)


def test_scores_computed_by_hand() -> None:
    """User (1, 2), last item (3, 4); item 1 is (5, 6) for the user and (7, 8) for the last item."""
    ours = FPMC(2, FPMCConfig(2), users=1)
    with torch.no_grad():
        ours.user.weight[1] = torch.tensor([1.0, 2.0])
        ours.last.weight[0] = torch.tensor([3.0, 4.0])
        ours.user_item.weight[1] = torch.tensor([5.0, 6.0])
        ours.last_item.weight[1] = torch.tensor([7.0, 8.0])
    one = PackedBatch(*(torch.tensor(x) for x in ([0], [0, 1], [0], [1])), users=torch.tensor([0]))
    assert ours.score(one)[0, 1] == 1 * 5 + 2 * 6 + 3 * 7 + 4 * 8
    assert ours.score(replace(one, users=None))[0, 1] == 3 * 7 + 4 * 8


@pytest.mark.parametrize("dim", [1, 7, 64])
@torch.no_grad()
def test_scores_equal_those_of_the_paper(dim: int) -> None:
    ours = model(dim)
    users, lengths = [2, 0, -1, 3, 1], [3, 1, 6, 0, 2]
    packed = batch(lengths, users)
    scores = ours.hidden(packed) @ ours.item_embeddings.T
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    for user, (first, last) in zip(users, pairwise(packed.offsets.tolist()), strict=True):
        for row in range(first, last):
            for item in range(11):
                after = weights["last.weight"][packed.items[row]]
                x = sum(after * weights["last_item.weight"][item])
                if user >= 0:
                    x += sum(weights["user.weight"][user + 1] * weights["user_item.weight"][item])
                np.testing.assert_allclose(scores[row, item].item(), x, rtol=0, atol=1e-5)


def test_only_the_vectors_at_positions_are_computed() -> None:
    ours, every = model(5), batch([3, 1, 6], [1, -1, 0])
    some = replace(every, positions=torch.tensor([2, 5, 9]))
    assert ours.hidden(some).equal(ours.hidden(every)[[2, 5, 9]])
    assert ours.hidden(batch([], [])).shape == (0, 10)


def test_the_vector_of_unknown_users_stays_zero() -> None:
    ours, some = model(5), batch([3, 2], [-1, 1])
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ours.paper_loss(ours.hidden(some), ours.item_embeddings, some.targets).backward()
        optimizer.step()
    assert (ours.user.weight[0] == 0).all()
    assert (ours.user.weight[2] != model(5).user.weight[2]).all()


def test_the_paper_loss_is_bpr() -> None:
    """With two items, the negative is known."""
    ours, some = model(5, items=2), batch([4], [0])
    some = replace(some, items=some.items % 2, targets=torch.tensor([0, 1, 1, 0]))
    hidden = ours.hidden(some)
    scores = (hidden @ ours.item_embeddings.T).double()
    margin = scores.gather(1, some.targets[:, None]) - scores.gather(1, 1 - some.targets[:, None])
    truth = torch.log1p(torch.exp(-margin)).mean().item()
    assert ours.paper_loss(hidden, ours.item_embeddings, some.targets).item() == pytest.approx(
        truth, abs=1e-6
    )


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"^model\.dim = 0"):
        FPMCConfig(0)
