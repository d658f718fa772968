"""Losses over sampled items against loops in Python."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recblr.models.losses import binary_cross_entropy, bpr, top1

Loss = Callable[..., Tensor]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_inputs(m: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, items = torch.randn(m, d, generator=generator), torch.randn(v, d, generator=generator)
    targets = torch.randint(v, (m,), generator=generator)
    return hidden.requires_grad_(), items.requires_grad_(), targets


def top1_by_pairs(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """The sum over pairs of positions with different targets, in float64."""
    scores = hidden.double() @ items.double().T
    terms = []
    for i, target in enumerate(targets):
        for other in targets:
            if other != target:
                negative = scores[i, other]
                terms.append((negative - scores[i, target]).sigmoid() + (negative**2).sigmoid())
    return torch.stack(terms).mean()


def pairwise(loss: Loss, positive: Tensor, negative: Tensor) -> Tensor:
    if loss is bpr:
        return (1 + (negative - positive).exp()).log().mean()
    return ((1 + (-positive).exp()).log() + (1 + negative.exp()).log()).mean()


def assert_same(loss: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    """Compare the values and the gradients of the inputs."""
    torch.testing.assert_close(loss.double(), truth, rtol=0, atol=1e-6)
    ours = torch.autograd.grad(loss, inputs)
    theirs = torch.autograd.grad(truth, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_top1_computed_by_hand() -> None:
    """Two positions; the target of each is the negative of the other."""
    hidden, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-1.0], [9.0]])
    first = sigmoid(-1.0 - 0.5) + sigmoid((-1.0) ** 2)
    second = sigmoid(1.0 - -2.0) + sigmoid(1.0**2)
    loss = top1(hidden, items, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize(("m", "d", "v"), [(2, 1, 2), (13, 5, 7), (33, 16, 101)])
def test_top1_equals_the_sum_over_pairs(m: int, d: int, v: int) -> None:
    hidden, items, targets = random_inputs(m, d, v)
    targets[0] = (targets[1] + 1) % v  # so that there is a pair
    inputs = (hidden, items, targets)
    assert_same(top1(*inputs), top1_by_pairs(*inputs), [hidden, items])


@pytest.mark.parametrize("targets", [[], [3], [3, 3, 3]], ids=str)
def test_top1_without_a_negative_is_zero(targets: list[int]) -> None:
    hidden, items, _ = random_inputs(len(targets), 4, 5)
    loss = top1(hidden, items, torch.tensor(targets, dtype=torch.int64))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, [hidden, items]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (13, 5), (101, 16)])
def test_sampled_losses_of_two_items(loss: Loss, m: int, d: int) -> None:
    """With two items, the negative is known."""
    hidden, items, targets = random_inputs(m, d, 2)
    scores = hidden.double() @ items.double().T
    positive, negative = (scores.gather(1, t.unsqueeze(1)) for t in (targets, 1 - targets))
    assert_same(loss(hidden, items, targets), pairwise(loss, positive, negative), [hidden, items])


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
def test_sampled_losses_without_targets_are_zero(loss: Loss) -> None:
    hidden, items, targets = random_inputs(0, 4, 5)
    value = loss(hidden, items, targets)
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, [hidden, items]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy])
def test_negatives_are_uniform_over_the_other_items(loss: Loss) -> None:
    """The gradient of an item counts how often it was drawn."""
    torch.manual_seed(0)
    v, target, draws = 5, 3, 2048
    hidden, items = torch.ones(draws, 1), torch.zeros(v, 1, requires_grad=True)
    value = loss(hidden, items, torch.full((draws,), target))
    (gradient,) = torch.autograd.grad(value, items)
    share = gradient.flatten() * 2  # at zero scores a draw counts 1/2, its target -1/2
    assert share[target].item() == pytest.approx(-1, abs=1e-6)
    others = share[[0, 1, 2, 4]]
    assert others.sum().item() == pytest.approx(1, abs=1e-6)
    assert (others - 1 / 4).abs().max() < 5 * math.sqrt(1 / 4 * 3 / 4 / draws)


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy, top1])
def test_losses_are_float32_under_autocast(loss: Loss) -> None:
    hidden, items, targets = random_inputs(600, 8, 50)
    torch.manual_seed(0)
    exact = loss(hidden, items, targets)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(hidden, items, targets)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy, top1])
def test_weights_are_factors_of_the_targets(loss: Loss) -> None:
    hidden, items, targets = random_inputs(6, 4, 5)
    parts = []
    for weights in (
        torch.ones(6),
        torch.tensor([1.0, 0, 0, 0, 0, 0]),
        torch.tensor([0.0, 1, 1, 1, 1, 1]),
    ):
        torch.manual_seed(0)
        parts.append(loss(hidden, items, targets, weights))
    torch.manual_seed(0)
    plain = loss(hidden, items, targets)
    torch.testing.assert_close(parts[0], plain)
    torch.testing.assert_close(parts[1] + parts[2], plain)
    assert 0 < parts[1] < plain
