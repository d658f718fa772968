"""Who learns an event far back: counted by hand, and kept and shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.data.batches import PackedBatch
from recblr.models.model import Model
from recblr.paper.distances import DistanceRun, Distances, answers_right
from recblr.paper.logs import open_dataset, recall
from recblr.paper.report import Report
from recblr.paper.studies import STUDIES

RECALL = AssociativeRecall(distances=(3, 9, 9), brands=4, others=5, users=(20, 4, 30))
SMALL = STUDIES["lengths"].small()
assert isinstance(SMALL, Distances)


class Remembering(Model):
    """Scores the brand last seen within ``reach`` events highest; below it all are alike."""

    def __init__(self, reach: int) -> None:
        super().__init__(10, None)
        self.reach = reach

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def item_embeddings(self) -> Tensor:
        return torch.eye(10)

    def hidden(self, batch: PackedBatch) -> Tensor:
        hidden = torch.zeros(len(batch.positions), 10)
        for row, position in zip(hidden, batch.positions.tolist(), strict=True):
            history = batch.items[: position + 1].tolist()
            for item in history[-self.reach :]:
                if item < 4:
                    row[item] = 1
        return hidden


@pytest.mark.parametrize(
    ("reach", "right"), [(2, {3: 0, 9: 0}), (3, {3: 1, 9: 0}), (8, {3: 1, 9: 0}), (9, {3: 1, 9: 1})]
)
def test_shares_are_of_what_a_model_can_see(reach: int, right: dict[int, float]) -> None:
    """From the event before a purchase the one before lies ``distance`` events back, itself counted."""
    assert answers_right(Remembering(reach), RECALL) == right


def test_equal_scores_are_not_right() -> None:
    assert answers_right(Remembering(1), RECALL) == {3: 0, 9: 0}  # sees the question alone


def test_a_run_is_kept_and_found_again(tmp_path: Path) -> None:
    (run,) = (run for run in SMALL.measurements((0,), "cpu") if run.row == "RecBLR")
    assert run.find(tmp_path) is None
    record = run.make(tmp_path, "a command", "cpu")
    assert run.find(tmp_path) == record
    assert list(record["right"]) == ["4", "8", "80"]
    assert all(0 <= share <= 1 for share in record["right"].values())
    assert replace(run, farther=[90]).find(tmp_path) is None


def test_a_model_without_a_state_is_not_tested_beyond_its_length(tmp_path: Path) -> None:
    (run,) = (run for run in SMALL.measurements((0,), "cpu") if run.row == "SASRec")
    assert list(run.make(tmp_path, "a command", "cpu")["right"]) == ["4", "8"]


def report(
    monkeypatch: pytest.MonkeyPatch, records: dict[tuple[str, int], dict[str, float]],
    missing: Any = None,
) -> Report:  # fmt: skip
    def find(run: DistanceRun, folder: Path) -> Any:
        right = records.get((run.row, run.seed))
        return right and {"right": right, "seconds": 2.0}

    monkeypatch.setattr(DistanceRun, "find", find)
    return SMALL.report(Path(), (0, 1), missing or {})


def test_the_page_says_how_far_back_each_model_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {
        ("RecBLR", 0): {"4": 1.0, "8": 0.95, "80": 0.9},
        ("LRURec", 0): {"4": 1.0, "8": 0.5, "80": 1.0},
        ("SASRec", 0): {"4": 0.2, "8": 0.1},
    }
    result = report(monkeypatch, records, {("recall-small", "GRU4Rec"): "not run"})
    assert result.headline == (
        "events back with nine of ten answers right: SASRec 0, LRURec 4, RecBLR 80"
    )
    assert result.sentences == [f"recall-small: {result.headline}."]
    cells = [[*map(str.strip, line.split("|"))][1:-1] for line in result.table.splitlines()]
    assert cells[0] == ["model", "4", "8", "80", "seconds", "seeds", "note"]
    assert cells[2:4] == [
        ["GRU4Rec", "", "", "", "", "", "not measured: not run"],
        ["SASRec", "20.0%", "10.0%", "cannot", "2.00", "1", ""],
    ]
    assert result.data["right"]["SASRec"] == {4: 0.2, 8: 0.1}


def test_shares_of_several_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {("SASRec", seed): {"4": 1.0, "8": share} for seed, share in enumerate((0.9, 1.0))}
    missing = dict.fromkeys((("recall-small", row) for row in SMALL.rows), "not run")
    result = report(monkeypatch, records, missing)
    assert "| SASRec  | 100.0% ± 0.0% | 95.0% ± 7.1% | cannot | 2.00    | 2 " in result.table
    assert result.headline.endswith("right: SASRec 8")


def test_the_data_set_is_that_of_the_simulation() -> None:
    data = open_dataset("recall-small")
    assert data.fingerprint == simulate_recall(recall("recall-small"))[0].fingerprint
