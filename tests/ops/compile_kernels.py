"""Compile every Triton kernel without a GPU; print registers and spilled bytes.

test_triton_kernels.py runs this in a separate process: one process can interpret or compile, not both.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from recblr.ops import gpu, triton_kernels

NARROW = {"x", "r", "i", "z", "y", "dy", "dx", "dr", "di", "dz", "alpha", "u", "h", "dh", "du"}
NARROW |= {"dalpha", "before", "dbefore", "first_input", "second_input"}
TYPES = {"N": "i32", "C": "i32", "offsets": "*i64", "owners": "*i32"}
VALUES = {"W": 4, "REVERSE": True, "CHANNELS": gpu._CHANNELS}


def compile_kernel(name: str, dtype: str, capability: int) -> triton.compiler.CompiledKernel:
    kernel = getattr(triton_kernels, name)
    per_tile = name.startswith("conv_silu") and name != "conv_silu_backward_before"
    values = {**VALUES, "ROWS": gpu._CONV_ROWS if per_tile else gpu._ROWS}
    constants = {n: values[n] for n in kernel.arg_names if n in values}
    types = {
        n: "constexpr" if n in constants else TYPES.get(n, f"*{dtype}" if n in NARROW else "*fp32")
        for n in kernel.arg_names
    }
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, n in enumerate(kernel.arg_names)
        if n not in constants and n != "N"
    }
    values_by_position = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
    return triton.compile(
        ASTSource(kernel, types, values_by_position, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4 if per_tile else 1},
    )


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    return int(registers), int(stack)


if __name__ == "__main__":
    names = [
        name
        for name, value in vars(triton_kernels).items()
        if isinstance(value, triton.JITFunction) and not name.startswith("_")
    ]
    for name in names:
        for dtype, capability in (("bf16", 90), ("fp32", 80)):
            compiled = compile_kernel(name, dtype, capability)
            print(name, dtype, capability, *registers_and_stack(compiled.asm["cubin"]))
    sys.exit(0 if names else 1)
