"""The README's tables: made from results of every kind, and from none."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

TABLES = Path(__file__).parents[2] / "benchmarks" / "tables.py"
ABOUT = {
    "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 2,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
GPU = {**ABOUT, "gpu": "H200", "threads": 1, "commit": "def"}


@pytest.fixture
def tables(tmp_path: Path) -> Any:
    """The script's functions, over an empty folder of results inside an empty repository."""
    script = runpy.run_path(str(TABLES))
    names = script["write"].__globals__
    names["ROOT"], names["RESULTS"] = tmp_path, tmp_path / "results"
    names["TABLE_1"], names["DEFAULTS"] = (
        tmp_path / "results" / name for name in ("table1.json", "defaults.json")
    )
    (tmp_path / "results").mkdir()
    return script


def keep(tmp_path: Path, name: str, **result: Any) -> None:
    (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))


def test_only_what_lies_between_markers_is_written_and_that_for_good(tables: Any) -> None:
    text = "a\n<!-- generated: length -->\nold\n\nold\n<!-- end -->\nb\n<!-- end -->\nc\n"
    new = tables["write"](text)
    assert new.startswith("a\n<!-- generated: length -->\nNot measured: `recblr bench length --dev")
    assert new.endswith("length-cuda.json`.\n<!-- end -->\nb\n<!-- end -->\nc\n")
    assert "old" not in new
    assert tables["write"](new) == new
    with pytest.raises(KeyError, match="nonsense"):
        tables["write"]("<!-- generated: nonsense -->\n<!-- end -->")


METRICS = ("HR@10", "NDCG@10", "MRR@10", "HR@20", "NDCG@20", "MRR@20")


def keep_table_1(tmp_path: Path, figures: list[Any], runs: list[Any]) -> None:
    keep(tmp_path, "table1", command="recblr reproduce table1", measured="2026, AMD.",
         figures=figures, runs=runs)  # fmt: skip


def row(name: str, value: float, deviation: float | None = None, **more: float) -> list[Any]:
    """The figures of a row on Beauty; a metric more is 0.01 more, masked 0.1 more."""
    return [
        {
            "dataset": "beauty", "row": name, "metric": metric, "mean": value + 0.01 * place,
            "deviation": deviation, "masked_mean": value + 0.1 + 0.01 * place,
            "masked_deviation": deviation,
            **{key: figure + 0.01 * place for key, figure in more.items()},
        }
        for place, metric in enumerate(METRICS)
    ]  # fmt: skip


def run(name: str, seconds: float = 1.0, **more: str) -> Any:
    return {"dataset": "beauty", "row": name, "seconds": seconds, **more}


def test_accuracy(tables: Any, tmp_path: Path) -> None:
    missing = {"metric": "NDCG@10", "published": 0.5, "verdict": "not measured: not run"}
    figures = [
        *row("FPMC", 0.2), *row("SASRec", 0.3), *row("RecBLR", 0.25, 0.0123, published=0.4),
        {"dataset": "beauty", "row": "GRU4Rec", **missing}, *row("popularity", 0.01),
        {"dataset": "steam", "row": "RecBLR", **missing},
    ]  # fmt: skip
    runs = [run("FPMC"), run("SASRec"), run("RecBLR", 540.0), run("RecBLR", 660.0)]
    keep_table_1(tmp_path, figures, runs)
    lines = tables["accuracy"]().splitlines()
    assert lines[0] == f"| data | run | {' | '.join(METRICS)} | masked HR@10 | masked NDCG@10 |"
    cells = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [[*of_row[1:4], *of_row[8:]] for of_row in cells] == [
        ["RecBLR, 2 seeds", "0.2500 ± 0.0123", "0.2600 ± 0.0123", "0.3500 ± 0.0123",
         "0.3600 ± 0.0123"],
        ["best baseline, SASRec, 1 seed", "0.3000", "0.3100", "0.4000", "0.4100"],
        ["popularity", "0.0100", "0.0200", "0.1100", "0.1200"],
        ["RecBLR as published", "0.4000", "0.4100"],
    ]  # fmt: skip
    assert " ".join(lines[7:]) == (
        "`recblr reproduce table1`; 2026, AMD. Minutes a seed of RecBLR: beauty 10 on the CPU. "
        "Every model and verdict: [table 1](../results/table1.md)."
    )


