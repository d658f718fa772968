"""Written logs and frames: what is read is what is written, or the log is refused."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given

from fuzz.frames import frames
from fuzz.meaning import UNITS, unit_of
from fuzz.outcomes import Outcomes, Result, fuzz
from fuzz.written_logs import TIME_NAMES, Written, read_plainly, same_time, written_logs
from recblr.data.log import Interactions, read_log


def check_log(log: Interactions, written: Written, warnings: list[str]) -> None:
    """The log has the ids, the times and the order of the file."""
    names, rows = read_plainly(written)
    asked = written.columns or {}
    chosen = {name: asked.get(name) or name for name in ("user_id", "item_id")}
    if log.ordered_by:
        chosen["timestamp"] = log.ordered_by
    columns = {name: [row[names.index(column)] for row in rows] for name, column in chosen.items()}
    if log.ordered_by and log.timestamps is None:  # the place of the event in its history
        users, place = columns["user_id"], columns.pop("timestamp")
        key = [(users.index(user), int(number)) for user, number in zip(users, place, strict=True)]
        in_order = sorted(range(len(rows)), key=key.__getitem__)
        columns = {name: [values[row] for row in in_order] for name, values in columns.items()}
    frame = log.to_polars()
    assert frame.height == len(rows)
    assert frame["user_id"].to_list() == columns["user_id"]
    assert frame["item_id"].to_list() == columns["item_id"]
    if log.timestamps is None:
        assert not {"timestamp", "datetime"} & {*names}, "a time is not left out"
        likely = [name for name in names if name in TIME_NAMES and name in str(log.unused_times)]
        assert all(any(repr(name) in text for text in warnings) for name in likely)
        return
    if chosen["timestamp"] not in ("timestamp", "datetime", asked.get("timestamp")):
        assert any(repr(log.ordered_by) in text for text in warnings), "a guess is said"
    for text, time in zip(columns["timestamp"], log.timestamps, strict=True):
        assert same_time(text, time, log.unit, log.dates), (text, time)
    if not log.dates:
        units = {unit_of(Decimal(str(text))) for text in columns["timestamp"]}
        assert len(units) == 1 or "" in units, "units are mixed"
        assert warnings or not log.unit or "" not in units, "a time outside of our days is said"


def check_frame(log: Interactions, columns: dict[str, list[Any]], warnings: list[str]) -> None:
    """The log has the values that the frame was made from."""
    frame = log.to_polars()
    assert frame["user_id"].to_list() == columns["user_id"]
    assert frame["item_id"].to_list() == columns["item_id"]
    assert log.timestamps is not None
    for value, time in zip(columns["timestamp"], log.timestamps, strict=True):
        if isinstance(value, str) or hasattr(value, "isoformat"):
            text = value if isinstance(value, str) else value.isoformat()
            is_date = "-" in text[1:]
            assert same_time(text, time, log.unit, is_date), (text, time)
        elif isinstance(value, np.datetime64):
            assert int(time) * UNITS[log.unit] == int(value.astype("datetime64[ns]").astype(int))
        else:
            value = value.item() if hasattr(value, "item") else value
            assert same_time(Decimal(value), time, log.unit, False), (value, time)
    kinds = {type(value) for value in columns["timestamp"]}
    assert warnings or kinds != {np.float32} or max(columns["timestamp"]) < 2**24


def test_frames(keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(4000)
    @given(frames())
    def test(made: tuple[Any, dict[str, list[Any]]]) -> None:
        frame, columns = made
        outcome = outcomes.of(lambda: read_log(frame))
        if isinstance(outcome, Result):
            check_frame(outcome.value, columns, outcome.warnings)
        else:
            assert "<frame>" in outcome

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of frames", **outcomes.figures())


def test_text(tmp_path: Path, keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(8000)
    @given(written_logs())
    def test(written: Written) -> None:
        path = tmp_path / f"log.{written.ending}"
        path.write_bytes(written.body)
        outcome = outcomes.of(lambda: read_log(path, columns=written.columns))
        if isinstance(outcome, Result):
            check_log(outcome.value, written, outcome.warnings)
        else:
            assert str(path) in outcome

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of text logs", **outcomes.figures())
