"""recblr recommend: who it recommends for, which items, and how it prints them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from cli.fixtures import FAST, Run, answer
from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from helpers import untrained
from recblr.cli.tables import print_recommendations
from recblr.recommender import Recommender


@pytest.mark.filterwarnings("always")
def test_unknown_items_are_named(run: Run, tiny: Tiny) -> None:
    a, b = tiny.recommender.data.item_ids.to_pylist()[:2]
    plain = run("recommend", tiny.artifact, "--history", f"{a},{b}")
    assert run("recommend", tiny.artifact, "--history", f'{a}, "{b}"') == plain
    partly = run("recommend", tiny.artifact, "--history", f'{a},"x,y",{b}')
    assert (partly.code, partly.out) == (0, plain.out)
    assert partly.err == (
        "recblr: histories: item 'x,y' is not in the log of the model (its ids are text, "
        f"such as {a!r}); ignored\n"
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
    for text in ("ada", "012", "1_2", "+12", "12.0", " 12", "１２"):
        for option in ("--user", "--history", "--deny"):
            user = () if option != "--deny" else ("--user", "12")
            quoted = f'"{text}"' if option != "--user" else text
            result = run("recommend", "model", option, quoted, *user)
            assert result.code == 2
            assert (
                f"{text!r} is not in the log of the model (its ids are whole numbers" in result.err
            )
    result = run("recommend", "model", "--user", "012")
    assert "did you mean 12?" in result.err


@pytest.mark.filterwarnings("always")
def test_unknown_users_are_skipped_or_get_popular_items(run: Run, tiny: Tiny) -> None:
    first, second = tiny.frame["user_id"].unique(maintain_order=True).to_list()[:2]
    Path("users.txt").write_text(f"{first}\r\nnobody\r\n\r\n{second}")
    arguments = ["recommend", tiny.artifact, "--users", "users.txt", "-k", 1, "--json"]
    refused = run(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(
        r"recblr: user 'nobody' is not in .* \(command line: --unknown\)\n", refused.err
    )
    for unknown, users in (("skip", [first, second]), ("popular", [first, "nobody", second])):
        result = run(*arguments, "--unknown", unknown)
        assert [row["user_id"] for row in json.loads(result.out)] == users
        assert result.err.startswith("recblr: user 'nobody' is not in the log of the model (")
        assert result.err.count("\n") == 1
    items = tiny.recommender.data.item_ids.to_pylist()
    filters = ["--deny", f"{items[0]},x", "--unknown", "skip", "-k", 99]
    result = run("recommend", tiny.artifact, "--user", first, *filters, "--json", "--no-hide-seen")
    assert {row["item_id"] for row in json.loads(result.out)} == set(items[1:])
    assert result.err.startswith("recblr: deny: item 'x' is not in the log of the model (")


@pytest.mark.filterwarnings("always")
def test_an_empty_answer_says_why(run: Run, tiny: Tiny) -> None:
    Path("none.txt").write_text("\n\n")
    result = run("recommend", tiny.artifact, "--users", "none.txt", "--json")
    assert (result.code, json.loads(result.out)) == (0, [])
    assert result.err == "recblr: none.txt has no user ids, so that nothing is recommended\n"
    item = tiny.recommender.data.item_ids[0].as_py()
    result = run("recommend", tiny.artifact, "--history", item, "--allow", item)
    assert result.code == 0
    assert result.err.startswith("recblr: 1 of 1 users or histories get no item, such as 0: allow")
    assert result.err.count("\n") == 1


def test_long_ids_are_not_cut(run: Run, tiny: Tiny) -> None:
    """On a terminal of 80 columns, and into a pipe."""
    uuid = pl.lit("5ed79652-949e-5b73-b65c-43e147b2bd1a" * 2)
    names = ("user_id", "item_id")
    frame = tiny.frame.with_columns(pl.format("{}-{}", uuid, name).alias(name) for name in names)
    untrained().fit(frame).save("model")
    user = frame["user_id"][0]
    result = run("recommend", "model", "--user", user, "-k", 3, "--no-hide-seen")
    assert "…" not in result.out
    lines = [line.split() for line in result.out.splitlines()[1:]]
    assert [line[0] for line in lines] == [user] * 3
    assert {line[2] for line in lines} <= set(frame["item_id"])


@pytest.mark.parametrize("name", ["[red]x[/red]", ":smile:", "a\tb"])
def test_ids_are_not_markup(capsys: pytest.CaptureFixture[str], name: str) -> None:
    print_recommendations(
        pl.DataFrame({"user_id": [name], "rank": 1, "item_id": name, "score": 1.0})
    )
    assert capsys.readouterr().out.split("\n")[1].count(name.split("\t")[0]) == 2
