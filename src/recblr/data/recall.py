"""A simulated log in which an event depends on one far back and on nothing nearer: who remembers?

A history begins with keys, every other event, between items that mean nothing. Much later, exactly
``distance`` events after a key, comes its answer, right after a question that says which key is asked
for. Each key is asked for once, so that nothing later than the key tells the answer; without the key
one answer in ``values`` is right. Where a user stands in the log is all that is needed to know every
event that can be known: the best possible score is 1.

Axes: U users, Q questions of a history (``slots`` of each distance), V items.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError


@dataclass(frozen=True)
class Recall:
    """The dials; ``users`` of each part: training, validation, test."""

    distances: tuple[int, ...] = (100, 1000)
    slots: int = 8
    values: int = 8
    fillers: int = 64
    users: tuple[int, int, int] = (900, 100, 200)
    seed: int = 0

    def __post_init__(self) -> None:
        keys = 2 * len(self.distances) * self.slots
        ends = (0, *self.distances)
        if any(after - before < keys for before, after in pairwise(ends)):
            raise InputError(f"distances {self.distances}: each must be {keys} more than the last")


def simulate_recall(recall: Recall) -> tuple[Sequences, np.ndarray]:
    """The log, and the rows (U_test, Q) of the answers of the test users, nearest first.

    Users are in one part only. Validation and test predict a user's last event, an answer at the
    greatest distance; the other answers are to be looked up by their rows.
    """
    rng = np.random.default_rng(recall.seed)
    users, questions = sum(recall.users), len(recall.distances) * recall.slots
    key = 2 * np.arange(questions)  # (Q,) places in a history
    answer = key + np.repeat(recall.distances, recall.slots)
    length = int(answer[-1]) + 1

    pairs = questions * recall.values
    first_answer, first_question, first_filler = pairs, 2 * pairs, 2 * pairs + questions
    catalogue = first_filler + recall.fillers
    value = np.arange(questions) * recall.values + rng.integers(
        recall.values, size=(users, questions)
    )
    items = rng.integers(first_filler, catalogue, size=(users, length))
    items[:, key] = value
    items[:, answer - 1] = first_question + np.arange(questions)
    items[:, answer] = first_answer + value

    offsets = length * np.arange(users + 1)
    part = np.repeat(np.arange(3), recall.users)
    split = Split(
        "by user",
        np.where(part == 0, offsets[1:], offsets[:-1]),
        np.where(part == 1, offsets[1:] - 1, -1),
        np.where(part == 2, offsets[1:] - 1, -1),
    )
    data = Sequences(
        items.astype(np.int32).ravel(), offsets, pa.array(np.arange(users)),
        pa.array(np.arange(catalogue)), split, 1, {"source": f"simulated {recall}"},
    )  # fmt: skip
    return data, offsets[:-1][part == 2][:, None] + answer
