"""When Graphed runs, captures or replays a function. Tests on a GPU: test_training_gpu.py."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from recblr.training.cuda_graph import Graphed, _Captured


def test_on_a_cpu_it_calls_the_function() -> None:
    weight = torch.ones(3, requires_grad=True)

    def scaled(x: Tensor) -> Tensor:
        return x * weight

    for rows in (1, 2, 1, 1):
        x = torch.randn(rows, 3)
        result = Graphed(scaled)(x)
        assert result.equal(x)
        (gradient,) = torch.autograd.grad(result.sum(), weight)
        assert gradient.equal(x.sum(0))


class OnGpu:
    """The attributes of a tensor that :class:`Graphed` uses."""

    def __init__(self, rows: int, value: int = 0) -> None:
        self.device, self.shape, self.dtype = torch.device("cuda"), (rows,), torch.float32
        self.value = value

    def copy_(self, other: "OnGpu", non_blocking: bool) -> None:
        self.value = other.value


def test_each_shape_is_run_once_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def run(self: Any, inputs: tuple[Any, ...]) -> int:
        done.append(("run", *inputs[0].shape))
        return 10 * inputs[0].value

    def capture(self: Any, inputs: tuple[Any, ...]) -> Any:
        rows = inputs[0].shape[0]
        done.append(("capture", rows))
        copy, outputs = OnGpu(rows), [0]

        def replay() -> None:
            done.append(("replay", rows))
            outputs[0] = 10 * copy.value

        graph: Any = SimpleNamespace(replay=replay)
        return _Captured(graph, [copy], outputs)  # type: ignore[list-item]

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(Graphed, "_run", run)
    monkeypatch.setattr(Graphed, "_capture", capture)
    graphed: Any = Graphed(lambda x: None, graphs=2)
    for number in range(4):
        for rows in (1, 2, 3):
            result = graphed(OnGpu(rows, number))
            assert result in (10 * number, [10 * number])
    assert Counter(done) == {
        ("run", 1): 1, ("capture", 1): 1, ("replay", 1): 3,
        ("run", 2): 1, ("capture", 2): 1, ("replay", 2): 3,
        ("run", 3): 4,  # two graphs are kept
    }  # fmt: skip


def test_old_shapes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose shapes never recur keeps no graphs and no growing list."""
    done = Counter[int]()
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(Graphed, "_run", lambda self, inputs: done.update(inputs[0].shape))
    graphed: Any = Graphed(lambda x: None, graphs=1)
    for _ in range(3):
        for rows in range(9):
            graphed(OnGpu(rows))
    assert done == dict.fromkeys(range(9), 3)
