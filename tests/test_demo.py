"""The commands demo and doctor."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from recblr import demo
from recblr.data.preparing import prepare
from recblr.data.simulate import CATALOGUE, Shop, simulate_shop
from recblr.doctor import examine
from recblr.evaluation.ranking import rank_targets
from recblr.training.config import TrainConfig


@pytest.fixture(scope="module")
def demonstrated() -> tuple[dict[str, Any], str]:
    """The result and the output of a demo with fewer customers and epochs."""
    console = Console(file=io.StringIO(), width=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "Shop", lambda: Shop(users=500))

        def shorter(**values: Any) -> TrainConfig:
            return replace(TrainConfig(**values), epochs=4, batch_size=1024, warmup_steps=10)

        patch.setattr(demo, "TrainConfig", shorter)
        result = demo.run_demo(console)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


def test_the_model_is_between_popularity_and_the_best_possible(
    demonstrated: tuple[dict[str, Any], str],
) -> None:
    metrics = demonstrated[0]["metrics"]
    assert list(metrics) == ["popularity", "RecBLR", "best possible"]
    for name in demo.SHOWN:
        popularity, model, best = (metrics[scorer][name] for scorer in metrics)
        assert 0 < popularity < model < best < 1
    # With a margin: an untrained model or a broken oracle would be near popularity.
    assert metrics["RecBLR"]["NDCG@10"] > metrics["popularity"]["NDCG@10"] + 0.05
    assert metrics["best possible"]["NDCG@10"] > metrics["popularity"]["NDCG@10"] + 0.2


def test_the_demo_recommends_items_of_the_shop(demonstrated: tuple[dict[str, Any], str]) -> None:
    result, shown = demonstrated
    catalogue = {item for names in CATALOGUE.values() for item in names.split(", ")}
    offers = result["recommendations"]
    assert [row["rank"] for row in offers] == [1, 2, 3, 4, 5]
    assert {row["item_id"] for row in offers} <= catalogue
    log = simulate_shop(Shop(users=500)).interactions.to_polars()
    customer = offers[0]["user_id"]
    bought = log.filter(user_id=customer)["item_id"].to_list()
    assert not {row["item_id"] for row in offers} & set(bought)
    assert f"Last purchases of {customer}: {', '.join(bought[-5:])}." in " ".join(shown.split())
    for row in offers:
        assert row["item_id"] in shown


def test_the_demo_shows_the_metrics_and_their_protocol(
    demonstrated: tuple[dict[str, Any], str],
) -> None:
    result, shown = demonstrated
    assert result["protocol"] == demo.PROTOCOL
    assert demo.PROTOCOL in " ".join(shown.split())
    for scorer, means in result["metrics"].items():
        (row,) = [line for line in shown.splitlines() if line.strip().startswith(f"{scorer}  ")]
        assert row.split()[-6:] == [f"{means[name]:.4f}" for name in demo.SHOWN]
    assert max(map(len, shown.splitlines())) <= 100
    json.dumps(result, allow_nan=False)


def test_the_best_possible_ranks_follow_from_the_true_probabilities() -> None:
    simulated = simulate_shop(Shop(users=60, mean_length=8))
    data = prepare(simulated.interactions)
    ranks = rank_targets(demo.oracle(simulated, data), data, "test", 10)["unmasked"]
    for user, rank in enumerate(ranks):
        scores = simulated.oracle[user].astype("float32")
        target = data.items[data.offsets[user + 1] - 1]
        assert rank == (scores >= scores[target]).sum()


def test_the_doctor_compares_the_kernels_with_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = examine()
    assert findings["healthy"] is True
    assert findings["recurrence_error"] < 1e-5
    assert findings["torch"] == torch.__version__
    json.dumps(findings, allow_nan=False)

    from recblr.ops import reference

    bd_lru = reference.bd_lru

    def off(*arguments: Any) -> Any:
        y, last = bd_lru(*arguments)
        return y + 1e-3, last

    monkeypatch.setattr(reference, "bd_lru", off)
    if findings["compiled_kernels"]:
        assert examine()["healthy"] is False
