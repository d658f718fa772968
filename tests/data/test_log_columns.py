"""Headers, columns by position and separators, and advice that works when it is pasted."""

# ruff: noqa: E501 - messages are asserted whole
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.log_examples import write
from recblr.data.columns import _option, parse_columns
from recblr.data.log import Interactions, read_log
from recblr.errors import InputError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(log: Interactions) -> list[tuple[object, ...]]:
    return log.to_polars().rows()


def follow(name: str) -> Interactions:
    """Read a file, and follow the advice of every message as a shell would."""
    options: dict[str, Any] = {}
    for _ in range(4):
        try:
            return read_log(name, **options)
        except InputError as error:
            advice = re.findall(r"\(command line: (.*?)\)(?:$|;|,| and)", str(error))
            for option, value in zip(*[iter(shlex.split(" ".join(advice)))] * 2, strict=True):
                options[option[2:]] = parse_columns(value) if option == "--columns" else value
    raise AssertionError(f"the advice does not lead anywhere: {options}")


NUMBERS = [("196", "242", 881250949), ("186", "302", 891717742)]
TEXTS = [("a", "x", 1), ("b", "y", 2)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # no line of names
        ("a.csv", "196,242,3,881250949\n186,302,3,891717742\n", NUMBERS),
        ("a.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n", NUMBERS),
        ("a.dat", "196::242::881250949\n186::302::891717742\n", NUMBERS),
        ("a.dat", "196\t242\t881250949\n186\t302\t891717742\n", NUMBERS),
        ("a.csv", "196::242::3::881250949\n186::302::3::891717742\n", NUMBERS),
        ("a.csv", "u1,i5\nu2,i6\n", [("u1", "i5"), ("u2", "i6")]),
        # other separators
        ("a.csv", "user_id;item_id;timestamp\na;x;1\nb;y;2\n", TEXTS),
        ("a.csv", "user_id|item_id|timestamp\na|x|1\nb|y|2\n", TEXTS),
        ("a.csv", "user_id\titem_id\ttimestamp\na\tx\t1\nb\ty\t2\n", TEXTS),
        ("a.tsv", "user_id,item_id,timestamp\na,x,1\nb,y,2\n", TEXTS),
        ("a.txt", "user_id,item_id,timestamp\na,x,1\nb,y,2\n", TEXTS),
        ("a.txt", "user_id item_id timestamp\na x 1\nb y 2\n", TEXTS),
        # headers
        ("a.csv", "user_id, item_id, timestamp\na, x, 1\nb, y, 2\n", TEXTS),
        ("a.csv", "user_id, item_id, timestamp\na,x,1\nb,y,2\n", TEXTS),
        ("a.csv", " user_id ,item_id ,timestamp\na,x,1\nb,y,2\n", TEXTS),
        ("a.csv", 'user_id, "item_id", timestamp\na, "x", 1\nb, "y", 2\n', TEXTS),
        ("a.csv", 'user_id,"item, id",timestamp\na,x,1\nb,y,2\n', TEXTS),
        ("a.csv", '"User ""ID""","item, id",timestamp\na,x,1\nb,y,2\n', TEXTS),
        ("a.csv", "User ID,Movie's ID;$HOME,timestamp,movie_id\na,z,1,x\nb,z,2,y\n", TEXTS),
        ("a.dat", "userID\titemID\ttimestamp\na\tx\t1\nb\ty\t2\n", TEXTS),
    ],
)
def test_the_advice_works_when_pasted(
    name: str, content: str, expected: list[tuple[object, ...]]
) -> None:
    assert rows(follow(write(name, content))) == expected


def test_a_separator_of_several_characters() -> None:
    quoted = write("a.csv", 'user_id, item_id\n"a, b", "c ""d"""\n"e\nf", g\n')
    assert rows(read_log(quoted, separator=", ")) == [("a, b", 'c "d"'), ("e\nf", "g")]
    section = write("b.csv", "user_id§item_id\na§x\n")
    assert rows(read_log(section, separator="§")) == [("a", "x")]
    with pytest.raises(InputError, match=r"c.csv: line 3: contains the control character '\\x1f'"):
        read_log(write("c.csv", "user_id, item_id\na, b\na, \x1fb\n"), separator=", ")


@pytest.mark.parametrize("separator", ["", '"', "\n", "\0", "\x1f"])
def test_characters_that_separate_nothing(separator: str) -> None:
    with pytest.raises(InputError, match="give one or more characters"):
        read_log(write("a.csv", "user_id,item_id\na,b\n"), separator=separator)


def test_a_separator_that_is_not_there() -> None:
    with pytest.raises(
        InputError, match="line 1 does not contain the separator ';': 'user_id,item"
    ):
        read_log(write("a.csv", "user_id,item_id\na,b\n"), separator=";")


# ---- positions -----------------------------------------------------------------------------------


