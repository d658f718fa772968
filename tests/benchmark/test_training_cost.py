"""What training costs: scaled from some batches, and the peak of memory."""

from pathlib import Path

import pytest
import torch

from recblr.benchmark.training_cost import _peak_mib, measure
from recblr.data.preparing import prepare
from recblr.data.simulate import Shop, simulate_shop
from recblr.recommender import Recommender

SETTINGS = {
    "model": {"dim": 16},
    "train": {"examples": "prefixes", "max_length": 8, "batch_size": 64},
    "memory": {"enabled": False},
}


def test_an_epoch_is_scaled_from_some_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 6.0
    for clock in ("recblr.benchmark.training_cost.seconds", "recblr.timing.seconds"):
        monkeypatch.setattr(clock, lambda work, device: (work(), ticks)[1])
    shop = Shop(users=300, categories=6, items_per_category=8, mean_length=16)
    data = prepare(simulate_shop(shop).interactions)
    cost = measure(Recommender.configured("recblr", SETTINGS, "cpu"), data, True)
    samples = int((data.split.train_end - data.offsets[:-1] - 1).sum())
    assert cost["batches"] == -(-samples // 64)
    assert cost["timed"] == 3
    # Batches are random, so that three of them hold about their share of the events.
    assert cost["epoch_seconds"] == pytest.approx(ticks * samples / (3 * 64), rel=0.1)
    assert cost["inference_seconds"] == ticks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports it")
def test_peak_memory_is_that_of_the_work() -> None:
    def work(mib: int) -> None:
        torch.ones(mib << 18).mul(2)  # twice that at its peak

    for mib in (64, 8, 32):  # what came before does not count
        assert _peak_mib(lambda mib=mib: work(mib)) == pytest.approx(2 * mib, abs=4)
