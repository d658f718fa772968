"""The benchmark of ``recblr prepare`` on a small log."""

import pyarrow.parquet as pq

from recblr.benchmark.prepare import time_prepare, write_log


def test_recblr_prepare_runs_in_memory_and_on_disk() -> None:
    in_memory = time_prepare(20_000)
    on_disk = time_prepare(20_000, files=3, memory_limit="500MB")
    for result in (in_memory, on_disk):
        assert 0 < result["kept"]["interactions"] <= result["events"] == 20_000
        assert result["peak_gib"] > 0
        assert result["cpu_seconds"] > 0
    assert in_memory["fingerprint"] == on_disk["fingerprint"]


def test_the_log_has_the_asked_size_in_any_number_of_files(tmp_path) -> None:
    write_log(tmp_path / "one", 1000, 10, 1)
    write_log(tmp_path / "many", 1000, 10, 3)
    one = pq.read_table(tmp_path / "one").to_pydict()
    assert len(one["user_id"]) == 1000
    assert set(one["user_id"]) == set(range(100))
    assert set(one["item_id"]) <= {0, 1}
    assert one["timestamp"] == sorted(one["timestamp"])
    many = [pq.read_table(tmp_path / "many" / f"{number}.parquet") for number in range(3)]
    assert [len(part) for part in many] == [333, 333, 334]
