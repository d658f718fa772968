"""The training benchmark: an epoch, its matrix products, and the parts of a step."""

from types import SimpleNamespace

import pytest
import torch

from recblr.benchmark.train import default_log, time_epoch, time_training
from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.training.config import TrainConfig
from recblr.training.examples import prefixes, training_histories
from recblr.training.trainer import Trainer

PARTS = {
    "matrix products", "recurrence", "convolution", "cross entropy", "dropout", "layer norm",
    "optimiser", "other",
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_epoch_is_timed(sequences: Sequences, device: str) -> None:
    result = time_epoch(sequences, TrainConfig(batch_size=300), torch.device(device))
    predicted = int((sequences.split.train_end - sequences.offsets[:-1] - 1).sum())
    assert result["batches"] == round(predicted / 300)
    assert result["estimated"] is False
    assert result["epoch_seconds"] * result["events_per_second"] == pytest.approx(predicted)
    assert result["epoch_seconds"] > result["products_seconds"] > 0
    assert result["times_products"] == result["epoch_seconds"] / result["products_seconds"]
    assert result["parts"].keys() == PARTS
    assert sum(result["parts"].values()) == pytest.approx(1)
    assert min(result["parts"].values()) > 0
    assert list(result["parts"].values()) == sorted(result["parts"].values(), reverse=True)


def test_both_kinds_of_examples(sequences: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recblr.benchmark.train.TrainConfig", lambda: TrainConfig(batch_size=300))
    result = time_training(sequences, torch.device("cpu"))
    assert result["items"] == len(sequences.item_ids)
    assert result["all_positions"]["estimated"] is False
    assert result["prefixes"]["parts"].keys() == PARTS
    assert result["evaluation_seconds"] > 0


def test_an_epoch_is_estimated_from_some_batches(
    sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that counts the trained events, the estimate must be exact."""
    clock = 0

    step = Trainer.step

    def count(self: Trainer, batch: PackedBatch, continues: bool, lr: float) -> None:
        nonlocal clock
        clock += len(batch.items)
        step(self, batch, continues, lr)

    monkeypatch.setattr(Trainer, "step", count)
    monkeypatch.setattr("recblr.benchmark.train.time", SimpleNamespace(perf_counter=lambda: clock))
    config = TrainConfig(examples="prefixes", batch_size=64, max_length=7)
    histories = training_histories(sequences)
    events = sum(int((stops - starts).sum()) for starts, stops in prefixes(histories, config, 0))
    for batches in (None, 1, 4):
        result = time_epoch(sequences, config, torch.device("cpu"), batches)
        assert result["estimated"] is (batches is not None)
        assert result["batches"] > 4
        assert result["epoch_seconds"] == pytest.approx(events)


def test_the_default_log_without_data_is_a_simulated_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBLR_DATA", "/nowhere")
    simulated = default_log()
    assert (simulated.users, len(simulated.item_ids)) == (6040, 3416)
    assert 0.9e6 < len(simulated.items) < 1.1e6
