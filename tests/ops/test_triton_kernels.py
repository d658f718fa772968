"""The Triton kernels compile where there is no GPU. Their results: test_recurrence.py."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_without_spilling_registers(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert {row[0] for row in rows} >= {"linear_scan", "bd_lru", "bd_lru_backward", "conv_silu"}
    assert [row for row in rows if int(row[4]) > 0] == []
