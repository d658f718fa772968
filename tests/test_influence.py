"""Influence against the recurrence kept apart event by event, and against finite differences."""

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

from recblr.data.batches import PackedBatch, latest
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
def stirred(config: RecBLRConfig) -> RecBLR:
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
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = PackedBatch(items, torch.tensor([0, len(items)]), nothing, nothing)
    return model.score(batch)[0, TARGET].item()


@torch.no_grad()
def slow_parts(model: RecBLR, items: Tensor) -> list[list[Tensor]]:
    """Of each layer the parts of all events, one step after another."""
    h = model.norm(model.embedding(items))
    of_layers = []
    for layer, before in zip(model.layers, model.initial_state(1).double().unbind(1), strict=True):
        x, lru = h, layer.recurrent.lru
        if model.config.gated:
            x = layer.recurrent.to_x(h)
            if model.config.convolution:
                padded = F.pad(x, (0, 0, model.config.conv_width - 1, 0))
                x = layer.recurrent.conv(padded.t()).t()
            x = F.silu(x)
        parts: list[Tensor] = []
        for now in x:
            alpha = torch.exp(-F.softplus(lru.lam) * torch.sigmoid(lru.recurrence_gate(now)))
            parts = [alpha * part for part in parts]
            parts.append(torch.sqrt(1 - alpha**2) * torch.sigmoid(lru.input_gate(now)) * now)
        of_layers.append(parts)
        h, _ = layer(h, torch.tensor([0, len(items)]), before)
    return of_layers


def slope(f: Callable[[float], float], step: float = 1e-5) -> float:
    """f'(0), but for what grows as the square of the step."""
    return (f(step) - f(-step)) / (2 * step)


@every_config
@pytest.mark.parametrize("length", [1, 2, 3, 37])
def test_parts_are_the_recurrence_kept_apart(config: RecBLRConfig, length: int) -> None:
    model, items = stirred(config), history(length)
    _, _, parts = state_parts(model, items)
    truth = torch.stack([torch.stack(parts) for parts in slow_parts(model, items)])
    assert_equal(parts, truth)
    end = truth[0].sum(0)
    shares = torch.stack([part @ end / (end @ end) for part in truth[0]])
    found = influence(model, items, TARGET).first_layer
    assert_equal(found, shares)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)


@every_config
@pytest.mark.parametrize("length", [0, 1, 40, 3000])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_parts_sum_to_the_models_own_state(
    config: RecBLRConfig, length: int, dtype: torch.dtype, share: float
) -> None:
    """To a share of the state's largest value: the model adds up in its own dtype."""
    model, items = stirred(config).to(dtype), history(length)
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
def test_what_a_long_history_forgets_is_zero() -> None:
    model, items = stirred(RecBLRConfig(dim=6)), history(3000)
    for layer in model.layers:
        layer.recurrent.lru.lam += 10
    after, kept, parts = state_parts(model, items)
    assert (kept == 0).all()
    assert (parts[:, 0] == 0).all()
    assert_equal(parts.sum(1), after[0, :, 0])


@every_config
@pytest.mark.parametrize("length", [2, 3, 12])
@torch.no_grad()
def test_what_an_event_put_into_the_state_changes_the_score_along_the_way_to_it(
    config: RecBLRConfig, length: int
) -> None:
    """In the recurrences and among the inputs of the convolutions, before the last event."""
    model, items = stirred(config), history(length)
    values = influence(model, items, TARGET).score
    nothing = model.initial_state(1).double()
    _, state = model(items[:-1], torch.tensor([0, length - 1]), nothing)
    parts = slow_parts(model, items[:-1])
    for t in range(length - 1):
        put = torch.zeros_like(state)
        for layer in range(config.layers):
            put[0, layer, 0] = parts[layer][t]
        row = config.state_rows - (length - 1 - t)
        if row >= 1:
            put[0, :, row] = state[0, :, row]

        def scaled(step: float, put: Tensor = put) -> float:
            """Over 32 points of the way."""
            way = (torch.arange(32) + 0.5).view(-1, 1, 1, 1).double() / 32
            hidden, _ = model.step(items[-1:].expand(32), way * state + step * put)
            return (hidden @ model.item_embeddings[TARGET]).mean().item()

        assert values[t].item() == pytest.approx(slope(scaled), abs=1e-8)
    assert values.abs().max() > 1e-3


