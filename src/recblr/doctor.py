"""Check the installation: versions, devices, and whether the kernels agree with the reference."""

import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

import recblr
from recblr import ops
from recblr.data.datasets import cache_folder
from recblr.ops import cpu, reference


def examine() -> dict[str, Any]:
    """Findings by name; ``healthy`` is False if a kernel disagrees with the reference."""
    cpu.warn_if_missing()
    gpu = torch.cuda.is_available()
    error, gpu_error = _recurrence_error("cpu"), _recurrence_error("cuda") if gpu else None
    return {
        "recblr": recblr.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "compiled_kernels": cpu.available(),
        "gpu_kernels": gpu and find_spec("triton") is not None,
        "native_bfloat16": cpu.native_bfloat16(),
        "recurrence_error": error,
        "gpu_recurrence_error": gpu_error,
        "data_folder": os.environ.get("RECBLR_DATA"),
        "cache_folder": str(cache_folder()),
        "healthy": error < 1e-5 and (gpu_error is None or gpu_error < 1e-5),  # false for NaN
    }


def _recurrence_error(device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    x, r, i, z = (torch.randn(40, 24, generator=generator).to(device) for _ in range(4))
    decay, offsets = torch.full((24,), 0.1), torch.tensor([0, 7, 40])
    arguments = x, r, i, z, decay.to(device), offsets.to(device), torch.zeros(2, 24).to(device)
    output, _ = ops.bd_lru(*arguments)
    expected, _ = reference.bd_lru(*arguments)
    return float((output - expected).abs().max())
