"""The compiled functions of kernels.c, and the addresses that they take."""

import ctypes
from pathlib import Path

import numpy as np

_PATH = Path(__file__).with_name("_kernels.so")  # from kernels.c, by setup.py
AVAILABLE = _PATH.exists()
# Loaded at import: torch.compile does not trace a cached function. Calls of the first release the lock
# of the interpreter, those of the second keep it.
LIBRARY = ctypes.CDLL(str(_PATH)) if AVAILABLE else None
KEEPING_LOCK = ctypes.PyDLL(str(_PATH)) if AVAILABLE else None


def address(array: np.ndarray) -> int:
    """The address of an array. The caller keeps the array alive until the C function has returned."""
    place: int = array.__array_interface__["data"][0]
    return place
