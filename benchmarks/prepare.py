"""Time and peak memory of `recblr prepare` on a large simulated log.

python benchmarks/prepare.py --events 50000000
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from recblr.data.simulate import Shop, write_large_log
from recblr.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def main(
    events: Annotated[int, typer.Option(help="About this many, 100 a user.")] = 50_000_000,
    core: int = 5,
) -> None:
    shop = Shop(
        users=events // 100,
        categories=1000,
        items_per_category=100,
        mean_length=100,
        max_length=400,
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.parquet")
        rows = write_large_log(log, shop)
        command = [
            "prepare",
            str(log),
            "-o",
            str(Path(folder, "data")),
            "--core",
            str(core),
            "--json",
        ]
        begin = time.perf_counter()
        output = subprocess.run(
            [sys.executable, "-c", "from recblr.cli.main import main; main()", *command],
            check=True, stdout=subprocess.PIPE,
        ).stdout  # fmt: skip
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    kept = json.loads(output)
    result = {
        **provenance(f"python benchmarks/prepare.py --events {events}"),
        "events": rows,
        "kept": {name: kept[name] for name in ("users", "items", "interactions")},
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
