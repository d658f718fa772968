"""Losses over sampled items against loops in Python."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recblr.training.losses import binary_cross_entropy, bpr, top1

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def drawn(m: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, items = torch.randn(m, d, generator=generator), torch.randn(v, d, generator=generator)
    targets = torch.randint(v, (m,), generator=generator)
    return hidden.requires_grad_(), items.requires_grad_(), targets


def top1_by_pairs(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """As a sum over pairs of positions of different targets, in float64."""
    scores = hidden.double() @ items.double().T
    terms = []
    for i, right in enumerate(targets):
        for other in targets:
            if other != right:
                wrong = scores[i, other]
                terms.append((wrong - scores[i, right]).sigmoid() + (wrong**2).sigmoid())
    return torch.stack(terms).mean()


def pairwise(loss: Loss, right: Tensor, wrong: Tensor) -> Tensor:
    if loss is bpr:
        return (1 + (wrong - right).exp()).log().mean()
    return ((1 + (-right).exp()).log() + (1 + wrong.exp()).log()).mean()


def assert_same(found: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    """Values, and gradients of each of the inputs."""
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-6)
    ours = torch.autograd.grad(found, inputs)
    theirs = torch.autograd.grad(truth, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_top1_by_hand() -> None:
    """Two positions, the target of each the other item of the other."""
    hidden, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-1.0], [9.0]])
    first = sigmoid(-1.0 - 0.5) + sigmoid((-1.0) ** 2)
    second = sigmoid(1.0 - -2.0) + sigmoid(1.0**2)
    found = top1(hidden, items, torch.tensor([0, 1]))
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize(("m", "d", "v"), [(2, 1, 2), (13, 5, 7), (33, 16, 101)])
def test_top1_is_its_sum_over_pairs(m: int, d: int, v: int) -> None:
    hidden, items, targets = drawn(m, d, v)
    targets[0] = (targets[1] + 1) % v  # so that there is a pair
    inputs = (hidden, items, targets)
    assert_same(top1(*inputs), top1_by_pairs(*inputs), [hidden, items])


@pytest.mark.parametrize("targets", [[], [3], [3, 3, 3]], ids=str)
def test_top1_without_another_item_is_zero(targets: list[int]) -> None:
    hidden, items, _ = drawn(len(targets), 4, 5)
    loss = top1(hidden, items, torch.tensor(targets, dtype=torch.int64))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, [hidden, items]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (13, 5), (101, 16)])
def test_sampled_losses_of_two_items(loss: Loss, m: int, d: int) -> None:
    """Then the other item is known."""
    hidden, items, targets = drawn(m, d, 2)
    scores = hidden.double() @ items.double().T
    right, wrong = (scores.gather(1, t.unsqueeze(1)) for t in (targets, 1 - targets))
    assert_same(loss(hidden, items, targets), pairwise(loss, right, wrong), [hidden, items])


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
def test_sampled_losses_of_nothing_are_zero(loss: Loss) -> None:
    hidden, items, targets = drawn(0, 4, 5)
    found = loss(hidden, items, targets)
    assert found.item() == 0
    for gradient in torch.autograd.grad(found, [hidden, items]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
def test_every_other_item_is_as_likely_and_the_target_is_none(loss: Loss) -> None:
    """The gradient of an item that was drawn is not zero: count how often that was each."""
    torch.manual_seed(0)
    v, target, draws = 5, 3, 2048
    hidden, items = torch.ones(draws, 1), torch.zeros(v, 1, requires_grad=True)
    found = loss(hidden, items, torch.full((draws,), target))
    (gradient,) = torch.autograd.grad(found, items)
    share = gradient.flatten() * 2  # of zero scores each draw counts half, its target minus half
    assert share[target].item() == pytest.approx(-1, abs=1e-6)
    others = share[[0, 1, 2, 4]]
    assert others.sum().item() == pytest.approx(1, abs=1e-6)
    assert (others - 1 / 4).abs().max() < 5 * math.sqrt(1 / 4 * 3 / 4 / draws)


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy, top1])
def test_losses_are_float32_under_autocast(loss: Loss) -> None:
    hidden, items, targets = drawn(600, 8, 50)
    torch.manual_seed(0)
    exact = loss(hidden, items, targets)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(hidden, items, targets)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
