"""The named data sets: where they are looked up, and in which order their events come."""

import gzip
import hashlib
import os
import re
from pathlib import Path

import polars as pl
import pytest

from data.fixtures import ORIGINALS, pairs, put, rows
from recblr.data import datasets, open_log
from recblr.data.datasets import DATASETS, cache_folder, dataset, load_dataset
from recblr.data.preparing import prepare
from recblr.errors import InputError

REAL = os.environ.get("RECBLR_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="RECBLR_DATA is unset: no real data here")


def write_converted(path: Path, user: str) -> None:
    frame = pl.DataFrame({"user_id": [user, user], "item_id": ["b", "a"], "order": [0, 1]})
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".inter":
        path.write_text(
            f"user_id:token\titem_id:token\ttimestamp:float\n{user}\tb\t0\n{user}\ta\t1\n"
        )
    else:
        text = frame.write_csv(separator="\t").encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def test_looks_in_the_folder_then_in_the_cache(data_folder: Path) -> None:
    name = "ml-100k"
    put(cache_folder(), name, "cache\t1\t1\t1\n")
    assert rows(load_dataset(name)) == [("cache", "1", 1)]
    put(data_folder, name, "data\t1\t1\t1\n")
    assert rows(load_dataset(name)) == [("data", "1", 1)]
    for suffix in reversed(datasets.CONVERTED):  # the first of them wins
        write_converted(data_folder / (name + suffix), user=suffix)
        assert pairs(load_dataset(name)) == [(suffix, "b"), (suffix, "a")]


def test_a_place_in_the_history_is_no_time(data_folder: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["c", "a", "b"], "order": [2, 0, 1]})
    frame.write_csv(data_folder / "ml-100k.csv")
    log = load_dataset("ml-100k")
    assert pairs(log) == [("u", "a"), ("u", "b"), ("u", "c")]
    assert log.timestamps is None
    for split in ("time", "time-last"):
        with pytest.raises(InputError, match="needs a timestamp column"):
            prepare(log, split=split)


def test_a_converted_file_with_timestamps(data_folder: Path) -> None:
    text = "user_id\titem_id\ttimestamp\torder\n01\tx\t50\t0\n"
    (data_folder / "beauty.tsv").write_text(text)
    assert rows(load_dataset("beauty")) == [("01", "x", 50)]


@pytest.mark.parametrize("suffix", datasets.CONVERTED)
def test_a_damaged_converted_file(data_folder: Path, suffix: str) -> None:
    (data_folder / f"beauty{suffix}").write_bytes(b"\xff\xfe damaged \0")
    with pytest.raises(InputError, match=f"beauty{re.escape(suffix)}"):
        load_dataset("beauty")


