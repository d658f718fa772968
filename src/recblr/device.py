"""Devices by name."""

import re

import torch

from recblr.errors import InputError


def find_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is a GPU if there is one, otherwise the CPU.

    Raises:
        InputError: the name is unknown, or there is no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not gpus:
        raise InputError(f"no device {name!r}: there is no CUDA GPU; choose auto or cpu")
    if (device.index or 0) >= max(1, gpus):
        raise InputError(f"no device {name!r}: choose one of cuda:0 to cuda:{gpus - 1}")
    return device
