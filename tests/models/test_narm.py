"""NARM against section 3 of the paper (arXiv 1711.04725), written out in NumPy and float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models import narm
from recblr.models.narm import NARM, NARMConfig
from recblr.ops.cross_entropy import cross_entropy

Array = NDArray[np.float64]
LENGTHS = [4, 1, 25, 0, 2, 9]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def encoded(items: list[int], w: dict[str, Array]) -> Array:
    """The vector after a history: B c_t."""
    h = np.zeros(len(w["v"]))
    hs = []
    for item in items:
        x = w["embedding.weight"][item]
        xr, xz, xn = np.split(w["gru.weight_ih_l0"] @ x, 3)
        hr, hz, hn = np.split(w["gru.weight_hh_l0"] @ h, 3)
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        hs.append(h)
    c_local = np.zeros_like(h)
    for h_j in hs:
        alpha = w["v"] @ sigmoid(w["a1.weight"] @ h + w["a2.weight"] @ h_j)
        c_local += alpha * h_j
    return w["decoder.weight"] @ np.concatenate([h, c_local])


def model(config: NARMConfig) -> NARM:
    torch.manual_seed(0)
    ours = NARM(50, config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return ours


def batch(lengths: list[int] = LENGTHS) -> PackedBatch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    return PackedBatch(items, offsets, torch.arange(len(items)), items)


@pytest.mark.parametrize(
    "config", [NARMConfig(), NARMConfig(dim=7, hidden=5), NARMConfig(dim=3, hidden=1)], ids=str
)
@torch.no_grad()
def test_hidden_vectors_equal_those_of_the_paper(config: NARMConfig) -> None:
    ours, some = model(config), batch()
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    hidden = ours.hidden(some)
    for first, last in pairwise(some.offsets.tolist()):
        for row in range(first, last):
            truth = encoded(some.items[first : row + 1].tolist(), weights)
            np.testing.assert_allclose(hidden[row].numpy(), truth, rtol=0, atol=1e-5)


def test_only_the_vectors_at_positions_are_computed() -> None:
    ours, every = model(NARMConfig()), batch()
    some = replace(every, positions=torch.tensor([0, 4, 17, 40]))
    torch.testing.assert_close(ours.hidden(some), ours.hidden(every)[[0, 4, 17, 40]])
    assert ours.hidden(batch([])).shape == (0, 64)


def test_results_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with chunks of all positions, of some, and of less than one."""
    ours, some = model(NARMConfig(dim=7, hidden=5)).double(), batch()
    results = []
    for numbers in (1 << 20, 200, 1):
        monkeypatch.setattr(narm, "_CHUNK", numbers)
        hidden = ours.hidden(some)
        gradients = torch.autograd.grad(hidden.sin().sum(), list(ours.parameters()))
        results.append((hidden, *gradients))
    for others in results[1:]:
        torch.testing.assert_close(others, results[0], rtol=0, atol=1e-12)


def test_the_hidden_layers_of_the_attention_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold 160 · 161 / 2 · 32 values; autograd keeps a fraction of that."""
    monkeypatch.setattr(narm, "_CHUNK", 1 << 14)
    ours, some = model(NARMConfig(dim=4, hidden=32)), batch([160])
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ours.hidden(some).sum()
    assert sum(kept.values()) < 160 * 161 / 2 * 32 / 2


def test_the_paper_loss_is_the_full_softmax() -> None:
    ours, some = model(NARMConfig()), batch()
    hidden = ours.hidden(some)
    truth = cross_entropy(hidden, ours.embedding.weight, some.targets)
    assert ours.paper_loss(hidden, ours.item_embeddings, some.targets).equal(truth)


@pytest.mark.parametrize("name", ["embedding_dropout", "dropout"])
def test_dropout_applies_only_in_training(name: str) -> None:
    others = {"embedding_dropout": 0.0, "dropout": 0.0}
    ours, some = model(NARMConfig(**others | {name: 0.5})), batch()  # type: ignore[arg-type]
    still = ours.hidden(some)
    assert still.equal(ours.hidden(some))
    assert not ours.train().hidden(some).equal(still)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"hidden": 0}, {"embedding_dropout": -0.1}, {"dropout": 1.0},
     {"dropout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        NARMConfig(**values)  # type: ignore[arg-type]
