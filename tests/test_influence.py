"""Influence against the recurrence split by event, and against finite differences."""

from collections.abc import Callable
from functools import partial
from threading import Thread, current_thread, main_thread
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.data.batches import PackedBatch, pack_latest
from recblr.errors import InputError
from recblr.influence import influence, state_parts
from recblr.memory import Memory, MemoryConfig
from recblr.models.recblr import RecBLR, RecBLRConfig

ITEMS, TARGET = 23, 4
CONFIGS = [
    RecBLRConfig(dim=6),
    RecBLRConfig(dim=5, layers=3, expansion=1, conv_width=1),
    RecBLRConfig(dim=5, layers=1, conv_width=6),
    RecBLRConfig(dim=5, gated=False),
    RecBLRConfig(dim=5, convolution=False),
    RecBLRConfig(dim=5, feed_forward=False),
    RecBLRConfig(dim=5, custom_init=False),
]

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=1e-12)


@torch.no_grad()
def perturbed(config: RecBLRConfig) -> RecBLR:
    """A model in float64 with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = RecBLR(ITEMS, config).double()
    for parameter in model.parameters():
        parameter += 0.4 * torch.randn_like(parameter)
    return model.eval()


def history(length: int) -> Tensor:
    return torch.randint(ITEMS, (length,), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def score(model: RecBLR, items: Tensor) -> float:
    empty = torch.zeros(0, dtype=torch.int64)
    batch = PackedBatch(items, torch.tensor([0, len(items)]), empty, empty)
    return model.score(batch)[0, TARGET].item()


@torch.no_grad()
def slow_parts(model: RecBLR, items: Tensor) -> list[list[Tensor]]:
    """For each layer the parts of all events, step by step."""
    h = model.norm(model.embedding(items))
    layer_parts = []
    for layer, before in zip(model.layers, model.initial_state(1).double().unbind(1), strict=True):
        x, lru = h, layer.recurrent.lru
        if model.config.gated:
            x = layer.recurrent.to_x(h)
            if model.config.convolution:
                padded = F.pad(x, (0, 0, model.config.conv_width - 1, 0))
                x = layer.recurrent.conv(padded.t()).t()
            x = F.silu(x)
        parts: list[Tensor] = []
        for x_t in x:
            alpha = torch.exp(-F.softplus(lru.lam) * torch.sigmoid(lru.recurrence_gate(x_t)))
            parts = [alpha * part for part in parts]
            parts.append(torch.sqrt(1 - alpha**2) * torch.sigmoid(lru.input_gate(x_t)) * x_t)
        layer_parts.append(parts)
        h, _ = layer(h, torch.tensor([0, len(items)]), before)
    return layer_parts


def slope(f: Callable[[float], float], step: float = 1e-5) -> float:
    """f'(0), by a central difference."""
    return (f(step) - f(-step)) / (2 * step)


@every_config
@pytest.mark.parametrize("length", [1, 2, 3, 37])
def test_parts_equal_the_recurrence_split_by_event(config: RecBLRConfig, length: int) -> None:
    model, items = perturbed(config), history(length)
    _, _, parts = state_parts(model, items)
    truth = torch.stack([torch.stack(parts) for parts in slow_parts(model, items)])
    assert_equal(parts, truth)
    state = truth[0].sum(0)
    expected = torch.stack([part @ state / (state @ state) for part in truth[0]])
    shares = influence(model, items, TARGET).first_layer
    assert_equal(shares, expected)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)


@every_config
@pytest.mark.parametrize("length", [0, 1, 40, 3000])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_parts_sum_to_the_state_of_the_model(
    config: RecBLRConfig, length: int, dtype: torch.dtype, share: float
) -> None:
    """Relative to the largest value of the state, as the model sums in its own dtype."""
    model, items = perturbed(config).to(dtype), history(length)
    before = torch.randn_like(model.initial_state(1).to(dtype))
    after, kept, parts = state_parts(model, items, before)
    with torch.no_grad():
        _, truth = model(items, torch.tensor([0, length]), before)
    assert after.equal(truth)
    assert parts.dtype == kept.dtype == torch.float64
    sums = kept * before[0, :, 0] + parts.sum(1)
    rows = truth[0, :, 0].double()
    torch.testing.assert_close(sums, rows, rtol=0, atol=share * rows.abs().max().item())


@torch.no_grad()
def test_the_parts_of_forgotten_events_are_zero() -> None:
    model, items = perturbed(RecBLRConfig(dim=6)), history(3000)
    for layer in model.layers:
        layer.recurrent.lru.lam += 10
    after, kept, parts = state_parts(model, items)
    assert (kept == 0).all()
    assert (parts[:, 0] == 0).all()
    assert_equal(parts.sum(1), after[0, :, 0])


