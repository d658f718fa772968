"""The Triton kernels compile where there is no GPU. Results: test_recurrence.py, test_segments.py.

``RECBLR_SOAK=soak.json pytest -s tests/ops/test_triton_kernels.py`` prints what bounds each kernel on a
GPU. Triton caches what it compiles, so only the first run after a change takes long.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import slow

# An H200: multiprocessors times clocks per second; bytes per second of a copy, measured. In a clock,
# a multiprocessor issues four instructions of 32 lanes, and half an instruction of a special function.
CLOCKS = 132 * 1.7e9
COPY = 4.24e12
ELEMENTS = 2048 * 200 * 128
# Bytes that a kernel reads and writes for an element in bfloat16: those of the tensors of the model, in
# which the benchmark counts, and those of kept states.
BYTES = {
    "bd_lru": (10, 0.5), "bd_lru_backward": (18, 0.5), "bd_lru_summary": (6, 0),
    "linear_scan": (6, 0), "linear_scan_backward": (10, 0), "linear_scan_summary": (4, 0),
    "conv_silu": (4, 0), "conv_silu_backward": (6, 0),
    "dropout_add_norm": (10, 0), "dropout_add_norm_backward": (16, 0),
}  # fmt: skip
AIM = 0.75  # of the speed of a copy


@slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_without_spills_and_can_reach_its_aim() -> None:
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {row["name"] for row in rows} == BYTES.keys()
    print("\nWarps of a multiprocessor; per element; µs for (2048, 200, 128) on an H200")
    print(f"{'kernel':26} type rows registers warps instr. special bytes  issue special copy  aim")
    for row in rows:
        model, kept = BYTES[row["name"]]
        width = 2 if row["dtype"] == "fp32" else 1
        floors = [
            ELEMENTS / 32 * row["instructions"] / (4 * CLOCKS),
            ELEMENTS / 32 * row["special"] / (CLOCKS / 2),
            ELEMENTS * (model + kept) * width / COPY,
        ]
        aim = ELEMENTS * model * width / COPY / AIM
        print(
            f"{row['name']:25} {row['dtype']:5} {row['rows']:4} {row['registers']:9}"
            f" {row['warps']:5} {row['instructions']:6.1f} {row['special']:7.1f}"
            f" {width * (model + kept):5.1f} {floors[0] * 1e6:6.0f} {floors[1] * 1e6:7.0f}"
            f" {floors[2] * 1e6:4.0f} {aim * 1e6:4.0f}"
        )
        assert row["stack"] == 0, f"{row['name']} spills registers"
        assert max(floors) <= aim, f"{row['name']} cannot reach its aim"
