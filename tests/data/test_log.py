# ruff: noqa: E501 - messages are asserted whole
import csv
import datetime as dt
import gzip
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data import log, text
from recblr.data.log import Interactions, read_log
from recblr.errors import InputError

HEAD = "user_id,item_id,timestamp\n"
EVENTS = [
    ("u2", "007", 5),
    ("u1", "NA", 3),
    ("u2", "null", 4),
    ("ü🎬", "007", 9),
    ("u1", "x" * 200, 1),
]
MICRO = 1_000_000


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def rows(events: Interactions) -> list[tuple[object, ...]]:
    return events.to_polars().rows()


def table(delimiter: str, names: str, end: str = "\n") -> bytes:
    return (end.join([names, *(delimiter.join(map(str, row)) for row in EVENTS)]) + end).encode()


def message(source: object, **options: dict[str, str]) -> str:
    with pytest.raises(InputError) as caught:
        read_log(source, **options)
    told = str(caught.value)
    assert told.isprintable()  # one line
    return told


# ---- what is read --------------------------------------------------------------------------------

CSV = table(",", "user_id,item_id,timestamp")
TSV = table("\t", "user_id\titem_id\ttimestamp")
INTER = table("\t", "user_id:token\titem_id:token\ttimestamp:float")
DAT = "".join(f"{user}::{item}::4::{time}\n" for user, item, time in EVENTS).encode()
TABLE = pa.table(
    dict(
        zip(("user_id", "item_id", "timestamp"), map(list, zip(*EVENTS, strict=True)), strict=True)
    )
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name + behind, compress(content))
        for name, content in [("a.csv", CSV), ("a.TSV", TSV), ("a.inter", INTER), ("a.dat", DAT)]
        for behind, compress in [
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
def test_text(name: str, content: bytes, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("ending", ["parquet", "pq"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
@pytest.mark.parametrize("batch", [2, log.BATCH_ROWS])
def test_parquet(
    ending: str, kind: pa.DataType, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BATCH_ROWS", batch)
    pq.write_table(TABLE.set_column(0, "user_id", TABLE["user_id"].cast(kind)), f"a.{ending}")
    assert rows(read_log(Path(f"a.{ending}"))) == EVENTS


FRAME = pl.DataFrame(EVENTS, schema=["user_id", "item_id", "timestamp"], orient="row")
CODED = pl.Series(["ü🎬", "u2", "u1"]).append(FRAME["user_id"]).cast(pl.Categorical)[3:]
PANDAS = pd.DataFrame(EVENTS, columns=["user_id", "item_id", "timestamp"], index=[9, 9, 1, 2, 3])


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
@pytest.mark.parametrize("batch", [2, log.BATCH_ROWS])
def test_frames(frame: object, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BATCH_ROWS", batch)
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


def test_columns() -> None:
    name = write("a.csv", "movieId,x,userId,x,time\n1,2,3,4,5\n")
    chosen = {"user_id": "userId", "item_id": "movieId", "timestamp": "time"}
    assert rows(read_log(name, columns=chosen)) == [("3", "1", 5)]
    assert rows(read_log(write("b.csv", "user_id,item_id,datetime\n1,2,5\n"))) == [("1", "2", 5)]
    named = {"user_id": "timestamp", "timestamp": "user_id"}
    assert rows(read_log(write("c.csv", HEAD + "1,2,c\n"), columns=named)) == [("c", "2", 1)]


def test_a_time_that_is_not_taken_is_told() -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "ts": [3]})
    with pytest.warns(
        UserWarning, match="'ts' is the time, say columns={'timestamp': 'ts'}"
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
def test_times_in_text(
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


# Any text there is in UTF-8, save NUL, which we refuse.
ID = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(ID, ID), min_size=1, max_size=30),
    delimiter=st.sampled_from([",", "\t"]),
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]),
    block=st.sampled_from([16, 64, text.BLOCK_BYTES]),
)
def test_round_trip(
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
def test_what_is_read_is_what_is_written(body: str, block: int) -> None:
    """Either the strict reader of the standard library reads the same, or there is an error."""
    name = write("f.csv", "user_id,item_id\n" + body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block)
        try:
            read = rows(read_log(name))
        except InputError:
            return
    plain = csv.reader(io.StringIO(body.rstrip("\r\n"), newline=""), strict=True)
    assert read == [tuple(row) for row in plain]


# ---- what is not ---------------------------------------------------------------------------------

TIMES = (
    "write every time as a whole number, or a finite decimal, or an ISO 8601 date, exact in 64 bits"
)
CLOSE = "the quote that opens this field is not closed at its end; close it and double the quotes within"
STRAY = "a quote inside a field; put the field in quotes and double the quotes within"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        # fields
        ("a,b,1\na,b\n", "line 3: expected 3 fields, found 2 in 'a,b'; mend or drop the line"),
        ("a,b,1,2\n", "line 2: expected 3 fields, found 4 in 'a,b,1,2'; mend or drop the line"),
        ("a,b,1\n\na,b,1\n", "line 3: expected 3 fields, found 1 in ''; mend or drop the line"),
        ("a,b,1\r\r\n", "line 2: a carriage return in it; end lines by \\n"),
        ("a,b,1\r", "line 2: a carriage return in it; end lines by \\n"),
        ("\na,b,1\n", "line 2: expected 3 fields, found 1 in ''; mend or drop the line"),
        ("a,b,1\n \n", "line 3: expected 3 fields, found 1 in ' '; mend or drop the line"),
        ("a,b,1\ra,b,2\n", "line 2: a carriage return in it; end lines by \\n"),
        ('"a\n\n",b,1\na\n', "line 5: expected 3 fields, found 1 in 'a'; mend or drop the line"),
        # quotes
        ('a,b,1\na,"b,2\nc,d,3\n', f"line 3, column 'item_id': found '\"b,2\\nc,d,3': {CLOSE}"),
        ('a,"b,1\n"c",d,2\n', f"line 2, column 'item_id': found '\"b,1\\n\"c\",d,2': {CLOSE}"),
        ('"a"b,c,1\n', f"line 2, column 'user_id': found '\"a\"b,c,1': {CLOSE}"),
        ('"x\ny",b,1\na,b"c,1\n', f"line 4, column 'item_id': found '\"c,1': {STRAY}"),
        ('a,b,"\n', f"line 2, column 'timestamp': found '\"': {CLOSE}"),
        # ids
        ("a,b,1\n,b,1\n", "line 3, column 'user_id': the id is empty; give it one or drop the row"),
        ('a,"\n\n",1\nb,"",1\n', "line 5, column 'item_id': the id is empty; give it one or drop the row"),
        # times
        ("a,b,1\na,b,x\n", f"line 3, column 'timestamp': found 'x' after a whole number; {TIMES}"),
        ("a,b,\n", f"line 2, column 'timestamp': found ''; {TIMES}"),
        ("a,b,nan\n", f"line 2, column 'timestamp': found 'nan'; {TIMES}"),
        ("a,b,1.5\na,b,-inf\n", f"line 3, column 'timestamp': found '-inf' after a decimal; {TIMES}"),
        ("a,b,1e400\n", f"line 2, column 'timestamp': found '1e400'; {TIMES}"),
        ("a,b,9223372036854775808\n", f"line 2, column 'timestamp': found '9223372036854775808'; {TIMES}"),
        ("a,b,0x1F\n", f"line 2, column 'timestamp': found '0x1F'; {TIMES}"),
        ("a,b, 1\n", f"line 2, column 'timestamp': found ' 1'; {TIMES}"),
        ("a,b,2024-02-30\n", f"line 2, column 'timestamp': found '2024-02-30'; {TIMES}"),
        ("a,b,1\na,b,2024-05-01\n", f"line 3, column 'timestamp': found '2024-05-01' after a whole number; {TIMES}"),
        ("a,b,2024-05-01\na,b,1\n", f"line 3, column 'timestamp': found '1' after a date; {TIMES}"),
        ("a,b,9007199254740993\na,b,1.5\n", f"line 3, column 'timestamp': found '1.5' after a whole number; {TIMES}"),
        ("a,b," + "y" * 99 + "\n", f"line 2, column 'timestamp': found '{'y' * 38}…; {TIMES}"),
        # characters
        (b"a,b,1\n\xe9,b,1\n", "line 3, byte 32: found b'\\xe9', which is not UTF-8; save the file as text in UTF-8"),
        (b"a,b\0,1\n", "line 2, byte 29: found a NUL byte; save the file as text in UTF-8"),
        ("", "has columns but no events; give a log with at least one event"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
@pytest.mark.parametrize("behind", ["", ".gz"])
def test_text_errors(
    body: str | bytes, told: str, block: int, behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    content = HEAD.encode() + (body if isinstance(body, bytes) else body.encode())
    name = write(f"a.csv{behind}", gzip.compress(content) if behind else content)
    assert message(name).removeprefix(f"{name}: ") == told


def test_the_line_is_right_far_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    lines = [f'u{n},"i\n{n}",{n}\n' for n in range(1000)]  # two lines each
    lines[700] = "u,i,now\n"
    told = message(write("a.csv", b"\xef\xbb\xbf" + (HEAD + "".join(lines)).encode()))
    assert "line 1402, column 'timestamp': found 'now' after a whole number" in told
    lines[700] = "u,é,1\n"
    content = b"\xef\xbb\xbf" + (HEAD + "".join(lines)).encode("latin1")
    byte = content.rindex(b"\xe9")
    assert f"line 1402, byte {byte}: " in message(write("a.csv", content))


def test_an_open_quote_does_not_swallow_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 500)
    told = message(write("a.csv", HEAD + "a,b,1\n" * 30 + '"a,b,2\n' + "a,b,3\n" * 1000))
    assert told == (
        "a.csv: line 32: what begins here does not end within 500 bytes; close its quote or break "
        "the line"
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "a.csv: is empty (0 bytes); fetch or write it again"),
        ("a.parquet", "", "a.parquet: is empty (0 bytes); fetch or write it again"),
        ("a.csv", "\n\n", "a.csv: holds only blank lines or nothing; fetch or write it again"),
        ("a.csv.gz", gzip.compress(b""), "a.csv.gz: holds only blank lines or nothing; fetch or write it again"),
        ("a.csv", "a;b\n1;2\n", "a.csv: line 1 is divided by ';', a .csv file by ','; rewrite it, or give it the ending of what it is (',' .csv, '\\t' .tsv, '::' .dat)"),
        ("a.csv", "a|b\n", "a.csv: line 1 is divided by '|', a .csv file by ','; rewrite"),
        ("a.csv", TSV, "a.csv: line 1 is divided by '\\t', a .csv file by ','; rewrite"),
        ("a.csv", DAT, "a.csv: line 1 is divided by '::', a .csv file by ','; rewrite"),
        ("a.tsv", CSV, "a.tsv: line 1 is divided by ',', a .tsv file by '\\t'; rewrite"),
        ("a.inter", CSV, "a.inter: line 1 is divided by ',', a .inter file by '\\t'; rewrite"),
        ("a.dat", TSV, "a.dat: line 1 is divided by '\\t', a .dat file by '::'; rewrite"),
        ("a.dat", "1::2::3::4\n1::2::3\n", "a.dat: line 2: expected 4 fields, found 3 in '1::2::3'; mend or drop the line"),
        ("a.dat", "1::2::3::4\n1::::3::4\n", "a.dat: line 2, column 'item_id': the id is empty; give"),
        ("a.csv", '"user_id,item_id\n1,2\n', "a.csv: line 1: unexpected end of data in '\"user_id,item_id'; mend its quotes"),
        ("a.csv", "user_id,item_id\r1,2\r", "a.csv: line 1: a carriage return in it; end lines by \\n"),
        ("a.csv", "\nuser_id,item_id\n", "a.csv: line 1: no column user_id and no column item_id; found: none; say"),
        ("a.csv", CSV.decode().encode("utf-16-le"), "a.csv: line 1, byte 1: found a NUL byte; save"),
        ("a.csv", b"\xff\xfe", "a.csv: line 1, byte 0: found b'\\xff', which is not UTF-8; save"),
        ("a.parquet", CSV, "a.parquet: Parquet by its ending, something else by its first bytes b'user_id,'; rename it"),
        ("a.csv", b"PAR1\x15\x04\x15\n", "a.csv: text by its ending, Parquet by its first bytes b'PAR1\\x15\\x04\\x15\\n'; rename it"),
        ("a.csv", gzip.compress(CSV, mtime=0), "a.csv: text by its ending, gzip by its first bytes b'\\x1f\\x8b"),
        ("a.csv.gz", zstd(CSV), "a.csv.gz: gzip by its ending, zstd by its first bytes b'(\\xb5/\\xfd"),
        ("a.csv.gz", CSV, "a.csv.gz: cannot be read to its end (zlib inflate failed: incorrect header check): damaged, cut short or not what its ending says; fetch or write it again"),
        ("a.csv.gz", gzip.compress(CSV)[:-9], "a.csv.gz: cannot be read to its end (Truncated compressed stream): damaged"),
        ("a.csv.gz", gzip.compress(CSV)[:-8] + bytes(8), "a.csv.gz: cannot be read to its end (zlib inflate failed: incorrect data check): damaged"),
        ("a.csv.zst", zstd(CSV)[:-3], "a.csv.zst: cannot be read to its end (Truncated compressed stream): damaged"),
        ("a.csv.zst", zstd(CSV) + b"x", "a.csv.zst: cannot be read to its end ("),
        ("a.xlsx", "x", "a.xlsx: cannot read this ending; give a file in .parquet, .pq, .csv, .tsv, .inter, .dat, these also with .gz, .zst, .zstd behind"),
        ("a.parquet.gz", "x", "a.parquet.gz: cannot read this ending; give"),
        ("a", "x", "a: cannot read this ending; give"),
    ],
)  # fmt: skip
def test_file_errors(name: str, content: str | bytes, told: str) -> None:
    assert message(write(name, content)).startswith(told)


def test_no_file() -> None:
    assert message("a.csv") == "a.csv: no such file; check the path"
    Path("b.csv").mkdir()
    assert message("b.csv") == "b.csv: is a folder; give one file"


def test_damaged_parquet() -> None:
    pq.write_table(TABLE, "a.parquet", compression="zstd")
    whole = Path("a.parquet").read_bytes()
    for damaged in (whole[:-9], whole[:30], whole[:4] + bytes(60) + whole[64:]):
        told = message(write("b.parquet", damaged))
        assert told.startswith("b.parquet: cannot be read to its end (")
        assert told.endswith(
            "damaged, cut short or not what its ending says; fetch or write it again"
        )
    renamed = whole.replace(b"user_id", b"user_\xffd")
    assert message(write("b.parquet", renamed)).startswith("b.parquet: cannot be read to its end (")


FOUND = "found: 'userId', 'Movie ID', 'rating', 'ts'"


@pytest.mark.parametrize(
    ("header", "columns", "told"),
    [
        ("userId,Movie ID,rating,ts", None, f"no column user_id and no column item_id; {FOUND}; say which it is by columns={{'user_id': 'userId', 'item_id': 'Movie ID', 'timestamp': 'ts'}} (command line: --columns user_id=userId,item_id=Movie ID,timestamp=ts)"),
        ("userId,Movie ID,rating,ts", {"user_id": "rating", "timestamp": "ts"}, f"no column item_id; {FOUND}; say which it is by columns={{'user_id': 'rating', 'timestamp': 'ts', 'item_id': 'Movie ID'}} (command line: --columns user_id=rating,timestamp=ts,item_id=Movie ID)"),
        ("user_id,b", None, "no column item_id; found: 'user_id', 'b'; say which it is by columns={'item_id': '...'} (command line: --columns item_id=...)"),
        ("user_id,item_id,item_id", None, "two columns are called 'item_id'; rename one; found: 'user_id', 'item_id', 'item_id'"),
        ("user_id,item_id", {"user": "user_id"}, "columns= knows user_id, item_id, timestamp, not 'user'"),
        ("user_id,item_id", {"timestamp": "when"}, "no column 'when', which columns= names; found: 'user_id', 'item_id'"),
        ("user_id,item_id", {"user_id": "item_id"}, "'item_id' is taken for two of our columns; mend columns="),
        ("user_id,item_id,datetime,timestamp", None, "has timestamp and datetime; take one by columns={'timestamp': 'timestamp'} or columns={'timestamp': 'datetime'}"),
    ],
)  # fmt: skip
def test_column_errors(header: str, columns: dict[str, str] | None, told: str) -> None:
    fields = header.split(",")
    name = write("a.csv", f"{header}\n{','.join('1' * len(fields))}\n")
    assert message(name, columns=columns) == f"a.csv: line 1: {told}"
    frame = pd.DataFrame([[1] * len(fields)], columns=fields)
    assert message(frame, columns=columns) == f"<frame>: {told}"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"user_id": [1, None]}, "row 2, column 'user_id': the id is null; give it one or drop the row"),
        ({"item_id": ["a", None]}, "row 2, column 'item_id': the id is null; give it one or drop the row"),
        ({"item_id": [None, None]}, "row 1, column 'item_id': the id is null; give it one or drop the row"),
        ({"item_id": ["a", ""]}, "row 2, column 'item_id': the id is empty; give it one or drop the row"),
        ({"user_id": [1.5, 2]}, "row 1, column 'user_id': ids of type double; cast the column to string or int64"),
        ({"user_id": [True, False]}, "row 1, column 'user_id': ids of type bool; cast the column to string or int64"),
        ({"user_id": [[1], [2]]}, "row 1, column 'user_id': ids of type large_list<item: int64>; cast the column to string or int64"),
        ({"user_id": pl.Series([1, 2**63], dtype=pl.UInt64)}, "row 2, column 'user_id': found 9223372036854775808, beyond int64; write the ids as UTF-8 text"),
        ({"timestamp": [1, None]}, f"row 2, column 'timestamp': found None after a whole number; {TIMES}"),
        ({"timestamp": [1.5, float("nan")]}, f"row 2, column 'timestamp': found 'nan' after a decimal; {TIMES}"),
        ({"timestamp": [float("-inf"), 1.5]}, f"row 1, column 'timestamp': found '-inf'; {TIMES}"),
        ({"timestamp": ["1", "x"]}, f"row 2, column 'timestamp': found 'x' after a whole number; {TIMES}"),
        ({"timestamp": [dt.date(2024, 5, 1), None]}, f"row 2, column 'timestamp': found None after a date; {TIMES}"),
        ({"timestamp": pl.Series([1000, 1], dtype=pl.Datetime("ns"))}, f"row 2, column 'timestamp': found '1970-01-01 00:00:00.000000001' after a date; {TIMES}"),
        ({"timestamp": pl.Series([2**63, 1], dtype=pl.UInt64)}, f"row 1, column 'timestamp': found '9223372036854775808'; {TIMES}"),
        ({"timestamp": [dt.timedelta(1)] * 2}, "row 1, column 'timestamp': times of type duration[us]; cast them to int64, float64 or datetime"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, log.BATCH_ROWS])
