"""A simulated log that tests long memory: some events depend only on an event far back.

A user has a brand of coffee and buys it in the first event. Later events are random items, except that
a question item ("coffee runs out") is followed by its answer, the same brand again. Each answer is one
of ``distances`` events after the brand before it. A model that remembers the brand predicts every
answer, any other model can only guess.

Axes: U users, Q answers of a history, one for each distance, V items: brands, question, other items.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError


@dataclass(frozen=True)
class AssociativeRecall:
    """Settings of the simulation; ``users`` are those of training, validation and test.

    By default a history begins with short distances: with long ones alone, a model has few answers
    among many random events, and learns slowly.

    Raises:
        InputError: there is no distance, or one below 2.
    """

    distances: tuple[int, ...] = (2, 2, 2, 2, 4, 4, 8, 8, 16, 32, 100)
    brands: int = 4
    others: int = 16
    users: tuple[int, int, int] = (2000, 200, 400)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 2:
            raise InputError(
                f"distances {self.distances}: give at least one, each of 2 events or more"
            )

    @property
    def length(self) -> int:
        """The number of events of a history."""
        return sum(self.distances) + 1


def simulate_recall(recall: AssociativeRecall) -> tuple[Sequences, np.ndarray]:
    """Simulate the log.

    Returns:
        The log, and the rows (U_test, Q) of the answers of the test users. A user is in one part only.
        The target of validation and test is the user's last answer.
    """
    rng = np.random.default_rng(recall.seed)
    users, length = sum(recall.users), recall.length
    answers = np.cumsum(recall.distances)  # (Q,) positions in a history
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
