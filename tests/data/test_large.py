"""Preparation on disk gives the folder that preparation in memory gives, or the same error."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recblr.data import event_database
from recblr.data.large import prepare_large, suggest_limit
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.split import SPLITS
from recblr.errors import InputError

pytest.importorskip("duckdb")
SECOND = 1_600_000_000


def events(seed: int, count: int = 70) -> list[tuple[int, int, int]]:
    choose = random.Random(seed)
    return [(choose.randrange(7), choose.randrange(7), choose.randrange(13)) for _ in range(count)]


def frame(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")


def write(table: pl.DataFrame, path: Path) -> Path:
    table.write_csv(path) if path.suffix == ".csv" else table.write_parquet(path)
    return path


def assert_equal(log: Path, core: int = 1, split: str = "leave-one-out") -> Sequences:
    """Prepare a log on disk and in memory, and compare."""
    expected = prepare(read_log(log), core, split)
    folder = log.with_name("disk")
    assert prepare_large(log, folder, core, split) == expected.summary
    found = Sequences.load(folder)
    assert found.fingerprint == expected.fingerprint
    assert (found.core, found.split.name, found.summary) == (core, split, expected.summary)
    for name in ("items", "offsets", "times"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    expected.save(log.with_name("memory"))
    files = [{file.name for file in log.with_name(name).iterdir()} for name in ("disk", "memory")]
    assert files[0] == files[1]
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("core", [1, 3])
def test_equals_preparation_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: int, split: str
) -> None:
    # Blocks of 2,048 events, the smallest of DuckDB, and users that begin in one and end in the next.
    monkeypatch.setattr(event_database, "_BLOCK_EVENTS", 1)
    choose = random.Random(core)
    rows = [
        (choose.randrange(90), choose.randrange(900), choose.randrange(3000)) for _ in range(5000)
    ]
    table = frame(rows).with_columns(pl.format("ü{}", "user_id"))
    assert_equal(write(table, tmp_path / "log.csv"), core, split)


TABLES: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "newest first": lambda table: table.sort("timestamp", descending=True),
    "no times": lambda table: table.drop("timestamp"),
    "seconds": lambda table: table.with_columns(pl.col("timestamp") + SECOND),
    "decimals": lambda table: table.with_columns(pl.col("timestamp") / 4 + SECOND),
    "texts of whole numbers, then decimals, then nanoseconds": lambda table: table.with_columns(
        timestamp=pl.Series(
            f"{SECOND + time}" + ("" if row < 20 else ".5" if row < 40 else ".123456789")
            for row, time in enumerate(table["timestamp"])
        )
    ),
    "dates with nanoseconds": lambda table: table.with_columns(
        pl.from_epoch("timestamp", "s").cast(pl.Datetime("ns")) + pl.duration(nanoseconds=7)
    ),
    "places": lambda table: table.drop("timestamp").with_columns(
        order=pl.int_range(table.height, 0, -1)
    ),
    "equal places": lambda table: table.rename({"timestamp": "order"}),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.filterwarnings("ignore:.*(same number twice|decreas|in the order of the rows)")
def test_orders_and_times(tmp_path: Path, name: str) -> None:
    table = TABLES[name](frame(events(1)))
    found = assert_equal(write(table, tmp_path / "log.parquet"))
    assert ("newest first" in found.summary["order"]) == (name == "newest first")


@pytest.mark.parametrize("ending", ["", ".5", ".123456789"])
def test_a_folder_of_files_whose_times_have_ever_more_digits(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "log"
    for number, digits in enumerate(["", ".25"[: len(ending)], ending]):
        (folder / f"day={number}").mkdir(parents=True)
        times = pl.format(f"{{}}{digits}", pl.col("timestamp") + SECOND)
        write(frame(events(number)).with_columns(times), folder / f"day={number}" / "log.csv")
    found = assert_equal(folder, 2)
    assert ("nanoseconds" in found.summary["order"]) == (len(ending) > 4)


@pytest.mark.parametrize("split", ["leave-one-out", "time", "time-last"])
@pytest.mark.parametrize(
    "rows", [[(1, 1, 1)], [(1, 1, 1), (1, 2, 2)], [(1, 1, 1), (1, 2, 1), (2, 1, 1)]]
)
def test_the_same_errors(tmp_path: Path, rows: list[tuple[int, int, int]], split: str) -> None:
    log = write(frame(rows), tmp_path / "log.csv")
    with pytest.raises(InputError) as expected:
        prepare(read_log(log), 1, split)
    with pytest.raises(InputError) as found:
        prepare_large(log, tmp_path / "disk", 1, split)
    assert str(found.value) == str(expected.value)
    assert list(tmp_path.iterdir()) == [log]  # nothing is left behind


def test_a_wrong_value_has_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\n1,1,1\n1,2,x\n")
    with pytest.raises(InputError, match=r"log.csv: line 3, column 'timestamp'.*found 'x'"):
        prepare_large(log, tmp_path / "disk")
    with pytest.raises(InputError, match="memory limit '1 TB': write"):
        prepare_large(log, tmp_path / "disk", memory_limit="1 TB")
    assert list(tmp_path.iterdir()) == [log]


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    log = write(frame(events(0, 50_000)), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"within 1MB of memory.*give more memory"):
        prepare_large(log, tmp_path / "disk", memory_limit="1MB")
    assert list(tmp_path.iterdir()) == [log]


def test_only_large_logs_are_prepared_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(frame(events(0)), tmp_path / "log.csv")
    assert suggest_limit(str(log)) is suggest_limit("beauty") is suggest_limit("-") is None
    monkeypatch.setattr("os.sysconf", lambda name: 40)
    assert suggest_limit(str(log)) == suggest_limit(f"{tmp_path}/*.csv") == "1GB"
    monkeypatch.setattr("recblr.data.large.find_spec", lambda name: None)  # DuckDB is missing
    assert suggest_limit(str(log)) is None


def test_duckdb_prints_no_progress_of_its_own(tmp_path: Path) -> None:
    with event_database.open_database(tmp_path / "out", tmp_path, "500MB") as database:
        query = "SELECT value FROM duckdb_settings() WHERE name = 'enable_progress_bar'"
        assert database._value(query) == "false"