def test_typed_errors(
    values: dict[str, object], told: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BATCH_ROWS", batch)
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]} | values)
    assert message(frame) == f"<frame>: {told}"
    frame.write_parquet("a.parquet", use_pyarrow=False)
    assert message("a.parquet").startswith("a.parquet: row ")
    assert message("a.parquet").split("; ")[-1] == told.split("; ")[-1]


@pytest.mark.parametrize("frame", [FRAME.clear(), FRAME.lazy().limit(0), PANDAS[:0]])
def test_no_rows(frame: object) -> None:
    told = "<frame>: has columns but no events; give a log with at least one event"
    assert message(frame) == told
    TABLE[:0].to_pandas().to_parquet("a.parquet")
    assert message("a.parquet") == told.replace("<frame>", "a.parquet")


def test_text_in_parquet_that_is_not_utf8() -> None:
    raw = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"user_id": raw, "item_id": [1, 2]}), "a.parquet")
    told = "a.parquet: row 2, column 'user_id': found text that is not UTF-8; write the ids as UTF-8 text"
    assert message("a.parquet") == told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([1], "<frame>: a list that cannot be read ("),
        (None, "<frame>: a NoneType that cannot be read ("),
        (pl.scan_csv("none.csv"), "<frame>: a LazyFrame that cannot be read (No such file"),
        (PANDAS.assign(user_id=["a", 1, 2, 3, 4]), "<frame>: a DataFrame that cannot be read ("),
    ],
)
def test_not_a_frame(source: object, told: str) -> None:
    assert message(source).startswith(told)
    assert message(source).endswith(
        "give a path, or a Polars or pandas frame with one type in each column"
    )
