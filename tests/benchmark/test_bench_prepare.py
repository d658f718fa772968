"""The benchmark of ``recblr prepare`` on a small log."""

from recblr.benchmark.prepare import time_prepare


def test_recblr_prepare_runs_on_a_simulated_log() -> None:
    result = time_prepare(events=20_000)
    assert 10_000 < result["events"] < 40_000
    assert result["kept"].keys() == {"users", "items", "interactions"}
    assert 0 < result["kept"]["interactions"] <= result["events"]
    assert result["peak_gib"] > 0
