"""What kinds of events are worth."""

from pathlib import Path

import polars as pl
import pytest

from cli.fixtures import Run
from conftest import TINY_MODEL, TINY_TRAINING
from recblr.benchmark.kinds import CARTED, VIEWS, simulate
from recblr.data.simulate import Shop, simulate_shop
from recblr.recommender import Recommender

SMALL = Shop(users=60, categories=4, items_per_category=10, interests=2, mean_length=12)


def test_carts_and_views_come_before_purchases() -> None:
    log = simulate(SMALL)
    purchases = simulate_shop(SMALL).interactions.to_polars()
    kept = log.filter(pl.col("kind") == "purchase").drop("kind")
    keys = ["user_id", "timestamp"]
    assert kept.sort(keys).equals(purchases.sort(keys))
    by_user = log.sort(keys).with_columns(next=pl.col("kind").shift(-1).over("user_id"))
    views, carts = (by_user.filter(pl.col("kind") == kind) for kind in ("view", "cart"))
    assert views["next"].null_count() == carts["next"].null_count() == 0
    assert len(carts) / len(purchases) == pytest.approx(CARTED, rel=0.1)
    assert len(views) / len(purchases) == pytest.approx(VIEWS / 2, rel=0.1)


def test_the_commands_take_a_kind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"seed": 0, "log": "purchase asked", "HR@10": 0.5, "NDCG@10": 0.25}
    monkeypatch.setattr("recblr.benchmark.kinds.measure_kinds", lambda *_: {"rows": [row]})
    printed = run("bench", "kinds").out.splitlines()
    assert printed[1].split() == ["0", "purchase", "asked", "0.5000", "0.2500"]
    log = simulate(SMALL)
    Recommender(config=TINY_MODEL, training=TINY_TRAINING).fit(log).save(tmp_path / "model")
    user = log["user_id"][0]
    asked = run("recommend", tmp_path / "model", "--user", user, "--kind", "view", "--json")
    plain = run("recommend", tmp_path / "model", "--user", user, "--json")
    assert asked.code == plain.code == 0
    assert asked.out != plain.out
    wrong = run("recommend", tmp_path / "model", "--user", user, "--kind", "buy")
    assert (wrong.code, "knows no kind 'buy'; there are cart, purchase, view" in wrong.err) == (
        2,
        True,
    )
    measured = run("evaluate", tmp_path / "model", "--kind", "purchase")
    assert "test, kind purchase" in measured.out
