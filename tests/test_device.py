"""Devices by name, on machines with any number of GPUs."""

from typing import Any

import pytest
import torch

from recblr.device import find_device
from recblr.errors import InputError


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 0, "cpu"), ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"), ("cuda:0", 1, "cuda:0"), ("cuda:1", 2, "cuda:1"),
    ],
)  # fmt: skip
def test_find_device(name: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_device(name) == torch.device(expected)
    if name != "auto":
        assert find_device(torch.device(name)) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("gpu", 1, "unknown device 'gpu'; choose auto, cpu, cuda or cuda:N"),
        ("", 1, "unknown device ''"),
        ("cuda:", 1, "unknown device 'cuda:'"),
        ("cuda:01", 2, "unknown device 'cuda:01'"),
        ("cuda:" + "9" * 30, 2, "unknown device 'cuda:9{30}'"),
        ("cuda:１", 2, "unknown device"),
        ("cuda:-1", 1, "unknown device 'cuda:-1'"),
        ("cpu:0", 0, "unknown device 'cpu:0'"),
        ("mps", 1, "unknown device 'mps'"),
        (3, 1, "unknown device '3'"),
        (torch.device("cuda", 7), 1, "no device 'cuda:7': choose one of cuda:0 to cuda:0"),
        ("cuda", 0, "no device 'cuda': there is no CUDA GPU; choose auto or cpu"),
        ("cuda:0", 0, "no device 'cuda:0': there is no CUDA GPU"),
        ("cuda:2", 2, "no device 'cuda:2': choose one of cuda:0 to cuda:1"),
    ],
)
def test_find_device_refuses_a_missing_device(
    name: Any, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=f"^{message}"):
        find_device(name)
