"""A simulated log in which an event depends on one far back and on nothing nearer: who remembers?

A user has a brand of coffee and buys it first of all. Then, between things bought at random, the
coffee runs out now and again, an event of its own, and is bought again: the brand last seen
``distances`` events before. Who remembers it can say so each time; who does not guesses.

Axes: U users, Q questions of a history, one for each distance, V items: the brands, the question,
the other things.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError


@dataclass(frozen=True)
class Recall:
    """The dials; ``users`` of each part: training, validation, test.

    Of long distances alone little is learned in any reasonable time, as there are few answers among
    many events that cannot be foretold. So a history begins with short ones, which teach the longer.
    """

    distances: tuple[int, ...] = (2, 2, 2, 2, 4, 4, 8, 8, 16, 32, 100)
    brands: int = 4
    others: int = 16
    users: tuple[int, int, int] = (2000, 200, 400)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 2:
            raise InputError(f"distances {self.distances}: name some, of 2 events or more")

    @property
    def length(self) -> int:
        """Events of a history."""
        return sum(self.distances) + 1


def simulate_recall(recall: Recall) -> tuple[Sequences, np.ndarray]:
    """The log, and the rows (U_test, Q) of what the test users buy again.

    Users are in one part only. Validation and test predict a user's last event, at the last of the
    distances; the other answers are to be looked up by their rows.
    """
    rng = np.random.default_rng(recall.seed)
    users, length = sum(recall.users), recall.length
    answers = np.cumsum(recall.distances)  # (Q,) places in a history
    brand = rng.integers(recall.brands, size=(users, 1))
    items = recall.brands + 1 + rng.integers(recall.others, size=(users, length))
    items[:, 0:1] = brand
    items[:, answers - 1] = recall.brands
    items[:, answers] = brand

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
        pa.array(np.arange(recall.brands + 1 + recall.others)), split, 1,
        {"source": f"simulated {recall}"},
    )  # fmt: skip
    return data, offsets[:-1][part == 2][:, None] + answers
