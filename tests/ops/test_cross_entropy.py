"""The chunked loss against PyTorch's: values, gradients, and numbers near the limits of float32."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recblr.ops import cross_entropy as module
from recblr.ops.cross_entropy import cross_entropy

SHAPES = [(1, 1), (1, 7), (5, 1), (7, 5), (64, 33), (65, 200)]


def example(m: int, v: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (M, 6), weight (V, 6) in float64 and targets (M,)."""
    generator = torch.Generator().manual_seed(1000 * m + v)
    hidden = torch.randn(m, 6, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(v, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(v, (m,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def some_pairs(targets: Tensor, v: int) -> Tensor:
    """About a third of all items for three in four rows, with some targets of their rows."""
    generator = torch.Generator().manual_seed(v)
    chosen = torch.rand(len(targets), v, generator=generator) < 1 / 3
    chosen[1::4] = False
    chosen[torch.arange(len(targets)), targets] |= torch.arange(len(targets)) % 2 == 0
    return chosen.nonzero().repeat_interleave(2, 0).t()  # an item may come twice in a history


def divide(monkeypatch: pytest.MonkeyPatch, items: str, size: int) -> None:
    """Compute the loss by parts of ``size`` logits: of all items, or of some items."""
    monkeypatch.setattr(module, "_MIN_ROWS", 0 if items == "all" else 1 << 40)
    monkeypatch.setattr(module, "_PART", {"cpu": size})


def truth(
    hidden: Tensor, weight: Tensor, targets: Tensor, seen: Tensor | None = None,
    smoothing: float = 0.0, factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    several = targets if targets.dim() == 2 else targets.unsqueeze(1)
    logits = hidden @ weight.t()
    if seen is not None:
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        for row, item in seen.t().tolist():
            mask[row, item] = item not in several[row]
        logits = logits.masked_fill(mask, -torch.inf)
    losses = torch.stack(
        [
            functional.cross_entropy(logits, of, label_smoothing=smoothing, reduction="none")
            for of in several.unbind(1)
        ],
        1,
    )
    return (losses if factors is None else losses * factors).sum(1).mean()


@pytest.mark.parametrize(
    ("masked", "smoothing"),
    [(False, 0.0), (False, 0.1), (True, 0.0)],
    ids=["all", "smooth", "masked"],
)
@pytest.mark.parametrize("size", [1, 40, 1 << 21])
@pytest.mark.parametrize("items", ["all", "some"])
@pytest.mark.parametrize(("m", "v"), SHAPES)
def test_values_and_gradients_equal_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, m: int, v: int, items: str, size: int, masked: bool,
    smoothing: float,
) -> None:  # fmt: skip
    divide(monkeypatch, items, size)
    hidden, weight, targets = example(m, v)
    seen = some_pairs(targets, v) if masked else None
    ours = cross_entropy(hidden, weight, targets, seen, smoothing)
    theirs = truth(hidden, weight, targets, seen, smoothing)
    assert ours.shape == ()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    upstream = -3.5  # the gradient of the loss
    gradients = torch.autograd.grad(ours * upstream, (hidden, weight))
    expected = torch.autograd.grad(theirs * upstream, (hidden, weight))
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("masked", "smoothing"),
    [(False, 0.0), (False, 0.1), (True, 0.0)],
    ids=["all", "smooth", "masked"],
)
@pytest.mark.parametrize("size", [1, 40, 1 << 21])
@pytest.mark.parametrize("items", ["all", "some"])
@pytest.mark.parametrize(("m", "v"), [(1, 1), (5, 7), (65, 200)])
def test_the_loss_of_several_targets_is_the_sum_of_their_losses(
    monkeypatch: pytest.MonkeyPatch, m: int, v: int, items: str, size: int, masked: bool,
    smoothing: float,
) -> None:  # fmt: skip
    """One of three targets of a position may equal another, and may have the factor 0."""
    divide(monkeypatch, items, size)
    hidden, weight, targets = example(m, v)
    generator = torch.Generator().manual_seed(m)
    targets = torch.stack([targets, *torch.randint(v, (2, m), generator=generator)], 1)
    factors = torch.rand(m, 3, generator=generator, dtype=torch.float64)
    factors[::2, 2] = 0
    seen = some_pairs(targets[:, 0], v) if masked else None
    ours = cross_entropy(hidden, weight, targets, seen, smoothing, factors)
    theirs = truth(hidden, weight, targets, seen, smoothing, factors)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    expected = torch.autograd.grad(theirs, (hidden, weight))
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-13)


def test_a_masked_item_does_not_affect_the_loss() -> None:
    hidden, weight, _ = example(4, 9)
    targets = torch.tensor([0, 1, 3, 8])
    seen = torch.tensor([[row, item] for row in range(4) for item in (2, 6)]).t()
    changed = weight.detach().clone()
    changed[[2, 6]] += 5
    before, after = (cross_entropy(hidden, w, targets, seen) for w in (weight, changed))
    assert before == after
    assert before != cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize("seen", [None, torch.empty(2, 0, dtype=torch.int64)])
def test_the_loss_of_no_targets_is_zero(seen: Tensor | None) -> None:
    hidden, weight, targets = example(0, 4)
    loss = cross_entropy(hidden, weight, targets, seen)
    assert loss.item() == 0
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    assert dhidden.shape == (0, 6)
    assert torch.equal(dweight, torch.zeros(4, 6, dtype=torch.float64))


def test_an_empty_mask_changes_nothing() -> None:
    hidden, weight, targets = example(5, 8)
    empty = torch.empty(2, 0, dtype=torch.int64)
    assert cross_entropy(hidden, weight, targets, empty) == cross_entropy(hidden, weight, targets)


def test_a_second_backward_is_refused() -> None:
    """The first one scales the gradients in place."""
    hidden, weight, targets = example(5, 7)
    loss = cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("size", [30.0, 100.0, 200.0, 1e4])
@pytest.mark.parametrize("items", ["all", "some"])
def test_a_target_whose_probability_underflows_has_the_exact_loss(
    items: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp(-200) is 0 in float32, but the loss is 400."""
    divide(monkeypatch, items, 4)
    hidden = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[-size], [size], [0.0]], requires_grad=True)
    targets = torch.tensor([0, 0, 1])
    loss = cross_entropy(hidden, weight, targets)
    expected = truth(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    ours = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_float32_is_close_to_float64() -> None:
    for scale in (0.01, 1.0, 20.0):
        hidden, weight, targets = example(64, 200, scale)
        loss = cross_entropy(hidden.float(), weight.float(), targets)
        expected = truth(hidden, weight, targets)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("items", ["all", "some"])
def test_the_loss_of_a_diverged_model_is_not_finite(
    items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch, items, 6)
    for value in (torch.nan, torch.inf):
        hidden, weight, targets = example(3, 4)
        with torch.no_grad():
            hidden[1, 2] = value
        assert not cross_entropy(hidden, weight, targets).isfinite()


@pytest.mark.parametrize("items", ["all", "some"])
def test_bfloat16_products_are_close(items: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 has eight bits: within 1% of the loss and 2% of the largest gradient."""
    divide(monkeypatch, items, 1 << 12)
    wide, weight, targets = example(64, 200)
    hidden, table = (t.detach().float().requires_grad_() for t in (wide, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(hidden, table, targets, some_pairs(targets, 200))
    expected = truth(wide, weight, targets, some_pairs(targets, 200))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=0)
    assert loss.item() != truth(hidden, table, targets, some_pairs(targets, 200)).item()
    gradients = torch.autograd.grad(loss, (hidden, table))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (wide, weight)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 2e-2 * theirs.abs().max()


def test_gradients_have_the_dtypes_of_the_inputs() -> None:
    hidden, weight, targets = example(6, 9)
    narrow = hidden.detach().bfloat16().requires_grad_()
    wide = weight.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(narrow, wide, targets)
    dhidden, dweight = torch.autograd.grad(loss, (narrow, wide))
    assert (loss.dtype, dhidden.dtype, dweight.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )


@pytest.mark.parametrize(("masked", "smoothing"), [(False, 0.0), (False, 0.1), (True, 0.0)])
@pytest.mark.parametrize("items", ["all", "some"])
def test_weights_are_factors_of_the_losses(
    items: str, masked: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch, items, 14)
    m, v = 7, 5
    hidden, weight, targets = example(m, v)
    weights = torch.rand(m, dtype=torch.float64) + 0.5
    seen = some_pairs(targets, v) if masked else None
    ours = cross_entropy(hidden, weight, targets, seen, smoothing, weights)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    losses = []
    for row in range(m):
        own = None if seen is None else seen[:, seen[0] == row].clone()
        if own is not None:
            own[0] = 0
        one = slice(row, row + 1)
        losses.append(truth(hidden[one], weight, targets[one], own, smoothing))
    theirs = (weights * torch.stack(losses)).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients, torch.autograd.grad(theirs, (hidden, weight)))
