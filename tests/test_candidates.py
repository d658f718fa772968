"""recommend(candidates=…): lists of items that are reranked, one for each user or history."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cli.fixtures import Run, answer
from conftest import Tiny
from helpers import history_of, scores_of
from recblr.errors import InputError


def lists_for(tiny: Tiny, users: list[str]) -> list[list[str]]:
    """Some items for each user, in random order; of an odd number, some of them seen."""
    rng = np.random.default_rng(0)
    ids = tiny.recommender.data.item_ids.to_pylist()
    return [
        rng.choice(ids, 3 + 2 * (place % 4), replace=False).tolist() for place in range(len(users))
    ]


@pytest.mark.filterwarnings("ignore:.* get no item")
def test_each_list_is_sorted_by_score(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = tiny.recommender
    monkeypatch.setattr("recblr.recommending.block_size", lambda catalogue, length: 3)
    users = recommender.data.user_ids.to_pylist()[:10]
    lists, histories = lists_for(tiny, users), [history_of(tiny.frame, user) for user in users]
    expected = {}
    for user, items, history in zip(users, lists, histories, strict=True):
        scores = scores_of(recommender, history)
        expected[user] = sorted(items, key=lambda item: -scores[item])
    frame = recommender.recommend(users=users, candidates=lists, k=99)
    assert (
        dict(frame.group_by("user_id", maintain_order=True).agg("item_id").iter_rows()) == expected
    )
    for row in frame.head(3).to_dicts():
        history = histories[users.index(row["user_id"])]
        score = scores_of(recommender, history)[row["item_id"]]
        assert row["score"] == pytest.approx(score, abs=1e-5)
    by_user: dict[str, Any] = {user: set(items) for user, items in zip(users, lists, strict=True)}
    by_user["somebody else"] = []
    assert recommender.recommend(users=users, candidates=by_user, k=99).equals(frame)
    by_history = recommender.recommend(histories=histories, candidates=pl.Series(lists), k=99)
    assert by_history.drop("user_id").equals(frame.drop("user_id"))
    best = recommender.recommend(users=users, candidates=[*map(np.array, lists)], k=2)
    assert best.equals(frame.filter(pl.col("rank") <= 2))

    hidden = recommender.recommend(users=users, candidates=lists, k=99, hide_seen=True)
    allowed = recommender.recommend(
        users=users[:1], candidates=lists[:1], allow=lists[0][:2], deny=lists[0][:1]
    )
    assert allowed["item_id"].to_list() == lists[0][1:2]
    for user, history in zip(users, histories, strict=True):
        left = [item for item in expected[user] if item not in history]
        assert hidden.filter(pl.col("user_id") == user)["item_id"].to_list() == left


@pytest.mark.filterwarnings("ignore:.*(left out|ignored|most popular)")
def test_unknown_users_and_items(tiny: Tiny) -> None:
    recommender, ids = tiny.recommender, tiny.recommender.data.item_ids.to_pylist()
    user = recommender.data.user_ids[0].as_py()
    lists = [[ids[4], "?"], ids[5:9], [ids[2]]]
    with pytest.raises(InputError, match=r"candidates: item '\?' is not in .*unknown='skip'"):
        recommender.recommend(users=[user], candidates=lists[:1])
    skipped = recommender.recommend(users=[user, "new", user], candidates=lists, unknown="skip")
    assert skipped["item_id"].to_list() == [ids[4], ids[2]]
    popular = recommender.recommend(
        users=[user, "new"], candidates=lists[:2], unknown="popular", k=3
    )
    counts = dict(zip(ids, recommender.data.item_counts.tolist(), strict=True))
    best = sorted(ids[5:9], key=lambda item: (-counts[item], ids.index(item)))[:3]
    assert popular["item_id"].to_list() == [ids[4], *best]
    assert popular["score"].to_list()[1:] == [counts[item] for item in best]
    with pytest.warns(
        UserWarning, match="1 of 1 users .* get no item, .*: candidates, allow, deny"
    ):
        assert recommender.recommend(users=[user], candidates=[[]]).is_empty()
    for candidates, message in (
        ([[ids[0]], [ids[1]]], "candidates: has 2 lists for 1 users or histories; give each one"),
        ({"new": [ids[0]]}, f"candidates: has no list for {user!r}; give each one a list"),
        ([ids[0]], rf"candidates\[0\]: {ids[0]!r} is one str"),
        (tiny.frame, "candidates: is a DataFrame"),
    ):
        with pytest.raises(InputError, match=message):
            recommender.recommend(users=[user], candidates=candidates)


def test_the_command(run: Run, tiny: Tiny) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()[:4]
    lists = lists_for(tiny, users)
    expected = tiny.recommender.recommend(users=users, candidates=lists, k=3)
    frame = pl.DataFrame({"user_id": users, "item_id": lists, "timestamp": "now"}).explode(
        "item_id"
    )
    frame.write_parquet("lists.parquet")
    frame.sample(fraction=1, shuffle=True, seed=0).write_csv("lists.csv")
    rows = answer(
        run("recommend", tiny.artifact, "--candidates", "lists.parquet", "-k", 3, "--json")
    )
    assert rows == expected.to_dicts()
    result = run(
        "recommend", tiny.artifact, "--candidates", "lists.csv", "-k", 3, "-o", "o.parquet"
    )
    assert (result.code, result.err) == (0, "")
    assert pl.read_parquet("o.parquet").sort("user_id").equals(expected.sort("user_id"))
    Path("lists.csv").write_text("user_id\n1\n")
    for arguments, message in (
        (["--candidates", "lists.csv"], "lists.csv: "),
        (["--candidates", "lists.parquet", "--all"], "give exactly one of --user, "),
    ):
        result = run("recommend", tiny.artifact, *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err
