"""The benchmark of the recurrence: its peers are correct, and its check finds wrong results."""

import math
import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from recblr.benchmark import ops as bench
from recblr.benchmark.peers import BdLru, peers, slow_to_build
from recblr.ops import reference

CPU = torch.device("cpu")
INSTALLED = [name for name in peers("cpu") if not name.startswith("accelerated")]


def off(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    y, last = reference.bd_lru(*arguments)
    return y * 1.01, last


def no_gradient_of_alpha(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    def scan(alpha: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return reference.linear_scan(alpha.detach(), *rest)

    return reference.bd_lru(*arguments, scan=scan)


def nan(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    y, last = reference.bd_lru(*arguments)
    return y, last * math.nan


def absent(*_: Tensor) -> tuple[Tensor, Tensor]:
    import no_such_package  # type: ignore[import-not-found]

    return no_such_package


def broken(*_: Tensor) -> tuple[Tensor, Tensor]:
    raise ValueError("first line\nsecond line")


@pytest.mark.filterwarnings("ignore")  # of torch, in torch scan
@pytest.mark.parametrize("length", [1, 2, 7, 8, 37])
@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_computes_the_recurrence(name: str, length: int) -> None:
    job = bench._make_job(peers("cpu")[name], (3, length, 5), torch.float64, CPU)
    truth = job._replace(bd_lru=reference.bd_lru).both()
    for ours, exact in zip(job.both(), truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)


@pytest.fixture
def fake_peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, BdLru]:
    """The implementations to compare with; empty at first."""
    fakes: dict[str, BdLru] = {}
    monkeypatch.setattr(bench, "peers", lambda device: fakes)
    return fakes


def test_only_correct_implementations_are_timed(fake_peers: dict[str, BdLru]) -> None:
    fake_peers |= {
        "right": reference.bd_lru, "off": off, "no gradient": no_gradient_of_alpha, "nan": nan,
        "absent": absent, "broken": broken,
    }  # fmt: skip
    threads = torch.get_num_threads()
    result = bench.time_ops("cpu", (3, 9, 4), budget=0.1)
    assert torch.get_num_threads() == threads
    assert (result["shape"], result["dtype"]) == ([3, 9, 4], "float32")
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["fused"]["times_slower"] == 1
    assert {name: row["gate"] for name, row in rows.items()} == {
        "fused": "ok", "fused, bfloat16": "ok", "two trees": "ok", "serial": "ok", "right": "ok",
        "off": "y is off by 1e-02", "no gradient": "dr is off by 2e-01", "nan": "last is off by nan",
        "absent": "not installed", "broken": "ValueError: first line",
    }  # fmt: skip
    for row in rows.values():
        figures = [row["forward_ns"], row["both_ns"], row["times_slower"]]
        if row["gate"] == "ok":
            assert all(figure > 0 for figure in figures)
        else:
            assert figures == [None] * 3


def test_results_are_kept_as_soon_as_they_are_known(fake_peers: dict[str, BdLru]) -> None:
    fake_peers["right"] = reference.bd_lru
    kept: list[list[str]] = []

    def keep(result: dict[str, Any]) -> None:
        kept.append([row["name"] for row in result["rows"]])

    assert bench.implementations("cpu") == ["fused, bfloat16", "right", "two trees", "serial"]
    result = bench.time_ops("cpu", (3, 9, 4), 0.1, ["serial", "right"], keep)
    assert kept == [["fused"], ["fused", "serial"], ["fused", "serial", "right"]]
    assert [row["name"] for row in result["rows"]] == kept[-1]


def test_what_takes_long_to_compile_comes_last() -> None:
    names = bench.implementations("cuda")
    slow = [slow_to_build(name) for name in names]
    assert slow == sorted(slow)
    assert names[:2] == ["fla HGRN recurrent", "fla HGRN chunk"]
    assert names[slow.index(True) :][:2] == [
        "accelerated-scan warp",
        "fla HGRN recurrent, compiled",
    ]


def test_a_peer_is_compared_with_the_kernels_beside_it(
    fake_peers: dict[str, BdLru], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine becomes slower all the time, but not in relation to the kernels."""
    now = 1.0

    def seconds(work: partial[Any], device: torch.device) -> float:
        nonlocal now
        now *= 1.02
        return now * (3 if work.__self__.bd_lru is reference.bd_lru else 1)

    fake_peers["right"] = reference.bd_lru
    monkeypatch.setattr(bench, "_seconds", seconds)
    row = bench.time_ops("cpu", (3, 9, 4), 0.0, ["right"])["rows"][1]
    assert row["times_slower"] == pytest.approx(3, rel=0.3)


def test_wrong_kernels_are_an_error(
    fake_peers: dict[str, BdLru], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recblr.ops.bd_lru", no_gradient_of_alpha)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="fused kernels are wrong: dr is off"):
        bench.time_ops("cpu", (3, 9, 4), budget=0.1)
    assert torch.get_num_threads() == threads


def test_time_is_divided_evenly_and_each_function_runs_three_times() -> None:
    calls = {"fast": 0, "slow": 0}

    def sleep(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    functions = {"fast": partial(sleep, "fast", 0.001), "slow": partial(sleep, "slow", 0.03)}
    times = bench._medians(functions, CPU, budget=0.0)
    assert calls == {"fast": 3, "slow": 3}
    assert 0.001 <= times["fast"] < 0.03 <= times["slow"]
    bench._medians(functions, CPU, budget=0.3)
    assert calls["fast"] > 10 * calls["slow"] / 3


@pytest.mark.gpu
def test_on_a_gpu(fake_peers: dict[str, BdLru]) -> None:
    fake_peers["loop"] = peers("cuda")["loop"]
    result = bench.time_ops("cuda", (512, 200, 64), budget=2.0)
    assert result["dtype"] == "bfloat16"
    assert [row["gate"] for row in result["rows"]] == ["ok"] * 4
    assert [row["length"] for row in result["lengths"]] == list(bench.LENGTHS)
    for row in (*result["rows"], *result["lengths"]):
        assert 0 < row["forward_ns"] < row["both_ns"]
        assert row["peak_bytes"] > 8  # four gradients in bfloat16
    assert 100 < result["copy_gb_per_s"] < 20_000
    assert 0 < result["forward_share"] < 2
    assert 0 < result["backward_share"] < 2
