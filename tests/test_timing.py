"""Times of functions, with a simulated clock."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from recblr import timing
from recblr.timing import medians, seconds

CPU = torch.device("cpu")


class Clock:
    """A clock that runs only while :meth:`sleep` is called."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, duration: float) -> None:
        self.now += duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_seconds_of_a_call(clock: Clock) -> None:
    assert seconds(lambda: clock.sleep(0.5), CPU) == 0.5


def test_medians_call_in_turn_and_leave_out_the_first_round(clock: Clock) -> None:
    calls = []

    def sleeper(name: str, durations: list[float]) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            clock.sleep(durations.pop(0))

        return work

    functions = {"a": sleeper("a", [8.0, 0.0, 2.0, 4.0]), "b": sleeper("b", [8.0, 1.0, 1.0, 1.0])}
    assert medians(functions, CPU, 3) == {"a": 2.0, "b": 1.0}
    assert calls == ["a", "b"] * 4
