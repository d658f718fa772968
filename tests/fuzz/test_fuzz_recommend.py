"""Recommendations for ids in collections of any kind: lists are right, and wrong ids are named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Tiny
from fuzz.meaning import id_text
from fuzz.outcomes import Outcomes, fuzz
from helpers import untrained
from recblr.recommender import Recommender

COLLECTIONS: list[Callable[[list[Any]], Any]] = [
    list, tuple, iter, lambda ids: (each for each in ids), lambda ids: np.array(ids, dtype=object),
    lambda ids: pd.Series(ids, dtype=object), np.array, pd.Series, pd.Index, pl.Series, pa.array,
    lambda ids: pa.chunked_array([ids]), torch.tensor,
]  # fmt: skip
NO_COLLECTIONS: list[Callable[[list[Any]], Any]] = [
    dict.fromkeys, lambda ids: repr(ids[0]), lambda ids: 7, lambda ids: pl.DataFrame([ids]),
]  # fmt: skip
UNKNOWN: list[Any] = ["?", "1", "01", " 1", 999, -1, "é"]
NO_IDS: list[Any] = [1.0, True, None, 2**63, b"a", ["x"], np.datetime64("2024-05-01")]
# The value of an argument, and its meaning; None if it is to be refused.
KS = [(1, 1), (3, 3), (1000, 1000), (np.int64(2), 2), (torch.tensor(3), 3), (2.0, 2), (0, None),
      (-1, None), ("3", None), (None, None), (True, None), (2.5, None), (10**30, None)]  # fmt: skip
HIDE = [(True, True), (False, False), (np.True_, True), ("no", None), (1, None)]
ACTIONS = [("error", "error"), ("skip", "skip"), ("popular", "popular"), ("Skip", None)]


def mostly(usual: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    """Of ten values, nine usual ones."""
    return st.integers(0, 9).flatmap(lambda number: st.sampled_from(usual if number else odd))


@st.composite
def collections(draw: st.DrawFn, known: list[Any]) -> tuple[Any, list[Any] | None]:
    """A collection of ids, mostly known ones, and these; None if a value is no id."""
    ids = draw(st.lists(mostly(known, UNKNOWN + NO_IDS), min_size=1, max_size=4))
    make = draw(mostly(COLLECTIONS, NO_COLLECTIONS))
    try:
        made = make(ids)
    except Exception:  # the library does not take these values
        make, made = list, ids
    for method in ("to_pylist", "to_list", "tolist"):  # a library may have changed their types
        if hasattr(made, method):
            ids = getattr(made, method)()
            break
    refused = make in NO_COLLECTIONS or any(id_text(value) is None for value in ids)
    return made, None if refused else ids


class Model:
    """A recommender with the ids, the histories and the full rankings of its log."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender, data = recommender, recommender.data
        self.users, self.items = data.user_ids.to_pylist(), data.item_ids.to_pylist()
        rows = np.split(data.items, data.offsets[1:-1])
        self.seen = {
            user: {self.items[row] for row in history}
            for user, history in zip(self.users, rows, strict=True)
        }
        order = np.argsort(-data.item_counts, kind="stable")
        self.popular = {self.items[row]: float(data.item_counts[row]) for row in order}
        self.by_user: dict[Any, dict[Any, float]] = {}
        for user, item, score, _ in self.recommend(users=self.users).iter_rows():
            self.by_user.setdefault(user, {})[item] = score

    def recommend(self, **whom: Any) -> pl.DataFrame:
        """All items."""
        return self.recommender.recommend(**whom, k=len(self.items), hide_seen=False)

    def after(self, history: list[Any]) -> dict[Any, float]:
        frame = self.recommend(histories=[history])
        return dict(zip(frame["item_id"], frame["score"], strict=True))


@pytest.fixture(scope="module")
def models(tiny: Tiny) -> list[Model]:
    """One with ids of text, and one with whole numbers."""
    code = pl.col("user_id", "item_id").rank("dense").cast(pl.Int64)
    return [Model(tiny.recommender), Model(untrained().fit(tiny.frame.with_columns(code)))]


