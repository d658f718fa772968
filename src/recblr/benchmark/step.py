"""Time of one more event of one user."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recblr.models.fused_step import FusedStep
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.timing import synchronize
from recblr.training.cuda_graph import Graphed


def served_step(model: RecBLR) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``model.step`` as a server calls it. What it returns may be valid until the next call only."""
    return Graphed(FusedStep(model).step)


@torch.no_grad()
def time_steps(
    device: torch.device, histories: tuple[int, ...] = (10, 1_000, 100_000), repeats: int = 500
) -> list[dict[str, float]]:
    """Microseconds of one event of one user on one thread, after histories of growing length.

    The users' steps are timed in turn, so that a machine that slows down slows all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = RecBLR(10_000, RecBLRConfig()).to(device).eval()
        events = torch.randint(10_000, (max(histories) + repeats + 2,), device=device)
        states = []
        with progress("histories", sum(histories)) as advance:
            for length in histories:
                _, state = model(events[:length], torch.tensor([0, length], device=device))
                states.append(state)
                advance(length)
        step = served_step(model)
        warm = 2  # rounds in which a GPU records the graph
        took = np.empty((warm + repeats, len(histories)))
        for repeat in range(len(took)):
            for number, length in enumerate(histories):
                event = events[length + repeat].unsqueeze(0)
                synchronize(device)
                begin = time.perf_counter()
                _, state = step(event, states[number])
                synchronize(device)
                took[repeat, number] = time.perf_counter() - begin
                states[number] = state.clone()  # a graph's own is good until the next call
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "history": length,
            **{
                name: float(np.quantile(took[warm:, number], quantile) * 1e6)
                for name, quantile in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))
            },
        }
        for number, length in enumerate(histories)
    ]
