"""A recommender to train in one epoch, and the scores it should give."""

from dataclasses import replace
from typing import Any

import polars as pl
import torch

from conftest import TINY_MODEL, TINY_TRAINING
from recblr.recommender import Recommender


def untrained() -> Recommender:
    return Recommender("recblr", TINY_MODEL, replace(TINY_TRAINING, epochs=1))


def history_of(frame: pl.DataFrame, user: Any) -> list[Any]:
    """The items of a user in order of time."""
    rows = frame.with_row_index().filter(pl.col("user_id") == user).sort("timestamp", "index")
    return rows["item_id"].to_list()


def scores_of(recommender: Recommender, history: list[Any]) -> dict[Any, float]:
    """The score of every item after a history: the model's, plus the memory's by equation (1)."""
    ids = recommender.data.item_ids.to_pylist()
    latest = history[-recommender.training.max_length :]
    items = torch.tensor([ids.index(item) for item in latest])
    with torch.no_grad():
        hidden, _ = recommender.network(items, torch.tensor([0, len(items)]))
        scores = hidden[-1] @ recommender.network.item_embeddings.T
    memory = recommender.memory
    assert memory is not None
    rows = items[-memory.config.reach :].flip(0)
    decay = memory.config.decay ** torch.arange(len(rows))
    m = decay @ torch.from_numpy(memory.matrix.toarray())[rows]
    scores += memory.weight * torch.log1p(memory.scale * m)
    scores[[ids.index(item) for item in set(history)]] += memory.repeat
    return dict(zip(ids, scores.tolist(), strict=True))
