"""All measurements on a GPU that is there for some minutes, the most valuable first.

Each step is a process with a time limit, after which it is killed with its children. A result is on the
disk as soon as it is known, and a step that is done is not repeated.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from recblr.benchmark.ops import implementations
from recblr.benchmark.peers import slow_to_build
from recblr.errors import InputError
from recblr.files import new_file
from recblr.progress import report
from recblr.provenance import provenance

ROOT = Path(__file__).parents[3]  # of the source tree
RECORDS = ROOT / "paper" / "results"  # runs that exist are not repeated
PLANNED = 9.0  # minutes, for which the limits below are meant
DATASETS = ("ml-1m-recbole", "ml-1m", "beauty", "sports")
OTHERS = [f"--rows={row}" for row in ("SASRec", "LRURec", "GRU4Rec", "NARM", "FPMC", "Caser")]
LINE = re.compile(  # of a test, by pytest and by its processes
    r"(?:\[gw\d+\] \[ *\d+%\] (?P<ended>[A-Z]+) (?P<id>\S+::.*)"
    r"|(?P<first>\S+::.*?) (?P<last>PASSED|FAILED|ERROR|SKIPPED)\b.*)"
)


@dataclass(frozen=True)
class Step:
    """A process. ``limit`` is in seconds of a plan of 9 minutes; with an exit code of ``codes`` its
    result is whole; ``collect`` keeps what is known, and is called each second and at the end."""

    name: str
    command: tuple[str, ...]  # of the Python interpreter
    limit: float
    codes: tuple[int, ...] = (0,)
    collect: Callable[[], None] = lambda: None


def measure_all(folder: Path, minutes: float, device: torch.device, quick: bool = False) -> None:
    """Take all steps that are not done, until the minutes are over; their results lie in ``folder``.

    Raises:
        InputError: the folder has results of another commit, GPU or size, or cannot be written.
    """
    end = time.monotonic() + 60 * minutes
    state_file = folder / f"steps-{device.type}.json"
    state = _open_state(state_file, device, quick)
    with _interrupted_by_sigterm(), tempfile.TemporaryDirectory() as temporary:
        steps = plan(folder, Path(temporary), device, quick)
        for step in steps:
            known = state["steps"].get(step.name, {})
            remaining = end - time.monotonic()
            if known.get("status") == "done" or remaining < 1:
                continue
            limit = min(step.limit * minutes / PLANNED, remaining)
            report(f"{step.name}: at most {limit:.0f} s")
            state["steps"][step.name] = take(step, limit, folder / "log.txt")
            write(state_file, state)
            report("{}: {status}, {seconds:.0f} s".format(step.name, **state["steps"][step.name]))
        for step in steps:
            state["steps"].setdefault(step.name, {"status": "not begun", "seconds": 0.0})
    write(state_file, state)


def plan(folder: Path, temporary: Path, device: torch.device, quick: bool) -> list[Step]:
    """The steps in order of worth; what takes long to compile comes last."""
    kind, small = device.type, ("--quick",) * quick
    worker = ("-m", "recblr.benchmark.gpu_steps", str(folder), str(device), *small)
    names = implementations(kind)
    slow = [name for name in names if slow_to_build(name)]
    records, exam = temporary / "records", folder / f"exam-{kind}.json"
    runs_file = folder / f"runs-{kind}.json"
    known = _unpack_records(runs_file, records, quick)
    about = provenance(f"recblr bench gpu{' --quick' * quick}", kind)

    def reproduce(study: str, limit: float, *more: str) -> Step:
        command = ["-m", "recblr", "reproduce", study, "-o", str(records), "--device", str(device)]
        chosen = ["--quick"] if quick else [f"--dataset={name}" for name in more if name[0] != "-"]
        options = [name for name in more if name[0] == "-"]
        return Step(
            " ".join(["reproduce", study, *options]), (*command, *chosen, *options), limit,
            collect=lambda: _collect_records(runs_file, about, records, known),
        )  # fmt: skip

    return [
        _exam(exam, folder / "log.txt", about, quick),
        Step("kernels", (*worker, "kernels"), 75),
        Step("train", (*worker, "train"), 45),
        Step("prefixes", (*worker, "prefixes"), 45),
        Step("run", (*worker, "run"), 60),
        Step("step", (*worker, "step"), 20),
        Step("length", (*worker, "length"), 60),
        reproduce("table1", 150, *DATASETS, "--rows=RecBLR", "--jobs=6"),
        reproduce("table5", 60, "ml-1m", "gowalla-10core"),
        reproduce("figure4", 60),
        *([] if quick else [reproduce("table1", 240, *DATASETS, *OTHERS, "--jobs=6")]),
        *(Step(name, (*worker, "peer", name), 60) for name in (slow[-1:] if quick else slow)),
    ]


def _exam(file: Path, log: Path, about: dict[str, Any], quick: bool) -> Step:
    """The tests that need a GPU."""
    files = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text()
    ]
    options = ["-m", "gpu", "-vv", "--tb=short", "-p", "no:cacheprovider"]
    if find_spec("xdist") and not quick:
        options.append(f"--numprocesses={min(8, os.cpu_count() or 1)}")
    start = log.stat().st_size if log.exists() else 0

    def collect() -> None:
        ended: dict[str, str] = {}
        with log.open(errors="replace") as lines:
            lines.seek(start)
            for line in lines:
                if match := LINE.fullmatch(line.strip()):
                    test = match["id"] or match["first"]
                    ended[test] = match["ended"] or match["last"]
        counts = {kind: [*ended.values()].count(kind.upper()) for kind in ("passed", "skipped")}
        failed = [test for test, how in ended.items() if how in ("FAILED", "ERROR")]
        write(file, {**about, **counts, "failed": failed})

    command = ("-m", "pytest", *options, *map(str, sorted(files) or [ROOT / "tests"]))
    return Step("exam", command, 150, (0, 1), collect)


def take(step: Step, limit: float, log: Path) -> dict[str, Any]:
    """Run a step for at most ``limit`` seconds; return its status, seconds and, if it failed, why."""
    begin = time.monotonic()
    source = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        output.write(f"==== {step.name}: python {' '.join(step.command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, *step.command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            while (left := begin + limit - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(1.0, left))
                    break
                step.collect()
            code = process.poll()
        finally:
            with suppress(ProcessLookupError):  # its children too, which may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            step.collect()
    status = "out of time" if code is None else "done" if code in step.codes else "failed"
    taken: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    if status == "failed":
        taken["note"] = log.read_text(errors="replace").rstrip().rpartition("\n")[2][:200]
    return taken


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file of JSON in one step."""
    with new_file(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n")


def _open_state(file: Path, device: torch.device, quick: bool) -> dict[str, Any]:
    """The steps that were taken, in a folder that is created if need be."""
    about = provenance(f"recblr bench gpu{' --quick' * quick}", device.type)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        return {**about, "steps": {}}
    state: dict[str, Any] = json.loads(file.read_text())
    for key in ("command", "commit", "hardware", "gpu"):
        if state.get(key) != about.get(key):
            raise InputError(
                f"{file.parent} has results of {key} {state.get(key)!r}, and this is "
                f"{about.get(key)!r}; choose another folder with -o"
            )
    return state


def _unpack_records(file: Path, records: Path, quick: bool) -> set[str]:
    """Put the records of the repository and of ``file`` into a folder; name the repository's."""
    records.mkdir()
    known = set()
    if RECORDS.is_dir() and not quick:
        for path in RECORDS.glob("*/**/*.json"):
            name = str(path.relative_to(RECORDS))
            if "/." not in f"/{name}":
                (records / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, records / name)
                known.add(name)
    if file.exists():
        for name, record in json.loads(file.read_text())["records"].items():
            (records / name).parent.mkdir(parents=True, exist_ok=True)
            write(records / name, record)
    return known


def _collect_records(file: Path, about: dict[str, Any], records: Path, known: set[str]) -> None:
    """Keep the records that the repository does not have in one file."""
    new = {str(path.relative_to(records)): path for path in sorted(records.glob("*/**/*.json"))}
    new = {name: path for name, path in new.items() if "/." not in f"/{name}" and name not in known}
    kept = json.loads(file.read_text())["records"] if file.exists() else {}
    if new.keys() - kept.keys():
        found = {name: json.loads(path.read_text()) for name, path in new.items()}
        write(file, {**about, "records": found})


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Inside the block, SIGTERM ends the program like Ctrl-C, so that no child goes on."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
