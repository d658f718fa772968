"""The clock of the benchmarks."""

import time
from collections.abc import Callable

import torch

from recblr.timing import medians, seconds

CPU = torch.device("cpu")


def test_seconds_of_a_call() -> None:
    assert 0.02 <= seconds(lambda: time.sleep(0.02), CPU) < 1


def test_medians_call_in_turn_and_leave_out_the_first_round() -> None:
    calls = []

    def sleeper(name: str, naps: list[float]) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            time.sleep(naps.pop(0))

        return work

    found = medians(
        {"a": sleeper("a", [0.3, 0.0, 0.02, 0.3]), "b": sleeper("b", [0.3, 0.0, 0.0, 0.0])}, CPU, 3
    )
    assert calls == ["a", "b"] * 4
    assert 0.02 <= found["a"] < 0.2
    assert found["b"] < 0.02
