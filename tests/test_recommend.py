"""Recommendations for users and histories, by the ids of the log."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from conftest import TINY_TRAINING, Tiny
from helpers import history_of, scores_of, untrained
from recblr.errors import DivergedError, InputError
from recblr.recommender import load


@pytest.mark.parametrize("hide_seen", [True, False])
@pytest.mark.parametrize("k", [1, 5])
def test_recommend_returns_the_best_scores(tiny: Tiny, k: int, hide_seen: bool) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()[::10]
    frame = tiny.recommender.recommend(users=users, k=k, hide_seen=hide_seen)
    for user in users:
        history = history_of(tiny.frame, user)
        scores = scores_of(tiny.recommender, history)
        left = [item for item in scores if not (hide_seen and item in history)]
        best = sorted(left, key=lambda item: -scores[item])[:k]
        rows = frame.filter(pl.col("user_id") == user)
        assert rows["item_id"].to_list() == best
        assert rows["score"].to_list() == pytest.approx([scores[i] for i in best], abs=1e-5)
        assert rows["rank"].to_list() == list(range(1, len(best) + 1))
    assert frame["user_id"].unique(maintain_order=True).to_list() == users


def test_the_columns_of_the_frame(tiny: Tiny) -> None:
    schema = {"user_id": pl.String, "item_id": pl.String, "score": pl.Float32, "rank": pl.Int64}
    users = tiny.recommender.data.user_ids.to_pylist()[:3]
    assert tiny.recommender.recommend(users=users).schema == schema
    nobody = tiny.recommender.recommend(users=[])
    assert nobody.is_empty()
    assert nobody.schema == schema
    frame = tiny.recommender.recommend(histories=[history_of(tiny.frame, users[0])])
    assert frame.schema == {**schema, "user_id": pl.Int64}
    assert set(frame["user_id"]) == {0}


def test_a_user_and_the_same_history_get_the_same_items(tiny: Tiny) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()
    by_user = tiny.recommender.recommend(users=users, k=7)
    by_history = tiny.recommender.recommend(
        histories=[history_of(tiny.frame, user) for user in users], k=7
    )
    assert by_user.drop("user_id").equals(by_history.drop("user_id"))
    assert [users[row] for row in by_history["user_id"]] == by_user["user_id"].to_list()


def test_blocks_do_not_change_the_result(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()
    at_once = tiny.recommender.recommend(users=users)
    monkeypatch.setattr(
        "recblr.evaluation.ranking._BLOCK_NUMBERS",
        {"cpu": 7 * 256 * tiny.recommender.training.max_length},
    )
    in_blocks = tiny.recommender.recommend(users=users)
    assert in_blocks.select("user_id", "item_id", "rank").equals(
        at_once.select("user_id", "item_id", "rank")
    )
    np.testing.assert_allclose(in_blocks["score"], at_once["score"], rtol=0, atol=1e-5)


def test_a_repeated_user_gets_repeated_rows(tiny: Tiny) -> None:
    user = tiny.recommender.data.user_ids[3].as_py()
    once = tiny.recommender.recommend(users=[user], k=3)
    assert tiny.recommender.recommend(users=[user, user], k=3).height == 2 * once.height


def test_allow_and_deny(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    user = tiny.recommender.data.user_ids[0].as_py()

    def recommended(**options: Any) -> list[Any]:
        frame = tiny.recommender.recommend(users=[user], k=99, hide_seen=False, **options)
        assert frame["score"].is_sorted(descending=True)
        return frame["item_id"].to_list()

    everything = recommended()
    assert sorted(everything) == sorted(items)
    chosen = items[2:9]
    kept = [item for item in everything if item in chosen]
    assert recommended(allow=chosen) == kept
    assert recommended(deny=chosen) == [i for i in everything if i not in chosen]
    assert recommended(allow=iter(chosen), deny=iter(chosen[:3])) == [
        i for i in kept if i in chosen[3:]
    ]
    for options in ({"allow": []}, {"deny": items}):
        with pytest.raises(InputError, match="leave no item"):
            recommended(**options)


def test_fewer_than_k_items_are_allowed(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    short, long, full = items[:2], items[:-1], items
    with pytest.warns(UserWarning, match="1 of 3 users or histories get no item, such as 2: allow"):
        frame = tiny.recommender.recommend(histories=[short, long, full], k=len(items) - 2)
    counts = frame["user_id"].value_counts().sort("user_id")
    assert counts.rows() == [(0, len(items) - 2), (1, 1)]
    assert frame.filter(pl.col("user_id") == 1)["item_id"].to_list() == [items[-1]]
    assert frame["score"].is_finite().all()
    allowed = tiny.recommender.recommend(histories=[short], allow=items[1:4])
    assert sorted(allowed["item_id"]) == sorted(items[2:4])


def test_unknown_items_of_a_history_are_ignored(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    with_unknown = [["new", items[0], "newer", items[1]]]
    message = "histories: 2 items are not in the log of the model: 'new', 'newer' \\(its"
    with pytest.warns(UserWarning, match=message):
        frame = tiny.recommender.recommend(histories=with_unknown)
    assert frame.equals(tiny.recommender.recommend(histories=[items[:2]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either users or histories"),
        ({"users": ["a"], "histories": [["b"]]}, "give either users or histories"),
        ({"users": ["nobody"]}, "user 'nobody' is not in the log"),
        ({"users": [7]}, "user 7 is not in the log"),
        ({"users": [7]}, "its ids are text, "),
        (
            {"histories": [["x", "y"]]},
            "history 0 has no item .*: 2 items are not .*: 'x', 'y' .its",
        ),
        ({"histories": [[]]}, "history 0 has no item that the model knows: it is empty"),
        ({"histories": [["x"], []]}, r"history 0 has no item .* \(2 of 2 histories\): item 'x'"),
        ({"histories": [["x"]], "k": 0}, "k must be at least 1, found 0"),
        ({"histories": [["x"]], "hide_seen": "no"}, "hide_seen = 'no': must be bool"),
        (
            {"histories": [["x"]], "unknown": "ignore"},
            "unknown = 'ignore': choose one of error, skip, pop",
        ),
    ],
)
def test_recommend_refuses_bad_arguments(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.recommender.recommend(**options)


def test_recommend_refuses_scores_that_are_not_finite(tiny: Tiny) -> None:
    broken = load(tiny.artifact)
    with torch.no_grad():
        broken.network.norm.bias[0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        broken.recommend(users=[broken.data.user_ids[0].as_py()])


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda code: pl.format("{}", code.cast(pl.String).str.zfill(3)), id="007"),
        pytest.param(lambda code: code.cast(pl.Int64) * -1_000_000_007, id="int64"),
        pytest.param(lambda code: code.cast(pl.Int32), id="int32"),
        pytest.param(lambda code: pl.format("NA, “{}”\n", code), id="odd text"),
    ],
)
def test_ids_are_returned_unchanged(
    tiny: Tiny, rename: Callable[[pl.Expr], pl.Expr], tmp_path: Path
) -> None:
    codes = [pl.col(name).rank("dense") for name in ("user_id", "item_id")]
    frame = tiny.frame.with_columns(rename(code) for code in codes)
    untrained().fit(frame).save(tmp_path / "model")
    recommender = load(tmp_path / "model")
    users = frame["user_id"].unique().to_list()
    offers = recommender.recommend(users=users, k=3, hide_seen=False)
    assert set(offers["user_id"]) == set(users)
    assert set(offers["item_id"]) <= set(frame["item_id"])
    item = offers["item_id"][0]
    assert type(item) is type(frame["item_id"][0])
    only = recommender.recommend(histories=[[item]], allow=[item], hide_seen=False)
    assert only["item_id"].to_list() == [item]
    # Ids given as text, such as on a command line, are converted.
    texts = [str(user) for user in users]
    assert recommender.user_ids(texts) == users
    assert recommender.item_ids([str(item)]) == [item]


def test_scores_depend_on_the_last_max_length_events(tiny: Tiny) -> None:
    """Items before them are still hidden as seen."""
    items = tiny.recommender.data.item_ids.to_pylist()
    long = [items[5]] + items[:4] * 5
    assert len(long) > TINY_TRAINING.max_length
    frame = tiny.recommender.recommend(histories=[long], k=99)
    assert items[5] not in frame["item_id"].to_list()
    latest = tiny.recommender.recommend(histories=[long[-16:]], k=99, deny=[items[5]])
    assert frame.equals(latest)


def test_fitting_again_replaces_the_log(tiny: Tiny) -> None:
    recommender = untrained().fit(tiny.frame)
    recommender.evaluate()
    recommender.recommend(users=[tiny.frame["user_id"][0]])
    other = tiny.frame.with_columns(pl.col("user_id", "item_id") + "!")
    recommender.fit(other.reverse())
    assert recommender.measured == []
    user = other["user_id"][0]
    frame = recommender.recommend(users=[user], hide_seen=False, k=1)
    scores = scores_of(recommender, history_of(other.reverse(), user))
    assert frame["item_id"][0] == max(scores, key=lambda item: scores[item])
    with pytest.raises(InputError, match="not in the log"):
        recommender.recommend(users=[tiny.frame["user_id"][0]])
