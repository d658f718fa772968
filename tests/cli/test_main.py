"""Exit codes, and the commands demo and doctor."""

from typing import Any

import pytest
import torch

from cli.fixtures import Result, Run, answer
from recblr.cli.main import OUT_OF_MEMORY
from recblr.errors import DivergedError, InputError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a mistake"), 2, "recblr: a mistake\n"),
        (DivergedError("not finite"), 1, "recblr: not finite\n"),
        (KeyboardInterrupt(), 130, "recblr: interrupted\n"),
        (MemoryError(), 1, f"recblr: {OUT_OF_MEMORY}\n"),
        (torch.OutOfMemoryError(), 1, f"recblr: {OUT_OF_MEMORY}\n"),
    ],
)
def test_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("recblr.doctor.examine", fail)
    assert run("doctor") == Result(code, "", message)


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = answer(run("doctor", "--json"))
    assert findings["healthy"] is True
    assert "healthy" in run("doctor").out
    monkeypatch.setattr("recblr.doctor.examine", lambda: {"healthy": False})
    assert run("doctor").code == 1


def test_demo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(console: Any) -> dict[str, Any]:
        console.print("A simulated shop")
        return {"metrics": {}}

    monkeypatch.setattr("recblr.demo.run_demo", run_demo)
    assert answer(run("demo", "--json")) == {"metrics": {}}
    assert run("demo").out == "A simulated shop\n"
