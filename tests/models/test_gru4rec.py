"""GRU4Rec (arXiv 1511.06939) against a loop in NumPy and float64; packed_gru against nn.GRU."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recblr.errors import InputError
from recblr.models.gru4rec import GRU4Rec, GRU4RecConfig, packed_gru
from recblr.models.losses import top1

Array = NDArray[np.float64]
# Around the boundaries between the rectangles, at 4, 8, 16, 32 and 64 events.
LENGTHS = [5, 0, 1, 70, 4, 3, 0, 8, 17, 9, 16, 33, 1, 64, 0]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gru(xs: list[Array], inner: Array, outer: Array) -> list[Array]:
    """Gates r, z and candidate n stacked in (3 H, D) and (3 H, H), as in PyTorch."""
    h = np.zeros(outer.shape[1])
    hs = []
    for x in xs:
        (xr, xz, xn), (hr, hz, hn) = np.split(inner @ x, 3), np.split(outer @ h, 3)
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        hs.append(h)
    return hs


def model(config: GRU4RecConfig) -> GRU4Rec:
    torch.manual_seed(0)
    ours = GRU4Rec(50, config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return ours


@pytest.mark.parametrize(
    "config", [GRU4RecConfig(), GRU4RecConfig(dim=7, hidden=5, layers=3)], ids=str
)
@torch.no_grad()
def test_hidden_vectors_and_state_equal_those_of_a_loop(config: GRU4RecConfig) -> None:
    ours = model(config)
    weights = {name: tensor.double().numpy() for name, tensor in ours.state_dict().items()}
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    items = torch.randint(50, (int(offsets[-1]),))
    hidden, state = ours(items, offsets)
    for b, (first, last) in enumerate(pairwise(offsets.tolist())):
        hs = [weights["embedding.weight"][item] for item in items[first:last].tolist()]
        for layer in range(config.layers):
            name = f"layers.{layer}.weight"
            hs = gru(hs, weights[f"{name}_ih_l0"], weights[f"{name}_hh_l0"])
            end = hs[-1] if hs else np.zeros(config.hidden)
            np.testing.assert_allclose(state[b, layer].numpy(), end, rtol=0, atol=1e-5)
        truth = np.array([weights["out.weight"] @ h + weights["out.bias"] for h in hs])
        ours_b = hidden[first:last].numpy()
        np.testing.assert_allclose(ours_b, truth.reshape(ours_b.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [0, 0], []], ids=str)
def test_packed_gru_equals_a_pass_for_each_history(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 5, bias=False, batch_first=True).double()
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(len(lengths), 5, dtype=torch.float64, requires_grad=True)
    outputs = packed_gru(layer, x, torch.tensor([0, *lengths]).cumsum(0), start)
    rows, ends = [start[:0]], [start[:0]]
    for piece, before in zip(x.split(lengths), start, strict=True):
        h, last = layer(piece.unsqueeze(0), before.view(1, 1, -1)) if len(piece) else ([], before)
        rows += list(h)
        ends.append(last.view(1, -1))
    truth = torch.cat(rows), torch.cat(ends)
    weights = [torch.randn_like(t) for t in truth]  # so that a permutation changes the sum

    def gradients(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        total = sum((w * t).sum() for w, t in zip(weights, results, strict=True))
        return torch.autograd.grad(
            total, [x, start, *layer.parameters()], materialize_grads=True, allow_unused=True
        )

    torch.testing.assert_close(outputs, truth, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients(outputs), gradients(truth), rtol=0, atol=1e-11)


def test_the_state_stays_in_float32_under_autocast() -> None:
    ours = model(GRU4RecConfig())
    items, offsets = torch.arange(20), torch.tensor([0, 3, 20])
    with torch.no_grad():
        _, exact = ours(items, offsets)
        with torch.autocast("cpu", torch.bfloat16):
            _, state = ours(items, offsets)
    assert state.equal(exact)


def test_the_paper_loss_is_top1() -> None:
    ours = model(GRU4RecConfig(dim=7))
    hidden, targets = torch.randn(9, 7), torch.randint(50, (9,))
    assert ours.paper_loss(hidden, ours.item_embeddings, targets).equal(
        top1(hidden, ours.embedding.weight, targets)
    )


def test_dropout_applies_only_in_training() -> None:
    ours = model(GRU4RecConfig(dropout=0.5))
    items, offsets = torch.arange(20), torch.tensor([0, 20])
    still = ours(items, offsets)[0]
    assert still.equal(ours(items, offsets)[0])
    assert not ours.train()(items, offsets)[0].equal(still)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"hidden": 0}, {"layers": 0}, {"dropout": 1.0}, {"dropout": float("nan")}],
    ids=str,
)
def test_invalid_settings_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=rf"^model\.{name} = "):
        GRU4RecConfig(**values)  # type: ignore[arg-type]
