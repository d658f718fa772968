"""LRURec against a loop over events in complex numbers and float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_sasrec import Array, Weights, gelu, histories, linear, weights_of
from torch import Tensor

from recblr.errors import InputError
from recblr.models.lrurec import LRU, LRURec, LRURecConfig

ITEMS = 31


def layer_norm(x: Array, w: Weights, name: str) -> Array:
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def states(xs: list[Array], w: Weights, name: str) -> list[NDArray[np.complex128]]:
    """h_t = λ ⊙ h_{t-1} + γ ⊙ (B x_t + b), equation (5) of arXiv 2310.02367."""
    lam = np.exp(-np.exp(w[f"{name}.nu_log"]) + 1j * np.exp(w[f"{name}.theta_log"]))
    h, hs = np.zeros_like(lam), []
    for x in xs:
        both = linear(x, w, f"{name}.input")
        h = lam * h + np.exp(w[f"{name}.gamma_log"]) * (both[0::2] + 1j * both[1::2])
        hs.append(h)
    return hs


def lrurec(items: list[int], w: Weights, layers: int) -> tuple[Array, Array]:
    """The vector of each event, and the last state of each layer (L, C, 2)."""
    xs = [layer_norm(w["embedding.weight"][item], w, "norm") for item in items]
    ends = []
    for layer in range(layers):
        name = f"layers.{layer}.recurrent"
        hs = states(xs, w, name)
        ends.append(np.stack([hs[-1].real, hs[-1].imag], 1))
        both = w[f"{name}.output.weight"]
        out = both[:, 0::2] - 1j * both[:, 1::2]
        ys = [(out @ h).real + w[f"{name}.output.bias"] for h in hs]
        xs = [layer_norm(y + x, w, f"{name}.norm") for y, x in zip(ys, xs, strict=True)]
        name = f"layers.{layer}.feed_forward"
        ys = [linear(gelu(linear(x, w, f"{name}.inner")), w, f"{name}.outer") for x in xs]
        xs = [layer_norm(y + x, w, f"{name}.norm") for y, x in zip(ys, xs, strict=True)]
    return np.stack([np.append(x, 1) for x in xs]), np.stack(ends)


@torch.no_grad()
def perturbed(config: LRURecConfig) -> LRURec:
    """A model with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = LRURec(ITEMS, config)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [LRURecConfig(), LRURecConfig(dim=1, layers=1), LRURecConfig(dim=7, layers=3)],
    ids=str,
)
@torch.no_grad()
def test_hidden_vectors_and_states_equal_those_of_the_paper(config: LRURecConfig) -> None:
    model = perturbed(config)
    items, offsets = histories([4, 1, 25, 2, 9])
    hidden, after = model(items, offsets)
    for b, (first, last) in enumerate(pairwise(offsets.tolist())):
        truth, end = lrurec(items[first:last].tolist(), weights_of(model), config.layers)
        np.testing.assert_allclose(hidden[first:last].numpy(), truth, rtol=0, atol=1e-5)
        np.testing.assert_allclose(after[b].numpy(), end, rtol=0, atol=1e-5)
    scores = hidden @ model.item_embeddings.T
    expected = hidden[:, :-1] @ model.embedding.weight.T + model.bias
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_angles_are_exact_in_a_long_history() -> None:
    """In float32 an angle of 20,000 turns would have an error of 0.004."""
    torch.manual_seed(0)
    layer = LRU(LRURecConfig(dim=2))
    layer.nu_log.fill_(-5)  # |λ| = 0.993: a memory of some hundred events
    xs = torch.randn(20_000, 2)
    before = torch.zeros(1, 4, 2)
    h, _ = layer.recurrence(layer.input(xs), torch.tensor([0, len(xs)]), before)
    weights = {f"x.{name}": value for name, value in weights_of(layer).items()}
    truth = np.stack(states(list(xs.double().numpy()), weights, "x"))
    scale = np.abs(truth).max()
    np.testing.assert_allclose(h[:, 0::2].numpy(), truth.real, rtol=0, atol=2e-6 * scale)
    np.testing.assert_allclose(h[:, 1::2].numpy(), truth.imag, rtol=0, atol=2e-6 * scale)


def test_gradients_of_the_recurrence() -> None:
    """In float64 by gradcheck, in float32 against float64; with empty histories."""
    torch.manual_seed(0)
    layer = LRU(LRURecConfig(dim=1)).double()
    offsets = torch.tensor([0, 0, 5, 6, 6, 13])
    x, before = torch.randn(13, 4, dtype=torch.float64), torch.randn(5, 2, 2, dtype=torch.float64)
    trained = (layer.nu_log, layer.theta_log, layer.gamma_log)
    inputs = (x.requires_grad_(), before.requires_grad_(), *trained)

    def run(x: Tensor, before: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return layer.recurrence(x, offsets, before)

    assert torch.autograd.gradcheck(run, inputs)

    def gradients(layer: LRU, x: Tensor, before: Tensor) -> list[Tensor]:
        h, after = layer.recurrence(x, offsets, before)
        loss = (h * torch.arange(4)).sum() + (after * torch.arange(1, 3)).sum()
        leaves = (x, before, layer.nu_log, layer.theta_log, layer.gamma_log)
        return [gradient.double() for gradient in torch.autograd.grad(loss, leaves)]

    exact = gradients(layer, x, before)
    ours = gradients(layer.float(), x.detach().float().requires_grad_(), before.float())
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_initial_eigenvalues_are_those_of_the_authors() -> None:
    """|λ| from 0.8 to 0.99, uniform over the area of the ring; any angle; γ = √(1 - |λ|²)."""
    torch.manual_seed(0)
    layer = LRU(LRURecConfig(dim=2000))
    radius = torch.exp(-layer.nu_log.detach().exp())
    assert 0.8 <= radius.min() < 0.801
    assert 0.989 < radius.max() <= 0.99
    assert radius.square().mean().item() == pytest.approx((0.8**2 + 0.99**2) / 2, abs=0.01)
    angle = layer.theta_log.detach().exp()
    assert 0 < angle.min() < 0.02
    assert 2 * math.pi - 0.02 < angle.max() <= 2 * math.pi + 1e-5
    gamma = layer.gamma_log.detach().exp()
    torch.testing.assert_close(gamma, (1 - radius**2).sqrt(), rtol=1e-5, atol=0)


def test_initial_weights_and_biases_are_truncated_normal() -> None:
    for name, parameter in LRURec(1000, LRURecConfig()).named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "_log" not in name:
            assert parameter.abs().max() <= 0.04, name
            # Of a normal distribution truncated at two standard deviations.
            std, error = 0.88 * 0.02, 0.02 / math.sqrt(parameter.numel())
            assert parameter.mean().item() == pytest.approx(0, abs=5 * error), name
            assert parameter.std().item() == pytest.approx(std, abs=5 * error), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_applies_only_in_training(dropout: float) -> None:
    model = perturbed(LRURecConfig(dim=8, dropout=dropout))
    items, offsets = histories([7])
    still = model(items, offsets)[0]
    assert still.equal(model(items, offsets)[0])
    assert model.train()(items, offsets)[0].equal(still) == (dropout == 0)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")}],
    ids=str,
)
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        LRURecConfig(**values)  # type: ignore[arg-type]
