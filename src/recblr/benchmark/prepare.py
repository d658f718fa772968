"""Time and peak memory of ``recblr prepare`` on large simulated logs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recblr.errors import InputError
from recblr.progress import progress

_RECBLR = "from recblr.cli.main import main; main()"
_EVENTS_PER_ITEM = 500
_BLOCK_EVENTS = 1 << 22


def time_prepare(
    events: int, per_user: int = 100, files: int = 1, core: int = 5,
    memory_limit: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run ``recblr prepare`` in a process of its own.

    Args:
        events: the size of the log. Users are drawn uniformly, items by a power law.
        per_user: the mean number of events of a user.
        files: the number of Parquet files of the log.
        core: k of the k-core filter.
        memory_limit: as for ``recblr prepare``, such as "1GB"; None prepares in memory.

    Returns:
        The arguments ``events``, ``per_user`` and ``files``; ``kept``, the numbers of users, items and
        interactions after the filter; ``seconds``; ``cpu_seconds`` of all threads; ``peak_gib``, the
        peak memory of the process; and the ``fingerprint`` of the result.

    Raises:
        InputError: ``recblr prepare`` failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, out = Path(folder, "log"), Path(folder, "data")
        write_log(log, events, per_user, files)
        arguments = ["prepare", str(log), "-o", str(out), "--core", str(core), "--json"]
        arguments += ["--memory-limit", memory_limit] if memory_limit else []
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", _RECBLR, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        with process.stdout as printed:
            kept = json.loads(printed.read() or "{}")
        _, status, used = os.wait4(process.pid, 0)  # with the resources of this process alone
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise InputError("recblr prepare failed; its message is above")
        fingerprint = json.loads((out / "prepared.json").read_text())["fingerprint"]
    return {
        "events": events, "per_user": per_user, "files": files,
        "kept": {name: kept[name] for name in ("users", "items", "interactions")},
        "seconds": round(seconds, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2), "fingerprint": fingerprint,
    }  # fmt: skip


def write_log(folder: Path, events: int, per_user: int, files: int) -> None:
    """Write a random log in order of time, as a folder of Parquet files in blocks."""
    of_users, of_items = np.random.default_rng(0), np.random.default_rng(1)
    users, items = max(1, events // per_user), max(1, events // _EVENTS_PER_ITEM)
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")])
    ends = np.linspace(0, events, files + 1).astype(int)
    folder.mkdir()
    with progress("writing the log", events) as advance:
        for number, (first, last) in enumerate(pairwise(ends)):
            with pq.ParquetWriter(folder / f"{number}.parquet", schema) as writer:
                for begin in range(first, last, _BLOCK_EVENTS):
                    count = min(_BLOCK_EVENTS, last - begin)
                    block = [
                        of_users.integers(users, size=count),
                        (items * of_items.random(count) ** 2.5).astype(np.int64),
                        np.arange(begin, begin + count) // 3,
                    ]
                    writer.write_table(pa.table(block, schema=schema))
                    advance(count)
