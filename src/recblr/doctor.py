"""What this machine has, and whether the fast paths agree with the plain ones on it."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from recblr import ops
from recblr.data.datasets import cache_folder
from recblr.ops import cpu, reference


def examine() -> dict[str, Any]:
    """Findings by name; ``healthy`` is False where a fast path disagrees with its plain twin."""
    generator = torch.Generator().manual_seed(0)
    x, r, i, z = (torch.randn(40, 24, generator=generator) for _ in range(4))
    arguments = (x, r, i, z, torch.full((24,), 0.1), torch.tensor([0, 7, 40]), torch.zeros(2, 24))
    fast, _ = ops.bd_lru(*arguments)
    plain, _ = reference.bd_lru(*arguments)
    error = float((fast - plain).abs().max())
    return {
        "recblr": version("recblr"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "compiled_kernels": cpu.available(),
        "native_bfloat16": cpu.native_bfloat16(),
        "recurrence_error": error,
        "data_folder": os.environ.get("RECBLR_DATA"),
        "cache_folder": str(cache_folder()),
        "healthy": error < 1e-5,
    }
