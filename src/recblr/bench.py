"""Speed of the model, as figures a program can read."""

import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import progress


@torch.no_grad()
def time_steps(
    histories: tuple[int, ...] = (10, 1_000, 100_000), repeats: int = 500
) -> list[dict[str, float]]:
    """Microseconds of one event of one user on one thread, after histories of growing length.

    The users' steps are timed in turn, so that a machine that slows down slows all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = RecBLR(10_000, RecBLRConfig()).eval()
        events = torch.randint(10_000, (max(histories) + repeats,))
        states = []
        with progress("histories", sum(histories)) as advance:
            for length in histories:
                _, state = model(events[:length], torch.tensor([0, length]))
                states.append(state)
                advance(length)
        seconds = np.empty((repeats, len(histories)))
        for repeat in range(repeats):
            for number, length in enumerate(histories):
                event = events[length + repeat : length + repeat + 1]
                begin = time.perf_counter()
                _, states[number] = model.step(event, states[number])
                seconds[repeat, number] = time.perf_counter() - begin
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "history": length,
            **{
                name: float(np.quantile(seconds[:, number], quantile) * 1e6)
                for name, quantile in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))
            },
        }
        for number, length in enumerate(histories)
    ]


def provenance(command: str) -> dict[str, Any]:
    """What a measured figure stands beside: command, date, commit, hardware and versions."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": found.stdout.strip() or None,
        "hardware": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
