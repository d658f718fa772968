"""FusedStep against RecBLR.step in float64."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from recblr.models.fused_step import FusedStep
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops import cpu

ITEMS = 23
CONFIGS = [
    RecBLRConfig(),
    RecBLRConfig(dim=1, layers=1, expansion=1, conv_width=1),
    RecBLRConfig(dim=3, layers=3, expansion=3, conv_width=2),
    RecBLRConfig(dim=48, layers=1, expansion=1, conv_width=5),
    RecBLRConfig(dim=48, layers=3, expansion=3, conv_width=1),
    RecBLRConfig(dim=17, layers=2, expansion=1, conv_width=2),
    RecBLRConfig(dim=5, gated=False),
    RecBLRConfig(dim=5, convolution=False),
    RecBLRConfig(dim=5, feed_forward=False),
]

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


@pytest.fixture(
    params=[
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(not cpu.available(), reason="no compiled kernels here"),
        ),
        "plain",
    ]
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With and without the C function. New memory holds NaN, so a missing write shows."""
    if request.param == "plain":
        monkeypatch.setattr(cpu, "supports", lambda x: False)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


both_ways = pytest.mark.usefixtures("kernels")


@torch.no_grad()
def perturbed(config: RecBLRConfig) -> RecBLR:
    """A model with weights large enough that every part of it matters to the result."""
    torch.manual_seed(0)
    model = RecBLR(ITEMS, config)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def users(model: RecBLR, count: int) -> tuple[Tensor, Tensor]:
    """Items, all of them if there are enough users, and states."""
    torch.manual_seed(count)
    return torch.arange(count) % ITEMS, torch.randn_like(model.initial_state(count))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-5)


@both_ways
@every_config
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
@torch.no_grad()
def test_a_step_equals_that_of_the_model(config: RecBLRConfig, count: int) -> None:
    model = perturbed(config)
    items, state = users(model, count)
    hidden, after = FusedStep(model).step(items, state)
    exact_hidden, exact_after = model.double().step(items, state.double())
    assert_near(hidden, exact_hidden)
    assert_near(after, exact_after)


@both_ways
@every_config
@torch.no_grad()
def test_steps_equal_the_parallel_pass(config: RecBLRConfig) -> None:
    model = perturbed(config)
    histories = torch.randint(ITEMS, (5, 70))
    step, state, columns = FusedStep(model).step, model.initial_state(5), []
    for items in histories.t():  # not contiguous
        hidden, state = step(items, state)
        columns.append(hidden)
    exact = copy.deepcopy(model).double()
    whole, end = exact(
        histories.flatten(), torch.arange(0, 351, 70), model.initial_state(5).double()
    )
    assert_near(torch.stack(columns, 1).flatten(0, 1), whole)
    assert_near(state, end)


@both_ways
def test_a_step_keeps_no_state_of_its_own() -> None:
    model = perturbed(RecBLRConfig(dim=8))
    step = FusedStep(model).step
    items, state = users(model, 20)
    kept = state.clone()
    first, after = step(items, state)
    step(items.flip(0), after)
    second, _ = step(items, state)
    assert state.equal(kept), "the step changed the state of the caller"
    assert first.equal(second)
    assert not first.requires_grad
    assert not after.requires_grad
    strided = torch.stack([state, state], 1)[:, 1]
    assert not strided.is_contiguous()
    assert step(items, strided)[0].equal(first)


@both_ways
def test_the_weights_are_copied_and_dropout_is_off() -> None:
    model = perturbed(RecBLRConfig(dim=8))
    items, state = users(model, 20)
    with torch.no_grad():
        hidden, _ = model.step(items, state)
        fused = FusedStep(model.train())
        for parameter in model.parameters():
            parameter.zero_()
    assert_near(fused.step(items, state)[0], hidden)


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels on this machine")
def test_threads_do_not_change_the_result() -> None:
    model = perturbed(RecBLRConfig())
    items, state = users(model, 200)
    step, before, results = FusedStep(model).step, torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(step(items, state))
            with pytest.raises(ValueError, match=r"items must be 0 \.\. 22, found .*99"):
                step(torch.where(torch.arange(200) == 190, 99, items), state)
    finally:
        torch.set_num_threads(before)
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])


@both_ways
def test_wrong_items_and_shapes_are_refused() -> None:
    model = perturbed(RecBLRConfig(dim=8))
    step = FusedStep(model).step
    items, state = users(model, 4)
    for item in (-1, ITEMS, 2**62):
        with pytest.raises(ValueError, match="items must be 0"):
            step(torch.tensor([0, 1, item, 2]), state)
    for wrong in (
        (items[:3], state), (items.unsqueeze(1), state), (items[0], state[:1]), (items, state[0]),
        (items, state[:, :1]), (items, state[:, :, 1:]), (items, state[..., :-1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"a tensor must be|items .* and state .* must be"):
            step(*wrong)


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels on this machine")
def test_other_dtypes_are_refused() -> None:
    model = perturbed(RecBLRConfig(dim=8))
    items, state = users(model, 4)
    for wrong in ((items.int(), state), (items, state.double()), (items, state.bfloat16())):
        with pytest.raises(ValueError, match="a tensor must be"):
            FusedStep(model).step(*wrong)


def test_a_model_in_float64_is_stepped_in_float64() -> None:
    model = perturbed(RecBLRConfig(dim=8)).double()
    items, state = users(model, 4)
    with torch.no_grad():
        expected, _ = model.step(items, state.double())
    hidden, _ = FusedStep(model).step(items, state.double())
    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
