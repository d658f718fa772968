"""Studies of accuracy on hand-made runs: verdicts, stars, leads, and what is missing."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recblr.errors import InputError
from recblr.paper.accuracy import MEMORY, Accuracy, optimum, per_user, summary
from recblr.paper.measurements import Run, pack_ranks, unpack_ranks
from recblr.paper.report import Report, write
from recblr.paper.studies import STUDIES

USERS = 400
BASELINE = {"HR@10": 0.01, "NDCG@10": 0.004, "MRR@10": 0.003, "HR@20": 0.02, "NDCG@20": 0.006,
            "MRR@20": 0.004}  # fmt: skip
ROWS = {"SASRec": ("sasrec",), "GRU4Rec": ("gru4rec",), "RecBLR": ("recblr",)}
STUDY = Accuracy(
    title="A table",
    rows=ROWS,
    datasets={"beauty": ()},
    published={"beauty": {"SASRec": {"NDCG@10": 0.5}, "GRU4Rec": {"NDCG@10": 0.4},
                          "RecBLR": {"NDCG@10": 0.6}}},
    reference="RecBLR",
)  # fmt: skip
BOTH = replace(
    STUDY,
    rows=ROWS
    | {f"{it}{MEMORY}": (it.lower(), "memory.enabled=true") for it in ("SASRec", "RecBLR")},
)
CHOSEN = {"weight": 1.5, "scale": 10.0, "repeat": -20.0, "unmasked": 0.1, "masked": 0.1}


def run(model: str = "recblr", seed: int = 0, *settings: str, dataset: str = "beauty") -> Run:
    return Run(dataset, "", model, settings, seed)


def keep(folder: Path, run: Run, ranks: np.ndarray, data: str = "d1f6", **changes: Any) -> None:
    """Write the record of a run with these ranks (U,); masked they are one better."""
    packed = {"unmasked": pack_ranks(ranks), "masked": pack_ranks(ranks.clip(2) - 1)}
    record = {
        "dataset": run.dataset, "model": run.model, "seed": run.seed, "command": "recblr",
        "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
        "versions": {"torch": "2.13.0"}, "settings": run.recommender("cpu").settings,
        "examples": "all-positions", "parameters": 12_345, "epochs": 20, "best_epoch": 17,
        "ended": "epochs", "seconds": 60.0 + run.seed,
        "test": [{"protocol": {"data": data, "seen": seen},
                  "floors": {"popularity": BASELINE}} for seen in packed],
        "ranks": packed, **changes,
    }  # fmt: skip
    path = folder / run.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def hits(share: float, seed: int = 0) -> np.ndarray:
    """Ranks (U,): 1 for a share of the users, none of the others has a hit."""
    return np.where(np.random.default_rng(seed).permutation(USERS) < share * USERS, 1, 21)


def report(folder: Path, study: Accuracy = STUDY, seeds: tuple[int, ...] = (0, 1, 2)) -> Report:
    missing = {
        (dataset, row): "not run"
        for dataset in study.datasets
        for row, (model, *settings) in study.rows.items()
        if not any(
            (folder / run(model, s, *settings, dataset=dataset).file).exists() for s in seeds
        )
    }
    return study.report(folder, seeds, missing)


def line(report: Report, row: str, metric: str = "NDCG@10", dataset: str = "beauty") -> Any:
    (line,) = (
        it
        for it in report.data["figures"]
        if (it["dataset"], it["row"], it["metric"]) == (dataset, row, metric)
    )
    return line


def cells(text: str) -> list[list[str]]:
    """Of the lines of a Markdown table."""
    return [[*map(str.strip, line.split("|"))][1:-1] for line in text.splitlines() if "|" in line]


# ---- figures and verdicts ------------------------------------------------------------------------


def test_figures_and_verdicts(tmp_path: Path) -> None:
    for seed in range(3):
        keep(tmp_path, run("sasrec", seed), hits(0.5 + 0.02 * seed))
    keep(tmp_path, run("gru4rec"), hits(0.7))
    keep(tmp_path, run(), hits(0.3))
    found = report(tmp_path)
    sasrec = line(found, "SASRec")
    assert sasrec["mean"] == pytest.approx(0.52)
    assert sasrec["deviation"] == pytest.approx(0.02)
    assert sasrec["percent"] == pytest.approx(4)
    verdicts = {row: line(found, row)["verdict"] for row in ROWS}
    assert verdicts == {"SASRec": "reproduced", "GRU4Rec": "better", "RecBLR": "worse"}
    assert line(found, "RecBLR")["masked_mean"] == pytest.approx(0.3)
    assert "verdict" not in line(found, "SASRec", "HR@10")
    assert found.headline == "NDCG@10 of RecBLR: 0.3000 (paper 0.6000, worse) on beauty"
    (sentence,) = found.sentences
    assert sentence.startswith(
        f"beauty: {found.headline.replace(': ', ' ').removesuffix(' on beauty')};"
    )
    assert sentence.endswith("1 published figures better; 1 published figures reproduced; 1 "
                             "published figures worse.")  # fmt: skip
    head, _, *lines = cells(found.table)
    assert head[:8] == ["data set", "row", "metric", "ours", "±", "95% interval", "published",
                        "difference %"]  # fmt: skip
    low, high = sasrec["interval"]
    assert lines[0][1:9] == ["SASRec", "NDCG@10", "0.5200", "0.0200", f"{low:.4f} to {high:.4f}",
                             "0.5000", "+4.0", "reproduced"]  # fmt: skip
    assert [line[1] for line in lines] == [*ROWS, "popularity"]
    assert lines[-1][3:7] == ["0.0040", "", "", ""]
    runs = cells(found.details.split("##")[0])[2:]
    assert runs[0][:10] == ["beauty", "SASRec", "0", "all-positions", "12,345", "20", "17", "epochs",
                            "60.0", "AMD"]  # fmt: skip
    assert len(runs) == len(found.records) == 5
    assert len(cells(found.details.split("All metrics")[1])) == 2 + 6 * 4


def test_a_verdict_is_by_the_interval(tmp_path: Path) -> None:
    ranks = np.random.default_rng(0).integers(1, 40, 301).clip(max=21)
    keep(tmp_path, run(), ranks)
    low, high = summary(ranks[None])["NDCG@10"]["interval"]

    def verdict(published: float) -> str:
        study = replace(STUDY, published={"beauty": {"RecBLR": {"NDCG@10": published}}})
        return str(line(report(tmp_path, study), "RecBLR")["verdict"])

    assert [verdict(it) for it in (low, high)] == ["reproduced"] * 2
    assert [verdict(it) for it in (low - 1e-9, high + 1e-9)] == ["better", "worse"]


def test_values_are_means_over_the_seeds() -> None:
    found = per_user(np.array([[1, 21, 3], [2, 21, 21]]))
    np.testing.assert_allclose(found["HR@10"], [1, 0, 0.5])
    np.testing.assert_allclose(found["MRR@20"], [0.75, 0, 1 / 6])
    np.testing.assert_allclose(found["NDCG@10"], [(1 + 1 / np.log2(3)) / 2, 0, 0.25])


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_drawing_users(seeds: int) -> None:
    ranks = np.random.default_rng(0).integers(1, 40, (seeds, 301)).clip(max=21)
    found, rng = summary(ranks), np.random.default_rng(7)
    chosen = rng.integers(301, size=(4000, 301))
    for name, values in per_user(ranks).items():
        low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
        error = values.std() / 301**0.5
        assert found[name]["interval"] == pytest.approx([low, high], abs=0.3 * error)
        assert found[name]["mean"] == pytest.approx(values.mean())
        assert (found[name]["deviation"] is None) == (seeds == 1)
    same = summary(np.repeat(ranks[:1], 3, 0))
    assert same["HR@10"]["interval"] == pytest.approx(summary(ranks[:1])["HR@10"]["interval"])


# ---- comparisons ---------------------------------------------------------------------------------


def test_a_star_is_earned_by_more_than_chance(tmp_path: Path) -> None:
    def star(ours: np.ndarray, theirs: np.ndarray) -> Any:
        keep(tmp_path, run(), ours)
        keep(tmp_path, run("sasrec"), theirs)
        keep(tmp_path, run("gru4rec"), hits(0.1))
        return line(report(tmp_path), "RecBLR")

    found = star(hits(0.6), hits(0.4))
    assert (found["best_other"], found["star"]) == ("SASRec", "*")
    assert found["ahead"] == pytest.approx(0.2)
    # The six metrics are one family: the smallest p of 10,000 flips, six times.
    assert found["p"] == pytest.approx(6 / 10_001)
    assert not star(hits(0.4), hits(0.6))["star"]  # as sure, but behind
    assert not star(hits(0.5), hits(0.49, seed=1))["star"]
    assert star(hits(0.5), hits(0.5))["p"] == 1


def test_no_star_where_a_row_is_missing(tmp_path: Path) -> None:
    keep(tmp_path, run(), hits(0.6))
    keep(tmp_path, run("sasrec"), hits(0.2))
    found = line(report(tmp_path), "RecBLR")
    assert (found["best_other"], found["p"] < 0.001, found["star"]) == ("SASRec", True, "")


def test_the_reference_is_compared_with_every_row(tmp_path: Path) -> None:
    keep(tmp_path, run("sasrec"), hits(0.4))
    keep(tmp_path, run("gru4rec"), hits(0.61))
    keep(tmp_path, run(), hits(0.6))
    found = report(tmp_path)
    sasrec = line(found, "SASRec")
    assert sasrec["ahead"] == pytest.approx(0.2)
    assert sasrec["p"] == pytest.approx(2 / 10_001)
    low, high = sasrec["ahead_interval"]
    assert 0.15 < low < 0.2 < high < 0.25
    assert line(found, "GRU4Rec")["ahead"] == pytest.approx(-0.01)
    # Four users differ: of 16 flips 2 are as extreme, and it is the larger p of two.
    assert "; RecBLR 1.6% behind GRU4Rec (p = 0.12);" in found.sentences[0]


def test_rows_are_compared_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    for seed, share in enumerate((0.3, 0.6)):
        keep(tmp_path, run("recblr", seed), hits(share))
    keep(tmp_path, run("sasrec", 1), hits(0.5))
    found = report(tmp_path)
    assert line(found, "RecBLR")["mean"] == pytest.approx(0.45)
    assert line(found, "SASRec")["ahead"] == pytest.approx(0.1)
    keep(tmp_path, run("gru4rec", 2), hits(0.5))
    assert "ahead" not in line(report(tmp_path), "SASRec")


def test_rows_with_the_memory_are_compared_among_themselves(tmp_path: Path) -> None:
    for seed in (0, 1):
        for model, share in (("sasrec", 0.4), ("gru4rec", 0.3), ("recblr", 0.5)):
            keep(tmp_path, run(model, seed), hits(share))
    alone = report(tmp_path)
    for model, share in (("recblr", 0.9), ("sasrec", 0.8)):  # one seed, and far better than all
        keep(tmp_path, run(model, 0, "memory.enabled=true"), hits(share), memory=CHOSEN)
    found = report(tmp_path, BOTH)
    for row in ROWS:
        assert line(found, row) == line(alone, row)
    assert line(found, "RecBLR")["star"] == "*"
    assert line(found, f"SASRec{MEMORY}")["ahead"] == pytest.approx(0.1)
    assert "RecBLR 25.0% ahead of SASRec (p = 0.0" in found.sentences[0]
    assert f"RecBLR{MEMORY} 12.5% ahead of SASRec{MEMORY} (p = 0.0" in found.sentences[0]
    assert "weight 1.5, scale 10, repeat -20" in found.details


LINE = Accuracy(
    title="A line",
    rows={f"{n}": ("recblr", f"model.expansion={n}") for n in (1, 2, 3)},
    datasets={"beauty": (), "sports": ()},
    axis="expansion factor",
    optimum={"beauty": "2", "sports": "2"},
)


def test_the_optimum_within_the_interval(tmp_path: Path) -> None:
    shares = {"beauty": (0.4, 0.5, 0.51), "sports": (0.4, 0.5, 0.7)}
    for dataset, of_dataset in shares.items():
        for (_, setting), share in zip(LINE.rows.values(), of_dataset, strict=True):
            keep(
                tmp_path, run("recblr", 0, setting, dataset=dataset), hits(share, int(share * 100))
            )
    found = report(tmp_path, LINE)
    beauty, sports = (found.data["verdicts"][name]["optimum"] for name in shares)
    assert (beauty["best"], beauty["verdict"]) == ("3", "reproduced")
    assert (sports["best"], sports["verdict"]) == ("3", "not reproduced")
    assert sports["interval"][0] > 0
    assert found.headline == ("best expansion factor: 3 (paper 2, reproduced) on beauty, "
                              "3 (paper 2, not reproduced) on sports")  # fmt: skip
    assert optimum({"a": {"NDCG@10": np.ones(3)}}, None) == {"best": "a"}

    (tmp_path / run("recblr", 0, "model.expansion=3").file).unlink()
    found = report(tmp_path, LINE)
    assert found.data["verdicts"]["beauty"]["optimum"] == {}  # a value is missing
    assert found.sentences[0] == "beauty: no comparison."


# ---- what is missing, and records ----------------------------------------------------------------


def test_what_is_missing_has_a_reason(tmp_path: Path) -> None:
    keep(tmp_path, run(), hits(0.6))
    found = report(tmp_path)
    assert line(found, "GRU4Rec")["verdict"] == "not measured: not run"
    assert ["GRU4Rec", "NDCG@10", "", "", "0.4000", "", "not measured: not run"] in [
        it[1:8] for it in cells(found.table)
    ]
    assert found.sentences[0].endswith("2 published figures not measured; 1 published figures reproduced.")  # fmt: skip
    assert "ahead" not in line(found, "RecBLR")


def test_nothing_at_all(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert (found.picture, found.headline, found.details) == (None, "", "")
    assert cells(found.table)[2:] == [["beauty", "all", "not measured: not run"]]
    assert found.sentences == ["beauty: 3 published figures not measured."]
    unpublished = report(tmp_path, replace(STUDY, published={}))
    assert unpublished.sentences == ["beauty: not measured."]


def test_a_seed_that_failed_is_named(tmp_path: Path) -> None:
    keep(tmp_path, run(), hits(0.6))
    missing = dict.fromkeys((("beauty", "SASRec"), ("beauty", "GRU4Rec")), "not run")
    missing["beauty", "RecBLR"] = "beauty RecBLR seed 1: training diverged"
    (sentence,) = STUDY.report(tmp_path, (0, 1), missing).sentences
    assert sentence.endswith("; without beauty RecBLR seed 1: training diverged.")


def test_runs_on_different_data_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, run(), hits(0.6))
    keep(tmp_path, run("sasrec"), hits(0.6), data="other")
    message = r"runs on different data, other \(SASRec\), d1f6 \(RecBLR\)"
    with pytest.raises(InputError, match=message):
        report(tmp_path)


def test_baselines_are_those_of_all_runs_and_of_their_own_record(tmp_path: Path) -> None:
    def test(data: str, **baselines: Any) -> Any:
        return [{"protocol": {"data": data}, "baselines": baselines}] * 2

    keep(tmp_path, run("sasrec"), hits(0.6))
    keep(tmp_path, run(), hits(0.6), test=test("d1f6", chain=BASELINE))
    record = json.loads((tmp_path / run().file).read_text())

    def keep_baselines(data: str) -> None:
        own = record | {"test": test(data, transitions=BASELINE), "commit": "def"}
        (tmp_path / "beauty" / "floors.json").write_text(json.dumps(own))

    keep_baselines("d1f6")
    found = report(tmp_path)
    for name in ("popularity", "chain", "transitions"):
        assert line(found, name, "HR@20") == {
            "dataset": "beauty", "row": name, "metric": "HR@20", "mean": 0.02, "masked_mean": 0.02,
        }  # fmt: skip
    assert {record["commit"] for record in found.records} == {"abc", "def"}
    keep_baselines("other")
    with pytest.raises(InputError, match=r"other \(transitions\)"):
        report(tmp_path)


@pytest.mark.parametrize("memory", [{}, {"memory": {"enabled": False, "reach": 3, "gone": 1}}])
def test_a_record_without_the_memory_stays_one_of_its_row(
    tmp_path: Path, memory: dict[str, Any]
) -> None:
    plain, with_it = run(), run("recblr", 0, "memory.enabled=true")
    settings = {name: plain.recommender("cpu").settings[name] for name in ("model", "train")}
    for it in (plain, with_it):
        keep(tmp_path, it, hits(0.5), settings={**settings, **memory})
    assert plain.find(tmp_path) is not None
    assert with_it.find(tmp_path) is None


@pytest.mark.parametrize(
    ("section", "changes", "found"),
    [
        ("train", {"weight_average": 0.99, "select": "unmasked", "hide_seen": False}, True),
        ("train", {"lr": 0.123}, False), ("train", {"unheard_of": 1}, False),
        ("memory", {"reach": 3}, False),
    ],
)  # fmt: skip
def test_a_record_counts_if_its_settings_are_todays(
    tmp_path: Path, section: str, changes: Mapping[str, Any], found: bool
) -> None:
    it = run("recblr", 0, "memory.enabled=true")
    settings = it.recommender("cpu").settings
    for old, new in (("weight_average", "ema_decay"), ("select", "selection_protocol"),
                     ("hide_seen", "mask_seen_in_loss")):  # fmt: skip
        if old in changes:  # the name of version 0.1.0
            del settings["train"][new]
    settings[section] |= changes
    keep(tmp_path, it, hits(0.5), settings=settings)
    assert (it.find(tmp_path) is not None) == found


def test_settings_that_equal_the_recipes_do_not_count() -> None:
    assert run("recblr", 1, "model.expansion=2").file == "beauty/recblr,seed=1.json"
    assert run("recblr", 1, "model.layers=1", "model.expansion=2").file == (
        "beauty/recblr,model.layers=1,seed=1.json"
    )


def test_ranks_are_kept_up_to_the_last_cutoff() -> None:
    assert unpack_ranks(pack_ranks(np.array([1, 20, 21, 9999]))).tolist() == [1, 20, 21, 21]


@pytest.mark.parametrize("study", [STUDY, BOTH, LINE], ids=["dots", "with memory", "line"])
def test_the_page(tmp_path: Path, study: Accuracy) -> None:
    for seed, share in ((0, 0.6), (1, 0.62)):
        for model, *settings in list(study.rows.values())[1:]:
            keep(tmp_path, run(model, seed, *settings), hits(share))
    missing = {("beauty", "x"): "why"}
    page = write(
        "study", "recblr reproduce study", study, report(tmp_path, study), missing, tmp_path
    )
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "study.json").read_text())
    assert kept == json.loads(json.dumps(page.content))
    assert kept["not_measured"] == [{"dataset": "beauty", "row": "x", "why": "why"}]
    assert kept["measured"] == "2026-11-21, AMD, torch 2.13.0; commit abc."
    text = (tmp_path / "study.md").read_text()
    parts = [f"# {study.title}\n\n| data set", "(study.png)", "\n- beauty", "## How it was made",
             "Command: `recblr reproduce study`. 2026-11-21, AMD", "## All metrics"]  # fmt: skip
    assert sorted(parts, key=text.index) == parts
    assert page.text.startswith(f"{study.title}\n\n| data set")


# ---- the published figures, against sums and shares that were taken from the paper on their own ----


def column(study: Accuracy, row: str) -> float:
    return round(sum(value for it in study.published.values() for value in it[row].values()), 4)


def test_published_figures_sum_up() -> None:
    sums = {
        "table1": (2.0140, 2.4170, 2.7084, 2.7464, 2.9930, 2.8884, 2.8027, 3.0191, 3.2202),
        "table3": (2.6203, 2.5401, 2.4637, 2.5869, 2.5188, 2.5664),
    }
    for name, of_rows in sums.items():
        rows = [row for row in STUDIES[name].rows if not row.endswith(MEMORY)]
        assert tuple(column(STUDIES[name], row) for row in rows) == of_rows
    for dataset, rows in STUDIES["table3"].published.items():
        assert rows["Default"].items() <= STUDIES["table1"].published[dataset]["RecBLR"].items()
    xlong = STUDIES["table4"].published["xlong"]
    assert [xlong[row]["NDCG@20"] for row in xlong] == [0.1538, 0.2573, 0.2678]
    assert column(STUDIES["table4"], "SASRec") == 0.7057


@pytest.mark.parametrize(
    ("dataset", "metric", "percent"),  # the column "Improv."
    [
        ("ml-1m-recbole", "HR@10", 7.46), ("ml-1m-recbole", "MRR@20", 6.62),
        ("gowalla", "NDCG@10", 4.70), ("gowalla", "HR@20", 2.91), ("steam", "NDCG@20", 5.37),
        ("steam", "MRR@10", 6.46), ("beauty", "NDCG@10", 9.05), ("beauty", "HR@20", 6.88),
        ("sports", "MRR@10", 1.26), ("sports", "HR@10", 4.82),
    ],
)  # fmt: skip
def test_table_1_improves_as_it_says(dataset: str, metric: str, percent: float) -> None:
    *baselines, ours = (row[metric] for row in STUDIES["table1"].published[dataset].values())
    assert 100 * (ours / max(baselines) - 1) == pytest.approx(percent, abs=0.006)


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("table1", {("gowalla", "Caser"), ("beauty", "Caser"), ("beauty", "BERT4Rec")}),
        ("table3", set()), ("table4", set()),
    ],
)  # fmt: skip
def test_ranks_11_to_20_add_what_they_can(name: str, odd: set[tuple[str, str]]) -> None:
    """A hit at rank r adds 1 / log2(1 + r) to NDCG and 1 / r to MRR; figures are rounded to 0.0001.
    Three rows of the paper are impossible as printed."""
    bounds = {"NDCG": (1 / math.log2(21), 1 / math.log2(12)), "MRR": (1 / 20, 1 / 11)}
    found = set()
    for dataset, rows in STUDIES[name].published.items():
        for row, of_row in rows.items():
            hits = of_row["HR@20"] - of_row.get("HR@10", math.nan)
            for metric, (least, most) in bounds.items():
                gain = of_row.get(f"{metric}@20", math.nan) - of_row.get(f"{metric}@10", math.nan)
                if gain < least * (hits - 1e-4) - 1e-4 or gain > most * (hits + 1e-4) + 1e-4:
                    found.add((dataset, row))
    assert found == odd


@pytest.mark.parametrize("name", ["table1", "table3", "table4"])
def test_a_table_has_the_papers_rows_and_data_sets(name: str) -> None:
    study = STUDIES[name]
    rows = {row for row in study.rows if not row.endswith(MEMORY)}
    assert study.reference in rows
    assert study.published.keys() <= study.datasets.keys()
    assert all(of_dataset.keys() == rows for of_dataset in study.published.values())


def test_figures_of_ml_1m_stand_beside_the_order_they_were_measured_in() -> None:
    for name in ("table1", "table3", "table4", "figure5", "figure6"):
        assert "ml-1m" not in {*STUDIES[name].published, *STUDIES[name].optimum}
        orders = {dataset for dataset in STUDIES[name].datasets if dataset.startswith("ml-1m")}
        assert orders
        assert all("order" in STUDIES[name].remarks[dataset] for dataset in orders)


def test_only_rows_named_so_have_the_memory() -> None:
    for study in (it for it in STUDIES.values() if isinstance(it, Accuracy)):
        for row, (model, *settings) in study.rows.items():
            config = run(model, 0, *settings).recommender("cpu").memory_config
            assert config.enabled == row.endswith(MEMORY)