@every_config
@pytest.mark.parametrize("length", [2, 3, 12])
@torch.no_grad()
def test_values_equal_finite_differences_of_the_score(config: RecBLRConfig, length: int) -> None:
    """Along the line to the state, for the parts in the recurrences and the convolutions."""
    model, items = perturbed(config), history(length)
    values = influence(model, items, TARGET).score
    zero_state = model.initial_state(1).double()
    _, state = model(items[:-1], torch.tensor([0, length - 1]), zero_state)
    parts = slow_parts(model, items[:-1])
    for t in range(length - 1):
        part = torch.zeros_like(state)
        for layer in range(config.layers):
            part[0, layer, 0] = parts[layer][t]
        row = config.state_rows - (length - 1 - t)
        if row >= 1:
            part[0, :, row] = state[0, :, row]

        def mean_score(step: float, part: Tensor = part) -> float:
            """Over 32 points of the line."""
            points = (torch.arange(32) + 0.5).view(-1, 1, 1, 1).double() / 32
            hidden, _ = model.step(items[-1:].expand(32), points * state + step * part)
            return (hidden @ model.item_embeddings[TARGET]).mean().item()

        assert values[t].item() == pytest.approx(slope(mean_score), abs=1e-8)
    assert values.abs().max() > 1e-3


@every_config
@pytest.mark.parametrize("length", [1, 2, 12])
def test_values_and_rest_sum_to_the_score(config: RecBLRConfig, length: int) -> None:
    model, items = perturbed(config), history(length)
    result = influence(model, items, TARGET)
    assert result.score.shape == result.first_layer.shape == (length,)
    assert result.score.sum().item() + result.rest == pytest.approx(score(model, items), abs=1e-12)
    assert result.score[-1].item() == pytest.approx(score(model, items[-1:]), abs=1e-12)
    assert abs(result.rest) < 0.01
    if length == 1:
        assert result.rest == pytest.approx(0, abs=1e-12)
        assert result.first_layer.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("length", [1, 5, 12])
@torch.no_grad()
def test_influences_of_network_and_memory_sum_to_the_score(length: int) -> None:
    model, items = perturbed(CONFIGS[0]), history(length)
    rng = np.random.default_rng(0)
    matrix = sparse.csr_array(rng.random((ITEMS, ITEMS)).astype(np.float32))
    memory = Memory(MemoryConfig(reach=4), matrix, 1.5, 10.0, -2.0)
    for target in (TARGET, int(items[0])):
        network, result = influence(model, items, target), influence(model, items, target, memory)
        assert (network.memory.tolist(), network.repeat) == ([0.0] * length, 0.0)
        assert result.score.equal(network.score)
        assert result.repeat == (-2.0 if target in items else 0.0)
        batch = pack_latest(items.numpy(), np.array([0]), np.array([length]), length, "none")
        whole = memory.add_to(model.score(batch), batch)[0, target].item()
        parts = result.score.sum() + result.rest + result.memory.sum() + result.repeat
        assert parts.item() == pytest.approx(whole, abs=1e-5)
        assert (result.memory[-4:] > 0).all()
        assert (result.memory[:-4] == 0).all()


@pytest.mark.parametrize("gated", [True, False])
@torch.no_grad()
def test_the_rest_is_zero_if_the_score_is_linear_in_the_state(gated: bool) -> None:
    config = RecBLRConfig(dim=5, layers=1, gated=gated, convolution=False, feed_forward=False)
    model, items = perturbed(config), history(9)
    (layer,) = model.layers
    layer.recurrent_norm = nn.Identity()
    result = influence(model, items, TARGET)
    assert result.rest == pytest.approx(0, abs=1e-12)
    assert result.score.sum().item() == pytest.approx(score(model, items), abs=1e-12)
    (parts,) = slow_parts(model, items)
    h = model.norm(model.embedding(items[-1]))
    for t in range(8):
        out = layer.recurrent.out(parts[t] * F.silu(layer.recurrent.to_z(h))) if gated else parts[t]
        assert_equal(result.score[t], out @ model.item_embeddings[TARGET])


@pytest.mark.parametrize("length", [1, 3, 200])
@torch.no_grad()
def test_the_fused_kernels_agree(length: int) -> None:
    model, items = perturbed(RecBLRConfig(dim=6)), history(length)
    truth = influence(model, items, TARGET)
    result = influence(model.float(), items, TARGET)
    torch.testing.assert_close(result.first_layer, truth.first_layer, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.score, truth.score, rtol=0, atol=1e-4)
    assert result.rest == pytest.approx(truth.rest, abs=1e-4)


def test_the_model_is_unchanged_and_other_threads_can_use_it() -> None:
    model, items = perturbed(RecBLRConfig(dim=6)), history(9)
    truth = influence(model, items, TARGET)
    others: list[Thread] = []

    def run_another(*_: Any) -> None:
        if current_thread() is main_thread():  # the other threads call this hook, too
            other = Thread(target=score, args=(model, history(30)))
            others.append(other)
            other.start()
            other.join()

    with model.norm.register_forward_hook(run_another):
        result = influence(model, items, TARGET)
    assert len(others) > 1
    assert result.first_layer.equal(truth.first_layer)
    assert result.score.equal(truth.score)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("items", "target", "message"),
    [
        ([], 0, "one or more"),
        ([[1, 2]], 0, "one or more"),
        ([0, ITEMS], 0, r"0 \.\. 22"),
        ([-1, 0], 0, r"0 \.\. 22"),
        ([0], ITEMS, r"^target = 23: must be in 0 \.\. 22$"),
        ([0], -1, r"^target = -1"),
    ],
)
def test_invalid_histories_and_targets_are_refused(
    items: list[Any], target: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        influence(perturbed(CONFIGS[0]), torch.tensor(items, dtype=torch.int64), target)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        influence(perturbed(CONFIGS[0]).train(), history(3), TARGET)
