"""`recblr reproduce --jobs`: several runs at a time, as one after another."""

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.fixtures import Run as RunCommand
from conftest import slow
from recblr.paper import studies
from recblr.paper.jobs import DIED, InProcess
from recblr.paper.measurements import Measurement
from recblr.paper.report import read_record
from recblr.progress import NamedLines

QUICK = ("table1", "--quick", "--device", "cpu")


def make(one: Measurement) -> tuple[str, str]:
    """Fail by the name of the data set, in the process that is asked."""
    print("begins", file=sys.stderr)
    if one.dataset == "deadly":
        os._exit(1)
    return ("wrong", str(os.getpid())) if one.dataset == "wrong" else ("", str(os.getpid()))


def test_a_process_that_dies_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    call = InProcess(make, jobs=2)
    reason, first = call(Measurement("wrong", "a row"))
    assert (reason, int(first) == os.getpid()) == ("wrong", False)
    assert call(Measurement("deadly", "a row"))[0] == DIED
    reason, second = call(Measurement("right", "a row"))
    assert (reason, first == second) == ("", False)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"{name} a row: begins" for name in ("wrong", "deadly", "right")]


def test_lines_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    stream = NamedLines("a run", sys.stderr)
    print("one\ntw", end="", file=stream)
    print("o", file=stream, flush=True)
    assert capsys.readouterr().err == "a run: one\na run: two\n"
    assert not stream.isatty()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads in place of processes; the list has their numbers of jobs."""
    jobs: list[int] = []
    monkeypatch.setattr(studies, "InProcess", lambda make, count: jobs.append(count) or make)
    return jobs


def test_plain_runs_come_before_those_with_a_memory(
    run: RunCommand, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    together, memory = threading.Barrier(2, timeout=30), list[bool]()

    def attempt(one: Measurement, **_: Any) -> tuple[str, str]:
        together.wait()
        memory.append(one.has_memory)
        return "could not start", f"first line of {one.row}"

    monkeypatch.setattr(studies, "_try", attempt)
    rows = [f"--rows={name}{more}" for name in ("SASRec", "RecBLR") for more in ("", " + memory")]
    result = run("reproduce", *QUICK, *rows, "-o", "results", "--jobs", "2")
    assert result.code == 0
    assert threads == [2]
    assert memory == [False, False, True, True]
    assert "simulated RecBLR seed 0: could not start: first line of RecBLR\n" in result.err
    failed = json.loads(Path("results/table1.json").read_text())["failed"]
    assert set(failed.values()) == {"could not start"}


def test_an_error_of_a_run_does_not_stop_the_others(
    run: RunCommand, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(one: Measurement, **arguments: Any) -> tuple[str, str]:
        return (DIED, "killed") if one.row == "LRURec" else real(one, **arguments)

    real = studies._try
    monkeypatch.setattr(studies, "_try", attempt)
    rows = ["--rows=LRURec", "--rows=FPMC"]
    assert run("reproduce", *QUICK, *rows, "-o", "results", "--jobs", "2").code == 0
    page = json.loads(Path("results/table1.json").read_text())
    assert page["failed"] == {"simulated LRURec seed 0": DIED}
    assert {line["row"]: line["why"] for line in page["not_measured"]}["LRURec"] == DIED
    record = read_record(Path("results/simulated/fpmc,seed=0.json"))
    assert record is not None
    assert record["command"] == "recblr reproduce table1 --quick --jobs 2"


@slow
def test_several_processes_make_the_same_records(run: RunCommand) -> None:
    rows = ("--rows=FPMC", "--seeds", "0,1")
    assert run("reproduce", *QUICK, *rows, "-o", "one").code == 0
    result = run("reproduce", *QUICK, *rows, "-o", "two", "--jobs", "2")
    assert (result.code, re.findall(r"(\d) of 2: simulated FPMC seed", result.err)) == (
        0,
        ["1", "2"],
    )
    for file in ("fpmc,seed=0.json", "fpmc,seed=1.json"):
        one, two = (
            json.loads(Path(name, "simulated", file).read_text()) for name in ("one", "two")
        )
        for record in (one, two):
            for key in ("command", "date", "seconds", "threads"):
                del record[key]
        assert one == two


def test_costs_are_not_shared(run: RunCommand) -> None:
    result = run("reproduce", "table5", "--quick", "-o", "results", "--jobs", "2")
    assert result.code == 2
    assert result.err == (
        "recblr: table5 measures time and memory, one run at a time; leave out --jobs\n"
    )
