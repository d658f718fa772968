"""Caser against section 3 of the paper (arXiv 1809.07426), written out in NumPy and float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.caser import Caser, CaserConfig

Array = NDArray[np.float64]
USERS, LENGTHS = [2, 0, -1, 3, 1], [9, 1, 4, 0, 6]


def caser(items: list[int], user: int, w: dict[str, Array], config: CaserConfig) -> Array:
    """Scores (V,) after a history."""
    e = np.zeros((config.order, config.dim))
    for back, item in enumerate(reversed(items[-config.order :]), 1):
        e[-back] = w["embedding.weight"][item + 1]
    o = []
    for height in range(1, config.order + 1):
        name = f"horizontal.{height - 1}"
        for f, bias in zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=True):  # f is (D, h)
            places = range(config.order - height + 1)
            o.append(max(max(0, (f.T * e[i : i + height]).sum() + bias) for i in places))
    o_tilde = [
        f @ e[:, column] + bias  # f is (L,)
        for column in range(config.dim)
        for f, bias in zip(w["vertical.weight"], w["vertical.bias"], strict=True)
    ]
    z = np.maximum(0, w["full.weight"] @ np.array([*o, *o_tilde]) + w["full.bias"])
    p = w["user.weight"][user + 1] if user >= 0 else np.zeros(config.dim)
    return w["out.weight"] @ np.concatenate([z, p]) + w["bias"]


def model(config: CaserConfig, items: int = 11) -> Caser:
    torch.manual_seed(0)
    ours = Caser(items, config, users=4).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        ours.embedding.weight[0] = 0
        ours.user.weight[0] = 0
    return ours


def batch(lengths: list[int] = LENGTHS, users: list[int] | None = USERS) -> PackedBatch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(11, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    every = torch.arange(len(items))
    user_of = None if users is None else torch.tensor(users, dtype=torch.int64)
    return PackedBatch(items, offsets, every, items, users=user_of)


@pytest.mark.parametrize(
    "config",
    [
        CaserConfig(),
        CaserConfig(dim=7, order=1, horizontal=1, vertical=3),
        CaserConfig(dim=3, order=8, horizontal=5, vertical=1, dropout=0.0),
    ],
    ids=str,
)
@torch.no_grad()
def test_scores_equal_those_of_the_paper(config: CaserConfig) -> None:
    ours, some = model(config), batch()
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    scores = ours.hidden(some) @ ours.item_embeddings.T
    for user, (first, last) in zip(USERS, pairwise(some.offsets.tolist()), strict=True):
        for row in range(first, last):
            truth = caser(some.items[first : row + 1].tolist(), user, weights, config)
            np.testing.assert_allclose(scores[row].numpy(), truth, rtol=0, atol=2e-5)


def test_only_the_vectors_at_positions_are_computed() -> None:
    ours, every = model(CaserConfig(dim=6)), batch()
    some = replace(every, positions=torch.tensor([0, 8, 9, 19]))
    torch.testing.assert_close(ours.hidden(some), ours.hidden(every)[[0, 8, 9, 19]])
    assert ours.hidden(batch([], [])).shape == (0, 13)


def test_only_the_last_events_matter() -> None:
    ours, some = model(CaserConfig(dim=6, order=3)), batch([9], [0])
    changed = replace(some, items=torch.cat([(some.items[:6] + 1) % 11, some.items[6:]]))
    before, after = ours.hidden(some), ours.hidden(changed)
    assert after[8].equal(before[8])
    assert not after[7].equal(before[7])


def test_the_vectors_of_unknown_users_and_missing_events_stay_zero() -> None:
    ours, some = model(CaserConfig(dim=6)), batch()
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ours.paper_loss(ours.hidden(some), ours.item_embeddings, some.targets).backward()
        optimizer.step()
    assert (ours.embedding.weight[0] == 0).all()
    assert (ours.user.weight[0] == 0).all()
    for name, parameter in ours.named_parameters():
        assert not parameter.equal(model(CaserConfig(dim=6)).get_parameter(name)), name


def test_initial_weights() -> None:
    fresh = Caser(500, CaserConfig(), users=700)
    for drawn, deviation in (
        (fresh.embedding.weight[1:], 1 / 8),
        (fresh.user.weight[1:], 1 / 64),
        (fresh.out.weight, 1 / 128),
    ):
        assert drawn.std().item() == pytest.approx(deviation, rel=0.05)
    assert (fresh.full.bias == 0).all()
    assert (fresh.embedding.weight[0] == 0).all()
    assert (fresh.user.weight[0] == 0).all()
    assert (fresh.bias == 0).all()


def test_the_paper_loss_is_binary_cross_entropy() -> None:
    """With two items, the negative is known."""
    ours, some = model(CaserConfig(dim=6), items=2), batch([4], [0])
    some = replace(some, items=some.items % 2, targets=torch.tensor([0, 1, 1, 0]))
    hidden = ours.hidden(some)
    scores = (hidden @ ours.item_embeddings.T).double()
    positive = scores.gather(1, some.targets[:, None])
    negative = scores.gather(1, 1 - some.targets[:, None])
    truth = (torch.log1p(torch.exp(-positive)) + torch.log1p(torch.exp(negative))).mean().item()
    assert ours.paper_loss(hidden, ours.item_embeddings, some.targets).item() == pytest.approx(
        truth, abs=1e-6
    )


def test_dropout_applies_only_in_training() -> None:
    ours, some = model(CaserConfig()), batch()
    still = ours.hidden(some)
    assert still.equal(ours.hidden(some))
    assert not ours.train().hidden(some).equal(still)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"order": 0}, {"horizontal": 0}, {"vertical": 0}, {"dropout": 1.0},
     {"dropout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        CaserConfig(**values)  # type: ignore[arg-type]
