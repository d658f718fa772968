"""What content of items is worth."""

import numpy as np
import pytest

from cli.fixtures import Run
from conftest import slow
from recblr.benchmark.content import GROUPS, SHOP, measure_content, simulate
from recblr.data.simulate import Shop

SMALL = Shop(users=60, categories=4, items_per_category=10, interests=2, mean_length=12)


def test_new_items_have_no_training_event_and_rare_ones_at_most_five() -> None:
    data, vectors, categories = simulate(SMALL)
    counts = dict(zip(data.item_ids.to_pylist(), data.item_counts.tolist(), strict=True))
    drawn = [counts.get(name, 0) for name in vectors["item_id"]]
    assert sum(count == 0 for count in drawn) >= 8
    assert sum(0 < count <= 5 for count in drawn) >= 6
    targets = data.items[data.split.test[data.split.test >= 0]]
    assert (data.item_counts[targets] == 0).any()
    same = categories["category"].to_numpy()[:, None] == categories["category"].to_numpy()
    given = np.array(vectors["vector"].to_list())
    products = given @ given.T
    assert products[same].mean() > products[~same].mean() + 0.5


def test_the_command_prints_a_row_for_each_scorer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {group: {"targets": 3, "HR@10": 0.5, "NDCG@10": 0.25} for group in GROUPS}
    result = {"rows": [{"seed": 0, "scorer": "popularity", "part": "test", **measured}]}
    monkeypatch.setattr("recblr.benchmark.content.measure_content", lambda *arguments: result)
    printed = run("bench", "content").out.splitlines()
    assert printed[1].split() == ["0", "test", "popularity", "0.5000", "0.5000", "0.5000"]


@slow
def test_new_items_are_found_by_their_content() -> None:
    rows = measure_content({}, device="cpu")["rows"]
    found = {row["scorer"]: row["0"]["HR@10"] for row in rows if row["part"] == "test"}
    chance = 10 / (SHOP.categories * SHOP.items_per_category)
    assert found["vectors"] >= 5 * max(found["popularity"], found["no content"], chance)
