"""The step benchmark: its rows, and the number of threads afterwards."""

import pytest
import torch

from recblr.benchmark.step import time_steps


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_are_timed(device: str) -> None:
    threads = torch.get_num_threads()
    rows = time_steps(torch.device(device), histories=(1, 5, 50), repeats=5)
    assert [row["history"] for row in rows] == [1, 5, 50]
    for row in rows:
        assert row.keys() == {"history", "median", "p10", "p90"}
        assert 0 < row["p10"] <= row["median"] <= row["p90"] < 1e6
    assert torch.get_num_threads() == threads
