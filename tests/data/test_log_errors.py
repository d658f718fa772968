"""Logs that read_log refuses, and the messages."""

# ruff: noqa: E501 - messages are asserted whole
import datetime as dt
import gzip
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.log_examples import CSV, DAT, FRAME, HEAD, PANDAS, TABLE, TSV, write, zstd
from recblr.data import sources, text
from recblr.data.log import read_log
from recblr.errors import InputError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_message(source: object, **options: dict[str, str]) -> str:
    with pytest.raises(InputError) as caught:
        read_log(source, **options)
    message = str(caught.value)
    assert message.isprintable()  # one line
    return message


TIMES = "write all times alike, as whole numbers, finite decimals or ISO 8601 dates with or without zone, exact in 64 bits"
CLOSE = "the quote that opens this field is not closed at its end; close it and double the quotes inside"
STRAY = "a quote inside a field; put the field in quotes and double the quotes inside"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # fields
        ("a,b,1\na,b\n", "line 3: expected 3 fields, found 2 in 'a,b'; correct or remove the line"),
        ("a,b,1,2\n", "line 2: expected 3 fields, found 4 in 'a,b,1,2'; correct or remove the line"),
        ("a,b,1\n\na,b,1\n", "line 3: expected 3 fields, found 1 in ''; correct or remove the line"),
        ("a,b,1\r\r\n", "line 2: contains a carriage return; end lines with \\n"),
        ("a,b,1\r", "line 2: contains a carriage return; end lines with \\n"),
        ("\na,b,1\n", "line 2: expected 3 fields, found 1 in ''; correct or remove the line"),
        ("a,b,1\n \n", "line 3: expected 3 fields, found 1 in ' '; correct or remove the line"),
        ("a,b,1\ra,b,2\n", "line 2: contains a carriage return; end lines with \\n"),
        ('"a\n\n",b,1\na\n', "line 5: expected 3 fields, found 1 in 'a'; correct or remove the line"),
        # quotes
        ('a,b,1\na,"b,2\nc,d,3\n', f"line 3, column 'item_id': found '\"b,2\\nc,d,3': {CLOSE}"),
        ('a,"b,1\n"c",d,2\n', f"line 2, column 'item_id': found '\"b,1\\n\"c\",d,2': {CLOSE}"),
        ('"a"b,c,1\n', f"line 2, column 'user_id': found '\"a\"b,c,1': {CLOSE}"),
        ('"x\ny",b,1\na,b"c,1\n', f"line 4, column 'item_id': found '\"c,1': {STRAY}"),
        ('a,b,"\n', f"line 2, column 'timestamp': found '\"': {CLOSE}"),
        # ids
        ("a,b,1\n,b,1\n", "line 3, column 'user_id': the id is empty; write an id or remove the row"),
        ('a,"\n\n",1\nb,"",1\n', "line 5, column 'item_id': the id is empty; write an id or remove the row"),
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
        (b"a,b,1\n\xe9,b,1\n", "line 3, byte 32: found b'\\xe9', which is not UTF-8; save the file as UTF-8 text"),
        (b"a,b\0,1\n", "line 2, byte 29: found a NUL byte; save the file as UTF-8 text"),
        ("", "has columns but no events; give a log with at least one event"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
@pytest.mark.parametrize("extension", ["", ".gz"])
def test_read_log_refuses_bad_text(
    body: str | bytes, expected: str, block: int, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    content = HEAD.encode() + (body if isinstance(body, bytes) else body.encode())
    name = write(f"a.csv{extension}", gzip.compress(content) if extension else content)
    assert error_message(name).removeprefix(f"{name}: ") == expected


def test_the_line_number_is_correct_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    lines = [f'u{n},"i\n{n}",{n}\n' for n in range(1000)]  # two lines each
    lines[700] = "u,i,now\n"
    message = error_message(write("a.csv", b"\xef\xbb\xbf" + (HEAD + "".join(lines)).encode()))
    assert "line 1402, column 'timestamp': found 'now' after a whole number" in message
    lines[700] = "u,é,1\n"
    content = b"\xef\xbb\xbf" + (HEAD + "".join(lines)).encode("latin1")
    byte = content.rindex(b"\xe9")
    assert f"line 1402, byte {byte}: " in error_message(write("a.csv", content))


def test_an_open_quote_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 500)
    message = error_message(write("a.csv", HEAD + "a,b,1\n" * 30 + '"a,b,2\n' + "a,b,3\n" * 1000))
    assert message == (
        "a.csv: line 32: the record that starts here is longer than 500 bytes; close its quote or "
        "break the line"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "a.csv: is empty (0 bytes); download or write it again"),
        ("a.parquet", "", "a.parquet: is empty (0 bytes); download or write it again"),
        ("a.csv", "\n\n", "a.csv: holds only blank lines or nothing; download or write it again"),
        ("a.csv.gz", gzip.compress(b""), "a.csv.gz: holds only blank lines or nothing; download or write it again"),
        ("a.csv", "a;b\n1;2\n", "a.csv: line 1 has the delimiter ';', .csv files have ','; pass separator=';' (command line: --separator ';')"),
        ("a.csv", "a|b\n", "a.csv: line 1 has the delimiter '|', .csv files have ','; pass separator="),
        ("a.csv", TSV, "a.csv: line 1 has the delimiter '\\t', .csv files have ','; pass separator="),
        ("a.csv", DAT, "a.csv: line 1 has the delimiter '::', .csv files have ','; pass separator="),
        ("a.tsv", CSV, "a.tsv: line 1 has the delimiter ',', .tsv files have '\\t'; pass separator="),
        ("a.inter", CSV, "a.inter: line 1 has the delimiter ',', .inter files have '\\t'; pass separator="),
        ("a.dat", TSV, "a.dat: line 1 has the delimiter '\\t', .dat files have '::'; pass separator="),
        ("a.dat", "1::2::3::4\n1::2::3\n", "a.dat: line 2: expected 4 fields, found 3 in '1::2::3'; correct or remove the line"),
        ("a.dat", "1::2::3::4\n1::::3::4\n", "a.dat: line 2, column 'item_id': the id is empty; write"),
        ("a.csv", '"user_id,item_id\n1,2\n', "a.csv: line 1: unexpected end of data in '\"user_id,item_id'; correct its quotes"),
        ("a.csv", "user_id,item_id\r1,2\r", "a.csv: line 1: contains a carriage return; end lines with \\n"),
        ("a.csv", "\nuser_id,item_id\n", "a.csv: line 1: no column user_id and no column item_id; found: none; pass"),
        ("a.csv", CSV.decode().encode("utf-16-le"), "a.csv: line 1, byte 1: found a NUL byte; save"),
        ("a.csv", b"\xff\xfe", "a.csv: line 1, byte 0: found b'\\xff', which is not UTF-8; save"),
        ("a.parquet", CSV, "a.parquet: the extension says Parquet, the first bytes say something else (b'user_id,'); rename the file"),
        ("a.csv", b"PAR1\x15\x04\x15\n", "a.csv: the extension says text, the first bytes say Parquet (b'PAR1\\x15\\x04\\x15\\n'); rename the file"),
        ("a.csv", gzip.compress(CSV, mtime=0), "a.csv: the extension says text, the first bytes say gzip (b'\\x1f\\x8b"),
        ("a.csv.gz", zstd(CSV), "a.csv.gz: the extension says gzip, the first bytes say zstd (b'(\\xb5/\\xfd"),
        ("a.csv.gz", CSV, "a.csv.gz: cannot be read to its end (zlib inflate failed: incorrect header check); the file is damaged, truncated or has the wrong extension: download or write it again"),
        ("a.csv.gz", gzip.compress(CSV)[:-9], "a.csv.gz: cannot be read to its end (Truncated compressed stream); the file is damaged"),
        ("a.csv.gz", gzip.compress(CSV)[:-8] + bytes(8), "a.csv.gz: cannot be read to its end (zlib inflate failed: incorrect data check); the file is damaged"),
        ("a.csv.zst", zstd(CSV)[:-3], "a.csv.zst: cannot be read to its end (Truncated compressed stream); the file is damaged"),
        ("a.csv.zst", zstd(CSV) + b"x", "a.csv.zst: cannot be read to its end ("),
        ("a.xlsx", "x", "a.xlsx: unknown file extension; use .parquet, .pq, .csv, .tsv, .data, .inter, .dat, .txt, .jsonl, .ndjson, .json, with .gz, .zst, .zstd, .bz2, .xz behind those of text, or pass format= (command line: --format) parquet|csv|tsv|inter|dat|histories|jsonl"),
        ("a.parquet.gz", "x", "a.parquet.gz: unknown file extension; use"),
        ("a", "x", "a: unknown file extension; use"),
    ],
)  # fmt: skip
def test_read_log_refuses_bad_files(name: str, content: str | bytes, expected: str) -> None:
    assert error_message(write(name, content)).startswith(expected)


