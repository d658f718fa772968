"""Inputs, devices and the comparison of the tests of the operators."""

import math
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from recblr.ops import cpu, registry

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}

compiled = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels on this machine")
interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None,
    reason="Triton's interpreter needs Triton and no GPU",
)
CPU = pytest.param("cpu", marks=compiled)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = [CPU, CUDA, pytest.param("triton", marks=interpreted)]


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device of the tensors. New memory holds NaN, so a missing write shows."""
    if request.param == "triton":
        from recblr.ops import gpu

        monkeypatch.setattr(registry, "fused_kernels", lambda x: gpu)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield "cuda" if request.param == "cuda" else "cpu"
    torch.use_deterministic_algorithms(False)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(lengths: list[int], channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, r, i, z, decay, start; rounded to ``dtype``, so both sides have the same numbers."""
    generator = torch.Generator().manual_seed(sum(lengths) * 1000 + channels)
    n, b = sum(lengths), len(lengths)
    shapes = [(n, channels)] * 4 + [(channels,), (b, channels)]
    x, r, i, z, decay, start = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    decay = 10 ** (decay.tanh() * 2 - 1)  # 0.001 ... 10: from thousands of events down to one
    rounded = [t.to(dtype).double() for t in (x, r * 2, i, z)]
    return [*rounded, decay.float().double(), start.float().double()]


def difference(fast: Tensor, slow: Tensor) -> float:
    """Largest error relative to the largest true value, at least 1; infinite for NaN."""
    if slow.numel() == 0:
        assert fast.shape == slow.shape
        return 0.0
    error = (fast.double() - slow).abs().max().item() / max(1.0, slow.abs().max().item())
    return math.inf if math.isnan(error) else error


def gradient(t: Tensor) -> Tensor:
    return torch.zeros_like(t) if t.grad is None else t.grad


def leaves(tensors: list[Tensor], dtype: torch.dtype, device: str, float32: int) -> list[Tensor]:
    """Leaves on the device: the last ``float32`` of them in float32, the others in ``dtype``."""
    split = len(tensors) - float32
    return [
        t.detach().to(device, dtype if number < split else torch.float32).requires_grad_()
        for number, t in enumerate(tensors)
    ]


def compare(
    slow: tuple[Tensor, ...], truth: list[Tensor], fast: tuple[Tensor, ...], ours: list[Tensor]
) -> None:
    """Outputs, then the gradients of all inputs for one random gradient of the outputs."""
    dtype = fast[0].dtype
    torch.manual_seed(0)
    gradients = [torch.randn(t.shape).to(f.dtype) for t, f in zip(slow, fast, strict=True)]
    for number, (t, f) in enumerate(zip(slow, fast, strict=True)):
        assert difference(f.detach().cpu(), t.detach()) < TOLERANCE[dtype], f"output {number}"
    for outputs in (slow, fast):  # without events an output may depend on no input
        pairs = [(t, g) for t, g in zip(outputs, gradients, strict=True) if t.requires_grad]
        torch.autograd.backward([t for t, _ in pairs], [g.to(t) for t, g in pairs])
    for number, (t, f) in enumerate(zip(truth, ours, strict=True)):
        tolerance = max(TOLERANCE[dtype], TOLERANCE[f.dtype])
        assert difference(gradient(f).cpu(), gradient(t)) < tolerance, f"input {number}"
