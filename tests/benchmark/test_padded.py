"""The benchmark of padded histories: its implementation, and its result."""

import pytest
import torch

from recblr.benchmark import padded
from recblr.data.sequences import Sequences


def test_an_epoch_of_both_implementations_is_timed(sequences: Sequences) -> None:
    result = padded.time_padded(sequences, batches=2, batch_size=100, max_length=30)
    assert result["targets"] == (sequences.split.train_end - sequences.offsets[:-1] - 1).sum()
    assert result["epoch_seconds"].keys() == {"packed", "padded twin"}
    assert result["times_faster_than"].keys() == {"padded twin"}


def test_a_wrong_loss_is_not_timed(sequences: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded, "_padded_loss", lambda model, batch: torch.tensor(0.0))
    with pytest.raises(AssertionError, match="not close"):
        padded.time_padded(sequences, batches=2, batch_size=100)
