"""Small logs and simple scorers."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recblr.data.batches import PackedBatch
from recblr.data.sequences import Sequences
from recblr.data.split import by_time, leave_one_out
from recblr.evaluation.ranking import Scorer


def sequences(lists: list[list[int]], items: int, split: str = "leave-one-out") -> Sequences:
    """Histories of item indices; for the split by time, event n of each user is at time n."""
    offsets = np.cumsum([0, *map(len, lists)])
    times = np.concatenate([np.arange(len(history)) for history in lists])
    return Sequences(
        np.array([item for history in lists for item in history], np.int32),
        offsets,
        pa.array([f"u{number}" for number in range(len(lists))]),
        pa.array([f"i{number}" for number in range(items)]),
        by_time(offsets, times, (4, 6)) if split == "time" else leave_one_out(offsets),
        1,
    )


def random_data(users: int = 40, items: int = 12, split: str = "leave-one-out") -> Sequences:
    rng = np.random.default_rng(users)
    lists = [rng.integers(0, items, rng.integers(1, 14)).tolist() for _ in range(users)]
    return sequences(lists, items, split)


def scores_of(history: list[int], items: int) -> Tensor:
    """Random scores with ties; they depend only on the history."""
    seed = sum((position + 1) * (item + 1) for position, item in enumerate(history))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, items, (items,), generator=generator).float() - 3


def scorer_of(items: int, shown: list[list[int]] | None = None) -> Scorer:
    """:func:`scores_of` each history of a batch; the histories are appended to ``shown``."""

    def score(batch: PackedBatch) -> Tensor:
        lists = [batch.items[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]
        if shown is not None:
            shown.extend(lists)
        return torch.stack([scores_of(history, items) for history in lists])

    return score


def constant(value: float, items: int) -> Scorer:
    return lambda batch: torch.full((len(batch.offsets) - 1, items), float(value))


def favourite(item: int, items: int) -> Scorer:
    return lambda batch: torch.eye(items)[[item] * (len(batch.offsets) - 1)]
