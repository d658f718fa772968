"""The speed of the recurrence: the fused kernels against other implementations.

Axes: B sequences of T events each, C channels, N = B T. An element is one channel of one event.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recblr import ops
from recblr.allocator import keep_freed_memory
from recblr.benchmark.peers import BdLru, compiled, peers, slow_to_build
from recblr.ops import reference
from recblr.progress import progress
from recblr.timing import peak_bytes, seconds

SHAPES = {"cpu": (64, 200, 128), "cuda": (2048, 200, 128)}  # (B, T, C)
LENGTHS = (200, 257, 700, 1_000, 10_000, 100_000)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # relative to the largest value
# Memory traffic of fused per element in bfloat16: x, r, i, z, y; then x, r, i, z, dy, four gradients.
FORWARD_BYTES, BACKWARD_BYTES = 10, 18


class Job(NamedTuple):
    """An implementation and its inputs; ``leaves`` are x, r, i, z (N, C) and decay (C,)."""

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
    device: str, shape: tuple[int, int, int] | None = None, budget: float = 60.0,
    names: Sequence[str] | None = None, keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time every implementation of the recurrence with its gates, forward and with gradients.

    Each implementation must first pass a check: its values and gradients on the inputs of the timing
    must equal those of the float64 loop. One that fails is not timed. Each is timed in turn with the
    fused kernels, so that a slow phase of the machine affects both. A CPU runs one thread.

    Args:
        device: ``cpu`` or ``cuda``.
        shape: (B, T, C).
        budget: seconds of timing, divided evenly.
        names: the implementations to time; by default those of :func:`implementations`.
        keep: receives the result as far as it is known, after each implementation.

    Returns:
        ``shape``, ``dtype`` and ``rows``. A row has the ``name`` of an implementation; ``gate``, "ok"
        or the reason of the failure; ``forward_ns`` and ``both_ns``, medians in ns per element;
        ``times_slower`` than fused, forward and backward. Values that were not timed are None.

        On CUDA a row also has ``peak_bytes`` per element, without the inputs. The result has
        ``copy_gb_per_s``, read and written; ``forward_share`` and ``backward_share``, the fraction of
        that rate which fused reaches; ``lengths``, the figures of fused by ``length`` T at the same N.

    Raises:
        RuntimeError: the fused kernels fail the check.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        keep_freed_memory()
        names = implementations(device) if names is None else names
        return _time_ops(torch.device(device), shape or SHAPES[device], budget, names, keep)
    finally:
        torch.set_num_threads(threads)


def implementations(device: str) -> list[str]:
    """The names of all implementations but the fused kernels, those that take long to compile last."""
    return sorted(_functions(device), key=slow_to_build)


def _functions(device: str) -> dict[str, BdLru]:
    narrow: dict[str, BdLru] = {} if device == "cuda" else {"fused, bfloat16": ops.bd_lru}
    eager = peers(device)
    plain: dict[str, BdLru] = {
        "two trees": partial(ops.bd_lru, implementation="tree"),
        "serial": partial(ops.bd_lru, implementation="serial"),
    }
    return narrow | eager | plain | compiled(eager)


def _time_ops(
    device: torch.device, shape: tuple[int, int, int], budget: float, names: Sequence[str],
    keep: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:  # fmt: skip
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    fused = _make_job(ops.bd_lru, shape, dtype, device)
    truth = _make_job(reference.bd_lru, shape, torch.float64, device).both()
    if (gate := _check(fused, truth)) != "ok":
        raise RuntimeError(f"the fused kernels are wrong: {gate}")
    budget /= 1 + len(names)
    lengths = list[dict[str, Any]]()
    result: dict[str, Any] = {
        "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "rows": [],
    }  # fmt: skip

    def add(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        rows.append(row)
        if keep is not None:
            keep(result)

    with progress("implementations", 1 + len(names)) as advance:
        figures = _measure({"fused": fused}, device, budget / (2 if cuda else 1))["fused"]
        if cuda:
            speed = _copy_gb_per_s(device)  # equals bytes per ns
            result |= {
                "copy_gb_per_s": speed,
                "forward_share": FORWARD_BYTES / figures["forward_ns"] / speed,
                "backward_share": BACKWARD_BYTES
                / (figures["both_ns"] - figures["forward_ns"])
                / speed,
                "lengths": lengths,
            }
        add(result["rows"], {"name": "fused", "gate": "ok", **figures, "times_slower": 1.0})
        for length in LENGTHS if cuda else ():
            same_size = (max(1, round(shape[0] * shape[1] / length)), length, shape[2])
            job = _make_job(ops.bd_lru, same_size, dtype, device)
            same = _measure({"fused": job}, device, budget / 2 / len(LENGTHS))["fused"]
            slower = same["both_ns"] / figures["both_ns"]
            add(lengths, {"length": length, **same, "times_slower": slower})
        advance(1)
        functions = _functions(device.type)
        for name in names:
            job = fused._replace(bd_lru=functions[name])
            if name == "fused, bfloat16":
                job = _make_job(ops.bd_lru, shape, torch.bfloat16, device)
            row: dict[str, float | None] = dict.fromkeys((*figures, "times_slower"))
            if (gate := _check(job, truth)) == "ok":
                pair = _measure({"fused": fused, name: job}, device, budget)
                row = {
                    **pair[name],
                    "times_slower": pair[name]["both_ns"] / pair["fused"]["both_ns"],
                }
            add(result["rows"], {"name": name, "gate": gate, **row})
            advance(1, name)
    return result


def _make_job(
    bd_lru: BdLru, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Job:
    """A job with the same random inputs in every dtype and the initial decay of training."""
    sequences, length, channels = shape
    torch.manual_seed(0)
    rows = [
        torch.randn(sequences * length, channels, device=device).bfloat16().to(dtype)
        for _ in range(5)
    ]
    state_dtype = torch.promote_types(dtype, torch.float32)
    decay = -torch.linspace(0.9, 0.999, channels, device=device).log().to(state_dtype)
    offsets = torch.arange(0, sequences * length + 1, length, device=device)
    start = torch.zeros(sequences, channels, dtype=state_dtype, device=device)
    leaves = tuple(t.requires_grad_() for t in (*rows[:4], decay))
    return Job(bd_lru, leaves, offsets, start, rows[4])


def _check(job: Job, truth: tuple[Tensor, ...]) -> str:
    """ "ok", the job's difference from the truth, or its error."""
    try:
        return _difference(job, truth)
    except ImportError:
        return "not installed"
    except Exception as error:  # any error of a peer is its result
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _difference(job: Job, truth: tuple[Tensor, ...]) -> str:
    names = ("y", "last", "dx", "dr", "di", "dz", "ddecay")
    tolerance = TOLERANCE[job.leaves[0].dtype]
    for name, ours, exact in zip(names, job.both(), truth, strict=True):
        error = ((ours - exact).abs().max() / exact.abs().max()).item()
        if not error <= tolerance:  # also true for NaN
            return f"{name} is off by {error:.0e}"
    return "ok"