def test_accuracy_with_the_memory(tables: Any, tmp_path: Path) -> None:
    values = {"SASRec": 0.3, "LRURec": 0.2, "RecBLR": 0.25, "SASRec + memory": 0.4,
              "LRURec + memory": 0.5, "RecBLR + memory": 0.6}  # fmt: skip
    figures = [line for name, value in values.items() for line in row(name, value)]
    runs = [run(name) for name in values if name != "RecBLR"]
    runs += [run("RecBLR", 600.0), run("RecBLR", 60.0, gpu="H200")]
    keep_table_1(tmp_path, figures, runs)
    text = tables["accuracy"]()
    cells = [line.split(" | ")[1:3] for line in text.splitlines()[2:6]]
    assert cells == [
        ["RecBLR, 2 seeds", "0.2500"], ["best baseline, SASRec, 1 seed", "0.3000"],
        ["RecBLR + memory, 1 seed", "0.6000"], ["best baseline, LRURec + memory, 1 seed", "0.5000"],
    ]  # fmt: skip
    assert "a seed of RecBLR: beauty 10 on the CPU, 1 on the GPU. Every" in " ".join(text.split())


def test_the_lead(tables: Any, tmp_path: Path) -> None:
    assert tables["lead"]() == ""
    keep_table_1(tmp_path, [*row("transitions", 0.1), *row("RecBLR", 0.2)], [])
    keep(tmp_path, "defaults", figures=[*row("RecBLR", 0.3), *row("RecBLR + memory", 0.4)])
    lines = [line.strip("| ").split(" | ") for line in tables["lead"]().splitlines()]
    beauty = [line[1:6] for line in lines if line[0] == "beauty"]
    assert beauty == [
        ["unmasked", "0.1000 / 0.1100", "0.2000 / 0.2100", "-", "0.4000 / 0.4100"],
        ["masked", "0.2000 / 0.2100", "0.3000 / 0.3100", "-", "0.5000 / 0.5100"],
    ]


def test_accuracy_stays_as_it_is_until_table_1_is_there(tables: Any, tmp_path: Path) -> None:
    text = "<!-- generated: accuracy -->\nold\nfigures\n<!-- end -->\n"
    assert tables["write"](text) == text
    keep_table_1(tmp_path, [], [])
    assert "old" not in tables["write"](text)


def test_what_is_missing_is_named_with_its_command(tables: Any, tmp_path: Path) -> None:
    keep(tmp_path, "step-cpu", **ABOUT, steps=[{"median": 40.2}, {"median": 41.7}])
    found = tables["speed"]()
    assert (
        "| an event after 10, 1,000, 100,000 events of history | 40, 42 µs; 2 threads | not"
        in found
    )
    assert "| an epoch of all positions | not measured | not measured |" in found
    commands = re.findall(r"`(recblr bench .*?) --json > benchmarks/results/(.*?)\.json`", found)
    assert commands == [
        ("recblr bench train --device cpu", "train-cpu"),
        ("recblr bench train --device cuda", "train-cuda"),
        ("recblr bench step --device cuda", "step-cuda"),
    ]


def test_speed(tables: Any, tmp_path: Path) -> None:
    kind = {
        "epoch_seconds": 26.4, "estimated": False, "events_per_second": 37654.0,
        "times_products": 2.14, "parts": {"matrix products": 0.512, "other": 0.488},
    }  # fmt: skip
    slow = {**kind, "epoch_seconds": 2944.0, "estimated": True}
    fast = {**kind, "epoch_seconds": 0.456}
    keep(tmp_path, "train-cpu", **ABOUT, log="ml-1m.tsv.gz", all_positions=kind, prefixes=slow)
    keep(tmp_path, "train-cuda", **GPU, log="ml-1m.tsv.gz", all_positions=fast, prefixes=kind)
    for device, about in (("cpu", ABOUT), ("cuda", GPU)):
        keep(tmp_path, f"step-{device}", **about, steps=[{"median": 40.0}])
    faster, epochs = {"padded twin": 6.36}, {"packed": 25.9, "padded twin": 164.9}
    keep(tmp_path, "epoch-cpu", **ABOUT, epoch_seconds=epochs, times_faster_than=faster)
    prepared = {"events": 50_000_000, "per_user": 100, "files": 1, "seconds": 52.3,
                "cpu_seconds": 61.8, "peak_gib": 3.61, "fingerprint": "abc"}  # fmt: skip
    keep(tmp_path, "prepare", **ABOUT, command="recblr bench prepare", rows=[prepared])
    on_disk = {**prepared, "peak_gib": 1.7}
    keep(tmp_path, "prepare-disk", **ABOUT, command="… --memory-limit 1GB", rows=[on_disk])
    found = tables["speed"]()
    assert (
        "| 26 s (37,654 events/s), 2.1 times its bare matrix products; 2 threads | 0.46 s (37,654"
        " events/s), 2.1 times its bare matrix products; 1 thread | `recblr bench train` |" in found
    )
    assert "| 2,944 s (estimated), 2.1 times" in found
    assert "| 26 s, 165 s: 6.4 times faster; 2 threads |  | `recblr bench padded` |" in found
    assert "| 52 s, 3.6 GiB at its peak; 2 threads |" in found
    assert "| 52 s, 1.7 GiB at its peak; 2 threads |" in found
    line = "| 50,000,000 | 100 | 1 file | in memory | 52 | 62 | 3.61 | `abc` |"
    assert line in tables["preparations"]()
    assert "A step on the GPU: matrix products 51%, other 49%." in tables["parts"]()
    about = "Epochs of ml-1m.tsv.gz; CPU: 2026-11-21, AMD, torch 2.13.0; commit abc; GPU: "
    assert f"{about}2026-11-21, AMD, H200, torch 2.13.0; commit def." in " ".join(found.split())
    assert "ot measured" not in found


