"""Who finds an event far back: counted by hand, and kept and shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.data.batches import PackedBatch
from recblr.models.model import Model
from recblr.paper.distances import LOG, Distances, answers_right
from recblr.paper.studies import STUDIES

RECALL = AssociativeRecall(distances=(3, 9, 9), brands=4, others=5, users=(20, 4, 30))


class Remembering(Model):
    """Scores the brand last seen within ``reach`` events highest; below it all are alike."""

    def __init__(self, reach: int) -> None:
        super().__init__(10, None)
        self.reach = reach

    @property
    def item_embeddings(self) -> Tensor:
        return torch.eye(10)

    def hidden(self, batch: PackedBatch) -> Tensor:
        found = torch.zeros(len(batch.positions), 10)
        for row, position in zip(found, batch.positions.tolist(), strict=True):
            history = batch.items[: position + 1].tolist()
            for item in history[-self.reach :]:
                if item < 4:
                    row[item] = 1
        return found


@pytest.mark.parametrize(
    ("reach", "right"), [(2, {3: 0, 9: 0}), (3, {3: 1, 9: 0}), (8, {3: 1, 9: 0}), (9, {3: 1, 9: 1})]
)
def test_shares_are_of_what_a_model_can_see(reach: int, right: dict[int, float]) -> None:
    """From the event before a purchase the one before lies ``distance`` events back, itself counted."""
    assert answers_right(Remembering(reach), RECALL) == right


def test_equal_scores_are_not_right() -> None:
    assert answers_right(Remembering(1), RECALL) == {3: 0, 9: 0}  # sees the question alone


def smoke() -> Distances:
    study = STUDIES["lengths"]
    assert isinstance(study, Distances)
    return study.smoke()


def test_a_run_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = smoke()
    (cell,) = [cell for cell in study.cells((0,), "cpu") if cell.row == "RecBLR"]
    assert cell.find(tmp_path) is None
    record = cell.make(tmp_path, "a command", "cpu")
    assert cell.find(tmp_path) == record
    assert list(record["right"]) == ["4", "8", "80"]
    assert all(0 <= share <= 1 for share in record["right"].values())
    other = replace(study, recall=replace(study.recall, brands=3))
    assert [cell.find(tmp_path) for cell in other.cells((0,), "cpu")] == [None] * 4


def test_a_model_without_a_state_is_not_asked_beyond_its_length(tmp_path: Path) -> None:
    (cell,) = [cell for cell in smoke().cells((0,), "cpu") if cell.row == "SASRec"]
    assert list(cell.make(tmp_path, "a command", "cpu")["right"]) == ["4", "8"]


def record(right: dict[str, float]) -> dict[str, Any]:
    return {"right": right, "seconds": 2.0}


def test_the_page_says_how_far_each_one_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = smoke()
    found = {
        "recblr": record({"4": 1.0, "8": 0.95, "80": 0.9}),
        "lrurec": record({"4": 1.0, "8": 0.5, "80": 1.0}),
        "sasrec": record({"4": 0.2, "8": 0.1}),
    }
    monkeypatch.setattr(Distances, "_find", lambda self, model, seed, folder: found.get(model))
    report = study.report(tmp_path, (0,), {(LOG, "GRU4Rec"): "no run"})
    assert report.headline == (
        "SASRec does not find it; LRURec finds it 4 events back; RecBLR finds it 80 events back"
    )
    assert "| SASRec" in report.summary
    assert "cannot" in report.summary
    assert "GRU4Rec" in report.summary
    assert "not measured: no run" in report.summary
    assert report.data["rows"]["SASRec"]["right"] == [0.2, 0.1, None]
    assert "- GRU4Rec: not measured: no run" in report.summary
    assert study.report(tmp_path, (), {(LOG, "RecBLR"): "why"}).summary == (
        "- RecBLR: not measured: why"
    )


def test_shares_of_several_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {0: 0.9, 1: 1.0}
    monkeypatch.setattr(
        Distances, "_find",
        lambda self, model, seed, folder: record({"4": 1.0, "8": shares[seed]})
        if model == "sasrec" else None,
    )  # fmt: skip
    report = smoke().report(tmp_path, (0, 1), {})
    assert "| SASRec        | 100.0%        | 95.0% ± 7.1%  | cannot " in report.summary
    assert report.headline == "SASRec finds it 8 events back"


def test_the_log_is_the_one_that_is_trained_on() -> None:
    study = smoke()
    assert study.open(LOG).fingerprint == simulate_recall(study.recall)[0].fingerprint
