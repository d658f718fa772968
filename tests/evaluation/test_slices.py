"""Slices by a column of users or items, against plain loops."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from evaluation.scorers import random_data, scorer_of
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.evaluate import Evaluation, evaluate

COUNTRIES = ["NO", "SE", None, "NO", "", "DK", "NO"]


def measure(*columns: Any) -> list[Evaluation]:
    return evaluate(scorer_of(12), random_data(), 5, slice_by=columns)


def users_table(rows: int = 40) -> pl.DataFrame:
    countries = [COUNTRIES[number % 7] for number in range(rows)]
    return pl.DataFrame({"user_id": [f"u{n}" for n in range(rows)], "country": countries})


def items_table() -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(11, 2, -1)], "size": [2, 1, 1] * 3})


def given(evaluation: Evaluation, column: str) -> dict[str, dict[str, float]]:
    return {name: row for name, row in evaluation.slices.items() if name.startswith(column)}


def expect(evaluation: Evaluation, column: str, value_of: dict[int, str]) -> None:
    """``value_of``: the value of each of ``evaluation.users``, without those that have none."""
    truth = {}
    for value in {*value_of.values(), "(not given)"}:
        inside = [value_of.get(user, "(not given)") == value for user in evaluation.users.tolist()]
        if any(inside):
            ranks = evaluation.ranks[inside]
            truth[f"{column} {value}"] = {"users": sum(inside)} | metrics.means(ranks)
    assert given(evaluation, column) == truth


def test_slices_by_users_and_by_items_equal_plain_loops() -> None:
    data = random_data()
    sizes = dict(items_table().iter_rows())
    for evaluation in measure((users_table(), "country"), (items_table(), "size")):
        country = {user: name for user in range(40) if (name := COUNTRIES[user % 7])}
        expect(evaluation, "country", country)
        assert next(iter(given(evaluation, "country"))) == "country NO"  # the most frequent
        assert list(given(evaluation, "country"))[-1] == "country (not given)"
        targets = {
            user: f"i{data.items[data.split.test[user]]}" for user in evaluation.users.tolist()
        }
        expect(evaluation, "size", {u: str(sizes[i]) for u, i in targets.items() if i in sizes})


def test_a_file_gives_the_same_slices_as_a_frame(tmp_path: Path) -> None:
    table = users_table(60)  # 20 of them are not in the log
    table.write_csv(tmp_path / "users.csv")
    table.write_parquet(tmp_path / "users.parquet")
    truth = measure((users_table(), "country"))
    frames = (table, table.lazy(), table.to_arrow(), table.to_pandas())
    for source in (tmp_path / "users.csv", str(tmp_path / "users.parquet"), *frames):
        for evaluation, other in zip(truth, measure((source, "country")), strict=True):
            assert other.slices == evaluation.slices


def test_an_unknown_target_has_no_value() -> None:
    known = pa.array([f"i{number}" for number in range(5)])
    data = random_data().with_items(known, "test")
    table = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)], "shelf": ["a"] * 12})
    unmasked, _ = evaluate(scorer_of(5), data, 5, slice_by=[(table, "shelf")])
    rows = given(unmasked, "shelf")
    unknown = data.items[data.split.test[unmasked.users]] >= 5
    assert rows["shelf (not given)"]["users"] == unknown.sum() > 0
    assert rows["shelf (not given)"]["HR@20"] == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["users.csv"], r"slice_by: give pairs of a table and the name of its column, such as"),
        ([(users_table(), "land")], r"needs the column 'land' .* there are user_id, country"),
        ([(users_table().drop("user_id"), "country")], r"either user_id or item_id; there are country"),
        ([(pl.concat([users_table()] * 2), "country")], r"the user_id u0 has several rows"),
        ([(users_table().clear(), "country")], r"has columns but no rows"),
        ([("nowhere.csv", "country")], r"nowhere\.csv: no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_named(columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(*columns)


def test_a_column_of_many_values_is_refused() -> None:
    data = random_data(150)
    table = users_table(150).with_columns(town=pl.col("user_id"))
    with pytest.raises(InputError, match="the column town has 150 values; slices need at most 100"):
        evaluate(scorer_of(12), data, 5, slice_by=[(table, "town")])
