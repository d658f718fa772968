"""Values that are ids, collections of them, and the ids of a log."""

import enum
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recblr.data.vocabulary import Vocabulary, as_ids, as_list, check_id
from recblr.errors import InputError


class Color(enum.StrEnum):
    RED = "red"


def items(values: Any, kind: str = "item") -> Vocabulary:
    return Vocabulary(pa.array(values), kind)


COLLECTIONS = {
    "list": list, "tuple": tuple, "generator": iter, "keys": lambda ids: dict.fromkeys(ids).keys(),
    "numpy": np.array, "numpy objects": lambda ids: np.array(ids, object), "pandas": pd.Series,
    "index": pd.Index, "categories": lambda ids: pd.Series(ids, dtype="category"),
    "polars": pl.Series, "arrow": pa.array, "chunks": lambda ids: pa.chunked_array([ids[:1], ids[1:]]),
    "scalars of numpy": lambda ids: list(np.array(ids)),
    "scalars of arrow": lambda ids: list(pa.array(ids)),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLECTIONS)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True)
    | st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, unique=True
    )
)
def test_any_collection_has_the_same_ids(kind: str, ids: list[Any]) -> None:
    found = as_ids(COLLECTIONS[kind](ids), "ids", ordered=True)
    assert found == ids
    assert {type(value) for value in found} <= {str, int}


def test_other_collections() -> None:
    assert as_ids(torch.tensor([3, 1]), "ids") == [3, 1]
    assert as_ids([torch.tensor(3), np.uint8(1), np.array(2), Color.RED], "ids") == [3, 1, 2, "red"]
    assert sorted(as_ids({"a", "b"}, "ids")) == ["a", "b"]
    assert as_list(np.array([[1, 2], [3, 4]]), "ids") == [[1, 2], [3, 4]]
    assert as_list(pa.array([["a"], []]), "ids") == [["a"], []]
    assert as_list(pl.Series([["a"], []]), "ids")[0] == ["a"]
    assert as_ids(pa.array([["a"]])[0], "ids") == ["a"]
    assert as_ids([], "ids") == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("u7", r"^ids: 'u7' is one str, not a list of ids; write \['u7'\]$"),
        (7, r"^ids: 7 is one int, not a list of ids; write \[7\]$"),
        (None, "None is one NoneType"),
        (b"u", "one bytes"),
        (np.int64(7), r"7 is one int, not a list of ids; write \[7\]"),
        (torch.tensor(7), "7 is one int"),
        (pa.scalar("u"), "'u' is one str"),
        ({"u": 1}, "is a dict; give one column or list of ids"),
        (pd.DataFrame({"a": [1]}), "is a DataFrame; give one column"),
        (pl.DataFrame({"a": [1]}), "is a DataFrame; give one column"),
        (pa.table({"a": [1]}), "is a Table; give one column"),
        ([1, True], r"ids\[1\]: True is a bool; ids are text or whole numbers"),
        ([1.0], r"ids\[0\]: 1.0 is a float"),
        (pd.Series([1, None]), "1.0 is a float"),
        ([Decimal(1)], "is a Decimal"),
        ([None], "None is a NoneType"),
        ([b"u"], "is a bytes"),
        ([["u"]], "is a list"),
        (np.array(["2024-05-01"], "M8[D]"), "is a date"),
        pytest.param(10**5000, "^ids: <int> is one int, not a list", id="5,000 digits"),
        (["7", 2**63], r"^ids\[1\]: the whole number 9223372036854775808 is beyond 64 bits; write"),
        ([10**5000], r"^ids\[0\]: the whole number <int> is beyond 64 bits"),
    ],
)
def test_values_that_are_not_lists_of_ids(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_ids(value, "ids")


def test_a_set_has_no_order() -> None:
    for unordered in ({"a"}, frozenset("a")):
        with pytest.raises(InputError, match="is a set, which has no order; give a list"):
            as_ids(unordered, "ids", ordered=True)


@given(st.text() | st.integers())
def test_an_id_of_an_event_log_is_text_or_refused(value: Any) -> None:
    try:
        text = check_id(value, "id")
    except InputError:
        return
    assert text == str(value)
    assert isinstance(value, str) or -(2**63) <= value < 2**63
    assert 0 < len(text.encode()) <= 256
    assert "\0" not in text


def test_rows_of_ids() -> None:
    assert items(["a", "b"]).rows(["b", "x", "a", "b"]).tolist() == [1, -1, 0, 1]
    assert items([7]).rows(["7", 7, 10**30]).tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    "text", ["01", "1_0", "+1", " 1", "1 ", "-0", "1.0", "１", "", "x", "9" * 5000]
)
def test_only_the_usual_form_of_a_number_is_an_id(text: str) -> None:
    assert items([1, 10, 0]).from_text(text) == text
    assert items([1, 10, 0]).rows([items([1]).from_text(text)]) == [-1]


@given(st.integers())
def test_the_text_of_an_id_stands_for_the_id(number: int) -> None:
    is_id = -(2**63) <= number < 2**63
    assert items([1]).from_text(str(number)) == (number if is_id else str(number))
    assert items(["1"]).from_text(str(number)) == str(number)


@pytest.mark.parametrize(
    ("known", "unknown", "message"),
    [
        (["i7", "other"], ["i77"], "item 'i77' is not in the log of the model (did you mean 'i7'?"),
        (["espresso machine"], ["xspresso machine"], "(did you mean 'espresso machine'?"),
        (["ann", "bob"], ["ANN"], "item 'ANN' is not in the log of the model (did you mean 'ann'?"),
        (
            [196, 7],
            ["196"],
            "'196' is not in the log of the model (its ids are whole numbers, did ",
        ),
        ([196, 7], ["196"], "did you mean 196?"),
        (["196", "7"], [196], "its ids are text, did you mean '196'?"),
        ([1, 2], ["01"], "its ids are whole numbers, did you mean 1?"),
        (["a"], ["zzz"], "its ids are text, such as 'a'"),
        ([5], ["x", 1, 2, 3], "4 items are not in the log of the model: 'x', 1, 2, … (its ids are"),
    ],
)
def test_unknown_ids_are_named_with_the_nearest(
    known: list[Any], unknown: list[Any], message: str
) -> None:
    assert message in items(known).describe_unknown(unknown)


@given(ids=st.lists(st.text(max_size=9), min_size=1, max_size=50, unique=True), name=st.text())
def test_the_nearest_id_is_known(ids: list[str], name: str) -> None:
    near = items(ids).nearest(name)
    assert near is None or near in ids
    assert items(ids).nearest(ids[0]) is not None
