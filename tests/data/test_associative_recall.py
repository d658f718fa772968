"""The associative recall log: its answers are at the distances, and nothing else reveals them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.errors import InputError

SMALL = AssociativeRecall(distances=(5, 2, 40), brands=4, others=10, users=(50, 7, 9))


def test_brands_occur_only_at_the_distances() -> None:
    data, _ = simulate_recall(SMALL)
    assert SMALL.length == 48
    for begin, end in pairwise(data.offsets.tolist()):
        history = data.items[begin:end]
        assert np.flatnonzero(history < 4).tolist() == [0, 5, 7, 47]
        assert len(set(history[[0, 5, 7, 47]].tolist())) == 1
        assert np.flatnonzero(history == 4).tolist() == [4, 6, 46]
        assert history.max() < 4 + 1 + 10


def test_the_rows_are_the_answers_of_the_test_users() -> None:
    data, rows = simulate_recall(SMALL)
    assert rows.shape == (9, 3)
    assert (rows - data.offsets[57:66, None] == [5, 7, 47]).all()
    assert (data.split.test[57:] == rows[:, -1]).all()


def test_brands_are_uniform_and_independent_of_other_items() -> None:
    data, _ = simulate_recall(replace(SMALL, users=(4000, 1, 1)))
    items = data.items.reshape(data.users, -1)
    counts = np.bincount(items[:, 0], minlength=4)
    assert abs(counts - data.users / 4).max() < 5 * np.sqrt(data.users / 4)
    others = np.delete(items, [0, 4, 5, 6, 7, 46, 47], axis=1)
    correlation = [np.corrcoef(items[:, 0], column)[0, 1] for column in others.T]
    assert np.abs(correlation).max() < 5 / np.sqrt(data.users)


def test_each_user_is_in_one_part() -> None:
    data, _ = simulate_recall(SMALL)
    trained = data.split.train_end > data.offsets[:-1]
    assert trained.tolist() == [True] * 50 + [False] * 16
    assert (data.split.train_end[:50] == data.offsets[1:51]).all()
    assert np.flatnonzero(data.split.validation >= 0).tolist() == list(range(50, 57))
    assert np.flatnonzero(data.split.test >= 0).tolist() == list(range(57, 66))


def test_the_seed_determines_the_log() -> None:
    one, two, other = (
        simulate_recall(recall)[0].fingerprint for recall in (SMALL, SMALL, replace(SMALL, seed=1))
    )
    assert one == two != other


@pytest.mark.parametrize("distances", [(), (10, 1)])
def test_impossible_distances_are_refused(distances: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="of 2 events or more"):
        AssociativeRecall(distances=distances)
