"""Devices by name."""

import os
import re

import torch

from recblr.errors import InputError
from recblr.ranks import launched


def find_device(name: str | torch.device) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is a GPU if there is one, otherwise the CPU.

    Of the processes that ``torchrun`` starts on one machine, each gets a GPU of its own.

    Raises:
        InputError: the name is unknown, or there is no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and name in ("auto", "cuda") and launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]{0,8}))?", str(name))
    if match is None:
        raise InputError(f"unknown device {str(name)!r}; choose auto, cpu, cuda or cuda:N")
    if match[0] != "cpu" and not gpus:
        raise InputError(f"no device {match[0]!r}: there is no CUDA GPU; choose auto or cpu")
    if int(match[1] or 0) >= max(1, gpus):
        raise InputError(f"no device {match[0]!r}: choose one of cuda:0 to cuda:{gpus - 1}")
    return torch.device(match[0])