@every_config
@pytest.mark.parametrize("length", [1, 2, 12])
def test_values_and_rest_are_the_score(config: RecBLRConfig, length: int) -> None:
    model, items = stirred(config), history(length)
    found = influence(model, items, TARGET)
    assert found.score.shape == found.first_layer.shape == (length,)
    assert found.score.sum().item() + found.rest == pytest.approx(score(model, items), abs=1e-12)
    assert found.score[-1].item() == pytest.approx(score(model, items[-1:]), abs=1e-12)
    assert abs(found.rest) < 0.01
    if length == 1:
        assert found.rest == pytest.approx(0, abs=1e-12)
        assert found.first_layer.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("length", [1, 5, 12])
@torch.no_grad()
def test_parts_of_network_and_memory_are_the_whole_score(length: int) -> None:
    model, items = stirred(CONFIGS[0]), history(length)
    draw = np.random.default_rng(0)
    matrix = sparse.csr_array(draw.random((ITEMS, ITEMS)).astype(np.float32))
    memory = Memory(MemoryConfig(reach=4), matrix, 1.5, 10.0, -2.0)
    for target in (TARGET, int(items[0])):
        alone, found = influence(model, items, target), influence(model, items, target, memory)
        assert (alone.memory.tolist(), alone.repeat) == ([0.0] * length, 0.0)
        assert found.score.equal(alone.score)
        assert found.repeat == (-2.0 if target in items else 0.0)
        batch = latest(items.numpy(), np.array([0]), np.array([length]), length, "none")
        whole = memory.add_to(model.score(batch), batch)[0, target].item()
        parts = found.score.sum() + found.rest + found.memory.sum() + found.repeat
        assert parts.item() == pytest.approx(whole, abs=1e-5)
        assert (found.memory[-4:] > 0).all()
        assert (found.memory[:-4] == 0).all()


@pytest.mark.parametrize("gated", [True, False])
@torch.no_grad()
def test_nothing_rests_of_a_score_that_is_linear_in_the_state(gated: bool) -> None:
    config = RecBLRConfig(dim=5, layers=1, gated=gated, convolution=False, feed_forward=False)
    model, items = stirred(config), history(9)
    (layer,) = model.layers
    layer.recurrent_norm = nn.Identity()
    found = influence(model, items, TARGET)
    assert found.rest == pytest.approx(0, abs=1e-12)
    assert found.score.sum().item() == pytest.approx(score(model, items), abs=1e-12)
    (parts,) = slow_parts(model, items)
    h = model.norm(model.embedding(items[-1]))
    for t in range(8):
        out = layer.recurrent.out(parts[t] * F.silu(layer.recurrent.to_z(h))) if gated else parts[t]
        assert_equal(found.score[t], out @ model.item_embeddings[TARGET])


@pytest.mark.parametrize("length", [1, 3, 200])
@torch.no_grad()
def test_the_fused_kernels_agree(length: int) -> None:
    model, items = stirred(RecBLRConfig(dim=6)), history(length)
    truth = influence(model, items, TARGET)
    found = influence(model.float(), items, TARGET)
    torch.testing.assert_close(found.first_layer, truth.first_layer, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.score, truth.score, rtol=0, atol=1e-4)
    assert found.rest == pytest.approx(truth.rest, abs=1e-4)


def test_the_model_is_left_as_it_was_and_free_for_others() -> None:
    model, items = stirred(RecBLRConfig(dim=6)), history(9)
    truth = influence(model, items, TARGET)
    others: list[Thread] = []

    def meanwhile(*_: Any) -> None:
        if current_thread() is main_thread():  # the others come by here, too
            other = Thread(target=score, args=(model, history(30)))
            others.append(other)
            other.start()
            other.join()

    with model.norm.register_forward_hook(meanwhile):
        found = influence(model, items, TARGET)
    assert len(others) > 1
    assert found.first_layer.equal(truth.first_layer)
    assert found.score.equal(truth.score)
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
def test_what_is_not_there_is_refused(items: list[Any], target: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        influence(stirred(CONFIGS[0]), torch.tensor(items, dtype=torch.int64), target)


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        influence(stirred(CONFIGS[0]).train(), history(3), TARGET)
