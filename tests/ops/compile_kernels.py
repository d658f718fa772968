"""Compile every Triton kernel without a GPU; print what the compiled code takes, as JSON.

test_triton_kernels.py runs this in a separate process: one process can interpret or compile, not both.
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from recblr.ops import gpu, triton_convolution, triton_kernels, triton_norm

# Each kernel with its constants, for an H100 in bfloat16; some for an A100 in float32.
KERNELS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("bd_lru", "bf16", 90, {"ROWS": 4, "maxnreg": 64}),
    ("bd_lru", "bf16", 90, {"ROWS": 8}),
    ("bd_lru_backward", "bf16", 90, {"ROWS": 4}),
    ("bd_lru_summary", "bf16", 90, {"ROWS": 8, "REVERSE": False}),
    ("bd_lru_summary", "bf16", 90, {"ROWS": 8, "REVERSE": True}),
    ("linear_scan", "bf16", 90, {"ROWS": 8}),
    ("linear_scan_backward", "bf16", 90, {"ROWS": 8}),
    ("linear_scan_summary", "bf16", 90, {"ROWS": 8, "REVERSE": True}),
    ("conv_silu", "bf16", 90, {"ROWS": 8}),
    ("conv_silu_backward", "bf16", 90, {"ROWS": 4}),
    ("dropout_add_norm", "bf16", 90, {"ROWS": 32}),
    ("dropout_add_norm_backward", "bf16", 90, {"ROWS": 32}),
    ("bd_lru", "fp32", 80, {"ROWS": 4}),
    ("bd_lru_backward", "fp32", 80, {"ROWS": 4}),
    ("bd_lru_summary", "fp32", 80, {"ROWS": 4, "REVERSE": False}),
    ("linear_scan_backward", "fp32", 80, {"ROWS": 8}),
    ("conv_silu_backward", "fp32", 80, {"ROWS": 4}),
]
WIDE = {"weight", "bias", "decay", "start", "dstart", "last", "dlast", "alphas", "sums"}
WIDE |= {"dlog_decay", "dweight", "dbias", "residual", "dresidual", "means", "inverses"}
SPECIAL = {"offsets": "*i64", "seed": "*i64", "B": "i32", "SHIFT": "i32", "N": "i32", "eps": "fp32"}
CONSTANTS = {"C": 128, "CHANNELS": gpu._CHANNELS, "VECTOR": 2, "W": 4, "KEPT": gpu._KEPT}
CONSTANTS |= {"D": 64, "WIDTH": 64, "THRESHOLD": 3 << 30, "SCALE": 1.25, "DROPOUT": True}
CONSTANTS |= {"RESIDUAL": True}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_kernel(
    name: str, dtype: str, capability: int, constants: dict[str, Any]
) -> triton.compiler.CompiledKernel:
    modules = {"conv": triton_convolution, "drop": triton_norm}
    kernel = getattr(modules.get(name[:4], triton_kernels), name)
    values = {n: v for n, v in (CONSTANTS | constants).items() if n in kernel.arg_names}
    wide = WIDE | {"y", "dy"} if name.startswith("drop") else WIDE
    types = {
        n: "constexpr" if n in values else SPECIAL.get(n, "*fp32" if n in wide else f"*{dtype}")
        for n in kernel.arg_names
    }
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, n in enumerate(kernel.arg_names)
        if types[n].startswith("*")
    }
    options = {
        "num_warps": 4 if name.startswith("drop") else 1,
        **{n: v for n, v in constants.items() if n == "maxnreg"},
    }
    return triton.compile(
        ASTSource(kernel, types, {(kernel.arg_names.index(n),): v for n, v in values.items()}, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )  # fmt: skip


def count(cubin: bytes, warps: int, elements: int) -> dict[str, float]:
    """Registers, bytes of stack and warps of a multiprocessor; instructions and special functions
    (MUFU) for each of the ``elements`` that a lane processes in one pass of the longest loop, or of the
    program without a loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = cuobjdump("-res-usage", file.name)
        code = cuobjdump("-sass", file.name)
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    lines = [
        (int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)
    ]
    branches = {
        at: int(to[1], 16) for at, text in lines if (to := re.search(r"BRA.*0x(\w+)", text))
    }
    loops = [(to, at) for at, to in branches.items() if to < at]
    exit = next(at for at, text in lines if "EXIT" in text and "@" not in text)
    first, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, exit))
    loop = {at: text for at, text in lines if first <= at <= end}
    addresses = sorted(loop)

    @cache
    def shortest(number: int) -> tuple[int, int]:
        """Instructions and MUFU from here to the end, without branches for the last rows."""
        at = addresses[number]
        mufu = int("MUFU" in loop[at])
        if at == end:
            return 1, mufu
        following = [number + 1]
        if first <= at < branches.get(at, 0) <= end:
            following.append(addresses.index(branches[at]))
        rest = min(shortest(n) for n in following)
        return 1 + rest[0], mufu + rest[1]

    sys.setrecursionlimit(10_000)
    instructions, mufu = shortest(0)
    allocated = -(-registers // 8) * 8 * 32
    return {
        "registers": registers,
        "stack": stack,
        "warps": min(32 * warps, 64, 65536 // allocated),  # of at most 32 programs
        "instructions": instructions / elements,
        "special": mufu / elements,
    }


def cuobjdump(option: str, file: str) -> str:
    command = [TOOLS / "cuobjdump", option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for name, dtype, capability, constants in KERNELS:
        compiled = compile_kernel(name, dtype, capability, constants)
        row = {"name": name, "dtype": dtype, "rows": constants["ROWS"]}
        warps = compiled.metadata.num_warps
        elements = constants["ROWS"] * 64 // (32 * warps)
        print(json.dumps(row | count(compiled.asm["cubin"], warps, elements)))
