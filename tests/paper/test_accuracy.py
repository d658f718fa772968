"""Studies of accuracy on hand-made runs: verdicts, stars, leads, and what is missing."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paper.records import (
    BASELINE,
    BOTH,
    LINE,
    ON,
    ROWS,
    STUDY,
    cells,
    hits,
    keep,
    line,
    report,
    run,
)
from recblr.errors import InputError
from recblr.paper.accuracy import MEMORY, Accuracy, optimum, per_user, summary
from recblr.paper.logs import open_dataset
from recblr.paper.measurements import pack_ranks, unpack_ranks
from recblr.paper.report import write
from recblr.paper.studies import STUDIES
from recblr.recommender import Recommender
from recblr.sizing import by_size


def test_figures_and_verdicts(tmp_path: Path) -> None:
    for seed in range(3):
        keep(tmp_path, run("sasrec", seed), hits(0.5 + 0.02 * seed))
    keep(tmp_path, run("gru4rec"), hits(0.7))
    keep(tmp_path, run(), hits(0.3))
    result = report(tmp_path)
    sasrec = line(result, "SASRec")
    assert sasrec["mean"] == pytest.approx(0.52)
    assert sasrec["deviation"] == pytest.approx(0.02)
    assert sasrec["percent"] == pytest.approx(4)
    verdicts = {row: line(result, row)["verdict"] for row in ROWS}
    assert verdicts == {"SASRec": "reproduced", "GRU4Rec": "better", "RecBLR": "worse"}
    assert line(result, "RecBLR")["masked_mean"] == pytest.approx(0.3)
    assert "verdict" not in line(result, "SASRec", "HR@10")
    assert result.headline == "NDCG@10 of RecBLR: 0.3000 (paper 0.6000, worse) on beauty"
    (sentence,) = result.sentences
    assert sentence.startswith("beauty: NDCG@10 of RecBLR 0.3000 (paper 0.6000, worse); RecBLR ")
    assert sentence.endswith("; published figures: 1 better, 1 reproduced, 1 worse.")
    head, _, *lines = cells(result.table)
    assert " | ".join(head).startswith("row | ours | ± | 95% interval | published")
    interval = "{:.4f} to {:.4f}".format(*sasrec["interval"])
    assert lines[0][:7] == ["SASRec", "0.5200", "0.0200", interval, "0.5000", "+4.0",
                             "reproduced"]  # fmt: skip
    assert [cells[0] for cells in lines] == [*ROWS, "popularity"]
    assert lines[-1][1:5] == ["0.1000", "", "", ""]
    runs, every = (cells(part) for part in result.details.split("## All metrics"))
    assert runs[2][:10] == ["beauty", "SASRec", "0", "all-positions", "12,345", "20", "17", "epochs",
                            "60.0", "AMD"]  # fmt: skip
    assert len(runs) - 2 == len(result.records) == 5
    assert len(every) == 2 + 6 * 4


def test_a_verdict_is_by_the_interval(tmp_path: Path) -> None:
    ranks = np.random.default_rng(0).integers(1, 40, 301).clip(max=21)
    keep(tmp_path, run(), ranks)
    _, _, (low, high) = summary(ranks[None])["NDCG@10"].values()

    def verdict(published: float) -> str:
        study = replace(STUDY, published={"beauty": {"RecBLR": {"NDCG@10": published}}})
        return str(line(report(tmp_path, study), "RecBLR")["verdict"])

    assert [verdict(published) for published in (low, high)] == ["reproduced"] * 2
    assert [verdict(low - 1e-9), verdict(high + 1e-9)] == ["better", "worse"]


def test_values_are_means_over_the_seeds() -> None:
    ranks = np.array([[1, 21, 3], [2, 21, 21]])
    values = per_user(ranks)
    np.testing.assert_allclose(values["HR@10"], [1, 0, 0.5])
    np.testing.assert_allclose(values["MRR@20"], [0.75, 0, 1 / 6])
    np.testing.assert_allclose(values["NDCG@10"], [(1 + 1 / np.log2(3)) / 2, 0, 0.25])
    assert summary(ranks)["HR@10"]["deviation"] == pytest.approx(np.std([2 / 3, 1 / 3], ddof=1))
    assert summary(ranks[:1])["HR@10"]["deviation"] is None


def test_intervals_are_those_of_drawing_users() -> None:
    ranks = np.random.default_rng(0).integers(1, 40, (3, 301)).clip(max=21)
    chosen = np.random.default_rng(7).integers(301, size=(4000, 301))
    for name, values in per_user(ranks).items():
        ends = np.percentile(values[chosen].mean(1), [2.5, 97.5])
        error = values.std() / 301**0.5
        assert summary(ranks)[name]["interval"] == pytest.approx(ends, abs=0.3 * error)
    same = summary(np.repeat(ranks[:1], 3, 0))["HR@10"]  # seeds that agree count as one
    assert same["interval"] == pytest.approx(summary(ranks[:1])["HR@10"]["interval"])


# ---- comparisons ---------------------------------------------------------------------------------


def test_a_star_is_earned_by_more_than_chance(tmp_path: Path) -> None:
    def star(ours: np.ndarray, theirs: np.ndarray, others: int = 2) -> Any:
        keep(tmp_path, run(), ours)
        keep(tmp_path, run("sasrec"), theirs)
        if others == 2:
            keep(tmp_path, run("gru4rec"), hits(0.1))
        return line(report(tmp_path), "RecBLR")

    result = star(hits(0.6), hits(0.4), others=1)  # a row is missing
    assert (result["best_other"], result["p"] < 0.001, result["star"]) == ("SASRec", True, "")
    result = star(hits(0.6), hits(0.4))
    assert (result["best_other"], result["star"]) == ("SASRec", "*")
    assert result["ahead"] == pytest.approx(0.2)
    # The six metrics are one family: the smallest p of 10,000 flips, six times.
    assert result["p"] == pytest.approx(6 / 10_001)
    assert not star(hits(0.4), hits(0.6))["star"]  # as sure, but behind
    assert not star(hits(0.5), hits(0.49, seed=1))["star"]
    assert star(hits(0.5), hits(0.5))["p"] == 1


def test_the_reference_is_compared_with_every_row(tmp_path: Path) -> None:
    keep(tmp_path, run("sasrec"), hits(0.4))
    keep(tmp_path, run("gru4rec"), hits(0.61))
    keep(tmp_path, run(), hits(0.6))
    result = report(tmp_path)
    sasrec = line(result, "SASRec")
    assert sasrec["ahead"] == pytest.approx(0.2)
    assert sasrec["p"] == pytest.approx(2 / 10_001)
    low, high = sasrec["ahead_interval"]
    assert 0.15 < low < 0.2 < high < 0.25
    assert line(result, "GRU4Rec")["ahead"] == pytest.approx(-0.01)
    # Four users differ: of 16 flips 2 are as extreme, and it is the larger p of two.
    assert "; RecBLR 1.6% behind GRU4Rec (p = 0.12);" in result.sentences[0]


def test_rows_are_compared_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    for seed, share in enumerate((0.3, 0.6)):
        keep(tmp_path, run("recblr", seed), hits(share))
    keep(tmp_path, run("sasrec", 1), hits(0.5))
    result = report(tmp_path)
    assert line(result, "RecBLR")["mean"] == pytest.approx(0.45)
    assert line(result, "SASRec")["ahead"] == pytest.approx(0.1)
    keep(tmp_path, run("gru4rec", 2), hits(0.5))
    assert "ahead" not in line(report(tmp_path), "SASRec")


def test_rows_with_the_memory_are_compared_among_themselves(tmp_path: Path) -> None:
    for seed in (0, 1):
        for model, share in (("sasrec", 0.4), ("gru4rec", 0.3), ("recblr", 0.5)):
            keep(tmp_path, run(model, seed), hits(share))
    alone = report(tmp_path)
    for model, share in (("recblr", 0.9), ("sasrec", 0.8)):  # one seed, and far better than all
        keep(tmp_path, run(model, 0, ON), hits(share), memory={"weight": 1.5, "repeat": -20.0})
    result = report(tmp_path, BOTH)
    assert [line(result, row) for row in ROWS] == [line(alone, row) for row in ROWS]
    assert line(result, "RecBLR")["star"] == "*"
    assert line(result, f"SASRec{MEMORY}")["ahead"] == pytest.approx(0.1)
    assert "RecBLR 25.0% ahead of SASRec (p = 0.0" in result.sentences[0]
    assert f"RecBLR{MEMORY} 12.5% ahead of SASRec{MEMORY} (p = 0.0" in result.sentences[0]
    assert "weight 1.5, repeat -20" in result.details
    assert "; with memory 0.9000)" in result.headline


def test_the_optimum_within_the_interval(tmp_path: Path) -> None:
    shares = {"beauty": (0.4, 0.5, 0.51), "sports": (0.4, 0.5, 0.7)}
    for dataset in shares:
        for (_, setting), share in zip(LINE.rows.values(), shares[dataset], strict=True):
            point = run("recblr", 0, setting, dataset=dataset)
            keep(tmp_path, point, hits(share, int(share * 100)))
    result = report(tmp_path, LINE)
    beauty, sports = (result.data["verdicts"][name]["optimum"] for name in shares)
    assert (beauty["best"], beauty["verdict"]) == ("3", "reproduced")
    assert (sports["best"], sports["verdict"]) == ("3", "not reproduced")
    assert sports["interval"][0] > 0
    assert result.headline == ("best expansion factor: 3 (paper 2, reproduced) on beauty, "
                              "3 (paper 2, not reproduced) on sports")  # fmt: skip
    assert optimum({"a": {"NDCG@10": np.ones(3)}}, None) == {"best": "a"}

    (tmp_path / run("recblr", 0, "model.expansion=3").file).unlink()
    result = report(tmp_path, LINE)
    assert result.data["verdicts"]["beauty"]["optimum"] == {}  # a value is missing
    assert result.sentences[0] == "beauty: no comparison."


# ---- what is missing, and records ----------------------------------------------------------------


def test_what_is_missing_has_a_reason(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert (result.picture, result.headline, result.details) == (None, "", "")
    assert cells(result.table)[2:] == [["all", "not measured: not run"]]
    assert result.sentences == ["beauty: published figures: 3 not measured."]
    unpublished = report(tmp_path, replace(STUDY, published={}))
    assert unpublished.sentences == ["beauty: not measured."]

    keep(tmp_path, run(), hits(0.6))
    result = report(tmp_path)
    expected = ["GRU4Rec", "", "", "0.4000", "", "not measured: not run"]
    assert expected in [line[:6] for line in cells(result.table)]
    assert "ahead" not in line(result, "RecBLR")
    missing = dict.fromkeys((("beauty", row) for row in ROWS), "seed 1: training diverged")
    (sentence,) = STUDY.report(tmp_path, (0, 1), missing).sentences
    assert sentence.endswith("; without seed 1: training diverged.")


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
    result = report(tmp_path)
    for name in ("popularity", "chain", "transitions"):
        figures = {"mean": 0.2, "masked_mean": 0.2}
        assert line(result, name, "HR@20").items() >= figures.items()
    assert {record["commit"] for record in result.records} == {"abc", "def"}
    keep_baselines("other")
    with pytest.raises(InputError, match=r"other \(transitions\)"):
        report(tmp_path)


@pytest.mark.parametrize("memory", [{}, {"memory": {"enabled": False, "reach": 3, "gone": 1}}])
def test_a_record_without_the_memory_stays_one_of_its_row(
    tmp_path: Path, memory: dict[str, Any]
) -> None:
    plain, with_memory = run(), run("recblr", 0, ON)
    settings = {name: plain.recommender("cpu").settings[name] for name in ("model", "train")}
    for either in (plain, with_memory):
        keep(tmp_path, either, hits(0.5), settings={**settings, **memory})
    assert plain.find(tmp_path) is not None
    assert with_memory.find(tmp_path) is None


@pytest.mark.parametrize(
    ("section", "changes", "counts"),
    [
        ("train", {"weight_average": 0.99, "select": "unmasked", "hide_seen": False}, True),
        ("train", {"lr": 0.123}, False), ("train", {"unheard_of": 1}, False),
        ("memory", {"reach": 3}, False),
    ],
)  # fmt: skip
def test_a_record_counts_if_its_settings_are_todays(
    tmp_path: Path, section: str, changes: Mapping[str, Any], counts: bool
) -> None:
    with_memory = run("recblr", 0, ON)
    settings = with_memory.recommender("cpu").settings
    if counts:  # by the names of version 0.1.0
        for name in ("ema_decay", "selection_protocol", "mask_seen_in_loss"):
            del settings["train"][name]
    settings[section] |= changes
    keep(tmp_path, with_memory, hits(0.5), settings=settings)
    assert (with_memory.find(tmp_path) is not None) == counts


def test_records_in_files() -> None:
    assert run("recblr", 1, "model.expansion=2").file == "beauty/recblr,seed=1.json"
    both = run("recblr", 1, "model.layers=1", "model.expansion=2")  # 2 is the recipe's
    assert both.file == "beauty/recblr,model.layers=1,seed=1.json"
    assert unpack_ranks(pack_ranks(np.array([1, 20, 21, 9999]))).tolist() == [1, 20, 21, 21]


@pytest.mark.parametrize("study", [STUDY, BOTH, LINE], ids=["table", "with memory", "line"])
def test_the_page(tmp_path: Path, study: Accuracy) -> None:
    for seed, share in ((0, 0.6), (1, 0.62)):
        for model, *settings in list(study.rows.values())[1:]:
            keep(tmp_path, run(model, seed, *settings), hits(share))
    missing, result = {("beauty", "x"): "why"}, report(tmp_path, study)
    page = write("study", "recblr reproduce study", study, result, missing, tmp_path)
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "study.json").read_text())
    assert kept == json.loads(json.dumps(page.content))
    assert kept["not_measured"] == [{"dataset": "beauty", "row": "x", "why": "why"}]
    assert kept["measured"] == "2026-11-21, AMD, torch 2.13.0; commit abc."
    text = (tmp_path / "study.md").read_text()
    parts = [f"# {study.title}\n\n## beauty: NDCG@10\n\n| row", "(study.png)", "\n- beauty",
             "## How it was made", "Command: `recblr reproduce study`. 2026-11-21, AMD",
             "## All metrics"]  # fmt: skip
    assert sorted(parts, key=text.index) == parts
    assert page.text.startswith(f"{study.title}\n\n## beauty: NDCG@10\n")


# ---- the published figures, against sums and shares that were taken from the paper on their own ----

TABLE_1, TABLE_3, TABLE_4 = (STUDIES[name].published for name in ("table1", "table3", "table4"))


def column(published: Any, row: str) -> float:
    return round(sum(value for rows in published.values() for value in rows[row].values()), 4)


def test_published_figures_sum_up() -> None:
    assert [column(TABLE_1, row) for row in TABLE_1["beauty"]] == [
        2.0140, 2.4170, 2.7084, 2.7464, 2.9930, 2.8884, 2.8027, 3.0191, 3.2202,
    ]  # fmt: skip
    assert [column(TABLE_3, row) for row in TABLE_3["beauty"]] == [
        2.6203, 2.5401, 2.4637, 2.5869, 2.5188, 2.5664,
    ]  # fmt: skip
    for dataset, rows in TABLE_3.items():
        assert rows["Default"].items() <= TABLE_1[dataset]["RecBLR"].items()
    assert [row["NDCG@20"] for row in TABLE_4["xlong"].values()] == [0.1538, 0.2573, 0.2678]
    assert column(TABLE_4, "SASRec") == 0.7057


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
    *baselines, ours = (row[metric] for row in TABLE_1[dataset].values())
    assert 100 * (ours / max(baselines) - 1) == pytest.approx(percent, abs=0.006)


def test_ranks_11_to_20_add_what_they_can() -> None:
    """A hit at rank r adds 1 / log2(1 + r) to NDCG and 1 / r to MRR; figures are rounded to 0.0001.
    Three rows of the paper are impossible as printed."""
    bounds = {"NDCG": (1 / math.log2(21), 1 / math.log2(12)), "MRR": (1 / 20, 1 / 11)}
    odd = set()
    for number, table in ((1, TABLE_1), (3, TABLE_3), (4, TABLE_4)):
        cells = ((*key, row) for key in table.items() for row in key[1])
        for dataset, rows, row in cells:
            figures = rows[row]
            hits = figures["HR@20"] - figures["HR@10"]
            for metric, (least, most) in bounds.items():
                gain = figures.get(f"{metric}@20", math.nan) - figures.get(f"{metric}@10", math.nan)
                if gain < least * (hits - 1e-4) - 1e-4 or gain > most * (hits + 1e-4) + 1e-4:
                    odd.add((number, dataset, row))
    assert odd == {(1, "gowalla", "Caser"), (1, "beauty", "Caser"), (1, "beauty", "BERT4Rec")}


def test_studies_have_the_papers_rows_and_orders() -> None:
    for name, study in STUDIES.items():
        if not isinstance(study, Accuracy):
            continue
        rows = {row for row in study.rows if not row.endswith(MEMORY)}
        assert study.reference in rows or study.axis
        assert study.published.keys() | study.optimum.keys() <= study.datasets.keys()
        assert all(dataset.keys() == rows for dataset in study.published.values())
        for row, (model, *settings) in study.rows.items():
            config = run(model, 0, *settings).recommender("cpu").memory_config
            assert config.enabled == row.endswith(MEMORY)
        if name.startswith(("table", "figure")):  # the paper's ML-1M is in the order of RecBole
            assert "ml-1m" not in {*study.published, *study.optimum}
            orders = [dataset for dataset in study.datasets if dataset.startswith("ml-1m")]
            assert orders
            assert all("order" in study.remarks[dataset] for dataset in orders)


@pytest.mark.skipif(
    "RECBLR_DATA" not in os.environ, reason="RECBLR_DATA is unset: no real data here"
)
@pytest.mark.parametrize("dataset", STUDIES["defaults"].datasets)
def test_the_settings_of_the_defaults_are_those_of_train(dataset: str) -> None:
    for one in STUDIES["defaults"].measurements([0], "cpu"):
        if one.dataset == dataset and one.has_memory:
            by_train = by_size(open_dataset(dataset), one.model, {})
            expected = Recommender.configured(one.model, by_train, "cpu")
            assert one.recommender("cpu").settings == expected.settings
