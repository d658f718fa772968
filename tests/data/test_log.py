"""Logs that read_log reads."""

import csv
import datetime as dt
import gzip
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.log_examples import (
    CSV,
    DAT,
    EVENTS,
    FRAME,
    HEAD,
    INTER,
    PANDAS,
    TABLE,
    TSV,
    table,
    write,
    zstd,
)
from recblr.data import sources, text
from recblr.data.log import Interactions, read_log
from recblr.errors import InputError

MICRO = 1_000_000
CODED = pl.Series(["ü🎬", "u2", "u1"]).append(FRAME["user_id"]).cast(pl.Categorical)[3:]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(events: Interactions) -> list[tuple[object, ...]]:
    return events.to_polars().rows()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name + extension, compress(content))
        for name, content in [("a.csv", CSV), ("a.TSV", TSV), ("a.inter", INTER), ("a.dat", DAT)]
        for extension, compress in [
            ("", bytes),
            (".gz", gzip.compress),
            (".zst", zstd),
            (".zstd", zstd),
        ]
    ]
    + [
        ("bom.csv", b"\xef\xbb\xbf" + CSV),
        ("crlf.csv", table(",", "user_id,item_id,timestamp", "\r\n")),
        ("crlf.dat", DAT.replace(b"\n", b"\r\n")),
        ("blank.csv", CSV + b"\n\r\n\n"),
        ("unended.csv", CSV.removesuffix(b"\n")),
        ("two.csv.gz", gzip.compress(CSV[:50]) + gzip.compress(CSV[50:])),
    ],
)
@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_read_log_reads_text_files(
    name: str, content: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    read = read_log(write(name, content))
    assert rows(read) == EVENTS
    assert read.source == name
    assert len(read) == len(EVENTS)
    assert (read.users.dtype, read.items.dtype, read.timestamps.dtype) == ("i4", "i4", "i8")
    assert read.users.tolist() == [0, 1, 0, 2, 1]
    assert read.user_ids.to_pylist() == ["u2", "u1", "ü🎬"]  # in the order of appearance
    assert read.item_ids.to_pylist() == ["007", "NA", "null", "x" * 200]
    assert read.user_ids.type == pa.string()


@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_a_byte_order_mark_after_line_1_is_part_of_an_id(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    users = [f"\ufeffu{number}" for number in range(9)]
    lines = ["user_id,item_id", *(f"{user},i" for user in users)]
    log = read_log(write("a.csv", "\n".join(lines).encode()))
    assert log.to_polars()["user_id"].to_list() == users


@pytest.mark.parametrize("ending", ["parquet", "pq"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
@pytest.mark.parametrize("batch", [2, sources.BATCH_ROWS])
def test_read_log_reads_parquet_files(
    ending: str, kind: pa.DataType, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", batch)
    pq.write_table(TABLE.set_column(0, "user_id", TABLE["user_id"].cast(kind)), f"a.{ending}")
    assert rows(read_log(Path(f"a.{ending}"))) == EVENTS


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        FRAME.lazy().with_columns(other=pl.lit([1])),
        FRAME.with_columns(user_id=CODED),
        FRAME.with_columns(pl.col("timestamp").cast(pl.UInt64)),
        PANDAS,
        PANDAS.assign(other=[1, "a", None, [], {}]),
        PANDAS.astype({"user_id": "category", "item_id": object}),
    ],
)
@pytest.mark.parametrize("batch", [2, sources.BATCH_ROWS])
def test_read_log_reads_frames(frame: object, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", batch)
    read = read_log(frame)
    assert rows(read) == EVENTS
    assert read.user_ids.to_pylist() == ["u2", "u1", "ü🎬"]
    assert read.source == "<frame>"


def test_integer_ids_stay_integers() -> None:
    events = [(7, -1, 2.5), (2**62, 0, 1.0), (7, 0, 3.0)]
    for kind in (pl.Int64, pl.UInt64):
        frame = pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row")
        frame = frame.with_columns(pl.col("user_id").cast(kind))
        frame.write_parquet("a.parquet")
        for source in (frame, frame.to_pandas(), "a.parquet"):
            read = read_log(source)
            assert rows(read) == events
            assert read.user_ids.type == pa.int64()
            assert read.timestamps.dtype == "f8"


def test_text_ids_are_literal() -> None:
    ids = ["007", "7", "NA", "null", "None", "nan", "1e5", " a ", "\ta", "é", "é", "'", "#", "\\N"]
    name = write("a.csv", "item_id,user_id\n" + "".join(f"{i},{i}\n" for i in ids))
    read = read_log(name)
    assert read.timestamps is None
    assert rows(read) == [(i, i) for i in ids]


def test_columns_maps_the_names() -> None:
    name = write("a.csv", "movieId,x,userId,x,time\n1,2,3,4,5\n")
    chosen = {"user_id": "userId", "item_id": "movieId", "timestamp": "time"}
    assert rows(read_log(name, columns=chosen)) == [("3", "1", 5)]
    assert rows(read_log(write("b.csv", "user_id,item_id,datetime\n1,2,5\n"))) == [("1", "2", 5)]
    named = {"user_id": "timestamp", "timestamp": "user_id"}
    assert rows(read_log(write("c.csv", HEAD + "1,2,c\n"), columns=named)) == [("c", "2", 1)]


def test_an_unused_time_column_gives_a_warning() -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "ts": [3]})
    with pytest.warns(
        UserWarning, match="'ts' is the time, pass columns={'timestamp': 'ts'}"
    ) as seen:
        assert read_log(frame).timestamps is None
    assert seen[0].filename == __file__


DAY = 19_844 * 86_400 * MICRO  # 2024-05-01


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["-5", "9223372036854775807"], np.array([-5, 2**63 - 1])),
        (["9007199254740993", "1"], np.array([2**53 + 1, 1])),
        (["1.25", "2"], np.array([1.25, 2.0])),
        (["2", "1e3"], np.array([2.0, 1000.0])),
        (["2024-05-01", "2024-05-01 00:00:01"], np.array([DAY, DAY + MICRO])),
        (["2024-05-01T00:00:00.000001", "1970-01-01"], np.array([DAY + 1, 0])),
        (
            ["2024-05-01T00:00:00.5Z", "2024-05-01T02:00:00+02:00"],
            np.array([DAY + MICRO // 2, DAY]),
        ),
    ],
)
@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_times_in_text_files(
    written: list[str], read: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    times = read_log(write("a.csv", HEAD + "".join(f"u,i,{time}\n" for time in written))).timestamps
    assert times.dtype == read.dtype
    assert times.tolist() == read.tolist()


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([dt.date(2024, 5, 1)]),
        pl.Series([dt.datetime(2024, 5, 1)]),
        pl.Series([dt.datetime(2024, 5, 1)], dtype=pl.Datetime("ns")),
        pl.Series([dt.datetime(2024, 5, 1)], dtype=pl.Datetime("ms", "UTC")),
        pl.Series([dt.datetime(2024, 5, 1, 2)]).dt.replace_time_zone("Europe/Berlin"),
        pl.Series(["2024-05-01T00:00:00Z"]),
    ],
)
def test_dates_in_frames(times: pl.Series) -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": times})
    assert read_log(frame).timestamps.tolist() == [DAY]


