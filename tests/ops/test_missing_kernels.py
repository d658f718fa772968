"""An installation without a C compiler: everything works, and one warning says what it costs."""

import subprocess
import sys
import warnings

import pytest

from recblr.doctor import examine
from recblr.ops import cpu


def test_one_warning_says_how_much_slower_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", None)
    cpu.warn_if_missing.cache_clear()
    with pytest.warns(UserWarning, match="about 3 times as long; install a C compiler"):
        findings = examine()
    assert findings["compiled_kernels"] is False
    assert findings["healthy"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examine()
    cpu.warn_if_missing.cache_clear()


def test_an_import_says_nothing() -> None:
    code = (
        "from pathlib import Path\n"
        "exists = Path.exists\n"
        "Path.exists = lambda self, **_: self.name != '_kernels.so' and exists(self)\n"
        "from recblr.ops import cpu\n"
        "assert not cpu.available()\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout + run.stderr == ""
