"""Where to compute, by name."""

import re

import torch

from recblr.errors import InputError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:0``, ``cuda:1`` …, or ``auto``: the GPU where there is one.

    Raises:
        InputError: no such name, or no such GPU here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not gpus:
        raise InputError(f"no device {name!r}: there is no CUDA GPU here; choose auto or cpu")
    if (device.index or 0) >= max(1, gpus):
        raise InputError(f"no device {name!r}: the GPUs here are cuda:0 to cuda:{gpus - 1}")
    return device