def test_read_log_refuses_missing_files_and_folders() -> None:
    assert error_message("a.csv") == "a.csv: no such file; check the path"
    Path("b.csv").mkdir()
    assert error_message("b.csv") == "b.csv: holds no files; check the path"
    assert error_message("a*.csv") == "a*.csv: holds no files; check the path"
    assert error_message("b.cvs") == "b.cvs: no such file; did you mean b.csv?"


def test_read_log_refuses_damaged_parquet() -> None:
    pq.write_table(TABLE, "a.parquet", compression="zstd")
    whole = Path("a.parquet").read_bytes()
    for damaged in (whole[:-9], whole[:30], whole[:4] + bytes(60) + whole[64:]):
        message = error_message(write("b.parquet", damaged))
        assert message.startswith("b.parquet: cannot be read to its end (")
        assert message.endswith(
            "the file is damaged, truncated or has the wrong extension: download or write it again"
        )
    renamed = whole.replace(b"user_id", b"user_\xffd")
    assert error_message(write("b.parquet", renamed)).startswith(
        "b.parquet: cannot be read to its end ("
    )


FOUND = "found: 'userId', 'Movie ID', 'rating', 'ts'"


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        ("userId,Movie ID,rating,ts", None, f"no column user_id and no column item_id; {FOUND}; pass columns={{'user_id': 'userId', 'item_id': 'Movie ID', 'timestamp': 'ts'}} (command line: --columns 'user_id=userId,item_id=Movie ID,timestamp=ts')"),
        ("userId,Movie ID,rating,ts", {"user_id": "rating", "timestamp": "ts"}, f"no column item_id; {FOUND}; pass columns={{'user_id': 'rating', 'timestamp': 'ts', 'item_id': 'Movie ID'}} (command line: --columns 'user_id=rating,timestamp=ts,item_id=Movie ID')"),
        ("user_id,b", None, "no column item_id; found: 'user_id', 'b'; pass columns={'item_id': '...'} (command line: --columns item_id=...)"),
        ("user_id,item_id,item_id", None, "two columns are called 'item_id'; rename one; found: 'user_id', 'item_id', 'item_id'"),
        ("user_id,item_id", {"user": "user_id"}, "columns= accepts user_id, item_id, timestamp, weight, kind, not 'user'"),
        ("user_id,item_id", {"timestamp": "when"}, "no column 'when', given by columns=; found: 'user_id', 'item_id'"),
        ("user_id,item_id", {"user_id": "item_id"}, "columns= uses 'item_id' twice; correct columns="),
        ("user_id,item_id,datetime,timestamp", None, "has timestamp and datetime; choose one by columns={'timestamp': 'timestamp'} or columns={'timestamp': 'datetime'}"),
    ],
)  # fmt: skip
def test_read_log_refuses_bad_columns(
    header: str, columns: dict[str, str] | None, expected: str
) -> None:
    fields = header.split(",")
    name = write("a.csv", f"{header}\n{','.join('1' * len(fields))}\n")
    assert error_message(name, columns=columns) == f"a.csv: line 1: {expected}"
    frame = pd.DataFrame([[1] * len(fields)], columns=fields)
    assert error_message(frame, columns=columns) == f"<frame>: {expected}"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"user_id": [1, None]}, "row 2, column 'user_id': the id is null; write an id or remove the row"),
        ({"item_id": ["a", None]}, "row 2, column 'item_id': the id is null; write an id or remove the row"),
        ({"item_id": [None, None]}, "row 1, column 'item_id': the id is null; write an id or remove the row"),
        ({"item_id": ["a", ""]}, "row 2, column 'item_id': the id is empty; write an id or remove the row"),
        ({"user_id": [1.5, 2]}, "row 1, column 'user_id': ids of type double; cast the column to string or int64"),
        ({"user_id": [True, False]}, "row 1, column 'user_id': ids of type bool; cast the column to string or int64"),
        ({"user_id": [[1], [2]]}, "row 1, column 'user_id': ids of type large_list<item: int64>; cast the column to string or int64"),
        ({"user_id": pl.Series([1, 2**63], dtype=pl.UInt64)}, "row 2, column 'user_id': found 9223372036854775808, beyond int64; write the ids as UTF-8 text"),
        ({"timestamp": [1, None]}, f"row 2, column 'timestamp': found None after a whole number; {TIMES}"),
        ({"timestamp": [1.5, float("nan")]}, f"row 2, column 'timestamp': found 'nan' after a decimal; {TIMES}"),
        ({"timestamp": [float("-inf"), 1.5]}, f"row 1, column 'timestamp': found '-inf'; {TIMES}"),
        ({"timestamp": ["1", "x"]}, f"row 2, column 'timestamp': found 'x' after a whole number; {TIMES}"),
        ({"timestamp": [dt.date(2024, 5, 1), None]}, f"row 2, column 'timestamp': found None after a date; {TIMES}"),
        ({"timestamp": pl.Series([2**63, 1], dtype=pl.UInt64)}, f"row 1, column 'timestamp': found '9223372036854775808'; {TIMES}"),
        ({"timestamp": [dt.timedelta(1)] * 2}, "row 1, column 'timestamp': times of type duration[us]; cast to int64, float64 or datetime"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, sources.BATCH_ROWS])
