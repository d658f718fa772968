"""RecBLR against section 3 of the paper (arXiv 2406.12580), written out in NumPy and float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conftest import slow
from recblr.errors import InputError
from recblr.models.recblr import RecBLR, RecBLRConfig

ABLATIONS = [  # the rows of Table 3
    RecBLRConfig(layers=1),
    RecBLRConfig(gated=False),
    RecBLRConfig(convolution=False),
    RecBLRConfig(feed_forward=False),
    RecBLRConfig(custom_init=False),
]
Array = NDArray[np.float64]
Weights = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def layer_norm(x: Array, w: Weights, name: str) -> Array:
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def bd_lru(xs: list[Array], w: Weights, name: str) -> list[Array]:
    """Equations (5)-(8), one event after another, from a state of zero."""
    h = np.zeros_like(w[f"{name}.lam"])
    hs = []
    for x in xs:
        r = sigmoid(w[f"{name}.recurrence_gate.weight"] @ x + w[f"{name}.recurrence_gate.bias"])
        i = sigmoid(w[f"{name}.input_gate.weight"] @ x + w[f"{name}.input_gate.bias"])
        alpha = np.exp(-np.log(1 + np.exp(w[f"{name}.lam"])) * r)
        beta = np.sqrt(1 - alpha**2) * i
        h = alpha * h + beta * x
        hs.append(h)
    return hs


def gated_recurrent_layer(inputs: list[Array], w: Weights, name: str) -> list[Array]:
    """Algorithm 1; the convolution reads zeros before the first event. One ablation has no convolution,
    one has only the BD-LRU."""
    if f"{name}.to_x.weight" not in w:
        return bd_lru(inputs, w, f"{name}.lru")
    hx = [w[f"{name}.to_x.weight"] @ h for h in inputs]  # line 1
    hz = [w[f"{name}.to_z.weight"] @ h for h in inputs]  # line 2
    convolved = [silu(x) for x in hx]
    if f"{name}.conv.weight" in w:
        convolved = convolution(hx, w, name)
    hy = bd_lru(convolved, w, f"{name}.lru")  # line 5
    merged = [y * silu(z) for y, z in zip(hy, hz, strict=True)]  # line 6
    return [w[f"{name}.out.weight"] @ m for m in merged]  # line 7


def convolution(hx: list[Array], w: Weights, name: str) -> list[Array]:
    """Line 4."""
    kernel = w[f"{name}.conv.weight"][:, 0]  # (C, W); the last column is for the current event
    convolved = []
    for t in range(len(hx)):
        total = w[f"{name}.conv.bias"].copy()
        for lag in range(kernel.shape[1]):
            if t >= lag:
                total += kernel[:, -1 - lag] * hx[t - lag]
        convolved.append(silu(total))
    return convolved


def pffn(h: Array, w: Weights, name: str) -> Array:
    """Equation (4)."""
    inner = silu(w[f"{name}.inner.weight"] @ h + w[f"{name}.inner.bias"])
    return w[f"{name}.outer.weight"] @ inner + w[f"{name}.outer.bias"]


def recblr(items: list[int], w: Weights, layers: int) -> Array:
    hs = [layer_norm(w["embedding.weight"][item], w, "norm") for item in items]
    for layer in range(layers):
        name = f"layers.{layer}"
        out = gated_recurrent_layer(hs, w, f"{name}.recurrent")
        hs = [layer_norm(o + h, w, f"{name}.recurrent_norm") for o, h in zip(out, hs, strict=True)]
        if f"{name}.pffn.inner.weight" in w:
            hs = [layer_norm(pffn(h, w, f"{name}.pffn") + h, w, f"{name}.pffn_norm") for h in hs]
    return np.stack(hs)


def model(config: RecBLRConfig, items: int = 50) -> RecBLR:
    torch.manual_seed(0)
    return RecBLR(items, config).eval()


@pytest.mark.parametrize(
    "config",
    [
        RecBLRConfig(),
        RecBLRConfig(dim=12, layers=1, expansion=1, conv_width=1),
        RecBLRConfig(dim=7, layers=3, expansion=3, conv_width=6, dropout=0.0),
        *ABLATIONS,
    ],
    ids=str,
)
@torch.no_grad()
def test_hidden_vectors_equal_those_of_the_paper(config: RecBLRConfig) -> None:
    ours = model(config)
    # Initial weights hardly affect the result. Larger weights, biases and norms show any error.
    for parameter in ours.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    lengths = [4, 1, 25, 2, 9]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(50, (int(offsets[-1]),))
    hidden, _ = ours(items, offsets)
    for first, last in pairwise(offsets.tolist()):
        truth = recblr(items[first:last].tolist(), weights, config.layers)
        np.testing.assert_allclose(hidden[first:last].numpy(), truth, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_state_holds_the_recurrence_and_the_last_inputs() -> None:
    ours = model(RecBLRConfig(dim=8, layers=1))
    items, offsets = torch.arange(7), torch.tensor([0, 7])
    _, state = ours(items, offsets)
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    hs = [layer_norm(weights["embedding.weight"][item], weights, "norm") for item in range(7)]
    inputs = [weights["layers.0.recurrent.to_x.weight"] @ h for h in hs]
    assert state.shape == (1, 1, 4, 16)
    np.testing.assert_allclose(state[0, 0, 1:].numpy(), np.stack(inputs[-3:]), rtol=0, atol=1e-6)


def test_the_initial_decay_is_between_0_9_and_0_999() -> None:
    for layer in model(RecBLRConfig()).layers:
        lam = layer.recurrent.lru.lam.detach().double()
        decay = torch.exp(-torch.nn.functional.softplus(lam))
        assert decay[0].item() == pytest.approx(0.9, abs=1e-6)
        assert decay[-1].item() == pytest.approx(0.999, abs=1e-6)
        steps = lam.diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-4, atol=0)


def test_without_custom_init_lambda_is_initialised_like_a_weight() -> None:
    for layer in model(RecBLRConfig(custom_init=False)).layers:
        lam = layer.recurrent.lru.lam.detach()
        assert lam.abs().max() < 0.1
        assert lam.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        *zip(
            ABLATIONS,
            [(3, 1, 4, 128), (3, 2, 1, 64), (3, 2, 1, 128), (3, 2, 4, 128), (3, 2, 4, 128)],
            strict=True,
        )
    ],
    ids=str,
)
@torch.no_grad()
def test_an_ablation_continues_from_its_state(config: RecBLRConfig, shape: tuple[int, ...]) -> None:
    ours = model(config)
    for parameter in ours.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    assert ours.initial_state(3).shape == shape
    items = torch.randint(50, (21,))
    whole, end = ours(items, torch.tensor([0, 21]))
    first, state = ours(items[:9], torch.tensor([0, 9]))
    second, after = ours(items[9:], torch.tensor([0, 12]), state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(after, end, rtol=0, atol=1e-5)


def test_initial_weights_are_normal_and_biases_zero() -> None:
    parameters = dict(model(RecBLRConfig(), items=1000).named_parameters())
    for name, parameter in parameters.items():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "conv" in name:  # PyTorch's default: uniform within ± 1 / sqrt(width)
            assert parameter.abs().max() <= 0.5, name
            assert parameter.std().item() == pytest.approx(0.5 / np.sqrt(3), rel=0.2), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.endswith("weight"):
            error = 0.02 / np.sqrt(parameter.numel())
            assert parameter.mean().item() == pytest.approx(0, abs=5 * error), name
            assert parameter.std().item() == pytest.approx(0.02, abs=5 * error), name


def test_which_projections_have_biases() -> None:
    names = set(model(RecBLRConfig(layers=1)).state_dict())
    layer = "layers.0.recurrent"
    assert {name for name in names if name.startswith(layer) and name.endswith("bias")} == {
        f"{layer}.conv.bias",
        f"{layer}.lru.recurrence_gate.bias",
        f"{layer}.lru.input_gate.bias",
        "layers.0.recurrent_norm.bias",
    }
    assert {"layers.0.pffn.inner.bias", "layers.0.pffn.outer.bias"} < names


def test_shapes_equal_those_of_the_paper() -> None:
    shapes = {name: tuple(t.shape) for name, t in model(RecBLRConfig()).state_dict().items()}
    assert shapes["embedding.weight"] == (50, 64)
    for layer in ("layers.0", "layers.1"):
        assert shapes[f"{layer}.recurrent.to_x.weight"] == (128, 64)
        assert shapes[f"{layer}.recurrent.to_z.weight"] == (128, 64)
        assert shapes[f"{layer}.recurrent.conv.weight"] == (128, 1, 4)
        assert shapes[f"{layer}.recurrent.lru.lam"] == (128,)
        assert shapes[f"{layer}.recurrent.lru.input_gate.weight"] == (128, 128)
        assert shapes[f"{layer}.recurrent.out.weight"] == (64, 128)
        assert shapes[f"{layer}.pffn.inner.weight"] == (256, 64)
    assert not any(name.startswith("layers.2") for name in shapes)


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=slow), 0.3])
def test_it_compiles_to_one_graph(dropout: float) -> None:
    """Forward and backward, with the values and gradients of the uncompiled model."""
    ours = model(RecBLRConfig(dim=8, dropout=dropout)).train()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    items, offsets = torch.randint(50, (20,)), torch.tensor([0, 5, 5, 20])
    results = []
    for run in (compiled, ours):
        torch.manual_seed(0)
        hidden, state = run(items, offsets)
        loss = hidden.square().sum() + state.sum()
        results.append((hidden, state, *torch.autograd.grad(loss, list(ours.parameters()))))
    torch.testing.assert_close(*results)


def test_dropout_applies_only_in_training() -> None:
    ours = model(RecBLRConfig(dropout=0.5))
    items, offsets = torch.arange(20), torch.tensor([0, 20])
    still = ours(items, offsets)[0]
    assert still.equal(ours(items, offsets)[0])
    assert not ours.train()(items, offsets)[0].equal(still)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"layers": 0}, {"expansion": 0}, {"conv_width": 0}, {"dropout": 1.0},
     {"dropout": -0.1}, {"dropout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        RecBLRConfig(**values)  # type: ignore[arg-type]