def test_recurrence(tables: Any, tmp_path: Path) -> None:
    fused = {
        "name": "fused",
        "gate": "ok",
        "forward_ns": 1.234,
        "both_ns": 6.0,
        "times_slower": 1.0,
    }
    loop = {
        "name": "loop",
        "gate": "ok",
        "forward_ns": 20.0,
        "both_ns": 1250.4,
        "times_slower": 208.4,
    }
    absent = {"name": "peer", "gate": "dx is off by 1e+00", "forward_ns": None, "both_ns": None,
              "times_slower": None}  # fmt: skip
    shared = {"shape": [64, 200, 128], "dtype": "float32"}
    keep(tmp_path, "ops-cpu", **ABOUT, **shared, rows=[fused, loop, absent])
    found = tables["recurrence"]()
    assert (
        "| recurrence on the CPU | forward, ns an element | forward and backward | times slower |"
    )
    assert "| fused | 1.23 | 6 | 1 |\n| loop | 20 | 1,250 | 208 |\n" in found
    assert "| peer | dx is off by 1e+00 |  |  |\n" in found
    assert "64 × 200 × 128 sequences, events and channels in float32; `recblr bench ops`" in found
    assert "Not measured: `recblr bench ops --device cuda" in found
    row = {**fused, "peak_bytes": 20.0}
    keep(
        tmp_path, "ops-cuda", **GPU, **shared, rows=[row], lengths=[{**row, "length": 100_000}],
        copy_gb_per_s=4300.0, forward_share=0.71, backward_share=0.654,
    )  # fmt: skip
    found = tables["recurrence"]()
    assert "| fused | 1.23 | 6 | 1 | 20 |\n" in found
    assert "| 100,000 | 1.23 | 6 | 1 | 20 |" in found
    assert "4,300 GB/s of a copy, fused reaches 71% forward and 65% backward;" in " ".join(
        found.split()
    )
    assert "Not measured" not in found


def test_results_of_a_gpu_are_kept(tables: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gpu"
    folder.mkdir()
    about = {**GPU, "command": "recblr bench gpu"}
    run = {"seconds": 15.2, "epochs": 34, "metrics": {}}
    files = {
        "train": {"log": "ml-1m", "run": run, "evaluation_seconds": 0.12},
        "exam": {"passed": 606, "skipped": 0, "failed": ["a", "b"]}, "steps": {"steps": {}},
        "runs": {"records": {"beauty/a.json": {"seed": 1}, "beauty/b.json": {"seed": 2}}},
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}-cuda.json").write_text(json.dumps({**about, **content}))
    (tmp_path / "results" / "beauty").mkdir()
    (tmp_path / "results" / "beauty" / "a.json").write_text("as before")
    tables["keep"](folder)
    assert (tmp_path / "results" / "beauty" / "a.json").read_text() == "as before"
    assert json.loads((tmp_path / "results" / "beauty" / "b.json").read_text()) == {"seed": 2}
    assert not (tmp_path / "results" / "runs-cuda.json").exists()
    assert "| an epoch of all positions | not measured | not measured |" in tables["speed"]()
    assert "606 tests passed on the GPU and 2 failed; `make gpu`; 2026-" in tables["recurrence"]()
    text = " ".join(tables["parts"]().split())
    assert text == (
        "On the GPU an evaluation takes 0.12 s, and all 34 epochs of the preset 15 s with validation."
    )
    (folder / "step-cuda.json").write_text(json.dumps({**about, "command": "bench gpu --quick"}))
    with pytest.raises(SystemExit, match="--quick only tries the command"):
        tables["keep"](folder)


def test_length(tables: Any, tmp_path: Path) -> None:
    rows = [
        {"length": length, "recblr": {"event_ns": 6500.0}, "attention": {"event_ns": attention}}
        for length, attention in ((64, 7300.0), (128, 9100.0), (256, None))
    ]
    keep(tmp_path, "length-cpu", **ABOUT, rows=rows)
    found = " ".join(tables["length"]().split())
    assert found.startswith("![cost by length of history](../results/length-cpu.png) On the CPU")
    assert "a RecBLR layer 6.5 µs in histories of 64 events and 6.5 µs in ones of 256," in found
    assert "an attention layer 7.3 µs in histories of 64 events and 9.1 µs in ones of 128;" in found
