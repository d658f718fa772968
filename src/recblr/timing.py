"""The clock of the benchmarks."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def wait(device: torch.device) -> None:
    """Until the GPU has done all it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, to the end of its last kernel."""
    wait(device)
    begin = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin


def medians(
    contenders: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of each contender.

    They are called in turn, so that a machine that slows down slows all of them; the first call of each
    warms up and does not count.
    """
    rounds = [
        {name: seconds(work, device) for name, work in contenders.items()}
        for _ in range(repeats + 1)
    ]
    return {name: median(row[name] for row in rounds[1:]) for name in contenders}


def peak_bytes(work: Callable[[], object]) -> int:
    """Memory on the GPU that ``work`` holds at most, beyond what was held before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before
