"""Speed of the recurrence: the fused kernels against every other form.

Axes: B sequences of T events each, C channels, N = B T. An element is one channel of one event.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recblr import ops
from recblr.allocator import keep_freed_memory
from recblr.benchmark.peers import BdLru, compiled, peers
from recblr.ops import reference
from recblr.progress import progress
from recblr.timing import peak_bytes, seconds

SHAPES = {"cpu": (64, 200, 128), "cuda": (2048, 200, 128)}  # (B, T, C)
LENGTHS = (200, 257, 700, 1_000, 10_000, 100_000)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest value
# What fused must move for an element in bfloat16: x, r, i, z, y; then x, r, i, z, dy, four gradients.
FORWARD_BYTES, BACKWARD_BYTES = 10, 18


class Job(NamedTuple):
    """A contender and what it works on; ``leaves`` are x, r, i, z (N, C) and decay (C,)."""

    bd_lru: BdLru
    leaves: tuple[Tensor, ...]
    offsets: Tensor
    start: Tensor
    dy: Tensor

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.bd_lru(*self.leaves, self.offsets, self.start)

    def both(self) -> tuple[Tensor, ...]:
        """y, the last states, and the gradients of the leaves."""
        y, last = self.forward()
        return y, last, *torch.autograd.grad(y, self.leaves, self.dy.to(y.dtype))


def time_ops(
    device: str, shape: tuple[int, int, int] | None = None, budget: float = 60.0
) -> dict[str, Any]:
    """Time of the recurrence with its gates in all its forms, forward and with the gradients.

    A contender first passes a gate: on the inputs it will be timed on, its values and gradients must be
    those of the float64 loop. One that fails is not timed. A CPU does it all with one thread.

    Args:
        device: ``cpu`` or ``cuda``.
        shape: (B, T, C).
        budget: seconds of timing, shared out evenly.

    Returns:
        ``shape``, ``dtype`` and ``rows``. A row has a contender's ``name``; ``gate``, "ok" or what is
        wrong; ``forward_ns`` and ``both_ns``, medians in ns an element; ``times_slower`` than fused,
        both ways. What was not timed is None.

        On CUDA a row also has ``peak_bytes`` an element, memory beyond that of the inputs, and there
        are ``copy_gb_per_s``, read and written; ``forward_share`` and ``backward_share``, how much of
        that fused reaches; ``lengths``, figures of fused by ``length`` T at the same N.

    Raises:
        RuntimeError: the fused kernels are wrong.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        keep_freed_memory()
        return _time_ops(torch.device(device), shape or SHAPES[device], budget)
    finally:
        torch.set_num_threads(threads)


def _time_ops(device: torch.device, shape: tuple[int, int, int], budget: float) -> dict[str, Any]:
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    contenders = {"fused": _draw(ops.bd_lru, shape, dtype, device)}
    if not cuda:
        contenders["fused, bfloat16"] = _draw(ops.bd_lru, shape, torch.bfloat16, device)
    ours: dict[str, BdLru] = {
        "two trees": partial(ops.bd_lru, implementation="tree"),
        "serial": partial(ops.bd_lru, implementation="serial"),
    }
    eager = peers(device.type)
    for name, bd_lru in (ours | eager | compiled(eager)).items():
        contenders[name] = contenders["fused"]._replace(bd_lru=bd_lru)
    gates = _judge(contenders, _draw(reference.bd_lru, shape, torch.float64, device).both())
    if gates["fused"] != "ok":
        raise RuntimeError(f"the fused kernels are wrong: {gates['fused']}")
    jobs: dict[Hashable, Job] = {
        name: job for name, job in contenders.items() if gates[name] == "ok"
    }
    if cuda:
        for length in LENGTHS:
            like = (max(1, round(shape[0] * shape[1] / length)), length, shape[2])
            jobs[length] = _draw(ops.bd_lru, like, dtype, device)
    figures = _measure(jobs, device, budget)
    fused = figures["fused"]
    for figure in figures.values():
        figure["times_slower"] = figure["both_ns"] / fused["both_ns"]
    result: dict[str, Any] = {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": [
            {"name": name, "gate": gate, **figures.get(name, dict.fromkeys(fused))}
            for name, gate in gates.items()
        ],
    }
    if cuda:
        speed = _copy_gb_per_s(device)  # which is bytes a ns
        result |= {
            "copy_gb_per_s": speed,
            "forward_share": FORWARD_BYTES / fused["forward_ns"] / speed,
            "backward_share": BACKWARD_BYTES / (fused["both_ns"] - fused["forward_ns"]) / speed,
            "lengths": [{"length": length, **figures[length]} for length in LENGTHS],
        }
    return result


