from conftest import slow
from recblr.benchmark.serve import time_serving


@slow
def test_a_server_is_measured_from_another_process():
    result = time_serving({50: 20}, histories=(1, 70), seconds=0.5)
    (row,) = result["catalogues"]
    assert (row["items"], row["steady_per_second"]) == (50, 20)
    for load in ("recommend", "event_and_recommend", "event", "steady"):
        measured = row[load]
        assert measured["per_second"] > 0
        assert 0 < measured["p50"] <= measured["p90"] <= measured["p99"]
    assert row["steady"]["per_second"] <= 25  # ten in 0.45 seconds or more
    assert [row["history"] for row in result["histories"]] == [1, 70]
    assert all(row["median"] > 0 for row in result["histories"])
    assert 4_352 < result["user_bytes"] < 10_000
    assert result["gaps"]["longest"] >= result["gaps"]["p99.99"] > 0
