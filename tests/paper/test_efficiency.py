"""Studies of cost: verdicts on hand-made measurements, and one that is really made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recblr.errors import InputError
from recblr.paper.efficiency import Efficiency, Key
from recblr.paper.logs import SIMULATED, XLONG_LIKE, open_dataset
from recblr.paper.report import Report
from recblr.paper.studies import STUDIES
from recblr.paper.timings import Timing, _peak_mib, find, make, measure

ABOUT = {
    "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
SERIAL, SEQUENCE, EMBEDDING, PACKED = STUDIES["table5"].rows  # type: ignore[attr-defined]


def keep(
    study: Efficiency, folder: Path, cost: Callable[..., dict[str, float]], kind: str = "cpu"
) -> None:
    """Write the files of all measurements for which ``cost(log, row, length)`` gives something."""
    for key, timing in study.timings(kind).items():
        if found := cost(*key):
            settings = timing.resolved("cpu").settings
            path = timing.path(folder, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**ABOUT, "settings": settings, "peak_mib": 100.0, **found}))


def report(name: str, folder: Path, cost: Any, kind: str = "cpu") -> Report:
    study = STUDIES[name]
    assert isinstance(study, Efficiency)
    keep(study, folder, cost, kind)
    return study.report(folder, (0,), {})


# ---- Table 5 -------------------------------------------------------------------------------------


def scans(log: str, row: str, length: int) -> dict[str, float]:
    if log == "gowalla-10core":
        return {"epoch_seconds": 10.0} if row == SERIAL else {}
    seconds = {SERIAL: 300.0, SEQUENCE: 75.0, EMBEDDING: 50.0, PACKED: 5.0}
    if log == XLONG_LIKE:
        seconds |= {SERIAL: 60.0}  # faster than sequence padding
    return {"epoch_seconds": seconds[row]}


def test_order_and_ratios_of_the_scans(tmp_path: Path) -> None:
    found = report("table5", tmp_path, scans)
    assert found.verdict == (
        "On the CPU: the order of the paper's three is reproduced on ml-1m, not measured on "
        "gowalla-10core, not the same on xlong-like (not the paper's log)."
    )
    assert found.headline == (
        "on the CPU serial scan over embedding padding: 6.0 (paper 16.8) on ml-1m, "
        "1.2 (paper 22.7) on xlong-like"
    )
    rows = found.data["devices"]["cpu"]["ml-1m"]
    assert rows[SERIAL] == {
        "train": 300, "memory": 100, "ratio": 6, "published": 1022,
        "published_ratio": pytest.approx(1022 / 61),
    }  # fmt: skip
    assert rows[PACKED] == {"train": 5, "memory": 100, "ratio": 0.1}
    assert "| ml-1m          | sequence padding   | 75               | 1.5   | 75 " in found.summary
    assert found.draw is not None


def test_a_part_for_each_kind_of_device(tmp_path: Path) -> None:
    report("table5", tmp_path, scans)
    found = report("table5", tmp_path, lambda *key: {"epoch_seconds": 1.0}, "cuda")
    assert list(found.data["devices"]) == ["cuda", "cpu"]
    assert found.verdict.startswith("On the GPU: ")
    assert " On the CPU: " in found.verdict
    assert found.headline.startswith(
        "on the GPU serial scan over embedding padding: 1.0 (paper 16.8) on ml-1m"
    )
    assert found.summary.index("## GPU") < found.summary.index("## CPU")


def test_timings_of_unlike_machines_are_not_put_beside_one_another(tmp_path: Path) -> None:
    report("table5", tmp_path, scans)
    path = next(tmp_path.glob("timings/cpu/ml-1m/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 16}))
    with pytest.raises(InputError, match="timed on unlike machines"):
        STUDIES["table5"].report(tmp_path, (0,), {})


def test_a_cpu_has_smaller_batches() -> None:
    study = STUDIES["table5"]
    assert isinstance(study, Efficiency)
    key: Key = ("ml-1m", SERIAL, 200)
    sizes = {kind: study.timings(kind)[key].resolved("cpu").training for kind in ("cpu", "cuda")}
    assert (sizes["cpu"].batch_size, sizes["cuda"].batch_size) == (512, 2048)
    assert sizes["cpu"] == replace(sizes["cuda"], batch_size=512)
    assert (sizes["cpu"].scan, sizes["cpu"].max_length) == ("serial", 200)
    assert sizes["cpu"].examples == "prefixes"


# ---- Figure 4 ------------------------------------------------------------------------------------


def costs(log: str, row: str, length: int) -> dict[str, float]:
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
    found = report("figure4", tmp_path, costs)
    train, memory, inference, padding = found.verdict.removeprefix("On the CPU: ").split("; ")
    assert train == (
        "RecBLR needs less training time than SASRec and LRURec at 700 events and more: reproduced "
        "(0.50 and 0.50 of it at 1,000)"
    )
    assert "memory than SASRec and LRURec" in memory
    assert memory.endswith("not reproduced (0.25 and 1.25 of it at 1,000)")
    assert inference.endswith("reproduced (0.20 of it at 1,000)")
    # At 700 events, and nowhere else, padding costs less here.
    assert padding.endswith("not reproduced (0.50 of it at 1,000).")
    assert found.headline.startswith(
        "on the CPU seconds an epoch at 1,000 events: SASRec 1,000, LRURec 1,000,"
    )
    assert "| 700                        | 490    | 700    | 600 " in found.summary
    assert found.data["devices"]["cpu"]["RecBLR"][300] == {
        "train": 150, "memory": 75, "inference": 1,
    }  # fmt: skip


def test_short_lengths_alone_say_nothing_of_long_ones(tmp_path: Path) -> None:
    def some(log: str, row: str, length: int) -> dict[str, float]:
        return costs(log, row, length) if length < 700 and row != "LRURec" else {}

    found = report("figure4", tmp_path, some)
    assert found.verdict.count("not measured") == 4
    assert "| 300                        | 90     |        | 600 " in found.summary


@pytest.mark.parametrize(("name", "cost"), [("table5", scans), ("figure4", costs)])
def test_pictures(tmp_path: Path, name: str, cost: Any) -> None:
    from matplotlib.figure import Figure

    figure, draw = Figure(layout="constrained"), report(name, tmp_path, cost).draw
    assert draw is not None
    draw(figure)
    figure.savefig(tmp_path / "picture.png")
    assert len(figure.axes) == (2 if name == "table5" else 3)


# ---- a measurement -------------------------------------------------------------------------------

TIMING = Timing(
    SIMULATED, "recblr",
    ("model.dim=16", "train.examples=prefixes", "train.max_length=8", "train.batch_size=64"), True,
)  # fmt: skip


def test_an_epoch_is_scaled_from_some_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 6.0
    for clock in ("recblr.paper.timings.seconds", "recblr.timing.seconds"):
        monkeypatch.setattr(clock, lambda work, device: (work(), ticks)[1])
    found = measure(TIMING.resolved("cpu"), open_dataset(SIMULATED), True)
    data = open_dataset(SIMULATED)
    samples = int((data.split.train_end - data.offsets[:-1] - 1).sum())
    assert found["batches"] == -(-samples // 64)
    assert found["timed"] == 3
    # Batches are random, so that three of them hold about their share of the events.
    assert found["epoch_seconds"] == pytest.approx(ticks * samples / (3 * 64), rel=0.1)
    assert found["inference_seconds"] == ticks


def test_a_measurement_is_kept_and_found(tmp_path: Path) -> None:
    assert find(TIMING, "cpu", tmp_path) is None
    record = make(TIMING, tmp_path, "recblr reproduce", "cpu")
    assert find(TIMING, "cpu", tmp_path) == record
    assert find(TIMING, "cuda", tmp_path) is None
    assert record["epoch_seconds"] > 0
    assert record["command"] == "recblr reproduce"
    assert find(replace(TIMING, settings=TIMING.settings[1:]), "cpu", tmp_path) is None
    record["settings"]["model"]["dim"] = 17
    TIMING.path(tmp_path, "cpu").write_text(json.dumps(record))
    assert find(TIMING, "cpu", tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="tells only Linux")
def test_peak_memory_is_that_of_the_work() -> None:
    def work(mib: int) -> None:
        torch.ones(mib << 18).mul(2)  # twice that at its peak

    for mib in (64, 8, 32):  # what came before does not count
        assert _peak_mib(lambda mib=mib: work(mib)) == pytest.approx(2 * mib, abs=4)


def test_a_log_of_xlongs_lengths() -> None:
    data = open_dataset(XLONG_LIKE)
    lengths = data.offsets[1:] - data.offsets[:-1]
    assert (data.users, lengths.max()) == (300, 1000)
    assert 750 < lengths.mean() < 850
