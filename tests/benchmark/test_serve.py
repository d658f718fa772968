from recblr.benchmark.serve import time_serving


def test_a_server_is_loaded_from_outside():
    found = time_serving({50: 20}, histories=(1, 70), seconds=0.5)
    (row,) = found["catalogues"]
    assert (row["items"], row["steady_per_second"]) == (50, 20)
    for load in ("recommend", "event_and_recommend", "event", "steady"):
        it = row[load]
        assert it["per_second"] > 0
        assert 0 < it["p50"] <= it["p90"] <= it["p99"]
    assert row["steady"]["per_second"] <= 25  # ten in 0.45 seconds or more
    assert [it["history"] for it in found["histories"]] == [1, 70]
    assert all(it["median"] > 0 for it in found["histories"])
    assert 4_352 < found["user_bytes"] < 10_000
    assert found["gaps"]["longest"] >= found["gaps"]["p99.99"] > 0