def test_read_log_refuses_bad_typed_values(
    values: dict[str, object], expected: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", batch)
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]} | values)
    assert error_message(frame) == f"<frame>: {expected}"
    frame.write_parquet("a.parquet", use_pyarrow=False)
    assert error_message("a.parquet").startswith("a.parquet: row ")
    assert error_message("a.parquet").split("; ")[-1] == expected.split("; ")[-1]


@pytest.mark.parametrize("frame", [FRAME.clear(), FRAME.lazy().limit(0), PANDAS[:0]])
def test_read_log_refuses_frames_without_rows(frame: object) -> None:
    expected = "<frame>: has columns but no events; give a log with at least one event"
    assert error_message(frame) == expected
    TABLE[:0].to_pandas().to_parquet("a.parquet")
    assert error_message("a.parquet") == expected.replace("<frame>", "a.parquet")


def test_read_log_refuses_invalid_utf8_in_parquet() -> None:
    raw = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"user_id": raw, "item_id": [1, 2]}), "a.parquet")
    expected = "a.parquet: row 2, column 'user_id': found text that is not UTF-8; write the ids as UTF-8 text"
    assert error_message("a.parquet") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([1], "<frame>: cannot read this list ("),
        (None, "<frame>: cannot read this NoneType ("),
        (pl.scan_csv("none.csv"), "<frame>: cannot read this LazyFrame (No such file"),
        (PANDAS.assign(user_id=["a", 1, 2, 3, 4]), "<frame>: cannot read this DataFrame ("),
    ],
)
def test_read_log_refuses_other_objects(source: object, expected: str) -> None:
    assert error_message(source).startswith(expected)
    assert error_message(source).endswith(
        "give a path, or a Polars or pandas frame with one type in each column"
    )
