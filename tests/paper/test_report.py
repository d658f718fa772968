"""Pages: tables that are aligned, provenance in a line, the size of the data sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from recblr.paper import counts
from recblr.paper.counts import Counts
from recblr.paper.report import measured_on, number, p_value, reason, table, write_index

ABOUT: dict[str, Any] = {
    "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def test_a_table_is_aligned() -> None:
    assert table(["a", "long"], [["word", "1"], ["", "22"]]) == (
        "| a    | long |\n| ---- | ---- |\n| word | 1    |\n|      | 22   |"
    )
    assert table(["a"], []) == "| a   |\n| --- |"


def test_numbers() -> None:
    assert [number(it) for it in (None, 0.01234, 1.0, 99.95, 100.4, 12345.6)] == [
        "", "0.0123", "1", "100", "100", "12,346",
    ]  # fmt: skip
    assert [p_value(p) for p in (0.0009, 0.01, 1.0)] == ["p < 0.001", "p = 0.010", "p = 1.000"]
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(ValueError()) == "ValueError"
    error = ValueError("no download from a.org (<urlopen error [Errno -2]>); try again")
    assert reason(error) == "no download from a.org"


def test_when_and_on_what() -> None:
    assert measured_on([]) == ""
    assert measured_on([ABOUT]) == "2026-11-21, AMD, torch 2.13.0; commit abc."
    other = ABOUT | {"gpu": "H200", "commit": None, "versions": {"torch": "2.11.0"}}
    days = [ABOUT | {"date": f"2026-11-{day}T00:00"} for day in (23, 25)]
    assert measured_on([ABOUT, other, *days]) == (
        "2026-11-21 to 2026-11-25, AMD, H200, torch 2.11.0, torch 2.13.0; commits abc, unknown."
    )


def test_the_index(tmp_path: Path) -> None:
    content = {"command": "recblr reproduce b", "headline": "0.5", "verdict": "Good.",
               "measured": "today", "title": "Table B"}  # fmt: skip
    results = tmp_path / "results"
    results.mkdir()
    (results / "b.json").write_text(json.dumps(content))
    write_index(["a", "b"], results, tmp_path / "README.md")
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[-2:] == [
        "| `recblr reproduce a` |  | not run yet |  |  |",
        "| `recblr reproduce b` | 0.5 | Good. | today | [Table B](results/b.md) |",
    ]


def test_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Log:
        summary = {"kept": {"users": 10, "items": 7, "interactions": 85}}  # noqa: RUF012

    monkeypatch.setattr(counts, "open_dataset", lambda name: Log)
    study = Counts(
        "Sizes",
        ("same", "other", "more", "gone"),
        {"same": (10, 7, 85, 8.5), "other": (10, 7, 85, 8.6), "gone": (1, 2, 3, 4.0)},
        {"other": "a remark"},
    )
    for cell in study.cells((0, 1), "cpu")[:3]:
        assert cell.find(tmp_path) is None
        assert cell.make(tmp_path, "recblr", "cpu") == cell.find(tmp_path)
    found = study.report(tmp_path, (0,), {("gone", "gone"): "no data"})
    assert found.verdict == "Of 3 data sets of the paper: 1 equal, 1 unlike, 1 not measured."
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in found.summary.splitlines()
    ]
    assert cells[2:] == [
        ["same", "10 / 10", "7 / 7", "85 / 85", "8.5 / 8.5", "equal"],
        ["other", "10 / 10", "7 / 7", "85 / 85", "8.5 / 8.6", "unlike; a remark"],
        ["more", "10", "7", "85", "8.5", ""],
        ["gone", "- / 1", "- / 2", "- / 3", "- / 4.0", "not measured: no data"],
    ]
    assert found.headline == "same equal, other unlike"
