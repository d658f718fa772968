"""Tables that are aligned, numbers, provenance in a line, and the index."""

import json
from pathlib import Path
from typing import Any

from recblr.paper.report import measured_on, table, write_index

ABOUT: dict[str, Any] = {
    "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def test_a_table_is_aligned_and_leaves_out_empty_columns() -> None:
    lines = [{"a": "word", "best_one": 1}, {"best_one": 22, "gone": ""}]
    assert table(["a", "gone", "best_one"], lines) == (
        "| a    | best one |\n| ---- | -------- |\n| word | 1        |\n|      | 22       |"
    )
    assert table({"a": "first", "gone": "last"}, [{"a": "x"}]) == "| first |\n| ----- |\n| x     |"
    assert table(["a"], []) == ""


def test_values_as_text() -> None:
    def text(value: Any, key: str = "") -> str:
        return table([key], [{key: value}]).splitlines()[-1].strip("| ")

    numbers = [0.01234, 0.5, 1.0, 99.94, 100.44, 12345.6, 12345, 0]
    assert [text(number) for number in numbers] == [
        "0.0123", "0.5000", "1.00", "99.9", "100.4", "12,346", "12,345", "0",
    ]  # fmt: skip
    assert text([0.1, -0.25]) == "0.1000 to -0.2500"
    assert text({"weight": 1.5, "scale": 10.0}) == "weight 1.5, scale 10"
    assert [text(12.34, "percent"), text(-0.00012, "ahead")] == ["+12.3", "-0.0001"]
    assert [text(p, "p") for p in (1.0, 0.0123, 1.2e-20)] == ["1", "0.012", "1.2e-20"]
    assert table(["x"], [{"x": None}]) == ""


def test_when_and_on_what() -> None:
    assert measured_on([]) == ""
    assert measured_on([ABOUT]) == "2026-11-21, AMD, torch 2.13.0; commit abc."
    other = ABOUT | {"gpu": "H200", "commit": None, "versions": {"torch": "2.11.0"}}
    days = [ABOUT | {"date": f"2026-11-{day}T00:00"} for day in (23, 25)]
    assert measured_on([ABOUT, other, *days]) == (
        "2026-11-21 to 2026-11-25, AMD, H200, torch 2.11.0, torch 2.13.0; commits abc, unknown."
    )


def test_the_index(tmp_path: Path) -> None:
    content = {"command": "recblr reproduce b", "headline": "0.5", "title": "Table B"}
    results = tmp_path / "results"
    results.mkdir()
    (results / "b.json").write_text(json.dumps(content))
    write_index(["a", "b"], results, tmp_path / "README.md")
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [[*map(str.strip, line.split("|"))][1:-1] for line in lines[4:6]] == [
        ["", "`recblr reproduce a`", "not run"],
        ["[Table B](results/b.md)", "`recblr reproduce b`", "0.5"],
    ]
