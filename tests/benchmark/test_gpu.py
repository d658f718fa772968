"""`recblr bench gpu`: its steps under limits, what is kept and not repeated, and the whole command."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

import recblr
from conftest import SOAK
from recblr.benchmark import gpu, gpu_steps
from recblr.benchmark.gpu import Step, measure_all, take, write
from recblr.benchmark.gpu_table import summarize
from recblr.errors import InputError

CPU = torch.device("cpu")
WHOLE = {  # after the whole command
    "exam-cpu.json", "ops-cpu.json", "train-cpu.json", "step-cpu.json", "length-cpu.json",
    "runs-cpu.json", "steps-cpu.json", "log.txt",
}  # fmt: skip
BARE = """
import importlib.metadata
from functools import partial
from importlib.machinery import PathFinder

HIDDEN = {
    "polars", "pooch", "requests", "jinja2", "apsw", "starlette", "uvicorn", "msgspec", "httpx",
    "selenium", "psycopg", "redis", "prometheus_client", "faiss", "onnx", "onnxruntime", "pandas",
}

def find(real, name, path=None, target=None):
    return None if name.split(".")[0] in HIDDEN else real(name, path, target)

def distribution(real, name):
    if name == "recblr":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

PathFinder.find_spec = partial(find, PathFinder.find_spec)
metadata = importlib.metadata.Distribution
metadata.from_name = partial(distribution, metadata.from_name)
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def python(name: str, code: str, **more: Any) -> Step:
    return Step(name, ("-c", code), 60, **more)


