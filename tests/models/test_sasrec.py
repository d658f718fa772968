"""SASRec against its layers written out in NumPy and float64, position by position."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recblr import ops
from recblr.data.batches import PackedBatch, rectangles
from recblr.errors import InputError
from recblr.models.losses import binary_cross_entropy
from recblr.models.sasrec import SASRec, SASRecConfig, SelfAttention

Array = NDArray[np.float64]
Weights = dict[str, Array]

ITEMS, LENGTH = 31, 12
CONFIGS = [
    SASRecConfig(dim=8, inner=12),
    SASRecConfig(dim=9, layers=3, heads=3, inner=5, dropout=0.0),
    SASRecConfig(dim=5, layers=1, heads=1, inner=1),
]


def layer_norm(x: Array, w: Weights, name: str) -> Array:
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Array, w: Weights, name: str) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * np.array([1 + math.erf(value / math.sqrt(2)) for value in x]) / 2


def attention(hs: list[Array], w: Weights, name: str, heads: int, causal: bool) -> list[Array]:
    """Multi-head scaled dot products; if causal, with keys up to the position of the query."""
    qkv = [np.split(linear(h, w, f"{name}.qkv"), 3) for h in hs]
    outputs = []
    for t, (queries, _, _) in enumerate(qkv):
        seen = qkv[: t + 1] if causal else qkv
        parts = []
        for head in np.split(np.arange(len(queries)), heads):
            scores = [queries[head] @ keys[head] / math.sqrt(len(head)) for _, keys, _ in seen]
            weights = np.exp(scores) / np.exp(scores).sum()
            parts.append(sum(a * v[head] for a, (_, _, v) in zip(weights, seen, strict=True)))
        outputs.append(linear(np.concatenate(parts), w, f"{name}.out"))
    return outputs


def feed_forward(h: Array, w: Weights, name: str) -> Array:
    """Two layers with GELU, residual and norm."""
    out = linear(gelu(linear(h, w, f"{name}.inner")), w, f"{name}.outer")
    return layer_norm(h + out, w, f"{name}.norm")


def transformer(items: list[int], w: Weights, config: SASRecConfig, causal: bool) -> list[Array]:
    hs = [w["embedding.weight"][item] for item in items]
    positions = w["encoder.positions.weight"][: len(items)]
    if not causal:
        positions = positions[::-1]
    hs = [layer_norm(h + p, w, "encoder.norm") for h, p in zip(hs, positions, strict=True)]
    for layer in range(config.layers):
        name = f"encoder.layers.{layer}"
        out = attention(hs, w, f"{name}.attention", config.heads, causal)
        norm = f"{name}.attention.norm"
        hs = [layer_norm(h + o, w, norm) for h, o in zip(hs, out, strict=True)]
        hs = [feed_forward(h, w, f"{name}.feed_forward") for h in hs]
    return hs


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def histories(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random items, and the offsets of the histories."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(ITEMS, (int(offsets[-1]),)), offsets


@torch.no_grad()
def perturbed(config: SASRecConfig) -> SASRec:
    """A model with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = SASRec(ITEMS, config, max_length=LENGTH)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_hidden_vectors_equal_those_of_the_layers(config: SASRecConfig) -> None:
    model = perturbed(config)
    items, offsets = histories([4, 1, LENGTH, 2, 9])
    every = torch.arange(len(items))
    hidden = model.hidden(PackedBatch(items, offsets, every, items))
    for first, last in pairwise(offsets.tolist()):
        truth = transformer(items[first:last].tolist(), weights_of(model), config, causal=True)
        np.testing.assert_allclose(hidden[first:last].numpy(), truth, rtol=0, atol=1e-5)
    some = torch.tensor([0, 4, 16, 27])
    assert model.hidden(PackedBatch(items, offsets, some, items[some])).equal(hidden[some])


@pytest.mark.parametrize("lengths", [[], [0], [0, 3, 0, 1]])
def test_empty_histories_are_skipped(lengths: list[int]) -> None:
    model = perturbed(SASRecConfig(dim=8))
    items, offsets = histories(lengths)
    every = torch.arange(len(items))
    hidden = model.hidden(PackedBatch(items, offsets, every, items))
    packed = torch.tensor([0, *(length for length in lengths if length)]).cumsum(0)
    assert hidden.equal(model.hidden(PackedBatch(items, packed, every, items)))
    hidden.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_training_equals_attention_in_evaluation(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training has its own implementation, with dropout; without dropout, its values and gradients
    are those of evaluation."""
    monkeypatch.setattr(ops, "dropout", lambda x, p, training: x)
    torch.manual_seed(0)
    attention = SelfAttention(SASRecConfig(dim=6, heads=3), causal).double()
    offsets = torch.tensor([0, 5, 6, 13])  # two rectangles
    h = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for training in (True, False):
        out = attention.train(training)(h, *rectangles(offsets))
        leaves = (h, *attention.parameters())
        results.append((out, *torch.autograd.grad((out * torch.arange(6)).sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_dropout_of_attention_weights() -> None:
    """A single event attends to itself with weight 0 or 2, equally often."""
    torch.manual_seed(0)
    attention = SelfAttention(SASRecConfig(dim=1, heads=1, dropout=0.5), causal=True)
    one = torch.ones(4000, 1, 1, 1)
    out = attention.attend(one, one, one, torch.ones(4000, 1, dtype=torch.bool))
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert out.mean().item() == pytest.approx(1, abs=5 / math.sqrt(4000))


def test_gradients_of_a_model_pass_gradcheck() -> None:
    model = perturbed(SASRecConfig(dim=4, heads=2, inner=3)).double()
    items, offsets = histories([1, 4])
    batch = PackedBatch(items, offsets, torch.arange(5), items)

    def hidden(*_: Tensor) -> Tensor:  # gradcheck changes the parameters in place
        return model.hidden(batch)

    assert torch.autograd.gradcheck(hidden, tuple(model.parameters()))


def test_dropout_applies_only_in_training() -> None:
    model = perturbed(SASRecConfig(dim=8))
    items, offsets = histories([7])
    batch = PackedBatch(items, offsets, torch.arange(7), items)
    still = model.hidden(batch)
    assert still.equal(model.hidden(batch))
    assert not model.train().hidden(batch).equal(still)


def test_the_paper_loss_is_binary_cross_entropy() -> None:
    model = perturbed(SASRecConfig(dim=8))
    hidden, targets = torch.randn(7, 8), torch.arange(7)
    torch.manual_seed(1)
    ours = model.paper_loss(hidden, model.item_embeddings, targets)
    torch.manual_seed(1)
    assert ours.equal(binary_cross_entropy(hidden, model.embedding.weight, targets))


def test_initial_weights_are_normal_and_biases_zero() -> None:
    for name, parameter in SASRec(1000, SASRecConfig(), max_length=50).named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            error = 0.02 / math.sqrt(parameter.numel())
            assert parameter.mean().item() == pytest.approx(0, abs=5 * error), name
            assert parameter.std().item() == pytest.approx(0.02, abs=5 * error), name


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"layers": 0}, {"heads": 0}, {"heads": 3}, {"inner": 0}, {"dropout": 1.0},
     {"dropout": -0.1}, {"dropout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        SASRecConfig(**values)  # type: ignore[arg-type]
