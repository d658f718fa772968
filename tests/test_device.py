"""Devices by name, on machines with any number of GPUs."""

import pytest
import torch

from recblr.device import find_device
from recblr.errors import InputError


@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [
        ("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 0, "cpu"), ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"), ("cuda:0", 1, "cuda:0"), ("cuda:1", 2, "cuda:1"),
    ],
)  # fmt: skip
def test_a_device_by_name(
    name: str, gpus: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("gpu", 1, "unknown device 'gpu'; choose auto, cpu, cuda or cuda:N"),
        ("", 1, "unknown device ''"),
        ("cuda:", 1, "unknown device 'cuda:'"),
        ("cuda:-1", 1, "unknown device 'cuda:-1'"),
        ("cpu:0", 0, "unknown device 'cpu:0'"),
        ("mps", 1, "unknown device 'mps'"),
        ("cuda", 0, "no device 'cuda': there is no CUDA GPU here; choose auto or cpu"),
        ("cuda:0", 0, "no device 'cuda:0': there is no CUDA GPU here"),
        ("cuda:2", 2, "no device 'cuda:2': the GPUs here are cuda:0 to cuda:1"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=f"^{message}"):
        find_device(name)
