"""Time and memory of functions, for benchmarks."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished its work; on a CPU, do nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time that ``work`` takes, to the end of its last kernel, in seconds."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def medians(
    functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """The median time of each function, in seconds.

    They are called in turn, so that a slow phase of the machine affects all of them. The first round
    warms up and does not count.
    """
    rounds = [
        {name: seconds(work, device) for name, work in functions.items()}
        for _ in range(repeats + 1)
    ]
    return {name: median(times[name] for times in rounds[1:]) for name in functions}


def peak_bytes(work: Callable[[], object]) -> int:
    """The peak GPU memory that ``work`` allocates, in bytes."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before