def test_columns_by_position_keep_the_first_line() -> None:
    name = write("a.csv", "i6,u0,5.0,1700000000\ni7,u0,4.0,1700000060\n")
    log = read_log(name, columns={"user_id": 2, "item_id": 1, "timestamp": 4})
    assert rows(log) == [("u0", "i6", 1700000000), ("u0", "i7", 1700000060)]
    assert log.ordered_by == "4"
    with pytest.warns(UserWarning, match="4 looks like a time and is not used"):
        assert len(read_log(name, columns={"user_id": 2, "item_id": 1})) == 2


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        ("1,2,3\n", {"user_id": 1, "item_id": 9}, "line 1: no column 9, given by columns=; found: 1, 2, 3"),
        ("1,2,3\n", {"user_id": 1}, "line 1: no column item_id; found: 1, 2, 3"),
        ("1,2,3\n1,2\n", {"user_id": 1, "item_id": 2}, "line 2: expected 3 fields, found 2"),
        ("1,2\n,2\n", {"user_id": 1, "item_id": 2}, "line 2, column 1: the id is empty"),
        ("user_id,x\n1,2\n", {"user_id": 1, "item_id": 2}, "line 1 looks like names, not like data; pass columns={'user_id': 'user_id', 'item_id': 'x'}"),
        ("wer,was\n1,2\n3,4\n", {"user_id": 1, "item_id": 2}, "line 1 looks like names, not like data; pass columns={'user_id': 'wer', 'item_id': 'was'}"),
        ("u1,5.0,i1\n", {"user_id": "u1", "item_id": "i1"}, "line 1 looks like data, not like names; name the columns by position (1 'u1', 2 '5.0', 3 'i1')"),
    ],
)  # fmt: skip
def test_wrong_positions(content: str, columns: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"a.csv: {expected}")):
        read_log(write("a.csv", content), columns=columns)


def test_numbers_as_names() -> None:
    name = write("a.csv", "0,1,2\n5,6,7\n")  # as pandas writes a frame without names
    assert rows(read_log(name, columns={"user_id": "0", "item_id": "1"})) == [("5", "6")]
    frame = pd.DataFrame([[5, 6, 1_700_000_000]])
    log = read_log(frame, columns={"user_id": 0, "item_id": 1, "timestamp": 2})
    assert rows(log) == [(5, 6, 1_700_000_000)]


# ---- the text of --columns -----------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(["user_id", "item_id", "timestamp"]),
        st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable)
        | st.integers(0, 99),
        min_size=1,
    )
)
def test_what_a_message_says_is_what_is_parsed(columns: dict[str, str | int]) -> None:
    option, text = shlex.split(_option(columns).partition("(command line: ")[2][:-1])
    assert option == "--columns"
    assert parse_columns(text) == columns


def test_parse_columns() -> None:
    assert parse_columns(' user_id = a b ,item_id=2,timestamp="3"') == {
        "user_id": "a b", "item_id": 2, "timestamp": "3",
    }  # fmt: skip
    assert parse_columns("timestamp=") == {"timestamp": None}
    for text in (
        "user_id",
        "user_id=",
        "=a",
        "user_id=a,user_id=b",
        'user_id="a',
        'user_id=a"b',
        ",",
        "",
    ):
        with pytest.raises(InputError, match="write user_id=COLUMN"):
            parse_columns(text)


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, 257])
def test_an_id_has_at_most_256_bytes(size: int) -> None:
    name = "é" * 128 + "x" * (size - 256)
    sources = [
        write("a.csv", f"user_id,item_id\na,b\n{name},b\n"),
        pd.DataFrame({"user_id": ["a", name], "item_id": ["b", "b"]}),
    ]
    for source in sources:
        if size == 256:
            assert len(read_log(source)) == 2
            continue
        with pytest.raises(
            InputError, match=r"(line 3|row 2), column 'user_id': the id must have 1 to"
        ):
            read_log(source)


def test_a_column_of_objects_of_several_types() -> None:
    """Arrow crashes on some of them, and takes others for something else."""
    for ids, expected in (
        ([np.datetime64("2024-01-01"), np.int8(5)], "cannot read this DataFrame"),
        ([np.int8(5), None], "row 2, column 'user_id': the id is null"),
        ([1, "1"], "cannot read this DataFrame"),
        ([1, True], "cannot read this DataFrame"),
    ):
        users = pd.Series(ids, dtype=object)
        with pytest.raises(InputError, match=expected):
            read_log(pd.DataFrame({"user_id": users, "item_id": ["a", "b"]}))
    numbers = pd.Series([np.int8(5), np.uint64(6), 7], dtype=object)
    log = read_log(pd.DataFrame({"user_id": numbers, "item_id": ["a", "b", "c"]}))
    assert log.user_ids.to_pylist() == [5, 6, 7]


def test_an_id_has_no_nul() -> None:
    frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["c", "d\0"]})
    with pytest.raises(InputError, match="row 2, column 'item_id': the id contains a NUL"):
        read_log(frame)


@pytest.mark.parametrize("columns", ["user_id", ["user_id"], {"user_id": 1.5}, {"user_id": True}])
def test_columns_of_a_wrong_type_are_refused(columns: Any) -> None:
    write("log.csv", "user_id,item_id\na,x\n")
    with pytest.raises(InputError, match=r"columns.*: write|columns: the column of user_id is"):
        read_log("log.csv", columns=columns)


def test_positions_are_numbers_of_any_type_from_1() -> None:
    write("log.csv", "a,x\nb,y\n")
    assert rows(read_log("log.csv", columns={"user_id": np.int64(1), "item_id": np.int8(2)})) == [
        ("a", "x"),
        ("b", "y"),
    ]
    with pytest.raises(InputError, match="positions count from 1"):
        read_log("log.csv", columns={"user_id": 0, "item_id": 1})
