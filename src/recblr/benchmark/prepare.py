"""Time and peak memory of ``recblr prepare`` on a large simulated log."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recblr.data.simulate import Shop, write_large_log

_RECBLR = "from recblr.cli.main import main; main()"


def time_prepare(events: int = 50_000_000, core: int = 5) -> dict[str, Any]:
    """Run ``recblr prepare`` in a process of its own.

    Args:
        events: about this many events are simulated, 100 for each user.
        core: k of the k-core filter.

    Returns:
        ``events``; ``kept``, the users, items and interactions after the filter; ``seconds``;
        ``peak_gib``, the peak memory of the process.
    """
    shop = Shop(
        users=events // 100,
        categories=1000,
        items_per_category=100,
        mean_length=100,
        max_length=400,
    )
    with tempfile.TemporaryDirectory() as folder:
        log, out = Path(folder, "log.parquet"), Path(folder, "data")
        rows = write_large_log(log, shop)
        arguments = ["prepare", str(log), "-o", str(out), "--core", str(core), "--json"]
        begin = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", _RECBLR, *arguments], check=True, stdout=subprocess.PIPE
        )
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    kept = json.loads(process.stdout)
    return {
        "events": rows,
        "kept": {name: kept[name] for name in ("users", "items", "interactions")},
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
    }
