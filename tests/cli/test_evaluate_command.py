"""What evaluate measures if asked: other cutoffs, further baselines and the lists of items."""

import polars as pl
import pytest

from cli.fixtures import Run, answer
from conftest import Tiny


def test_cutoffs_baselines_and_lists_are_chosen(run: Run, tiny: Tiny) -> None:
    options = ["-k", "5,3", "--baselines", "itemknn,ease", "--lists"]
    evaluations = answer(run("evaluate", tiny.artifact, *options, "--json"))
    plain = run("evaluate", tiny.artifact, *options)
    assert plain.code == 0
    for evaluation in evaluations:
        names = ["HR@5", "NDCG@5", "MRR@5", "HR@3", "NDCG@3", "MRR@3"]
        assert list(evaluation["metrics"]) == names
        baselines = ["popularity", "markov chain", "transitions", "itemknn", "ease"]
        assert list(evaluation["baselines"]) == baselines
        assert list(evaluation["lists"]) == ["model", *baselines]
        for kind in ("metrics", "lists"):
            rows = [evaluation["metrics"], *evaluation["baselines"].values()]
            rows = list(evaluation["lists"].values()) if kind == "lists" else rows
            for name in rows[0]:
                cells = [f"{row[name]:.4f}" for row in rows]
                line = next(
                    line for line in plain.out.splitlines()
                    if line.split()[:2] == [evaluation["protocol"]["seen"], name]
                )  # fmt: skip
                assert [cell for cell in line.split()[2:] if "-" not in cell] == cells
    slices = plain.out[plain.out.index("slice (masked)") :].splitlines()[0]
    assert slices.split() == ["slice", "(masked)", "users", "HR@5", "NDCG@5"]


def test_slices_by_a_column_of_users(run: Run, tiny: Tiny) -> None:
    users = tiny.frame.select("user_id").unique(maintain_order=True)
    users.with_row_index("n").with_columns(half=pl.col("n") % 2).write_csv("users.csv")
    out = run("evaluate", tiny.artifact, "--slice", "users.csv:half").out
    evaluation = answer(run("evaluate", tiny.artifact, "--slice", "users.csv:half", "--json"))[1]
    for name in ("half 0", "half 1"):
        row = evaluation["slices"][name]
        assert f"{name:30}  {row['users']}" in out
    halves = [evaluation["slices"][f"half {n}"]["users"] for n in (0, 1)]
    assert sum(halves) == evaluation["protocol"]["users"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "5,ten"], "--k 5,ten: write whole numbers, for example 5,10,50"),
        (["-k", "0"], "k must be one or more whole numbers from 1, found [0]"),
        (["--slice", "users.csv"], "--slice users.csv: write FILE:COLUMN, for example "
         "users.parquet:country"),
        (["--baselines", "ease,knn"], "unknown baseline 'knn'; did you mean itemknn?"),
    ],
)  # fmt: skip
def test_mistakes_are_named(run: Run, tiny: Tiny, options: list[str], message: str) -> None:
    result = run("evaluate", tiny.artifact, *options)
    assert (result.code, result.err.strip()) == (2, f"recblr: {message}")
