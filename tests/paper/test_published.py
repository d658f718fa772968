"""The paper's figures, against sums and shares that were taken from its text on their own."""

import math

import pytest

from recblr.paper.accuracy import Accuracy
from recblr.paper.published import (
    LONG_MODELS,
    MODELS,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    VARIANTS,
    Published,
)
from recblr.paper.runs import Run
from recblr.paper.studies import STUDIES
from recblr.paper.verdict import WITH_MEMORY


def column(table: Published, row: str) -> float:
    return round(sum(value for rows in table.values() for value in rows[row].values()), 4)


def test_table_1_sums_up() -> None:
    sums = (2.0140, 2.4170, 2.7084, 2.7464, 2.9930, 2.8884, 2.8027, 3.0191, 3.2202)
    assert tuple(column(TABLE_1, row) for row in MODELS) == sums


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
    *baselines, ours = (TABLE_1[dataset][row][metric] for row in MODELS)
    assert 100 * (ours / max(baselines) - 1) == pytest.approx(percent, abs=0.006)


@pytest.mark.parametrize(
    ("table", "odd"),
    [
        (TABLE_1, {("gowalla", "Caser"), ("beauty", "Caser"), ("beauty", "BERT4Rec")}),
        (TABLE_3, set()),
        (TABLE_4, set()),
    ],
    ids=("table 1", "table 3", "table 4"),
)
def test_who_is_found_from_11_to_20_adds_what_that_can_add(
    table: Published, odd: set[tuple[str, str]]
) -> None:
    """A hit at rank r adds 1 / log2(1 + r) to NDCG and 1 / r to MRR; figures are rounded to 0.0001.
    Three rows of the paper cannot be, as printed."""
    bounds = {"NDCG": (1 / math.log2(21), 1 / math.log2(12)), "MRR": (1 / 20, 1 / 11)}
    found = set()
    for dataset, rows in table.items():
        for row, of_row in rows.items():
            hits = of_row["HR@20"] - of_row.get("HR@10", math.nan)
            for name, (least, most) in bounds.items():
                gain = of_row.get(f"{name}@20", math.nan) - of_row.get(f"{name}@10", math.nan)
                if gain < least * (hits - 1e-4) - 1e-4 or gain > most * (hits + 1e-4) + 1e-4:
                    found.add((dataset, row))
    assert found == odd


def test_table_2_has_one_cell_that_cannot_be() -> None:
    right = {
        name
        for name, (users, _, interactions, length) in TABLE_2.items()
        if abs(interactions / users - length) <= 0.051
    }
    assert TABLE_2.keys() - right == {"xlong"}


def test_table_3_sums_up_and_begins_with_table_1() -> None:
    sums = (2.6203, 2.5401, 2.4637, 2.5869, 2.5188, 2.5664)
    assert tuple(column(TABLE_3, row) for row in VARIANTS) == sums
    for dataset, rows in TABLE_3.items():
        assert rows["Default"].items() <= TABLE_1[dataset]["RecBLR"].items()


def test_table_4() -> None:
    assert [TABLE_4["xlong"][row]["NDCG@20"] for row in LONG_MODELS] == [0.1538, 0.2573, 0.2678]
    assert column(TABLE_4, "SASRec") == 0.7057


@pytest.mark.parametrize("name", ["table1", "table3", "table4"])
def test_a_study_has_the_papers_rows_and_data_sets(name: str) -> None:
    study = STUDIES[name]
    rows = {row.name for row in study.rows if not row.name.endswith(WITH_MEMORY)}
    assert study.reference in rows
    assert study.published.keys() <= study.datasets.keys()
    assert all(of_data.keys() == rows for of_data in study.published.values())


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "figure5", "figure6"])
def test_figures_of_ml_1m_stand_beside_those_in_the_order_they_are_of(name: str) -> None:
    study = STUDIES[name]
    assert isinstance(study, Accuracy)
    assert "ml-1m" not in {*study.published, *study.optimum}
    orders = {dataset for dataset in study.datasets if dataset.startswith("ml-1m")}
    assert orders
    assert all("order" in study.remarks[dataset] for dataset in orders)


def test_a_row_with_the_memory_is_named_so_and_no_other_has_one() -> None:
    for study in STUDIES.values():
        if isinstance(study, Accuracy):
            for row in study.rows:
                memory = Run("beauty", row.model, row.settings).resolved("cpu").memory_config
                assert memory.enabled == row.name.endswith(WITH_MEMORY)
