"""Commands with any arguments: a result, or one line that says what is wrong, and no file."""

import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recblr
from cli.fixtures import FAST, Result, Run, names
from conftest import Tiny
from fuzz.outcomes import Outcomes, fuzz

# Names of the files that the fixture writes, and of others.
LOGS = ["log.csv"] * 8 + ["ready", "double.csv", "logs", "log*.csv", "log.jsonl", "bare.csv"] * 2 + [
    "model", "empty.csv", "bytes.csv", "users.txt", "no.csv", "beuaty", "", ".", "ready/items.npy",
]  # fmt: skip
MODELS = ["model"] * 12 + ["ready", "log.csv", "no", "", "."]
FOLDERS = ["out"] * 12 + ["model", "ready", "log.csv", ".", "", "no/out"]
FILES = ["out.csv", "out.parquet", "out.txt", ".", "no/out.csv"]
STORES = ["out.sqlite"] * 4 + ["log.csv", ".", "", "no/out.sqlite", "mysql://a/b"]
ITEMS = ["c001-i0000", "c000-i0001", "c001-i0000,c000-i0001", "c001-i0000, c000-i0001"]
LISTS = ITEMS * 3 + ["femi", '"a,b"', '"open', "?", "", "a\nb", "7", "é"]
NUMBERS = ["1", "2", "3", "10", "0", "-1", "1e3", "2.5", "x", "9" * 30]
LOG_OPTIONS = {
    "--columns": ["user_id=user_id", "user_id=1,item_id=2", "user_id=who", "timestamp=", "user_id",
                  "item_id=", '"='],
    "--format": ["csv", "jsonl", "histories", "parquet", "xml"],
    "--separator": [",", ";", "\\t", "::", "", '"'],
}  # fmt: skip
SPLIT = {"--core": NUMBERS, "--split": ["leave-one-out", "time", "time-last", "tim"]}
SETTINGS = [
    "train.lr=0.01", "train.epochs=1", "train.epochs=2.5", "train.epochs=2.0", "model.dim=8",
    "model.dim=0", "train.lr=1e30", "trian.lr=1", "lr=1", "train.selection_protocol=both",
    "memory.weight=nan", "train.seed=" + "9" * 5000, "model.layers=1000000", "train.seed=1e23",
]  # fmt: skip
# The arguments of each command, and its options.
COMMANDS: dict[str, tuple[list[list[str]], dict[str, list[str]]]] = {
    "prepare": ([LOGS], {**LOG_OPTIONS, **SPLIT}),
    "train": (
        [LOGS],
        {**LOG_OPTIONS, **SPLIT, "--set": SETTINGS, "--model": ["fpmc", "gru4rec", "recbler", ""],
         "--config": ["beauty", "beuaty", "mine.toml", "no.toml", "log.csv"]},
    ),
    "evaluate": ([MODELS, LOGS], LOG_OPTIONS),
    "compare": ([MODELS, [*MODELS, *["second"] * 9]], {**LOG_OPTIONS, "--log": LOGS}),
    "recommend": (
        [MODELS],
        {"-k": NUMBERS, "--allow": LISTS, "--deny": LISTS, "-o": FILES,
         "--unknown": ["skip", "popular", "error", "all"]},
    ),
    "export": ([MODELS], {}),
    "key": ([["shop", ""], ["keys.json", "no/keys.json", "log.csv"]], {}),
    "replay": ([MODELS], {**LOG_OPTIONS, "--log": LOGS, "--store": STORES}),
    "verify": ([MODELS], {"--store": STORES}),
    "update": ([MODELS, LOGS], LOG_OPTIONS),
    "similar": ([MODELS, LISTS], {"-k": NUMBERS, "--by": ["model", "memory", "mind"]}),
    "events backup": ([FILES], {"--store": STORES}),
    "events restore": ([["copy.sqlite"] * 4 + STORES], {"--store": STORES}),
    "events export": ([FILES], {"--store": STORES, "--tenant": ["default", "shop", ""]}),
    "events compact": ([], {"--store": STORES, "--keep-days": [*NUMBERS, "9999"]}),
}  # fmt: skip
WEIGHTS = ["recommend"] * 8 + ["prepare"] * 3 + ["replay"] * 2  # besides once each command
FOR = {"--user": ["femi-0055"] * 9 + LISTS, "--history": LISTS,
       "--users": ["users.txt", "known.txt", "no.txt", "bytes.csv", "."]}  # fmt: skip