def _draw(
    bd_lru: BdLru, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Job:
    """The same numbers in every dtype, and the decay that training starts from."""
    sequences, length, channels = shape
    torch.manual_seed(0)
    rows = [
        torch.randn(sequences * length, channels, device=device).bfloat16().to(dtype)
        for _ in range(5)
    ]
    wide = torch.promote_types(dtype, torch.float32)
    decay = -torch.linspace(0.9, 0.999, channels, device=device).log().to(wide)
    offsets = torch.arange(0, sequences * length + 1, length, device=device)
    start = torch.zeros(sequences, channels, dtype=wide, device=device)
    leaves = tuple(t.requires_grad_() for t in (*rows[:4], decay))
    return Job(bd_lru, leaves, offsets, start, rows[4])


def _judge(contenders: Mapping[str, Job], truth: tuple[Tensor, ...]) -> dict[str, str]:
    """For each contender "ok", or in what it differs from the truth, or why it does not run."""
    gates = {}
    with progress("gates", len(contenders)) as advance:
        for name, job in contenders.items():
            try:
                gates[name] = _difference(job, truth)
            except ImportError:
                gates[name] = "not installed"
            except Exception as error:  # whatever a peer runs into is its result
                gates[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            advance(1, name)
    return gates


def _difference(job: Job, truth: tuple[Tensor, ...]) -> str:
    names = ("y", "last", "dx", "dr", "di", "dz", "ddecay")
    tolerance = TOLERANCE[job.leaves[0].dtype]
    for name, ours, right in zip(names, job.both(), truth, strict=True):
        error = ((ours - right).abs().max() / right.abs().max()).item()
        if not error <= tolerance:  # NaN is not
            return f"{name} is off by {error:.0e}"
    return "ok"


def _measure(
    jobs: Mapping[Hashable, Job], device: torch.device, budget: float
) -> dict[Hashable, dict[str, float]]:
    works: dict[Hashable, Callable[[], object]] = {}
    for key, job in jobs.items():
        works[key, "forward_ns"], works[key, "both_ns"] = job.forward, job.both
    times = _medians(works, device, budget)
    figures: dict[Hashable, dict[str, float]] = {}
    for key, job in jobs.items():
        elements = job.dy.numel()
        kinds = ("forward_ns", "both_ns")
        figures[key] = {kind: times[key, kind] / elements * 1e9 for kind in kinds}
        if device.type == "cuda":
            figures[key]["peak_bytes"] = peak_bytes(job.both) / elements
    return figures


def _medians(
    works: Mapping[Hashable, Callable[[], object]], device: torch.device, budget: float
) -> dict[Hashable, float]:
    """Median seconds of each. Always the one with the least time so far is next, so that a machine that
    slows down slows all of them; each runs at least three times."""
    times: dict[Hashable, list[float]] = {key: [] for key in works}
    spent = dict.fromkeys(works, 0.0)
    with progress("timing", budget) as advance:
        while sum(spent.values()) < budget or min(map(len, times.values())) < 3:
            key = min(works, key=lambda key: (len(times[key]) >= 3, spent[key]))
            begin = time.perf_counter()
            times[key].append(_seconds(works[key], device))
            took = time.perf_counter() - begin
            spent[key] += took
            advance(took)
    return {key: median(ts) for key, ts in times.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes; on a GPU its kernels alone, as in a CUDA graph.

    The GPU waits a while first, in which the host launches what comes after.
    """
    if device.type != "cuda":
        return seconds(work, device)
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # clock ticks, about 10 ms
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _copy_gb_per_s(device: torch.device) -> float:
    source = torch.ones(1 << 29, dtype=torch.bfloat16, device=device)  # 1 GiB, far beyond the cache
    target = torch.empty_like(source)
    times = [_seconds(partial(target.copy_, source), device) for _ in range(20)]
    return 2 * source.nbytes / median(times) / 1e9
