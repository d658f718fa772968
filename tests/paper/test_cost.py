"""Studies of size and cost: verdicts on hand-made records, and one timing that is really made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recblr.errors import InputError
from recblr.paper import measurements
from recblr.paper.cost import Cost, Sizes
from recblr.paper.logs import open_dataset
from recblr.paper.measurements import Timing
from recblr.paper.report import Report
from recblr.paper.studies import STUDIES

ABOUT = {
    "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
SERIAL, SEQUENCE, EMBEDDING, PACKED = STUDIES["table5"].rows
Costs = Callable[[str, str, int], dict[str, float]]


def report(name: str, folder: Path, cost: Costs, kind: str = "cpu") -> Report:
    """Of records of all timings for which ``cost(dataset, row, length)`` gives something."""
    study = STUDIES[name]
    assert isinstance(study, Cost)
    for timing in study.measurements((0,), kind):
        if costs := cost(timing.dataset, timing.row, timing.length):
            path = folder / timing.file
            path.parent.mkdir(parents=True, exist_ok=True)
            settings = timing.recommender("cpu").settings
            path.write_text(json.dumps({**ABOUT, "settings": settings, "peak_mib": 100.0, **costs}))
    return study.report(folder, (0,), {})


def rows(report: Report) -> list[list[str]]:
    """The cells of its table."""
    return [[*map(str.strip, line.split("|"))][1:-1] for line in report.table.splitlines()]


# ---- Table 5 -------------------------------------------------------------------------------------


def scans(dataset: str, row: str, length: int) -> dict[str, float]:
    if dataset == "gowalla-10core":
        return {"epoch_seconds": 10.0} if row == SERIAL else {}
    seconds = {SERIAL: 300.0, SEQUENCE: 75.0, EMBEDDING: 50.0, PACKED: 5.0}
    if dataset == "xlong-like":
        seconds |= {SERIAL: 60.0}  # faster than sequence padding
    return {"epoch_seconds": seconds[row]}


def test_order_and_ratios_of_the_scans(tmp_path: Path) -> None:
    result = report("table5", tmp_path, scans)
    claim = "embedding padding is faster than sequence padding, and that than a serial scan"
    assert result.sentences == [
        f"ml-1m, cpu: {claim}: reproduced (0.67 and 0.25 of it at 200 events).",
        f"gowalla-10core, cpu: {claim}: not measured.",
        f"xlong-like, cpu: {claim}: not the same (0.67 and 1.25 of it at 257 events).",
    ]
    assert result.headline == "1 reproduced, 1 not measured, 1 not the same"
    serial, _, _, packed, *_ = result.data["costs"]
    assert serial == {
        "device": "cpu", "dataset": "ml-1m", "row": SERIAL, "length": 200, "epoch_seconds": 300,
        "peak_mib": 100, "ratio": 6, "published": 1022, "published_ratio": pytest.approx(1022 / 61),
    }  # fmt: skip
    assert (packed["ratio"], "published" in packed) == (0.1, False)
    assert ["cpu", "ml-1m", SEQUENCE, "200", "75.0", "100.0", "1.50", "75.0", "1.23"] in rows(
        result
    )


def test_each_kind_of_device_has_its_lines(tmp_path: Path) -> None:
    report("table5", tmp_path, scans)
    result = report("table5", tmp_path, lambda *key: {"epoch_seconds": 1.0}, "cuda")
    devices = [line["device"] for line in result.data["costs"]]
    assert devices == ["cuda"] * 12 + ["cpu"] * 9
    assert [sentence.split(":")[0] for sentence in result.sentences][2:4] == [
        "xlong-like, cuda",
        "ml-1m, cpu",
    ]


def test_timings_of_different_machines_are_refused(tmp_path: Path) -> None:
    report("table5", tmp_path, scans)
    path = next(tmp_path.glob("timings/cpu/ml-1m/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 16}))
    with pytest.raises(InputError, match="timed on different machines"):
        STUDIES["table5"].report(tmp_path, (0,), {})


def test_a_cpu_has_smaller_batches() -> None:
    first = {kind: STUDIES["table5"].measurements((0,), kind)[0] for kind in ("cpu", "cuda")}
    cpu, gpu = (timing.recommender("cpu").training for timing in first.values())
    assert (cpu.batch_size, gpu.batch_size) == (512, 2048)
    assert cpu == replace(gpu, batch_size=512)
    assert (cpu.scan, cpu.max_length, cpu.examples) == ("serial", 200, "prefixes")


# ---- Figure 4 ------------------------------------------------------------------------------------


def costs(dataset: str, row: str, length: int) -> dict[str, float]:
    if row == "SASRec":
        train, memory, inference = length**2 / 1e3, float(length), 5.0
    elif row == "RecBLR":
        train, memory, inference = length / 2.0, float(length) / 4, 1.0
    else:
        train, memory, inference = float(length), float(length) / 5, 1.0
    if row == "LRURec, sequence padding":
        train = 600.0 if length == 700 else 2.0 * length
    return {"epoch_seconds": train, "peak_mib": memory, "inference_seconds": inference}


def test_claims_about_long_histories(tmp_path: Path) -> None:
    result = report("figure4", tmp_path, costs)
    train, memory, inference, padding = result.sentences
    assert train == (
        "xlong-like, cpu: RecBLR needs less training time than SASRec and LRURec at 700 events and "
        "more: reproduced (0.50 and 0.50 of it at 1,000 events)."
    )
    assert "memory than SASRec and LRURec" in memory
    assert memory.endswith("not reproduced (0.25 and 1.25 of it at 1,000 events).")
    assert inference.endswith("more: reproduced (0.20 of it at 1,000 events).")
    # At 700 events, and nowhere else, padding costs less here.
    assert padding.endswith("not reproduced (0.50 of it at 1,000 events).")
    assert ["cpu", "xlong-like", "RecBLR", "300", "150.0", "1.00", "75.0"] in rows(result)


def test_short_histories_say_nothing_about_long_ones(tmp_path: Path) -> None:
    result = report("figure4", tmp_path, lambda *key: costs(*key) if key[2] < 700 else {})
    assert result.headline == "4 not measured"
    assert len(result.data["costs"]) == 4 * 6


def test_nothing_measured(tmp_path: Path) -> None:
    result = STUDIES["figure4"].report(tmp_path, (0,), {("xlong-like", "RecBLR"): "not run"})
    assert (result.headline, result.sentences, result.picture) == ("", [], None)
    assert rows(result)[2:] == [["xlong-like", "RecBLR", "not run"]]


# ---- a timing ------------------------------------------------------------------------------------


def test_a_timing_is_kept_and_found(tmp_path: Path) -> None:
    settings = ("model.dim=16", "train.examples=prefixes", "train.max_length=8",
                "train.batch_size=64")  # fmt: skip
    timing = Timing("simulated", "RecBLR", "recblr", settings, 8, "cpu", inference=True)
    assert timing.find(tmp_path) is None
    record = timing.make(tmp_path, "recblr reproduce", "cpu")
    assert timing.find(tmp_path) == record
    assert record["epoch_seconds"] > 0
    assert record["inference_seconds"] > 0
    assert record["command"] == "recblr reproduce"
    assert replace(timing, kind="cuda").find(tmp_path) is None
    assert replace(timing, settings=settings[1:]).find(tmp_path) is None
    record["settings"]["model"]["dim"] = 17
    (tmp_path / timing.file).write_text(json.dumps(record))
    assert timing.find(tmp_path) is None


def test_a_data_set_with_xlongs_lengths() -> None:
    data = open_dataset("xlong-like")
    lengths = data.offsets[1:] - data.offsets[:-1]
    assert (data.users, lengths.max()) == (300, 1000)
    assert 750 < lengths.mean() < 850


# ---- Table 2 -------------------------------------------------------------------------------------


def test_one_published_size_is_impossible() -> None:
    right = {
        name
        for name, counts in STUDIES["table2"].published.items()
        for users, _, interactions, length in [[cell["count"] for cell in counts.values()]]
        if abs(interactions / users - length) <= 0.051
    }
    assert STUDIES["table2"].published.keys() - right == {"xlong"}


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Log:
        summary = {"kept": {"users": 10, "items": 7, "interactions": 85}}  # noqa: RUF012

    monkeypatch.setattr(measurements, "open_dataset", lambda name: Log)
    counts = ("users", "items", "interactions", "average length")
    published = {"same": (10, 7, 85, 8.5), "other": (10, 7, 85, 8.6), "gone": (1, 2, 3, 4.0)}
    study = Sizes(
        title="Sizes",
        rows=dict.fromkeys(counts, ()),
        datasets=dict.fromkeys(published),
        published={
            name: {count: {"count": number} for count, number in zip(counts, numbers, strict=True)}
            for name, numbers in published.items()
        },
        remarks={"other": "a remark"},
    )
    for size in study.measurements((0, 1), "cpu")[:2]:
        assert size.find(tmp_path) is None
        assert size.make(tmp_path, "recblr", "cpu") == size.find(tmp_path)
    result = study.report(tmp_path, (0,), {("gone", "gone"): "data set not available"})
    assert rows(result)[2:] == [
        ["same", "10", "10", "7", "7", "85", "85", "8.50", "8.50", "equal"],
        ["other", "10", "10", "7", "7", "85", "85", "8.50", "8.60", "different"],
        ["gone", "", "1", "", "2", "", "3", "", "4.00", "not measured: data set not available"],
    ]
    assert result.headline == "same equal, other different"
    assert result.sentences == [
        "same: equal.", "other: different (a remark).", "gone: not measured: data set not available.",
    ]  # fmt: skip
