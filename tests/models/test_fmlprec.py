"""FMLP-Rec against NumPy in float64, with the Fourier sums written out and with pads."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_sasrec import Array, Weights, feed_forward, histories, layer_norm, weights_of
from torch import Tensor

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.fmlprec import Filter, FMLPRec, FMLPRecConfig
from recblr.models.losses import bpr

ITEMS = 31


def filtered(hs: Array, weight: Array) -> Array:
    """The filter of hs (T, D) by weight (F, D, 2), by sums over all T frequencies; the upper half
    mirrors the lower half."""
    length = len(hs)
    t = np.arange(length)
    out = np.zeros(hs.shape, complex)
    for k in range(length):
        wave = np.exp(2j * np.pi * k * t / length)
        spectrum = (hs * wave.conj()[:, None]).sum(0)
        real, imaginary = weight[min(k, length - k)].T
        factor = real + 1j * imaginary * np.sign(length - 2 * k)
        if k == 0 or 2 * k == length:  # real in the spectrum of a real signal
            factor = real
        out += wave[:, None] * spectrum * factor / length
    np.testing.assert_allclose(out.imag, 0, atol=1e-12)
    return out.real


def fmlprec(items: list[int], w: Weights, config: FMLPRecConfig, length: int) -> Array:
    """The vector of the last position of a history."""
    pads = [np.zeros(config.dim)] * length
    embedded = np.stack([*pads, *(w["embedding.weight"][item] for item in items)])[-length:]
    hs = np.stack([layer_norm(h, w, "norm") for h in embedded + w["positions.weight"]])
    for layer in range(config.layers):
        name = f"layers.{layer}"
        out = filtered(hs, w[f"{name}.filter.weight"])
        hs = np.stack([layer_norm(h, w, f"{name}.filter.norm") for h in hs + out])
        hs = np.stack([feed_forward(h, w, f"{name}.feed_forward") for h in hs])
    return hs[-1]


@torch.no_grad()
def perturbed(config: FMLPRecConfig, length: int) -> FMLPRec:
    """A model with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = FMLPRec(ITEMS, config, max_length=length)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize(
    "config",
    [
        FMLPRecConfig(dim=6, inner=5),
        FMLPRecConfig(dim=3, layers=1, inner=7),
        FMLPRecConfig(dim=4, layers=3, inner=4),
    ],
    ids=str,
)
@torch.no_grad()
def test_hidden_vectors_equal_those_of_the_paper(config: FMLPRecConfig, length: int) -> None:
    """Each position ends a history, of which the model uses the last T events."""
    model = perturbed(config, length)
    items, offsets = histories([4, 1, length, length + 3, 2])
    every = torch.arange(len(items))
    hidden = model.hidden(PackedBatch(items, offsets, every, items))
    for first, last in pairwise(offsets.tolist()):
        for stop in range(first + 1, last + 1):
            truth = fmlprec(items[first:stop].tolist(), weights_of(model), config, length)
            np.testing.assert_allclose(hidden[stop - 1].numpy(), truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_the_last_position_alone_equals_that_of_all(length: int) -> None:
    """Values and gradients; the test above checks the form for all positions."""
    torch.manual_seed(0)
    layer = Filter(3, length, 0.0).double()
    h = torch.randn(4, length, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for out in (layer(h, last=True), layer(h, last=False)[:, -1]):
        loss = (out * torch.arange(3)).sum()
        results.append((out, *torch.autograd.grad(loss, (h, *layer.parameters()))))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    for last in (True, False):
        assert torch.autograd.gradcheck(layer, (h, last))


def test_gradients_of_a_model_pass_gradcheck() -> None:
    model = perturbed(FMLPRecConfig(dim=3, inner=2), 5).double()
    items, offsets = histories([1, 4])
    batch = PackedBatch(items, offsets, offsets[1:] - 1, items[:2])

    def hidden(*_: Tensor) -> Tensor:  # gradcheck changes the parameters in place
        return model.hidden(batch)

    assert torch.autograd.gradcheck(hidden, tuple(model.parameters()))


def test_dropout_applies_only_in_training() -> None:
    model = perturbed(FMLPRecConfig(dim=8), 7)
    items, offsets = histories([7])
    batch = PackedBatch(items, offsets, offsets[1:] - 1, items[:1])
    still = model.hidden(batch)
    assert still.equal(model.hidden(batch))
    assert not model.train().hidden(batch).equal(still)


def test_the_paper_loss_is_pairwise() -> None:
    model = perturbed(FMLPRecConfig(dim=8), 7)
    hidden, targets = torch.randn(7, 8), torch.arange(7)
    torch.manual_seed(1)
    ours = model.paper_loss(hidden, model.item_embeddings, targets)
    torch.manual_seed(1)
    assert ours.equal(bpr(hidden, model.embedding.weight, targets))


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"layers": 0}, {"inner": 0}, {"dropout": 1.0}, {"dropout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        FMLPRecConfig(**values)  # type: ignore[arg-type]