def test_a_step_ends_with_its_children_when_its_time_is_over(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    child = f"import time\nwhile True: open({str(sign)!r}, 'a').write('.'); time.sleep(0.01)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    collected: list[bool] = []
    step = python("slow", code, collect=lambda: collected.append(sign.exists()))
    taken = take(step, 2.5, tmp_path / "log.txt")
    assert (taken["status"], taken.keys()) == ("out of time", {"status", "seconds"})
    assert len(collected) >= 3  # each second, and at the end
    size = sign.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert sign.stat().st_size == size


def test_how_a_step_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert take(python("good", "print('fine')"), 60, log)["status"] == "done"
    failed = take(python("bad", "print('why'); raise SystemExit('the reason')"), 60, log)
    assert (failed["status"], failed["note"]) == ("failed", "the reason")
    tests = python("tests", "raise SystemExit(1)", codes=(0, 1))
    assert take(tests, 60, log)["status"] == "done"
    lines = log.read_text().splitlines()
    assert lines[:2] == ["==== good: python -c print('fine')", "fine"]


def test_what_is_done_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    steps = [
        python("first", f"open({str(mark)!r}, 'a').write('1')"),
        python("second", f"open({str(mark)!r}, 'a').write('2'); raise SystemExit('no')"),
    ]
    monkeypatch.setattr(gpu, "plan", lambda *_: steps)
    measure_all(out, 0.01, CPU)  # less than a second
    assert not mark.exists()
    state = read(out / "steps-cpu.json")
    assert [step["status"] for step in state["steps"].values()] == ["not begun"] * 2
    for _ in range(2):
        measure_all(out, 9, CPU)
    assert mark.read_text() == "122"
    assert [line[:6] for line in summarize(out, "cpu")[1:3]] == ["done  ", "failed"]
    with pytest.raises(InputError, match="has results of command 'recblr bench gpu', and this is"):
        measure_all(out, 9, CPU, quick=True)
    write(out / "steps-cpu.json", {**state, "commit": "0123456"})
    with pytest.raises(InputError, match=r"of commit '0123456', and .* choose another folder"):
        measure_all(out, 9, CPU)


def test_records_are_packed_into_one_file_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, file = tmp_path / "results", tmp_path / "runs-cpu.json"
    for name in ("beauty/old.json", ".models/beauty/kept.json"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        write(repository / name, {"name": name})
    write(repository / "table1.json", {"study": "table1"})
    monkeypatch.setattr(gpu, "RECORDS", repository)
    known = gpu._unpack_records(file, tmp_path / "a", quick=False)
    assert known == {"beauty/old.json"}
    gpu._collect_records(file, {}, tmp_path / "a", known)
    assert not file.exists()
    write(tmp_path / "a" / "beauty" / "new.json", {"name": "new"})
    gpu._collect_records(file, {"date": "2026"}, tmp_path / "a", known)
    assert read(file) == {"date": "2026", "records": {"beauty/new.json": {"name": "new"}}}
    gpu._unpack_records(file, tmp_path / "b", quick=False)
    assert {path.name for path in (tmp_path / "b").rglob("*.json")} == {"old.json", "new.json"}
    gpu._unpack_records(file, tmp_path / "c", quick=True)
    assert {path.name for path in (tmp_path / "c").rglob("*.json")} == {"new.json"}


def test_the_exam_is_read_while_it_runs(tmp_path: Path) -> None:
    log, file = tmp_path / "log.txt", tmp_path / "exam-cpu.json"
    log.write_text("tests/a.py::test_of_before PASSED [  1%]\n")
    exam = gpu._exam(file, log, {"date": "2026"}, quick=True)
    with log.open("a") as lines:
        lines.write(
            "tests/a.py::test_a[cuda-[1, 2]-3] PASSED   [ 25%]\n"
            "[gw1] [ 50%] FAILED tests/a.py::test_b[cuda-[1, 2]] \n"
            "tests/a.py::test_c SKIPPED (needs CUDA)   [ 75%]\n"
            "tests/a.py::test_d ERROR [100%]\ntests/a.py::test_e \n"
            "FAILED tests/a.py::test_b[cuda-[1, 2]] - assert 1 == 2\n"
        )
    exam.collect()
    failed = ["tests/a.py::test_b[cuda-[1, 2]]", "tests/a.py::test_d"]
    assert read(file) == {"date": "2026", "passed": 1, "skipped": 1, "failed": failed}
    assert str(gpu.ROOT / "tests/training/test_training_gpu.py") in exam.command
    assert __file__ not in exam.command


def test_the_version_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert recblr.__version__ == "not installed"


@pytest.fixture
def kept() -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize("name", ["kernels", "run", "step", "length"])  # the others take longer
def test_a_measurement(name: str, kept: dict[str, dict[str, Any]]) -> None:
    threads = torch.get_num_threads()
    gpu_steps.STEPS[name](
        lambda file, **figures: kept.setdefault(file, {}).update(figures), CPU, True
    )
    (result,) = kept.values()
    wanted = {
        "kernels": {"shape", "dtype", "rows", "threads"}, "step": {"steps", "threads"},
        "run": {"run"}, "length": {"events", "width", "rows"},
    }  # fmt: skip
    assert result.keys() == wanted[name]
    assert torch.get_num_threads() == threads


def test_rows_of_several_steps_are_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*words: str) -> list[str]:
        command = ["gpu_steps", str(tmp_path), "cpu", "--quick", *words]
        monkeypatch.setattr(sys, "argv", command)
        gpu_steps.main()
        return [row["name"] for row in read(tmp_path / "ops-cpu.json")["rows"]]

    names = ["fused", "fused, bfloat16", "loop"]
    assert measure("kernels") == names
    assert measure("peer", "doubling") == [*names, "doubling"]
    assert measure("kernels") == [*names, "doubling"]
    assert read(tmp_path / "ops-cpu.json")["command"] == "recblr bench gpu --quick"


def test_the_table_is_short(tmp_path: Path) -> None:
    row = {"gate": "ok", "forward_ns": 0.0048, "both_ns": 0.0167, "times_slower": 6.1}
    ops = {"copy_gb_per_s": 4241.0, "forward_share": 0.48, "backward_share": 0.36,
           "rows": [{"name": "fused", **row}, {"name": "peer", "gate": "not installed"}],
           "lengths": [{"length": 10_000, **row}]}  # fmt: skip
    names = [f"step {number}" for number in range(20)]
    steps = {name: {"status": "done", "seconds": 3.4, "note": "x" * 300} for name in names}
    about = {"hardware": "AMD", "gpu": "H200", "versions": {"torch": "2.11"}, "commit": "abc"}
    write(tmp_path / "steps-cuda.json", {**about, "steps": steps})
    write(tmp_path / "ops-cuda.json", ops)
    write(tmp_path / "exam-cuda.json", {"passed": 606, "failed": ["tests/a.py::test"]})
    write(
        tmp_path / "runs-cuda.json",
        {"records": {f"beauty/{number}.json": {} for number in range(40)}},
    )
    lines = summarize(tmp_path, "cuda")
    assert len(lines) == 60
    assert max(map(len, lines)) <= 110
    assert lines[0] == "H200; torch 2.11; commit abc"
    assert "tests: 606 passed, 1 failed" in lines
    assert "kernels: 48% forward and 36% backward of a copy's 4,241 GB/s" in lines
    assert "  fused, T = 10,000                      0.0048   0.0167           6.1" in lines
    assert lines[-1] == f"and {1 + 20 + 2 + 5 + 1 + 40 - 59} more lines in {tmp_path}"


@pytest.mark.skipif(not SOAK, reason="takes a minute; `make soak` runs it")
def test_the_whole_command_on_a_bare_machine(tmp_path: Path) -> None:
    """Without Polars and what serving needs, and without an installation of the package."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    source = Path(gpu.__file__).parents[2]
    paths = os.pathsep.join([str(tmp_path), str(source)])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "recblr",
        "bench",
        "gpu",
        "--quick",
        "--minutes",
        "15",
        "-o",
        "out",
    ]
    for attempt in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        state = read(tmp_path / "out/steps-cpu.json")
        assert {
            name for name, step in state["steps"].items() if step["status"] == "failed"
        } == set()
        assert {path.name for path in (tmp_path / "out").iterdir()} == WHOLE
        assert len(done.stdout.splitlines()) <= 60
        begun = [line for line in done.stderr.splitlines() if ": at most " in line]
        unfinished = [step for step in state["steps"].values() if step["status"] != "done"]
        assert len(begun) == (len(unfinished) if attempt else len(state["steps"]))
    assert read(tmp_path / "out/exam-cpu.json")["skipped"] > 500  # each needs a GPU
