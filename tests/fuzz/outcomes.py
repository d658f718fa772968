"""The three outcomes that an input may have: a result, an error of one line, a warning."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

from conftest import SOAK
from recblr.errors import DivergedError, InputError

ERRORS = (InputError, DivergedError)


@dataclass(frozen=True)
class Result:
    """The result of a call, and the warnings that came with it."""

    value: Any
    warnings: list[str]


class Outcomes:
    """Runs calls and counts their outcomes. Any other outcome than the three fails the test."""

    def __init__(self) -> None:
        self.counts = Counter({"results": 0, "warnings": 0, "errors": 0})

    def of(self, call: Callable[[], Any]) -> Result | str:
        """The result of ``call``, or the message of the error that it ends with."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value = call()
            except ERRORS as error:
                self.counts["errors"] += 1
                return _one_line(str(error))
        for warning in caught:
            assert warning.category is UserWarning, warning
        self.counts["warnings" if caught else "results"] += 1
        return Result(value, [_one_line(str(warning.message)) for warning in caught])

    def figures(self) -> dict[str, int]:
        """The counts for the results of `make soak`; a test that ends has no other outcome."""
        cases = sum(self.counts.values())
        return {"cases": cases, **self.counts, "tracebacks": 0, "silent_changes": 0}


def _one_line(text: str) -> str:
    assert text.strip()
    assert len(text.splitlines()) == 1, text
    return text


def fuzz(cases: int) -> Any:
    """The settings of hypothesis for ``cases`` in `make soak`, and a fiftieth of them otherwise."""
    return settings(
        max_examples=cases if SOAK else cases // 50, deadline=None, database=None,
        derandomize=not SOAK,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
