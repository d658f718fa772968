"""Ids of a log in numbers and sizes beyond the common ones."""

import polars as pl
import pyarrow as pa
import pytest

from recblr.data import vocabulary
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import index_in
from recblr.data.vocabulary import extend


def test_ids_beyond_the_limit_of_an_arrow_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the limit is 10 bytes instead of 2 GiB."""
    frame = pl.DataFrame({"user_id": list("abcdeabcde") * 3, "item_id": list("vwxyz") * 6})
    known = prepare(read_log(frame))
    monkeypatch.setattr(vocabulary, "MAX_BYTES", 10)
    data = prepare(read_log(frame))
    assert (known.user_ids.type, data.user_ids.type) == (pa.string(), pa.large_string())
    assert data.fingerprint == known.fingerprint
    assert data.user_ids.to_pylist() == known.user_ids.to_pylist()
    assert index_in(pa.array(["c", "?"]), data.user_ids).tolist() == [2, -1]
    for ids in (known.user_ids, data.user_ids):
        both, rows = extend(ids, pa.array(["new", "a"]), "user")
        assert both.to_pylist() == [*"abcde", "new"]
        assert rows.tolist() == [5, 0]
