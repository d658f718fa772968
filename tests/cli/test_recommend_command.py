"""recblr recommend: who it recommends for, which items, and how it prints them."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from cli.fixtures import FAST, Run, answer
from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from recblr.recommender import Recommender


@pytest.mark.filterwarnings("always")
def test_unknown_items_are_named(run: Run, tiny: Tiny) -> None:
    a, b = tiny.recommender.data.item_ids.to_pylist()[:2]
    plain = run("recommend", tiny.artifact, "--history", f"{a},{b}")
    assert run("recommend", tiny.artifact, "--history", f'{a}, "{b}"') == plain
    partly = run("recommend", tiny.artifact, "--history", f'{a},"x,y",{b}')
    assert (partly.code, partly.out) == (0, plain.out)
    assert partly.err == (
        "recblr: --history: ignored 1 of 3 items, which the model does not know, such as 'x,y'\n"
    )


def test_recommend_for_a_file_of_users(run: Run, tiny: Tiny) -> None:
    users = tiny.frame["user_id"].unique(maintain_order=True).to_list()[:5]
    Path("users.txt").write_text("\n".join(users) + "\n")
    expected = tiny.recommender.recommend(users=users, k=3)
    for name, read in (("out.parquet", pl.read_parquet), ("out.csv", pl.read_csv)):
        result = run("recommend", tiny.artifact, "--users", "users.txt", "-k", 3, "-o", name)
        assert (result.code, result.out, result.err) == (
            0,
            f"recommendations for 5 users in {name}\n",
            "",
        )
        frame = read(name)
        assert frame.columns == ["user_id", "item_id", "score", "rank"]
        assert frame.drop("score").equals(expected.drop("score"))
        assert frame["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)
    many = [option for user in users for option in ("--user", user)]
    assert answer(run("recommend", tiny.artifact, *many, "-k", 3, "--json")) == expected.to_dicts()


def test_ids_are_printed_as_they_are(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Rich would read text in square brackets as markup."""
    frame = tiny.frame.with_columns(pl.format("[red]{}[/x]", "item_id").alias("item_id"))
    training = replace(TINY_TRAINING, epochs=1)
    Recommender("recblr", TINY_MODEL, training).fit(frame).save(tmp_path / "brackets")
    result = run("recommend", tmp_path / "brackets", "--history", frame["item_id"][0], "-k", 3)
    assert result.code == 0
    shown = [line.split(maxsplit=2)[2] for line in result.out.splitlines()[1:]]
    assert len(shown) == 3
    assert all(line.startswith("[red]") for line in shown)


def test_recommend_for_a_history_among_some_items(run: Run, tiny: Tiny) -> None:
    a, b, c, d, e = tiny.recommender.data.item_ids.to_pylist()[:5]
    arguments = ["recommend", tiny.artifact, "--history", f"{a},{b}", "--json"]
    rows = answer(run(*arguments, "--allow", f"{a},{c},{d},{e}", "--deny", d))
    assert {row["item_id"] for row in rows} == {c, e}
    assert {row["user_id"] for row in rows} == {0}
    rows = answer(run(*arguments, "--allow", f"{a},{c}", "--no-hide-seen"))
    assert {row["item_id"] for row in rows} == {a, c}


def test_ids_that_are_numbers(run: Run, tiny: Tiny) -> None:
    frame = tiny.frame.with_columns(pl.col("user_id", "item_id").rank("dense").cast(pl.Int64))
    frame.write_parquet("log.parquet")
    assert run("train", "log.parquet", "-o", "model", *FAST).code == 0
    rows = answer(run("recommend", "model", "--user", "12", "-k", 1, "--json"))
    assert rows[0]["user_id"] == 12
    assert isinstance(rows[0]["item_id"], int)
    result = run("recommend", "model", "--user", "ada")
    assert result.code == 2
    assert "whole numbers" in result.err
