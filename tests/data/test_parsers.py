"""The formats of the public data sets, and what is reported of broken files."""

import gzip
from pathlib import Path

import pytest

from data.fixtures import EXPECTED, ORIGINALS, packed, put, put_original, rows, zipped
from recblr.data import parsers
from recblr.data.datasets import dataset, load_dataset
from recblr.errors import InputError


@pytest.mark.parametrize("name", ORIGINALS)
def test_reads_the_original_format(data_folder: Path, name: str) -> None:
    put_original(data_folder, name, ORIGINALS[name][0])
    log = load_dataset(name)
    assert sorted(rows(log)) == sorted(EXPECTED[name])
    assert str(data_folder) in log.source


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("broken", ["format", "empty line", "not text"])
def test_a_broken_line_is_named(data_folder: Path, name: str, broken: str) -> None:
    good, bad = ORIGINALS[name]
    wrong = {"format": bad, "empty line": "\n", "not text": "\0\n"}[broken]
    put_original(data_folder, name, good + wrong + good)
    number = len(good.splitlines()) + 1
    with pytest.raises(InputError, match=rf"{dataset(name).files[0]}, line {number}: ") as error:
        load_dataset(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["\t242\t3\t881250949\n", "196\t\t3\t881250949\n"])
def test_an_empty_id_is_no_id(data_folder: Path, line: str) -> None:
    put(data_folder, "ml-100k", line)
    with pytest.raises(InputError, match="line 1: "):
        load_dataset("ml-100k")


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_file_without_lines(data_folder: Path, name: str) -> None:
    put_original(data_folder, name, "")
    with pytest.raises(
        InputError, match=rf"{dataset(name).files[-1]}, line 0: '' is not a valid line"
    ):
        load_dataset(name)


def test_bytes_that_are_no_text(data_folder: Path) -> None:
    with gzip.open(data_folder / "loc-gowalla_totalCheckins.txt.gz", "wb") as file:
        file.write(
            b"0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t1\n\xff\t2010-10-19T23:55:27Z\t0\t0\t2\n"
        )
    with pytest.raises(InputError, match="line 2: "):
        load_dataset("gowalla")


def test_the_header_of_the_csv_is_checked(data_folder: Path) -> None:
    put(data_folder, "ml-latest-small", "1,31,2.5,1260759144\n2,1029,3.0,1260759179\n")
    with pytest.raises(InputError, match="line 1: '1,31"):
        load_dataset("ml-latest-small")


def test_gowalla_keeps_the_latest_check_in_at_a_place(data_folder: Path) -> None:
    visits = [("a", 5, "x"), ("a", 4, "y"), ("a", 3, "x"), ("b", 1, "x"), ("b", 2, "x")]
    text = "".join(f"{u}\t2010-01-01T00:00:0{t}Z\t0\t0\t{p}\n" for u, t, p in visits)
    put(data_folder, "gowalla", text)
    start = 1262304000
    expected = [("b", "x", start + 2), ("a", "y", start + 4), ("a", "x", start + 5)]
    assert rows(load_dataset("gowalla")) == expected


def test_gowallas_file_runs_backwards_within_a_second_too(data_folder: Path) -> None:
    def events(visits: str) -> str:
        return "".join(f"{u}\t2010-01-01T00:00:0{t}Z\t0\t0\t{p}\n" for u, t, p in visits.split())

    put(data_folder, "gowalla", events("a5x a5y a4z"))
    assert [item for _, item, _ in rows(load_dataset("gowalla"))] == ["z", "y", "x"]
    put(data_folder, "gowalla", events("a5x a5y a5x a5z a5y"))  # a place: its first line
    assert [item for _, item, _ in rows(load_dataset("gowalla"))] == ["z", "y", "x"]


def test_xlong_takes_the_last_line_of_a_user(data_folder: Path) -> None:
    (data_folder / "train_corpus_total_dual.txt").write_text("1\tu\t1,2\t3\t0\n1\tv\t7\t8\t0\n")
    (data_folder / "test_corpus_total_dual.txt").write_text("2\tu\t2,3\t4\t0\n")
    log = load_dataset("xlong")
    assert rows(log) == [
        *[("v", "7", 0), ("v", "8", 1)],
        *[("u", "2", 0), ("u", "3", 1), ("u", "4", 2)],
    ]


def test_xlong_samples_users_the_same_every_time(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsers, "XLONG_USERS", 10)
    lines = [f"1\tu{number}\t1\t2\t0\n" for number in range(100)]

    def sample(lines: list[str]) -> set[str]:
        put_original(data_folder, "xlong", "".join(lines))
        return set(load_dataset("xlong").user_ids.to_pylist())

    first = sample(lines)
    assert len(first) == 10
    assert sample(lines[::-1]) == first
    monkeypatch.setattr(parsers, "XLONG_SEED", 1)
    assert sample(lines) != first


@pytest.mark.parametrize("damage", ["cut off", "wrong member", "no archive"])
@pytest.mark.parametrize("name", ["ml-100k", "gowalla"])
def test_a_damaged_archive(data_folder: Path, name: str, damage: str) -> None:
    record = dataset(name)
    good = packed(name, ORIGINALS[name][0] * 1000)
    other = zipped("readme", "") if record.member else good[:-4] + b"oops"  # gzip: its checksum
    bad = {"cut off": good[:-20], "wrong member": other, "no archive": b"<html>"}[damage]
    (data_folder / record.files[0]).write_bytes(bad)
    with pytest.raises(InputError, match=rf"{record.files[0]} is damaged \(.+\); delete it"):
        load_dataset(name)
