"""The simulated shop follows its settings, and its oracle has the true probabilities."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from recblr.data import simulate
from recblr.data.simulate import CATALOGUE, FIRST_NAMES, Shop, simulate_shop
from recblr.errors import InputError

# Small, and with items named by category and position, so that the tests can parse an id.
SMALL = Shop(users=5000, categories=8, items_per_category=6, mean_length=20, max_length=60, seed=3)


@pytest.fixture(scope="module")
def demo():
    return simulate_shop()


@pytest.fixture(scope="module")
def small():
    return simulate_shop(SMALL)


def histories(log):
    """Per user, in order of user_ids: the item codes in order of time."""
    by_user = np.argsort(log.users, kind="stable")
    return np.split(log.items[by_user], np.cumsum(np.bincount(log.users))[:-1])


def positions(log):
    """(category, position in it) of every item, in order of item_ids."""
    return [(int(i[1:4]), int(i[6:])) for i in log.item_ids.to_pylist()]


def ndcg_at_10(scores, targets):
    """Mean NDCG@10 with one relevant item; ties count against the target."""
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    rank = (scores >= target_scores).sum(axis=1)
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0).mean()


def assert_mean(sample, expected=0.0):
    """The mean of independent draws is `expected`, within four standard errors."""
    error = sample.std() / np.sqrt(len(sample))
    assert abs(sample.mean() - expected) < 4 * error, (sample.mean(), expected, error)


def test_the_seed_determines_the_log(small):
    again, other = simulate_shop(SMALL), simulate_shop(replace(SMALL, seed=4))
    for name in ("users", "items", "timestamps"):
        np.testing.assert_array_equal(
            getattr(small.interactions, name), getattr(again.interactions, name)
        )
    assert small.interactions.user_ids == again.interactions.user_ids
    assert small.interactions.item_ids == again.interactions.item_ids
    np.testing.assert_array_equal(small.oracle, again.oracle)
    assert len(small.interactions.items) != len(other.interactions.items)


def test_the_log_is_coded_and_sorted_as_documented(demo):
    log = demo.interactions
    assert log.users.dtype == log.items.dtype == np.int32
    assert len(log.users) == len(log.items) == len(log.timestamps)
    for codes, ids in ((log.users, log.user_ids), (log.items, log.item_ids)):
        distinct, first = np.unique(codes, return_index=True)
        np.testing.assert_array_equal(distinct, np.arange(len(ids)))
        assert (np.diff(first) > 0).all(), "ids are in order of first appearance"
    assert (np.diff(log.timestamps) >= 0).all(), "the log is in order of time"
    by_user = np.argsort(log.users, kind="stable")
    same_user = np.diff(log.users[by_user]) == 0
    assert (np.diff(log.timestamps[by_user])[same_user] > 0).all(), (
        "no two events of a user at the same time"
    )


def test_the_demo_has_its_documented_size(demo):
    lengths = np.bincount(demo.interactions.users)
    assert len(lengths) == 2000
    assert 36 < lengths.mean() < 44
    assert lengths.min() == 5, "the minimum is reached"
    assert lengths.max() == 200, "the maximum is reached"
    assert demo.oracle.shape == (2000, 192)


def test_ids_are_unique_and_are_names(demo):
    users, items = (
        ids.to_pylist() for ids in (demo.interactions.user_ids, demo.interactions.item_ids)
    )
    assert len(set(users)) == len(users)
    assert {user.split("-")[0] for user in users} == set(FIRST_NAMES.split())
    assert sorted(int(user.split("-")[1]) for user in users) == list(range(2000))
    table = [name for names in CATALOGUE.values() for name in names.split(", ")]
    assert len(table) == 192
    assert sorted(items) == sorted(table)
    assert {"espresso machine", "trail map"} <= set(items)


def test_oracle_rows_are_probabilities(demo, small):
    for simulated in (demo, small):
        assert (simulated.oracle > 0).all()
        np.testing.assert_allclose(simulated.oracle.sum(axis=1), 1.0, rtol=1e-12)


def test_items_never_bought_have_no_column():
    simulated = simulate_shop(Shop(users=3, categories=50, items_per_category=40))
    assert simulated.oracle.shape == (3, len(simulated.interactions.item_ids))
    total = simulated.oracle.sum(axis=1)
    assert simulated.oracle.shape[1] < 50 * 40
    assert (total > 0).all()
    assert (total < 1).all()


@pytest.mark.parametrize(
    "shop",
    [SMALL, replace(SMALL, drift=0.5), replace(SMALL, switch=1.0, follow=0.2), Shop(users=5000)],
)
def test_oracle_is_calibrated(shop):
    simulated = simulate_shop(shop)
    p = simulated.oracle
    happened = np.zeros_like(p)
    targets = [history[-1] for history in histories(simulated.interactions)]
    happened[np.arange(len(p)), targets] = 1

    # If items are drawn from p, the mean probability of the drawn item is the sum of p².
    assert_mean(((happened - p) * p).sum(axis=1))
    assert_mean(((happened - p) * np.log(p)).sum(axis=1))
    # Items of each level of probability are drawn as often as expected.
    edges = np.quantile(p, [0, 0.6, 0.8, 0.9, 0.97, 0.99, 1])
    for low, high in pairwise(edges):
        level = (p >= low) & (p <= high)
        expected = (p * level).sum(axis=1)
        excess = (happened * level).sum() - expected.sum()
        assert abs(excess) < 4 * np.sqrt((expected * (1 - expected)).sum())


def test_oracle_beats_popularity_and_short_memory(small):
    log = small.interactions
    position, code = positions(log), {pair: i for i, pair in enumerate(positions(log))}
    popularity = np.bincount(log.items, minlength=len(position)) / len(log.items)
    by_popularity = np.tile(popularity, (SMALL.users, 1))
    by_last_item = by_popularity.copy()
    targets = np.empty(SMALL.users, dtype=int)
    for user, history in enumerate(histories(log)):
        targets[user] = history[-1]
        category, last = position[history[-2]]
        for other in range(SMALL.items_per_category):
            by_last_item[user, code[category, other]] += 1  # the category, by popularity
        by_last_item[user, code[category, (last + 1) % SMALL.items_per_category]] += 1

    best = ndcg_at_10(small.oracle, targets)
    assert best < 0.9, "not trivial"
    assert best > ndcg_at_10(by_last_item, targets) + 0.05
    assert best > ndcg_at_10(by_popularity, targets) + 0.3


def test_a_user_buys_only_in_the_categories_of_interest():
    without_drift = replace(SMALL, users=500, drift=0.0)
    for interests in (1, 3):
        log = simulate_shop(replace(without_drift, interests=interests)).interactions
        category = np.array([c for c, _ in positions(log)])
        counts = [len(set(category[history])) for history in histories(log)]
        assert max(counts) == interests


def test_without_switch_and_drift_a_user_stays_in_one_category():
    log = simulate_shop(replace(SMALL, users=300, switch=0.0, drift=0.0)).interactions
    category = np.array([c for c, _ in positions(log)])
    assert all(len(set(category[history])) == 1 for history in histories(log))


def test_drift_replaces_one_interest_at_its_rate():
    shop = replace(SMALL, drift=0.1, switch=0.0)
    simulation = simulate._Simulation(shop, 20_000, np.random.default_rng(5))
    while simulation.now < simulation.end - 1:
        simulation.step()
    before = simulation.interests.copy()
    simulation.step()
    changed = simulation.interests != before
    assert changed.sum(axis=1).max() == 1
    assert_mean(changed.any(axis=1), shop.drift)
    assert (np.diff(np.sort(simulation.interests, axis=1), axis=1) > 0).all(), "always distinct"


def test_the_successor_follows_at_its_rate_after_any_gap(small):
    position = positions(small.interactions)
    popularity = 1 / np.arange(1, SMALL.items_per_category + 1)
    popularity /= popularity.sum()
    excess = defaultdict(list)  # by the events between an item and the next one: 1, 2, 3 or more
    for history in histories(small.interactions):
        seen = {}
        for now, item in enumerate(history):
            category, current = position[item]
            if category in seen:
                before, last = seen[category]
                successor = (last + 1) % SMALL.items_per_category
                chance = SMALL.follow + (1 - SMALL.follow) * popularity[successor]
                excess[min(now - before, 3)].append((current == successor) - chance)
            seen[category] = now, current
    for gap in (1, 2, 3):
        assert len(excess[gap]) > 3000
        assert_mean(np.array(excess[gap]))


def test_a_shop_refuses_as_many_interests_as_categories():
    with pytest.raises(InputError, match="12 interests of 12 categories"):
        Shop(interests=12)
