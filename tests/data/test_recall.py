"""The log with a dependency far back: what it says is so, and nothing gives the answer away."""

import numpy as np
import pytest

from recblr.data.recall import Recall, simulate_recall
from recblr.errors import InputError

SMALL = Recall(distances=(40, 100), slots=3, values=4, fillers=10, users=(50, 7, 9))


def test_every_answer_is_its_distance_behind_its_key_and_behind_its_question() -> None:
    data, rows = simulate_recall(SMALL)
    questions, pairs = 6, 24
    assert rows.shape == (9, questions)
    owner = np.searchsorted(data.offsets, rows, side="right") - 1
    assert (owner == np.arange(57, 66)[:, None]).all()
    for number, distance in enumerate([40, 40, 40, 100, 100, 100]):
        row = rows[:, number]
        assert (data.items[row - distance] + pairs == data.items[row]).all()
        assert (data.items[row - 1] == 2 * pairs + number).all()
        answers = data.items[row] - pairs - number * SMALL.values
        assert answers.min() >= 0
        assert answers.max() < SMALL.values


def test_a_key_and_its_answer_stand_in_a_history_once() -> None:
    data, _ = simulate_recall(SMALL)
    for begin, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        items = data.items[begin:end]
        special, counts = np.unique(items[items < 2 * 24 + 6], return_counts=True)
        assert len(special) == 3 * 6
        assert (counts == 1).all()
        assert len(items) == 2 * 5 + 100 + 1


def test_values_are_even_and_independent_of_each_other() -> None:
    data, _ = simulate_recall(Recall(distances=(40, 100), slots=3, values=4, users=(2000, 1, 1)))
    items = data.items.reshape(data.users, -1)
    values = items[:, [0, 2, 4, 6, 8, 10]] % 4
    for number in range(6):
        counts = np.bincount(values[:, number], minlength=4)
        assert abs(counts - data.users / 4).max() < 5 * np.sqrt(data.users / 4)
    correlation = np.corrcoef(values.T) - np.eye(6)
    assert abs(correlation).max() < 5 / np.sqrt(data.users)


def test_users_train_validate_or_are_tested() -> None:
    data, rows = simulate_recall(SMALL)
    trained = data.split.train_end > data.offsets[:-1]
    assert trained.tolist() == [True] * 50 + [False] * 16
    assert (data.split.train_end[:50] == data.offsets[1:51]).all()
    assert np.flatnonzero(data.split.validation >= 0).tolist() == list(range(50, 57))
    assert (data.split.test[57:] == rows[:, -1]).all()


def test_the_seed_decides() -> None:
    one, two, other = (
        simulate_recall(recall)[0]
        for recall in (SMALL, SMALL, Recall(**{**vars(SMALL), "seed": 1}))
    )
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != other.fingerprint


def test_distances_need_room_for_the_keys() -> None:
    with pytest.raises(InputError, match=r"distances \(10, 100\): each must be 32 more"):
        Recall(distances=(10, 100))
