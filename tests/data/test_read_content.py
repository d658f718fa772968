"""Reading vectors and categories of items."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from recblr.data.content import ItemContent, read_content
from recblr.errors import InputError

IDS = pa.array(["a", "b", "c"])
VECTORS = {
    "item_id": ["b", "new", "a"],
    "vector": [[1.0, 5.0, 2.0], [3.0, 5.0, 0.0], [2.0, 5.0, 7.0]],
}
CATEGORIES = {
    "item_id": ["c", "a", "late"], "genre": [["x", "y", "x"], None, ["z"]], "size": ["L", "", "x"],
}  # fmt: skip


def named(content: ItemContent, item: int) -> set[str]:
    codes = content.codes[content.offsets[item] : content.offsets[item + 1]]
    assert len(set(codes)) == len(codes)
    return {content.names[code] for code in codes}


@pytest.mark.parametrize("write", [
    pl.DataFrame, pa.table, pd.DataFrame,
    lambda table: pl.DataFrame(table).with_columns(pl.col("vector").cast(pl.Array(pl.Float32, 3))),
], ids=["polars", "arrow", "pandas", "arrays"])  # fmt: skip
def test_vectors_are_scaled_by_column_and_new_items_follow(write: Any) -> None:
    ids, content = read_content(write(VECTORS), None, IDS)
    assert ids.to_pylist() == ["a", "b", "c", "new"]
    given = np.array(VECTORS["vector"])[[2, 0, 1]]
    deviation = np.array([given[:, 0].std(), 1, given[:, 2].std()])  # column 1 is constant
    expected = np.zeros((4, 3))
    expected[[0, 1, 3]] = (given - given.mean(0)) / deviation / np.sqrt(3)
    np.testing.assert_allclose(content.vectors, expected, atol=1e-6)
    assert content.given.tolist() == [True, True, False, True]
    assert content.names == []


def test_categories_are_texts_or_lists_of_texts() -> None:
    ids, content = read_content(None, pl.DataFrame(CATEGORIES), IDS)
    assert ids.to_pylist() == ["a", "b", "c", "late"]
    found = [named(content, item) for item in range(4)]
    assert found == [set(), set(), {"genre=x", "genre=y", "size=L"}, {"genre=z", "size=x"}]
    assert content.vectors.shape == (4, 0)


def test_files_of_several_formats(tmp_path: Path) -> None:
    pl.DataFrame(VECTORS).write_parquet(tmp_path / "vectors.parquet")
    lines = '{"item_id": "b", "vector": [1, 5.0, 2]}\n{"item_id": "new", "vector": [3, 5, 0]}\n'
    (tmp_path / "vectors.jsonl").write_text(lines + '{"item_id": "a", "vector": [2, 5, 7.0]}\n')
    (tmp_path / "categories.csv").write_text("item_id,size\nc,L\na,\n")
    first = read_content(tmp_path / "vectors.parquet", tmp_path / "categories.csv", IDS)[1]
    second = read_content(str(tmp_path / "vectors.jsonl"), tmp_path / "categories.csv", IDS)[1]
    assert first.digest == second.digest
    assert [named(first, item) for item in range(4)] == [set(), set(), {"size=L"}, set()]


def test_known_items_keep_their_content() -> None:
    ids, known = read_content(pl.DataFrame(VECTORS), pl.DataFrame(CATEGORIES), IDS)
    vectors = pl.DataFrame({"item_id": ["a", "e"], "vector": [[9.0, 9, 9], [2.0, 5, 3]]})
    categories = pl.DataFrame(
        {"item_id": ["c", "e"], "genre": ["w", "y"], "colour": ["red", "red"]}
    )
    more_ids, more = read_content(vectors, categories, ids, known)
    assert more_ids.to_pylist() == [*ids.to_pylist(), "e"]
    assert np.array_equal(more.vectors[:-1], known.vectors)
    np.testing.assert_allclose(more.vectors[-1], ([2, 5, 3] - known.mean) / known.scale, atol=1e-6)
    assert more.names[: len(known.names)] == known.names
    assert [named(more, item) for item in range(5)] == [named(known, item) for item in range(5)]
    assert named(more, 5) == {"genre=y", "colour=red"}
    same_ids, same = read_content(None, None, ids, known)
    assert (same_ids, same.digest) == (ids, known.digest)


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "nan": (
        {**VECTORS, "vector": [[1.0, 2.0], [1.0, float("nan")], [0.0, 1.0]]}, None,
        r"<frame>: row 2, column 'vector': the vector has a number that is null, NaN",
    ),
    "null number": (
        {**VECTORS, "vector": [[1.0, None], [1, 2], [0, 1]]}, None, "row 1, .*that is null, NaN",
    ),
    "length": (
        {**VECTORS, "vector": [[1.0, 2], [1, 2], [0]]}, None,
        "row 3, column 'vector': found a vector of 1 numbers; the others have 2",
    ),
    "empty": ({**VECTORS, "vector": [[], [1.0], [1.0]]}, None, "row 1, .*a vector of 0 numbers"),
    "null": ({**VECTORS, "vector": [[1.0], None, [1.0]]}, None, "row 2, .*: the vector is null"),
    "text": ({**VECTORS, "vector": ["[1, 2]"] * 3}, None, "row 1, .*vectors as lists of numbers"),
    "twice": (
        {**VECTORS, "item_id": ["a", "b", "a"]}, None,
        "row 3, column 'item_id': the item 'a' has a row already; give one row for each item",
    ),
    "no id": (
        {"item": ["a"], "vector": [[1.0]]}, None, "no column 'item_id'; a row needs item_id and vec",
    ),
    "null id": ({"item_id": ["a", None], "vector": [[1.0]] * 2}, None, "row 2, .*: the id is null"),
    "no category": (None, {"item_id": ["a"]}, "no column beside item_id; add columns of categ"),
    "fraction": (None, {"item_id": ["a"], "price": [1.5]}, "row 1, column 'price': found a value"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_place(case: str) -> None:
    vectors, categories, message = MISTAKES[case]
    tables = (None if table is None else pl.DataFrame(table) for table in (vectors, categories))
    with pytest.raises(InputError, match=message):
        read_content(*tables, IDS)


def test_more_content_must_be_of_the_kind_that_is_known() -> None:
    ids, known = read_content(pl.DataFrame(VECTORS), None, IDS)
    other = pl.DataFrame({"item_id": ["a"], "vector": [[1.0, 2.0]]})
    with pytest.raises(InputError, match="found a vector of 2 numbers; the others have 3"):
        read_content(other, None, ids, known)
    with pytest.raises(InputError, match="trained without categories of items; train it anew"):
        read_content(None, pl.DataFrame(CATEGORIES), ids, known)
