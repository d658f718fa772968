"""The tables and the JSON of recblr bench, mostly of made-up measurements."""

import re
from pathlib import Path

import pytest

from cli.fixtures import Run, answer, names
from conftest import Tiny


def test_bench_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"history": 1000, "median": 250.0, "p10": 200.0, "p90": 300.0}]
    monkeypatch.setattr("recblr.benchmark.step.time_steps", lambda device: rows)
    printed = answer(run("bench", "step", "--device", "cpu", "--json"))
    assert printed["steps"] == rows
    assert printed["command"] == "recblr bench step --device cpu --json"
    assert printed["date"]
    text = run("bench", "step").out
    assert re.search(r"1,000 +250 +200 +300", text)


def test_bench_ops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"forward_ns": 1.5, "both_ns": 6.0, "times_slower": 1.0}
    missing = dict.fromkeys(row)
    rows = [{"name": "fused", "gate": "ok", **row}, {"name": "peer", "gate": "absent", **missing}]
    measured = {"shape": [4, 5, 6], "dtype": "float32", "rows": rows}
    monkeypatch.setattr(
        "recblr.benchmark.ops.time_ops", lambda device: {**measured, "device": device}
    )
    printed = answer(run("bench", "ops", "--device", "cpu", "--json"))
    assert {key: printed[key] for key in measured} == measured
    assert printed["device"] == "cpu"
    text = run("bench", "ops").out
    assert re.search(r"fused +ok +1\.50 +6\.00 +1\.00 *\n *peer +absent *\n", text)


def test_bench_length(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "length": 4096,
            "recblr": {"event_ns": 5000.0, "step_us": 40.0},
            "attention": {"event_ns": attention, "step_us": 90.0},
        }
        for attention in (8000.0, None)
    ]
    measured = {"events": 4096, "width": 64, "rows": rows}
    monkeypatch.setattr("recblr.benchmark.length.time_lengths", lambda device: measured)
    printed = answer(run("bench", "length", "-o", "picture.png", "--json"))
    assert {key: printed[key] for key in measured} == measured
    assert names(tmp_path) == {"picture.png"}
    text = run("bench", "length").out
    assert re.search(r"4,096 +5,000 +8,000 +40 +90 *\n *4,096 +5,000 +40 +90 *\n", text)
    monkeypatch.setattr(
        "recblr.benchmark.length.time_lengths", lambda device: pytest.fail("measured")
    )
    result = run("bench", "length", "-o", "no/picture.png")
    assert (result.code, result.out) == (2, "")
    assert result.err == "recblr: the folder no does not exist; create it first\n"


def test_bench_train(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from recblr.training.config import TrainConfig

    monkeypatch.setattr("recblr.benchmark.train.TrainConfig", lambda: TrainConfig(batch_size=512))
    printed = answer(run("bench", "train", tiny.log, "--device", "cpu", "--json"))
    assert printed["log"] == "log.csv"
    assert printed["all_positions"]["times_products"] > 0
    monkeypatch.setattr("recblr.benchmark.train.time_training", lambda log, device: printed)
    text = run("bench", "train", tiny.log, "--device", "cpu").out
    assert re.search(r"seconds per epoch +\d+\.\d\d +\d+\.\d\d *\n", text)
    assert re.search(r"  matrix products +\d+% +\d+% *\n", text)


def test_bench_padded(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "epoch_seconds": {"packed": 2.0, "padded twin": 14.0},
        "times_faster_than": {"padded twin": 7.0},
    }
    monkeypatch.setattr("recblr.benchmark.padded.time_padded", lambda log: measured)
    printed = answer(run("bench", "padded", tiny.log, "--json"))
    assert {key: printed[key] for key in measured} == measured
    assert printed["command"] == f"recblr bench padded {tiny.log} --json"
    text = run("bench", "padded", tiny.log).out
    assert text == "seconds per epoch: 2.00 packed, 14.00 padded\npacked is 7.0 times faster\n"


def test_bench_prepare(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"seconds": 5.1, "cpu_seconds": 7.3, "peak_gib": 0.5}
    monkeypatch.setattr(
        "recblr.benchmark.prepare.time_prepare", lambda events, *_: {"events": events, **measured}
    )
    options = ("--events", "20000", "--events", "40000", "--memory-limit", "1GB")
    printed = answer(run("bench", "prepare", *options, "--json"))
    assert printed["rows"] == [{"events": events, **measured} for events in (20_000, 40_000)]
    assert printed["command"] == (
        "recblr bench prepare --events 20000 --events 40000 --per-user 100 --files 1 --core 5 "
        "--memory-limit 1GB --json"
    )
    text = run("bench", "prepare").out
    assert text == "50,000,000 events: 5.1 s, 7.3 s of the processor, peak 0.5 GiB\n"