def expected_lists(
    model: Model, meant: dict[str, Any], k: int, hide_seen: bool, unknown: str
) -> list[tuple[Any, dict[Any, float]]] | None:
    """(user or number of the history, the best items with scores); None if the call has to fail."""
    strange = {
        name: [
            each for each in ids if each not in (model.users if name == "users" else model.items)
        ]
        for name, ids in meant.items()
    }
    history = [item for item in meant.get("history", []) if item in model.items]
    refused = [name for name in strange if strange[name] and name != "history"]
    if unknown == "error" and (refused or ("history" in meant and not history)):
        return None
    one_type = all(type(user) is type(model.users[0]) for user in strange.get("users", []))
    if unknown == "popular" and not one_type:  # a column of the result has one type
        return None
    allowed = {*meant.get("allow", model.items)} & {*model.items} - {*meant.get("deny", [])}
    if not allowed:
        return None
    if "history" in meant:
        every = model.after(history) if history else model.popular
        audience = [(0, every, {*history})] if history or unknown == "popular" else []
    else:
        audience = [
            (user, model.by_user.get(user, model.popular), model.seen.get(user, set()))
            for user in meant["users"] if user in model.seen or unknown == "popular"
        ]  # fmt: skip
    lists = []
    for user, every, seen in audience:
        left = allowed - (seen if hide_seen else set())
        lists.append((user, dict([pair for pair in every.items() if pair[0] in left][:k])))
    return lists


def test_recommend(models: list[Model], keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(2500)
    @given(st.data())
    def test(data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(models))
        arguments: dict[str, Any] = {}
        meant: dict[str, Any] = {}
        for name in data.draw(st.sets(st.sampled_from(["allow", "deny"]))):
            arguments[name], meant[name] = data.draw(collections(model.items))
        if data.draw(st.booleans()):
            arguments["users"], meant["users"] = data.draw(collections(model.users))
        else:
            history, meant["history"] = data.draw(collections(model.items))
            arguments["histories"] = data.draw(st.sampled_from([[history], (history,)]))
        options = {
            "k": data.draw(mostly(KS[:6], KS)), "hide_seen": data.draw(mostly(HIDE[:3], HIDE)),
            "unknown": data.draw(mostly(ACTIONS[:3], ACTIONS)),
        }  # fmt: skip
        arguments |= {name: value for name, (value, _) in options.items()}
        outcome = outcomes.of(lambda: model.recommender.recommend(**arguments))
        meanings = [*meant.values(), *(meaning for _, meaning in options.values())]
        lists = None
        if None not in meanings:
            lists = expected_lists(model, meant, *(meaning for _, meaning in options.values()))
        if isinstance(outcome, str) or lists is None:
            assert isinstance(outcome, str) == (lists is None), (arguments, meant, outcome)
            return
        check_lists(outcome.value, lists)
        known = {"users": model.users, "history": model.items}
        for name, ids in meant.items():
            strange = [each for each in ids if each not in known.get(name, model.items)]
            assert not strange or any(repr(strange[0]) in text for text in outcome.warnings)

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of ids and filters", **outcomes.figures())


def check_lists(frame: pl.DataFrame, lists: list[tuple[Any, dict[Any, float]]]) -> None:
    rows = list(frame.iter_rows())
    for user, best in lists:
        part, rows = rows[: len(best)], rows[len(best) :]
        assert [row[0] for row in part] == [user] * len(best)
        assert [row[3] for row in part] == list(range(1, len(best) + 1))
        assert [row[2] for row in part] == pytest.approx([*best.values()], abs=1e-4)
        assert len({row[1] for row in part}) == len(best)
        # Items whose scores are almost equal may change places.
        assert all(best.get(row[1], row[2]) == pytest.approx(row[2], abs=1e-4) for row in part)
    assert not rows