def test_importing_and_reading_need_neither_polars_nor_pandas() -> None:
    write("a.csv", CSV)
    code = (
        "import sys, recblr.data.log as log; assert 'pandas' not in sys.modules;"
        "log.read_log('a.csv'); assert 'polars' not in sys.modules; print('read')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "read\n"


# Any text in UTF-8, except NUL, which read_log refuses.
ID = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(ID, ID), min_size=1, max_size=30),
    delimiter=st.sampled_from([",", "\t"]),
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]),
    block=st.sampled_from([16, 64, text.BLOCK_BYTES]),
)
def test_what_is_written_is_read_back(
    events: list[tuple[str, str]], delimiter: str, style: tuple[str, int], block: int
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=style[0], quoting=style[1])
    writer.writerows([("user_id", "item_id"), *events])
    name = write({",": "r.csv", "\t": "r.tsv"}[delimiter], out.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block)
        assert rows(read_log(name)) == events
    pl.DataFrame(events, ["user_id", "item_id"], orient="row").write_parquet("r.parquet")
    assert rows(read_log("r.parquet")) == events


@settings(max_examples=200, deadline=None)
@given(
    body=st.lists(st.sampled_from([*'ab",,\n\n"\r', '"\n', '",', ',"', "a,b\n", '"a","b"\n'])).map(
        "".join
    ),
    block=st.sampled_from([16, text.BLOCK_BYTES]),
)
def test_text_is_read_as_by_the_csv_module_or_refused(body: str, block: int) -> None:
    """read_log reads what the strict reader of the standard library reads, or raises an error."""
    name = write("f.csv", "user_id,item_id\n" + body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block)
        try:
            read = rows(read_log(name))
        except InputError:
            return
    expected = csv.reader(io.StringIO(body.rstrip("\r\n"), newline=""), strict=True)
    assert read == [tuple(row) for row in expected]