def _measure(
    jobs: Mapping[str, Job], device: torch.device, budget: float
) -> dict[str, dict[str, float]]:
    functions: dict[Hashable, Callable[[], object]] = {}
    for key, job in jobs.items():
        functions[key, "forward_ns"], functions[key, "both_ns"] = job.forward, job.both
    times = _medians(functions, device, budget)
    figures: dict[str, dict[str, float]] = {}
    for key, job in jobs.items():
        elements = job.dy.numel()
        kinds = ("forward_ns", "both_ns")
        figures[key] = {kind: times[key, kind] / elements * 1e9 for kind in kinds}
        if device.type == "cuda":
            figures[key]["peak_bytes"] = peak_bytes(job.both) / elements
    return figures


def _medians(
    functions: Mapping[Hashable, Callable[[], object]], device: torch.device, budget: float
) -> dict[Hashable, float]:
    """Median seconds of each function, after at least three calls.

    The next function is always the one with the least time so far, so that a slow phase of the machine
    affects all of them.
    """
    times: dict[Hashable, list[float]] = {key: [] for key in functions}
    spent = dict.fromkeys(functions, 0.0)
    while sum(spent.values()) < budget or min(map(len, times.values())) < 3:
        key = min(functions, key=lambda key: (len(times[key]) >= 3, spent[key]))
        begin = time.perf_counter()
        times[key].append(_seconds(functions[key], device))
        spent[key] += time.perf_counter() - begin
    return {key: median(ts) for key, ts in times.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that ``work`` takes; on a GPU only its kernels, as in a CUDA graph.

    The GPU first waits, while the host launches the kernels.
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
    source = torch.ones(
        1 << 29, dtype=torch.bfloat16, device=device
    )  # 1 GiB, far larger than the cache
    target = torch.empty_like(source)
    times = [_seconds(partial(target.copy_, source), device) for _ in range(20)]
    return 2 * source.nbytes / median(times) / 1e9
