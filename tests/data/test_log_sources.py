"""Where logs may be: folders, patterns, compressed files, standard input; histories and JSON lines."""

# ruff: noqa: E501 - messages are asserted whole
import bz2
import io
import json
import lzma
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.log_examples import CSV, EVENTS, FRAME, TABLE, TSV, write
from recblr.data import open_log, sources, text
from recblr.data.log import Interactions, read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.errors import InputError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(log: Interactions) -> list[tuple[object, ...]]:
    return log.to_polars().rows()


def error_message(source: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_log(source, **options)
    message = str(caught.value)
    assert message.isprintable()
    return message


def write_in(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write(path, content)


# ---- several files -------------------------------------------------------------------------------


def test_folders_and_patterns() -> None:
    for number in (10, 2, 1):  # in the order of the numbers
        write_in(f"logs/part-{number}.csv", f"user_id,item_id\nu,i{number}\n")
    write_in("logs/_SUCCESS", "")
    write_in("logs/.part-1.csv.crc", "x")
    expected = [("u", "i1"), ("u", "i2"), ("u", "i10")]
    for source in ("logs", Path("logs"), "logs/*.csv", "l*"):
        log = read_log(source)
        assert rows(log) == expected
        assert log.source == str(source)
    assert rows(read_log("logs/part-[12].csv")) == expected[:2]


def test_folders_named_key_value_are_columns() -> None:
    for day, other in (("2024-05-02", "b%20c"), ("2024-05-01", "a")):
        Path(f"logs/day={day}/user_id={other}").mkdir(parents=True)
        pl.DataFrame({"item_id": [1, 2]}).write_parquet(f"logs/day={day}/user_id={other}/0.parquet")
    for source in ("logs", "logs/*/*/*.parquet"):
        log = read_log(source, columns={"timestamp": "day"})
        assert log.to_polars()["user_id"].to_list() == ["a", "a", "b c", "b c"]
        assert log.order == "ordered by 'day' (dates, 2024-05-01 to 2024-05-02)"
    assert "logs/day=2024-05-01/user_id=a/0.parquet: folder 'user_id'" in error_message(
        "logs", columns={"timestamp": "user_id", "user_id": "day"}
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("user_id,item_id\n1,2\n", "b.csv: line 1: no column 'timestamp', which the first file has; give files with the same columns"),
        ("user_id,item_id,timestamp\na,,1\n", "b.csv: line 2, column 'item_id': the id is empty"),
        ("user_id,item_id,timestamp\na,b,1700000000\n", "b.csv: line 2, column 'timestamp': found 1700000000, a time in seconds after times in milliseconds"),
        ("", "b.csv: is empty (0 bytes)"),
    ],
)  # fmt: skip
def test_errors_name_the_file_of_a_folder(second: str, expected: str) -> None:
    write_in("logs/a.csv", "user_id,item_id,timestamp\na,b,1700000000000\n")
    write_in("logs/b.csv", second)
    assert error_message("logs").startswith(str(Path("logs", expected)))


def test_folders_that_are_no_logs() -> None:
    write_in("mixed/a.csv", CSV)
    write_in("mixed/b.tsv", TSV)
    assert error_message("mixed") == (
        "mixed: holds files of several formats, such as a.csv and b.tsv; give a pattern such as "
        "'folder/*.csv'"
    )
    write_in("model/model.safetensors", "x")
    expected = "model: is a trained model, not a log; give the file or folder of a log"
    assert error_message("model") == expected
    with pytest.raises(InputError, match=expected):
        open_log("model")
    write_in("ready/prepared.json", "{}")
    assert "ready: is a prepared folder, not a log" in error_message("ready")


@pytest.mark.parametrize("name", ["ML-1M", "ml1m", "ml_1m"])
def test_a_mistyped_data_set(name: str) -> None:
    with pytest.raises(InputError, match="no such file and no such data set; did you mean ml-1m"):
        open_log(name)


def test_types_of_ids_must_not_differ_between_files() -> None:
    Path("logs").mkdir()
    pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet("logs/a.parquet")
    pl.DataFrame({"user_id": ["1"], "item_id": [1]}).write_parquet("logs/b.parquet")
    assert "ids of type string after ids of type int64" in error_message("logs")


# ---- compressed files, standard input, formats by hand -------------------------------------------


@pytest.mark.parametrize(("ending", "module"), [("bz2", bz2), ("xz", lzma)])
def test_bz2_and_xz(ending: str, module: Any) -> None:
    packed = module.compress(CSV)
    name = write(f"a.csv.{ending}", packed + module.compress(b"u9,i,7\n"))  # two streams
    assert rows(read_log(name)) == [*EVENTS, ("u9", "i", 7)]
    cut = module.compress(CSV * 9)[:-9]
    assert "cannot be read to its end" in error_message(write(f"a.csv.{ending}", cut))
    assert "cannot be read to its end" in error_message(write(f"a.csv.{ending}", CSV))
    assert "the extension says text" in error_message(write("b.csv", packed))


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = io.BytesIO()
    FRAME.write_parquet(parquet)
    for format, content in (("csv", CSV), ("tsv", TSV), ("parquet", parquet.getvalue())):
        feed(monkeypatch, content)
        log = read_log("-", format=format)
        assert (rows(log), log.source) == (EVENTS, "<stdin>")
    feed(monkeypatch, CSV)
    assert error_message("-").startswith("<stdin>: pass the format of standard input, format='csv'")
    feed(monkeypatch, b"user_id,item_id\na\n")
    assert "<stdin>: line 2: expected 2 fields" in error_message("-", format="csv")
    feed(monkeypatch, b"")
    assert error_message("-", format="csv").startswith("<stdin>: is empty (0 bytes)")
    feed(monkeypatch, bz2.compress(CSV))
    assert "<stdin>: the extension says text" in error_message("-", format="csv")


def test_a_format_given_by_hand() -> None:
    write("a.log", CSV)
    assert rows(read_log("a.log", format="csv")) == EVENTS
    assert rows(read_log("a.log", separator=",")) == EVENTS
    assert "unknown file extension" in error_message("a.log")
    assert error_message("a.log", format="xls").startswith("format 'xls': choose one of")


def test_arrow_tables() -> None:
    assert rows(read_log(TABLE)) == EVENTS
    assert rows(read_log(TABLE.to_reader())) == EVENTS


# ---- histories -----------------------------------------------------------------------------------


def test_one_history_a_line() -> None:
    expected = [("1", "10"), ("1", "11"), ("2", "10"), ("1", "12")]
    assert rows(read_log(write("pairs.txt", "1 10\n1 11\n2 10\n1 12\n"))) == expected
    assert rows(read_log(write("lines.txt", "1 10 11\r\n2 10\r\n1 12"))) == expected
    assert (
        rows(read_log(write("tabs.log", "1\t10\t11\n2\t10\n1\t12\n"), format="histories"))
        == expected
    )
    commas = write("commas.log", "1,10,11\n2,10\n1,12\n")
    assert rows(read_log(commas, format="histories", separator=",")) == expected


@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_bad_histories(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    lines = "1 2 3\n" + "4 5\n" * 9
    expected = "a.txt: line 11: expected a user and at least one item, found '6'; correct or remove"
    assert error_message(write("a.txt", lines + "6\n7 8\n")).startswith(expected)
    assert "line 11: expected a user" in error_message(write("a.txt", lines + "\n7 8\n"))
    long = error_message(write("a.txt", lines + f"6 {'x' * 257}\n"))
    assert long.startswith("a.txt: line 11, column 'item_id': the id must have 1 to 256 bytes")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("1 2 4 1700000000\n1 3 5 1700000001\n", "every line has 4 fields; if each is a user and the user's items, pass format='histories'"),
        ("user_id item_id\n1 2\n", "line 1 has the names of columns; pass separator=' '"),
        ("1\t2\t3\n", "line 1 has the delimiter '\\t', but histories have blanks"),
        ("1,2\n", "line 1 has the delimiter ',', but histories have blanks"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_tables_that_look_like_histories(lines: str, expected: str) -> None:
    assert error_message(write("a.txt", lines)).startswith(f"a.txt: {expected}")


def test_lists_in_parquet_and_frames() -> None:
    frame = pl.DataFrame(
        {"user_id": ["a", "b", "c"], "item_id": [[1, 2], [], [3]], "timestamp": [[6, 5], [], [7]]}
    )
    frame.write_parquet("a.parquet")
    for source in ("a.parquet", frame, frame.to_pandas()):
        assert rows(read_log(source)) == [("a", 1, 6), ("a", 2, 5), ("c", 3, 7)]
    one_time = frame.with_columns(timestamp=pl.Series([6, 5, 7]))
    assert rows(read_log(one_time)) == [("a", 1, 6), ("a", 2, 6), ("c", 3, 7)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"item_id": [[1], None]}, "row 2, column 'item_id': the list in item_id is null; write a list"),
        ({"item_id": [[1], [None]]}, "row 2, column 'item_id': the id is null"),
        ({"timestamp": [[1, 2], [3]]}, "row 1, column 'item_id': found 2 times for 1 items"),
        ({"timestamp": [[1], [None]]}, "row 2, column 'timestamp': found None after a whole number"),
        ({"user_id": [[1], [2]]}, "row 1, column 'user_id': ids of type"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, sources.BATCH_ROWS])
def test_bad_lists(
    values: dict[str, Any], expected: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", batch)
    frame = pl.DataFrame(
        {"user_id": [1, 2], "item_id": [[1], [2]], "timestamp": [[1], [2]]} | values
    )
    assert error_message(frame).startswith(f"<frame>: {expected}")


# ---- JSON lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
@pytest.mark.parametrize("block", [16, text.BLOCK_BYTES])
def test_json_lines(ending: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    FRAME.with_columns(other=pl.lit(1.5)).write_ndjson(f"a.{ending}")
    assert rows(read_log(f"a.{ending}")) == EVENTS
    write(f"b.{ending}.xz", lzma.compress(Path(f"a.{ending}").read_bytes()))
    assert rows(read_log(f"b.{ending}.xz")) == EVENTS


def test_json_numbers_and_lists() -> None:
    lines = [{"user_id": 7, "item_id": ["x", "y"], "timestamp": ["2024-05-01", "2024-05-02"]}] * 2
    log = read_log(write("a.jsonl", "\n".join(map(json.dumps, lines))))
    assert log.to_polars()["user_id"].to_list() == [7] * 4
    assert log.to_polars()["item_id"].to_list() == ["x", "y"] * 2
    assert log.dates
    times = [Decimal("1700000000.000000010"), Decimal("1700000000.00000002"), 1700000001]
    text = "".join(f'{{"user_id": 1, "item_id": 2, "timestamp": {time}}}\n' for time in times)
    assert read_log(write("b.jsonl", text)).timestamps.tolist() == [int(t * 10**9) for t in times]


GOOD = '{"user_id": "a", "item_id": 1, "timestamp": 5}\n'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"user_id": "b", "item_id": 2}', "line 3, column 'timestamp': found None after a whole number"),
        ('{"user_id": 7, "item_id": 2, "timestamp": 5}', "line 3, column 'user_id':"),
        ('{"user_id": "b", "item_id": "2", "timestamp": 5}', "line 3, column 'item_id':"),
        ('{"user_id": "b", "item_id": 2, "timestamp": [5]}', "line 3, column 'timestamp':"),
        ('{"user_id": "b", "item_id": 12345678901234567890, "timestamp": 5}', "line 3, column 'item_id': found 12345678901234567890, beyond int64"),
        ('{"user_id": "\\ud800", "item_id": 2, "timestamp": 5}', "line 3, column 'user_id': contains an unpaired surrogate"),
        ('{"user_id": "b\\u0000", "item_id": 2, "timestamp": 5}', "line 3, column 'user_id': the id contains a NUL character"),
        ('{"user_id": "b", "item_id": 2, "timestamp": NaN}', "line 3: NaN is not JSON in"),
        ('{"user_id": "b", "user_id": "c"}', "line 3: the same key twice in"),
        ('{"user_id": "b"', "line 3: Expecting ',' delimiter at character 16 in"),
        ("[" * 99999, "line 3: "),
        ("5", "line 3: expected an object in braces in '5'"),
        ("", "line 3: Expecting value at character 1 in ''; write one JSON object on each line"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [60, text.BLOCK_BYTES])
def test_bad_json_lines(
    line: str, expected: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    name = write("a.jsonl", GOOD + GOOD + line + "\n" + GOOD)
    assert error_message(name).startswith(f"a.jsonl: {expected}")


def test_other_json_is_refused() -> None:
    assert error_message(write("a.json", '[{"user_id": 1}]')).startswith(
        "a.json: is one JSON array"
    )
    assert "line 1: Expecting property name" in error_message(
        write("a.json", '{\n"user_id": 1\n}\n')
    )
    assert "ids of type double" in error_message(write("a.json", '{"user_id": 1.5, "item_id": 1}'))
    assert "ids of type bool" in error_message(write("a.json", '{"user_id": true, "item_id": 1}'))
    assert pa.types.is_int64(read_log(write("a.json", GOOD)).item_ids.type)


@pytest.mark.parametrize("core", ["2", 2.5, True, float("nan")])
def test_a_core_that_is_no_whole_number_is_refused(tmp_path: Path, core: Any) -> None:
    frame = pl.DataFrame({"user_id": ["a"] * 4, "item_id": ["x", "y"] * 2})
    with pytest.raises(InputError, match=r"core = .*must be int"):
        open_log(frame, core=core)
    for whole in (2, 2.0, np.int64(2)):
        data = open_log(frame, core=whole)  # type: ignore[arg-type]
        data.save(tmp_path / "data", overwrite=True)
        assert repr(Sequences.load(tmp_path / "data").core) == "2"


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    FRAME.write_parquet("log.parquet")
    for options, message in (
        ({"separator": ";"}, "parquet has no separator; leave out separator="),
        ({"separator": ";", "format": "jsonl"}, "jsonl has no separator"),
    ):
        with pytest.raises(InputError, match=message):
            read_log("log.parquet", **options)  # type: ignore[arg-type]
    for options in ({"separator": ";"}, {"format": "csv"}):
        with pytest.raises(InputError, match="are for files, not for a frame"):
            read_log(FRAME, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no columns to choose"):
        open_log(read_log(FRAME), columns={"user_id": "item_id"})


def test_a_path_is_no_log_for_prepare() -> None:
    with pytest.raises(InputError, match="prepare takes Interactions, not str; use open_log"):
        prepare("log.csv")  # type: ignore[arg-type]


def test_a_large_parquet_file_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", 1000)
    rng = np.random.default_rng(0)
    table = {name: rng.integers(1 << 60, size=40_000) for name in ("user_id", "item_id")}
    pq.write_table(pa.table(table), "log.parquet", row_group_size=1000)
    held = []
    for _, open_table in sources.open_tables("log.parquet", None, None, False):
        with open_table() as opened:
            before = pa.total_allocated_bytes()
            blocks = opened.read({name: name for name in table})
            held.extend(pa.total_allocated_bytes() - before for _ in blocks)
    assert len(held) == 40
    assert max(held) < Path("log.parquet").stat().st_size / 4