def test_a_folder_that_is_not_there(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBLR_DATA", str(data_folder / "nowhere"))
    with pytest.raises(InputError, match=r"RECBLR_DATA: .*nowhere is not a folder"):
        load_dataset("ml-100k")


def test_data_sets_one_has_to_fetch_oneself(data_folder: Path) -> None:
    with pytest.raises(InputError, match=r"login: get it at https://tianchi.*/22482; put train_"):
        load_dataset("xlong")
    (data_folder / "train_corpus_total_dual.txt").write_text(ORIGINALS["xlong"][0])
    with pytest.raises(InputError, match=r"and test_corpus_total_dual\.txt in a folder"):
        load_dataset("xlong")
    with pytest.raises(InputError, match=r"put gowalla-10core\.tsv\.gz in a folder"):
        load_dataset("gowalla-10core")


def test_names() -> None:
    assert set(DATASETS) == {*ORIGINALS, "gowalla-10core"}
    assert dataset("ml-1m").files == dataset("ml-1m-recbole").files == ("ml-1m.zip",)
    assert all(dataset(name).core == 5 and dataset(name).credit for name in DATASETS)
    with pytest.raises(InputError, match=r"'ML1M'; did you mean ml-1m"):
        dataset("ML1M")
    with pytest.raises(InputError, match=r"'qqq'; there are ml-100k, .*, xlong$"):
        load_dataset("qqq")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECBLR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "recblr"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "recblr"
    monkeypatch.setenv("RECBLR_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("RECBLR_CACHE", "redis://127.0.0.1")
    with pytest.raises(
        InputError, match=r"^RECBLR_CACHE=redis://127.0.0.1: is a URL; give a folder"
    ):
        load_dataset("ml-1m")


# User 2 comes first. For float32, times from 978300705 to 978300767 are 978300736.
TIED = [
    ("2", "b", 978300900),
    ("1", "a", 978300750),
    ("2", "c", 978300760),
    ("2", "a", 978300760),
    ("2", "d", 978300710),
    ("1", "e", 978300749),
]


def put_tied(folder: Path, kind: str) -> None:
    if kind == "original":
        put(folder, "ml-1m", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in TIED))
    elif kind == "times":
        frame = pl.DataFrame(TIED, ["user_id", "item_id", "timestamp"], orient="row")
        frame.write_csv(folder / "ml-1m-times.tsv", separator="\t")
    else:
        order = [
            ("2", "d", 0),
            ("2", "c", 1),
            ("2", "a", 2),
            ("2", "b", 3),
            ("1", "e", 0),
            ("1", "a", 1),
        ]
        frame = pl.DataFrame(order, ["user_id", "item_id", "order"], orient="row")
        frame.write_csv(folder / "ml-1m.tsv", separator="\t")


@pytest.mark.parametrize("kind", ["original", "times", "order"])
def test_ml_1m_is_in_order_of_user_and_time(data_folder: Path, kind: str) -> None:
    put_tied(data_folder, kind)
    log = load_dataset("ml-1m")
    expected = [("2", "d"), ("2", "c"), ("2", "a"), ("2", "b"), ("1", "e"), ("1", "a")]
    assert pairs(log) == expected
    if kind != "order":
        assert sorted(rows(log)) == sorted(TIED)
    assert log.user_ids.to_pylist() == ["2", "1"]
    assert log.item_ids.to_pylist() == ["d", "c", "a", "b", "e"]  # as they now appear
    assert str(data_folder) in log.source


@pytest.mark.parametrize("kind", ["original", "times"])
def test_ml_1m_recbole_is_in_order_of_user_and_float32_time(data_folder: Path, kind: str) -> None:
    put_tied(data_folder, kind)
    log = load_dataset("ml-1m-recbole")
    assert rows(log) == [
        ("2", "c", 978300736),
        ("2", "a", 978300736),
        ("2", "d", 978300736),
        ("2", "b", 978300928),
        ("1", "a", 978300736),
        ("1", "e", 978300736),
    ]
    assert log.item_ids.to_pylist() == ["c", "a", "d", "b", "e"]


def test_ml_1m_prefers_times_and_its_recbole_order_needs_them(data_folder: Path) -> None:
    put(data_folder, "ml-1m", "zip::x::4::978300760\n")
    put_tied(data_folder, "order")
    assert Path(load_dataset("ml-1m").source).name == "ml-1m.tsv"
    assert rows(load_dataset("ml-1m-recbole")) == [("zip", "x", 978300736)]
    put_tied(data_folder, "times")
    for name in ("ml-1m", "ml-1m-recbole"):
        assert Path(load_dataset(name).source).name == "ml-1m-times.tsv"


def test_a_log_without_times_is_in_order_as_it_is(data_folder: Path) -> None:
    (data_folder / "ml-1m.tsv").write_text("user_id\titem_id\n1\tb\n2\ta\n1\ta\n")
    log = load_dataset("ml-1m")
    assert log.timestamps is None
    assert log.items.tolist() == [0, 1, 1]


# The real data, where there is some


@needs_data
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [
        ("ml-1m", 6_040, 3_416, 999_611),
        ("ml-1m-recbole", 6_040, 3_416, 999_611),
        ("beauty", 22_363, 12_101, 198_502),
        ("sports", 35_598, 18_357, 296_337),
    ],
)
def test_counts_are_those_of_table_2(name: str, users: int, items: int, events: int) -> None:
    data = open_log(name)
    assert (data.users, len(data.item_ids), len(data.items)) == (users, items, events)
    hashes = dict(line.split()[::-1] for line in Path(REAL, "SHA256SUMS").read_text().splitlines())
    source = Path(data.summary["source"])
    assert hashlib.sha256(source.read_bytes()).hexdigest() == hashes[source.name]


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "fingerprint"),
    [
        ("ml-1m", "ml-1m-times.tsv.gz", "bb5a95ec99447154"),
        ("ml-1m", "ml-1m.tsv.gz", "bb5a95ec99447154"),
        ("ml-1m-recbole", "ml-1m-times.tsv.gz", "e294f47a33a2feee"),
    ],
)
def test_ml_1m_is_the_log_the_figures_were_measured_on(
    data_folder: Path, name: str, file: str, fingerprint: str
) -> None:
    (data_folder / file).symlink_to(Path(REAL, file).resolve())
    assert open_log(name).fingerprint == fingerprint


@needs_data
def test_gowalla_10core_is_a_data_set_of_its_own() -> None:
    log = load_dataset("gowalla-10core")
    assert (len(log.user_ids), len(log.item_ids), len(log.users)) == (29_858, 40_981, 1_027_370)
