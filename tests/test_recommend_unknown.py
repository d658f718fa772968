"""Unknown ids are refused or named, and lists of ids may be of any kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from conftest import Tiny
from helpers import untrained
from recblr.errors import InputError
from recblr.recommender import Recommender


@pytest.fixture(scope="module")
def numbers(tiny: Tiny) -> Recommender:
    """Fitted on a log whose ids are whole numbers."""
    code = pl.col("user_id", "item_id").rank("dense").cast(pl.Int64)
    return untrained().fit(tiny.frame.with_columns(code))


# ---- unknown ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": ["7"]}, "user '7' is not in .* .its ids are whole numbers, did you mean 7\\?"),
        (
            {"users": [10**20, 3]},
            r"users\[0\]: the whole number 100000000000000000000 is beyond 64 bits",
        ),
        ({"users": [3], "deny": ["4"]}, "deny: item '4' is not .* whole numbers, did you mean 4"),
        ({"users": [3], "deny": [9999, 4]}, "deny: item 9999 is not in the log"),
        ({"users": [3], "allow": [4, "5"]}, "allow: item '5' is not .* did you mean 5"),
        (
            {"users": [3], "deny": np.array(["4", "5"])},
            "deny: 2 items are not .*: '4', '5' .its ids",
        ),
        ({"histories": [["4"]]}, "history 0 has no item that the model knows: .* did you mean 4"),
        ({"users": [3], "k": "3"}, "k = '3': must be int"),
        ({"users": [3], "k": True}, "k = True: must be int"),
        ({"users": [3], "k": 2.5}, "k = 2.5: must be int"),
        ({"users": [3], "k": np.True_}, "must be int"),
        ({"users": 1}, r"users: 1 is one int, not a list of ids; write \[1\]"),
        ({"users": "7"}, r"users: '7' is one str, not a list of ids; write \['7'\]"),
        ({"histories": [4, 5]}, r"histories\[0\]: 4 is one int, not a list of ids"),
        ({"histories": ["4"]}, r"histories\[0\]: '4' is one str"),
        ({"histories": [{4, 5}]}, r"histories\[0\]: is a set, which has no order"),
        ({"histories": {1: [4]}}, "histories: is a dict"),
        ({"histories": [[4, 5.0]]}, r"histories\[0\]\[1\]: 5.0 is a float"),
        ({"users": [3], "deny": "4"}, "deny: '4' is one str"),
    ],
)
def test_a_mistake_is_named(numbers: Recommender, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        numbers.recommend(**options)
    assert "\n" not in str(error.value)


def test_unknown_items_of_filters_are_skipped_on_request(numbers: Recommender) -> None:
    options: dict[str, Any] = {"users": [3], "hide_seen": False, "allow": [1, 2, 4, 5], "deny": [4]}
    expected = numbers.recommend(**options)
    options |= {"allow": [1, 2, "x", 4, 5], "deny": [4, 9999], "unknown": "skip"}
    with pytest.warns(UserWarning, match="is not in the log") as warned:
        found = numbers.recommend(**options)
    assert found.equals(expected)
    assert [str(warning.message).split(" is not ")[0] for warning in warned] == [
        "allow: item 'x'", "deny: item 9999",
    ]  # fmt: skip
    assert {warning.filename for warning in warned} == {__file__}


def test_unknown_users_are_skipped(numbers: Recommender) -> None:
    with pytest.warns(UserWarning, match="2 users .*: 9999, 'x' .*; left out of"):
        found = numbers.recommend(users=[3, 9999, "x", 5], k=2, unknown="skip")
    assert found.equals(numbers.recommend(users=[3, 5], k=2))
    with pytest.warns(UserWarning, match="user 9999 is not"):
        assert numbers.recommend(users=[9999], unknown="skip").is_empty()


def test_unknown_users_get_popular_items(numbers: Recommender) -> None:
    counts = numbers.data.item_counts
    order = np.argsort(-counts, kind="stable")
    popular = numbers.data.item_ids.take(order).to_pylist()
    with pytest.warns(UserWarning, match="2 users .*: 9999, 9998 .*; recommending the most"):
        found = numbers.recommend(users=[9999, 3, 9998], k=3, deny=popular[:1], unknown="popular")
    assert found["user_id"].to_list() == [9999] * 3 + [3] * 3 + [9998] * 3
    assert found[3:6].equals(numbers.recommend(users=[3], k=3, deny=popular[:1]))
    for rows in (found[:3], found[6:]):
        assert rows["item_id"].to_list() == popular[1:4]
        assert rows["score"].to_list() == counts[order[1:4]].tolist()
        assert rows["rank"].to_list() == [1, 2, 3]
    with pytest.raises(
        InputError, match=r"user 'x' is not .*; a user in the result needs an id of"
    ):
        numbers.recommend(users=["x"], unknown="popular")


def test_histories_without_a_known_item(numbers: Recommender) -> None:
    histories: list[Any] = [[], [4, 9999], ["4"], [5]]
    message = r"history 0 has no item that the model knows \(2 of 4 histories\): it is empty"
    with pytest.raises(InputError, match=message):
        numbers.recommend(histories=histories)
    known = numbers.recommend(histories=[[4], [5]], k=2)
    with pytest.warns(UserWarning, match="item") as warned:
        found = numbers.recommend(histories=histories, k=2, unknown="skip")
    assert found["user_id"].to_list() == [1, 1, 3, 3]
    assert found.drop("user_id").equals(known.drop("user_id"))
    assert "histories: item 9999 is not in" in str(warned[1].message)
    with pytest.warns(UserWarning, match="item"):
        found = numbers.recommend(histories=histories, k=2, unknown="popular")
    assert found["user_id"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found[2:4].drop("user_id").equals(known[:2].drop("user_id"))
    assert found[0]["score"][0] == numbers.data.item_counts.max()


def test_users_without_items_are_named(numbers: Recommender, tmp_path: Path) -> None:
    user = numbers.data.user_ids[0].as_py()
    seen = numbers.data.item_ids.take(pa.array(numbers.data.items[: numbers.data.offsets[1]]))
    message = f"1 of 1 users or histories get no item, such as {user}: allow, deny and hide_seen"
    with pytest.warns(UserWarning, match=message):
        assert numbers.recommend(users=[user], allow=seen).is_empty()
    one = seen.to_pylist()[:1]
    with pytest.warns(UserWarning, match="of 150 users get no item: allow, deny and hide_seen"):
        numbers.recommend_all(tmp_path / "all.parquet", allow=one)
    assert user not in pl.read_parquet(tmp_path / "all.parquet")["user_id"].to_list()


def test_all_users_with_unknown_items(numbers: Recommender, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="deny: item 9999 is not in the log"):
        numbers.recommend_all(tmp_path / "all.parquet", deny=[9999])
    with pytest.warns(UserWarning, match="deny: item 9999 is not in the log"):
        numbers.recommend_all(tmp_path / "all.parquet", deny=[9999], unknown="skip")
    assert pl.read_parquet(tmp_path / "all.parquet")["user_id"].n_unique() == 150


# ---- collections ---------------------------------------------------------------------------------

COLLECTIONS: dict[str, Callable[[list[int]], Any]] = {
    "tuple": tuple, "generator": iter, "numpy": np.array, "pandas": pd.Series, "index": pd.Index,
    "polars": pl.Series, "arrow": pa.array, "chunks": lambda ids: pa.chunked_array([ids]),
    "torch": torch.tensor, "objects": lambda ids: np.array(ids, object),
    "scalars": lambda ids: [np.int32(number) for number in ids],
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_lists_of_any_kind(numbers: Recommender, kind: str) -> None:
    collect = COLLECTIONS[kind]
    allow = list(range(1, 20))
    expected = numbers.recommend(users=[3, 1], deny=[4], allow=allow, k=2)
    found = numbers.recommend(
        users=collect([3, 1]), deny=collect([4]), allow=collect(allow), k=np.int64(2)
    )
    assert found.equals(expected)
    expected = numbers.recommend(histories=[[3, 1], [2, 5]], k=2)
    for histories in (
        [collect([3, 1]), collect([2, 5])],
        (collect(ids) for ids in ([3, 1], [2, 5])),
    ):
        assert numbers.recommend(histories=histories, k=2).equals(expected)


def test_histories_as_one_array_or_series(numbers: Recommender) -> None:
    lists = [[3, 1], [2, 5]]
    expected = numbers.recommend(histories=lists, k=2)
    for histories in (np.array(lists), torch.tensor(lists), pa.array(lists), pl.Series(lists),
                      pd.Series(lists), zip([3, 2], [1, 5], strict=True)):  # fmt: skip
        assert numbers.recommend(histories=histories, k=2).equals(expected)


def test_sets_where_the_order_does_not_matter(numbers: Recommender) -> None:
    allow = list(range(1, 20))
    expected = numbers.recommend(users=[3], allow=allow, deny=[4])
    assert numbers.recommend(users={3}, allow=set(allow), deny=frozenset([4])).equals(expected)


# ---- before fitting ------------------------------------------------------------------------------


def test_a_recommender_that_is_not_fitted(tiny: Tiny) -> None:
    new = untrained()
    assert repr(new) == "Recommender('recblr', not fitted, cpu)"
    assert not any(hasattr(new, name) for name in ("data", "network", "trained", "other"))
    for use in (
        lambda: new.data, lambda: new.recommend(users=["a"]), lambda: new.user_ids(["a"]),
        lambda: new.evaluate(), lambda: new.recommend_all("out"), lambda: new.save("model"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="is not fitted; call fit, or load a saved one"):
            use()
    with pytest.raises(AttributeError, match="object has no attribute 'other'"):
        _ = new.other
    assert repr(tiny.recommender).startswith("Recommender('recblr', 150 users, 24 items, epoch ")
