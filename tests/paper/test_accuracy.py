"""Studies of accuracy on hand-made runs: verdicts, stars, orders, and what is missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recblr.errors import InputError
from recblr.paper import runs
from recblr.paper.accuracy import Accuracy, Row
from recblr.paper.report import write
from recblr.paper.runs import Run
from recblr.paper.studies import with_memory

USERS = 400
FLOOR = {"HR@10": 0.01, "NDCG@10": 0.004, "MRR@10": 0.003, "HR@20": 0.02, "NDCG@20": 0.006,
         "MRR@20": 0.004}  # fmt: skip
ROWS = (Row("SASRec", "sasrec"), Row("GRU4Rec", "gru4rec"), Row("RecBLR"))
STUDY = Accuracy(
    "A table",
    rows=ROWS,
    datasets={"beauty": ()},
    published={
        "beauty": {
            "SASRec": {"NDCG@10": 0.5}, "GRU4Rec": {"NDCG@10": 0.4}, "RecBLR": {"NDCG@10": 0.6},
        }
    },
    reference="RecBLR",
)  # fmt: skip


def keep(folder: Path, run: Run, ranks: np.ndarray, data: str = "d1f6", **changes: Any) -> None:
    """Write the file of a run with these ranks (U,), masked they are one better."""
    packed = {"unmasked": runs.pack_ranks(ranks), "masked": runs.pack_ranks(ranks.clip(2) - 1)}
    record = {
        "dataset": run.dataset, "model": run.model, "seed": run.seed, "command": "recblr",
        "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
        "versions": {"torch": "2.13.0"}, "settings": run.resolved("cpu").settings,
        "examples": "all-positions", "parameters": 12_345, "epochs": 20, "best_epoch": 17,
        "ended": "epochs", "seconds": 60.0 + run.seed,
        "test": [{"protocol": {"data": data, "seen": seen},
                  "floors": {"popularity": FLOOR}} for seen in packed],
        "ranks": packed, **changes,
    }  # fmt: skip
    path = run.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def hits(share: float, seed: int = 0) -> np.ndarray:
    """Ranks (U,): 1 for a share of the users, none of the others has a hit."""
    return np.where(np.random.default_rng(seed).permutation(USERS) < share * USERS, 1, 21)


def report(folder: Path, study: Accuracy = STUDY, seeds: tuple[int, ...] = (0, 1, 2)) -> Any:
    why = {(dataset, row.name): "no run" for dataset in study.datasets for row in study.rows}
    return study.report(folder, seeds, why)


def test_figures_and_verdicts(tmp_path: Path) -> None:
    for seed in range(3):
        keep(tmp_path, Run("beauty", "sasrec", seed=seed), hits(0.5 + 0.02 * seed))
    keep(tmp_path, Run("beauty", "gru4rec"), hits(0.7))
    keep(tmp_path, Run("beauty"), hits(0.3))
    found = report(tmp_path)
    rows = found.data["datasets"]["beauty"]["rows"]
    ours = rows["SASRec"]["unmasked"]["NDCG@10"]
    assert ours["mean"] == pytest.approx(0.52)
    assert ours["deviation"] == pytest.approx(0.02)
    assert ours["verdict"] == "reproduced"
    assert rows["GRU4Rec"]["unmasked"]["NDCG@10"]["verdict"] == "better"
    assert rows["RecBLR"]["unmasked"]["NDCG@10"]["verdict"] == "worse"
    assert "verdict" not in rows["RecBLR"]["masked"]["NDCG@10"]
    assert "Of 3 published figures: 1 reproduced, 1 better, 1 worse." in found.verdict
    assert found.headline == "NDCG@10 of RecBLR, 1 to 3 seeds: 0.3000 (paper 0.6000) on beauty"
    lines = [[*map(str.strip, line.split("|"))][1:-1] for line in found.summary.splitlines()]
    sasrec = next(line for line in lines if line[:1] == ["SASRec"])
    assert sasrec[:5] == ["SASRec", "0.5200 ± 0.0200", "0.5000", "+4.0%", "reproduced"]
    assert sasrec[-1].startswith("0.52")
    assert (
        "| RecBLR              | 0.3000          | 0.6000    | -50.0%     | worse      |"
        in found.summary
    )
    assert "popularity          | 0.0040" in found.summary
    assert "| SASRec  | all-positions | 12,345     | 0; 1; 2 | 20, 17 " in found.details
    assert "the memory" not in found.summary + found.details
    assert len(found.records) == 5


def test_a_star_is_earned_by_more_than_chance(tmp_path: Path) -> None:
    def star(ours: np.ndarray, theirs: np.ndarray) -> Any:
        keep(tmp_path, Run("beauty"), ours)
        keep(tmp_path, Run("beauty", "sasrec"), theirs)
        keep(tmp_path, Run("beauty", "gru4rec"), hits(0.1))
        return report(tmp_path).data["datasets"]["beauty"]["stars"]["NDCG@10"]

    found = star(hits(0.6), hits(0.4))
    assert (found["against"], found["earned"]) == ("SASRec", True)
    assert found["difference"] == pytest.approx(0.2)
    # 12 metrics are one family of six: the smallest p of 10,000 flips, six times.
    assert found["p"] == pytest.approx(6 / 10_001)
    assert not star(hits(0.4), hits(0.6))["earned"]  # as sure, but the other way
    assert not star(hits(0.5), hits(0.49, seed=1))["earned"]
    assert star(hits(0.5), hits(0.5))["p"] == 1


def test_against_every_row(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty", "sasrec"), hits(0.4))
    keep(tmp_path, Run("beauty", "gru4rec"), hits(0.61))
    keep(tmp_path, Run("beauty"), hits(0.6))
    found = report(tmp_path)
    against = found.data["datasets"]["beauty"]["against"]
    assert against.keys() == {"SASRec", "GRU4Rec"}
    assert against["SASRec"]["difference"] == pytest.approx(0.2)
    assert against["SASRec"]["p"] == pytest.approx(2 / 10_001)
    low, high = against["SASRec"]["interval"]
    assert 0.15 < low < 0.2 < high < 0.25
    assert against["GRU4Rec"]["difference"] == pytest.approx(-0.01)
    assert found.verdict.startswith("Of 3 published figures: 1 reproduced, 1 better, 1 worse. ")
    # Four users differ: of 16 flips 2 are as extreme, and it is the larger p of two.
    assert "in NDCG@10: 1.6% behind GRU4Rec on beauty (p = 0.125)" in found.verdict


def test_the_published_order(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty", "gru4rec"), hits(0.7))
    keep(tmp_path, Run("beauty", "sasrec"), hits(0.5))
    keep(tmp_path, Run("beauty"), hits(0.51))
    order = report(tmp_path).data["datasets"]["beauty"]["order"]
    assert order["tau"] == pytest.approx(-1 / 3)  # published: GRU4Rec < SASRec < RecBLR
    pairs = {(it["better"], it["worse"]) for it in order["other_way"]}
    assert pairs == {("GRU4Rec", "SASRec"), ("GRU4Rec", "RecBLR")}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty"), hits(0.6))
    found = report(tmp_path, STUDY)
    assert "Of 3 published figures: 1 reproduced, 2 not measured." in found.verdict
    assert "- SASRec: not measured: no run\n- GRU4Rec: not measured: no run" in found.summary
    row = next(line for line in found.summary.splitlines() if line.startswith("| GRU4Rec"))
    assert row.replace(" ", "").startswith("|GRU4Rec||0.4000||notmeasured|")
    beauty = found.data["datasets"]["beauty"]
    assert beauty["rows"]["GRU4Rec"]["not_measured"] == "no run"
    assert (beauty["stars"], beauty["against"], beauty["order"]) == ({}, {}, None)


def test_nothing_at_all(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert found.draw is None
    assert found.summary == "## beauty\n\nNot measured: no run"
    assert "3 not measured" in found.verdict
    assert (found.headline, found.details) == ("", "")


def test_runs_of_unlike_data_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty"), hits(0.6))
    keep(tmp_path, Run("beauty", "sasrec"), hits(0.6), data="other")
    with pytest.raises(InputError, match=r"runs on unlike data, other \(SASRec\), d1f6 \(RecBLR\)"):
        report(tmp_path)


def test_no_star_where_a_row_is_missing(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty"), hits(0.6))
    keep(tmp_path, Run("beauty", "sasrec"), hits(0.2))
    star = report(tmp_path).data["datasets"]["beauty"]["stars"]["NDCG@10"]
    assert (star["against"], star["p"] < 0.001, star["earned"]) == ("SASRec", True, False)


def test_rows_are_compared_by_the_seeds_that_all_have(tmp_path: Path) -> None:
    for seed, share in enumerate((0.3, 0.6)):
        keep(tmp_path, Run("beauty", seed=seed), hits(share))
    keep(tmp_path, Run("beauty", "sasrec", seed=1), hits(0.5))
    found = report(tmp_path).data["datasets"]["beauty"]
    assert found["rows"]["RecBLR"]["unmasked"]["NDCG@10"]["mean"] == pytest.approx(0.45)
    assert found["against"]["SASRec"]["difference"] == pytest.approx(0.1)

    keep(tmp_path, Run("beauty", "gru4rec", seed=2), hits(0.5))
    assert report(tmp_path).data["datasets"]["beauty"]["against"] == {}


def test_a_seed_that_failed_is_named_beside_the_others(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty"), hits(0.6))
    why = {("beauty", row): "no run" for row in ("SASRec", "GRU4Rec")}
    why["beauty", "RecBLR"] = "beauty RecBLR seed 1: the loss is nan"
    found = STUDY.report(tmp_path, (0, 1), why)
    assert "- RecBLR: without beauty RecBLR seed 1: the loss is nan" in found.summary
    assert "- SASRec: not measured: no run" in found.summary


def test_floors_are_of_all_runs(tmp_path: Path) -> None:
    both = [{"protocol": {"data": "d1f6"}, "floors": {"popularity": FLOOR, "chain": FLOOR}}] * 2
    keep(tmp_path, Run("beauty", "sasrec"), hits(0.6))
    keep(tmp_path, Run("beauty"), hits(0.6), test=both)
    floors = report(tmp_path).data["datasets"]["beauty"]["floors"]
    of_each = {"unmasked": FLOOR, "masked": FLOOR}
    assert floors == {"popularity": of_each, "chain": of_each}


def test_the_floors_have_a_record_of_their_own(tmp_path: Path) -> None:
    def keep_floors(data: str) -> None:
        floors = [{"protocol": {"data": data}, "floors": {"transitions": FLOOR}}] * 2
        record = {**json.loads(Run("beauty").path(tmp_path).read_text()), "test": floors}
        (tmp_path / "beauty" / "floors.json").write_text(json.dumps(record | {"commit": "def"}))

    keep(tmp_path, Run("beauty"), hits(0.6))
    keep_floors("d1f6")
    found = report(tmp_path)
    assert list(found.data["datasets"]["beauty"]["floors"]) == ["popularity", "transitions"]
    assert "| transitions         | 0.0040" in found.summary
    assert {record["commit"] for record in found.records} == {"abc", "def"}
    keep_floors("other")
    with pytest.raises(InputError, match=r"d1f6 \(RecBLR\), other \(transitions\)"):
        report(tmp_path)


# ---- with the memory of transitions --------------------------------------------------------------

BOTH = replace(STUDY, rows=(*ROWS, with_memory("SASRec"), with_memory("RecBLR")))
CHOSEN = {"weight": 1.5, "scale": 10.0, "repeat": -20.0, "unmasked": 0.1, "masked": 0.1}


def keep_memory(folder: Path, model: str, ranks: np.ndarray, seed: int = 0) -> None:
    run = Run("beauty", model, ("memory.enabled=true",), seed)
    keep(folder, run, ranks, memory=CHOSEN)


def test_rows_with_the_memory_are_compared_among_themselves(tmp_path: Path) -> None:
    for seed in (0, 1):
        for row, share in zip(ROWS, (0.4, 0.3, 0.5), strict=True):
            keep(tmp_path, Run("beauty", row.model, seed=seed), hits(share))
    alone = report(tmp_path)
    keep_memory(tmp_path, "recblr", hits(0.9))  # of one seed, and far ahead of all
    keep_memory(tmp_path, "sasrec", hits(0.8))
    found = report(tmp_path, BOTH)
    for key in ("against", "stars", "order"):
        before = alone.data["datasets"]["beauty"][key]
        assert before
        assert found.data["datasets"]["beauty"][key] == before
    assert found.data["datasets"]["beauty"]["stars"]["NDCG@10"]["earned"]
    against = found.data["datasets"]["beauty"]["against_memory"]
    assert against.keys() == {"SASRec + memory"}
    assert against["SASRec + memory"]["difference"] == pytest.approx(0.1)
    assert "25.0% ahead of SASRec on beauty (p < 0.001). RecBLR + memory" in found.verdict
    assert (
        "RecBLR + memory and the best of the other + memory rows in NDCG@10: 12.5% ahead of "
        "SASRec + memory on beauty (p < 0.001)."
    ) in found.verdict
    assert "A row “+ memory” adds the memory of transitions" in found.summary
    assert "The same of the rows with the memory:" in found.details
    line = found.details.splitlines()[-1]
    assert line.startswith("| RecBLR + memory | all-positions ")
    assert line.split("|")[-2].strip() == "1.5, 10, -20"


def test_seconds_stand_by_machine(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        gpu = {"gpu": "H200"} if seed else {}
        keep(tmp_path, Run("beauty", seed=seed), hits(0.5), seconds=100.0 * (seed + 1), **gpu)
    assert "| 100; 250       | AMD, 1 threads; H200 |" in report(tmp_path).details


@pytest.mark.parametrize("memory", [{}, {"memory": {"enabled": False, "reach": 3, "gone": 1}}])
def test_a_record_without_the_memory_stays_one_of_its_row(
    tmp_path: Path, memory: dict[str, Any]
) -> None:
    plain, with_it = Run("beauty"), Run("beauty", settings=("memory.enabled=true",))
    settings = {name: plain.resolved("cpu").settings[name] for name in ("model", "train")}
    for run in (plain, with_it):
        keep(tmp_path, run, hits(0.5), settings={**settings, **memory})
    assert runs.result(plain, tmp_path) is not None
    assert runs.result(with_it, tmp_path) is None


def test_a_record_of_a_memory_by_other_settings_is_no_record(tmp_path: Path) -> None:
    run = Run("beauty", settings=("memory.enabled=true",))
    keep(tmp_path, run, hits(0.5))
    assert runs.result(run, tmp_path) is not None
    settings = run.resolved("cpu").settings
    settings["memory"]["reach"] = 3
    keep(tmp_path, run, hits(0.5), settings=settings)
    assert runs.result(run, tmp_path) is None


LINE = Accuracy(
    "A line",
    rows=tuple(Row(f"{n}", settings=(f"model.expansion={n}",)) for n in (1, 2, 3)),
    datasets={"beauty": (), "sports": ()},
    axis="expansion factor",
    optimum={"beauty": "2", "sports": "2"},
)


def test_the_optimum_within_the_interval(tmp_path: Path) -> None:
    shares = {"beauty": (0.4, 0.5, 0.51), "sports": (0.4, 0.5, 0.7)}
    for dataset, of_data in shares.items():
        for row, share in zip(LINE.rows, of_data, strict=True):
            keep(tmp_path, Run(dataset, settings=row.settings), hits(share, int(share * 100)))
    found = report(tmp_path, LINE)
    beauty, sports = (found.data["datasets"][name]["optimum"] for name in shares)
    assert (beauty["best"], beauty["verdict"]) == ("3", "reproduced")
    assert (sports["best"], sports["verdict"]) == ("3", "not reproduced")
    assert sports["interval"][0] > 0
    assert found.headline == "best expansion factor, 1 seed: 3 on beauty, 3 on sports"
    assert (
        "reproduced on beauty (paper 2; here 3, not ahead by more than chance); not reproduced on "
        "sports (paper 2; here 3, ahead by more than chance)"
    ) in found.verdict


def test_no_optimum_of_a_line_with_a_gap(tmp_path: Path) -> None:
    keep(tmp_path, Run("beauty", settings=LINE.rows[0].settings), hits(0.5))
    keep(tmp_path, Run("beauty", settings=LINE.rows[1].settings), hits(0.6))
    found = report(tmp_path, LINE)
    assert found.data["datasets"]["beauty"]["optimum"] is None
    assert found.verdict == "No published figure, and too few rows are measured to be compared."
    assert report(tmp_path / "empty", LINE).verdict == "Nothing is measured yet."


@pytest.mark.parametrize("study", [STUDY, BOTH, LINE], ids=["dots", "with memory", "lines"])
def test_the_page(tmp_path: Path, study: Accuracy) -> None:
    for seed, share in ((0, 0.6), (1, 0.62)):
        for row in study.rows[1:]:
            keep(tmp_path, Run("beauty", row.model, row.settings, seed), hits(share))
    page = write(
        "study",
        "recblr reproduce study",
        study.title,
        report(tmp_path, study),
        {("beauty", "x"): "why"},
        tmp_path,
    )
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "study.json").read_text())
    assert kept == json.loads(json.dumps(page.content))
    assert kept["not_measured"] == [{"dataset": "beauty", "row": "x", "why": "why"}]
    assert kept["measured"] == "2026-11-21, AMD, torch 2.13.0; commit abc."
    text = (tmp_path / "study.md").read_text()
    assert text.startswith(f"# {study.title}\n\n")
    assert "(study.png)" in text
    assert "Made by `recblr reproduce study`. 2026-11-21, AMD" in text
    assert page.text.splitlines()[0] == study.title