COMMON = [[]] * 9 + [["--json"]] * 5 + [["--device=cpu"], ["--device=gpu"], ["--nothing"], ["-h"]]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from([*COMMANDS, *WEIGHTS]))
    arguments, options = COMMANDS[command]
    line = [*command.split(), *(draw(st.sampled_from(values)) for values in arguments)]
    if command == "train":
        line += FAST
    if command == "update":
        line += ["--memory-only"]
    if command in ("prepare", "train", "update", "export"):
        line += ["-o", draw(st.sampled_from(FOLDERS))]
    chosen = draw(st.lists(st.sampled_from([*options] or ["-h"]), max_size=2, unique=True))
    if command == "recommend":
        chosen += draw(st.sampled_from([[name] for name in FOR] * 5 + [[], [*FOR][:2]]))
    for name in chosen:
        line += [name, draw(st.sampled_from((options | FOR)[name]))] if name != "-h" else [name]
    return line + draw(st.sampled_from(COMMON))


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path, run: Run) -> set[str]:
    """Logs and models in the current folder; their names."""
    users = tiny.frame["user_id"].unique(maintain_order=True).to_list()[:40]
    frame = tiny.frame.filter(pl.col("user_id").is_in(users))
    frame.write_csv("log.csv")
    frame.write_ndjson("log.jsonl")
    frame.write_csv("bare.csv", include_header=False)
    Path("logs").mkdir()
    frame.write_csv("logs/part-0.csv")
    new = frame.with_columns(user_id=pl.format("new {}", "user_id"), item_id=pl.lit("new"))
    pl.concat([frame, new]).write_csv("double.csv")
    Path("empty.csv").touch()
    Path("bytes.csv").write_bytes(bytes(range(256)))
    Path("users.txt").write_text("femi-0055\nnobody\n")
    Path("known.txt").write_text("femi-0055\n")
    Path("mine.toml").write_text("[train]\nepochs = 1\n[model]\nheads = 4\n")
    assert run("prepare", "log.csv", "-o", "ready").code == 0
    for name in ("model", "second"):
        shutil.copytree(tiny.artifact, name)
    assert run("replay", "model", "--log", "log.csv").code == 0  # into events.sqlite
    assert run("events", "backup", "copy.sqlite").code == 0
    return names(tmp_path)


def kind_of(line: list[str], result: Result) -> str:
    """The kind of the outcome of a command, which has to be one of the three."""
    assert result.code in (0, 1, 2)
    said = result.err.splitlines()
    assert all(text.startswith("recblr: ") for text in said)
    if result.code:
        assert said
        assert result.out == ""
        return "errors"
    return "warnings" if said else "results"


def check_result(line: list[str], out: str, events: int) -> None:
    """What a command printed as JSON, or wrote, is right; a log has ``events``."""
    printed, options = json.loads(out), dict(pairwise(line))
    if line[0] == "prepare":
        assert printed["read"]["interactions"] == events * (1 + (line[1] == "double.csv"))
    if line[0] == "train":
        recblr.load("out")
    if line[0] == "replay" and "--log" in options:
        found = printed["added"] + printed["present"]
        assert found == events * (1 + (options["--log"] == "double.csv"))
    if line[0] == "events":
        assert printed["users"] <= printed["events"]  # replay may have added to the default store
    if line[0] == "similar":
        assert len(printed) <= int(options.get("-k", 10))
    if line[0] == "recommend":
        for option in {"--allow", "--deny"} & options.keys():
            listed = next(csv.reader([options[option]], skipinitialspace=True), [])
            assert all((row["item_id"] in listed) == (option == "--allow") for row in printed)
            known = all(item in ",".join(ITEMS) for item in listed)
            assert known or options.get("--unknown", "error") != "error"
        assert all(row["rank"] <= int(options.get("-k", 10)) for row in printed)


@pytest.mark.filterwarnings("always")  # they are printed
def test_commands(folder: set[str], run: Run, tmp_path: Path, keep: Callable[..., None]) -> None:
    outcomes = Outcomes()
    events = len(Path("log.csv").read_text().splitlines()) - 1

    @fuzz(2500)
    @given(command_lines())
    def test(line: list[str]) -> None:
        result = run(*line)
        kind = kind_of(line, result)
        outcomes.counts[kind] += 1
        if kind != "errors" and "--json" in line and "-h" not in line:
            check_result(line, result.out, events)
        made = names(tmp_path) - folder
        for name in made:
            path = tmp_path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        diverged = result.code == 1 and made == {"out.training"}
        assert kind != "errors" or not made or diverged, (result, made)
        assert folder <= names(tmp_path)

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of command lines", **outcomes.figures())
