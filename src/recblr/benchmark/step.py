"""The time of one more event of a user."""

import time

import numpy as np
import torch

from recblr.models.fused_step import FusedStep
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.timing import synchronize
from recblr.training.cuda_graph import Graphed


@torch.no_grad()
def time_steps(
    device: torch.device, histories: tuple[int, ...] = (10, 1_000, 100_000), repeats: int = 500
) -> list[dict[str, float]]:
    """Microseconds of one event of one user on one thread, after histories of several lengths.

    The steps of the users are timed in turn, so that a slow phase of the machine affects all of them.
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
        step = Graphed(FusedStep(model).step)
        warm_up = 2  # rounds; in the second, a GPU captures the graph
        times = np.empty((warm_up + repeats, len(histories)))
        for repeat in range(len(times)):
            for number, length in enumerate(histories):
                event = events[length + repeat].unsqueeze(0)
                synchronize(device)
                begin = time.perf_counter()
                _, state = step(event, states[number])
                synchronize(device)
                times[repeat, number] = time.perf_counter() - begin
                states[number] = state.clone()  # that of a graph is valid until the next call
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "history": length,
            **{
                name: float(np.quantile(times[warm_up:, number], quantile) * 1e6)
                for name, quantile in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))
            },
        }
        for number, length in enumerate(histories)
    ]
