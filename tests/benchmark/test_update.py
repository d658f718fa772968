"""Compare updates with training anew."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cli.fixtures import Run
from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from data.builders import histories
from recblr.benchmark.update import _piece, time_updates
from recblr.data.log import Interactions
from recblr.errors import InputError

NAMES = ("before", "memory only", "update", "anew")


def test_every_way_is_measured(interactions: Interactions) -> None:
    settings = {"model": asdict(TINY_MODEL), "train": asdict(replace(TINY_TRAINING, epochs=1))}
    result = time_updates(interactions, settings, (2,), "cpu", pieces=4)
    (row,) = result["rows"]
    assert row["known"] == 2
    assert 0 < row["new"]["events"] <= len(interactions) / 4 + 1
    assert len({row[name]["targets"] for name in NAMES}) == 1
    assert all(0 <= row[name]["NDCG@10"] <= 1 for name in NAMES)
    assert all(row[name]["known"] <= row["anew"]["known"] <= 1 for name in NAMES)
    assert {name: [key for key in row[name] if "seconds" in key] for name in NAMES} == {
        "before": ["fit_seconds", "refit_seconds"], "memory only": ["update_seconds"],
        "update": ["update_seconds"], "anew": ["fit_seconds", "refit_seconds"],
    }  # fmt: skip


def test_targets_are_later_events_with_their_whole_histories(tiny: Tiny) -> None:
    frame = tiny.frame.sort("timestamp", maintain_order=True)
    data = _piece(frame, 600, 900)
    wanted = []
    for user, events in frame[:900].group_by("user_id", maintain_order=True):
        items, times = events["item_id"].to_list(), events["timestamp"].to_list()
        later = [n for n, time in enumerate(times) if n and time > frame["timestamp"][599]]
        wanted += [items[: number + 1] for number in later]
        assert user
    assert sorted(histories(data).values()) == sorted(wanted)
    assert np.array_equal(data.split.test, data.offsets[1:] - 1)


def test_a_log_without_times_is_refused(interactions: Interactions) -> None:
    with pytest.raises(InputError, match="has no times"):
        time_updates(replace(interactions, timestamps=None), {})


def test_the_command_prints_a_table(
    run: Run, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {name: {"NDCG@10": 0.5, "targets": 3, "known": 1.0, "fit_seconds": 1.0} for name in NAMES}
    result = {"rows": [{"known": 8, "new": {}, **row}]}
    monkeypatch.setattr("recblr.benchmark.update.time_updates", lambda *arguments: result)
    printed = run("bench", "update", tiny.log, "--set", "train.epochs=1").out.splitlines()
    assert [line.split() for line in printed[1:]] == [
        ["8", *name.split(), "0.5000", "1.0"] for name in NAMES
    ]
