"""Items that are similar to given ones, by the vectors of the model or by the memory of transitions.

Axes: M given items, V items, D the width of a vector.
"""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from recblr.artifact import Artifact
from recblr.config import check_count, check_value
from recblr.data.vocabulary import as_ids
from recblr.errors import InputError
from recblr.memory import Memory
from recblr.models.model import Model

if TYPE_CHECKING:
    import polars as pl

Similarity = Literal["model", "memory"]
_BLOCK_NUMBERS = 1 << 24  # scores in memory at a time


def similar_items(
    contents: Artifact, items: Any, k: Any = 10, by: Similarity = "model"
) -> "pl.DataFrame":
    """The ``k`` items that are most similar to each of ``items``.

    Args:
        contents: a fitted model.
        items: the ids of items of the log, a collection of any kind.
        k: the number of similar items; the item itself is none of them.
        by: "model" is the cosine of the vectors that the model has of the items; in FPMC, those for
            the user. "memory" is B of (3) in :mod:`recblr.memory`, how often the other item follows:
            there are fewer than ``k`` if fewer have followed.

    Returns:
        A frame ``item_id, similar_item_id, score, rank``, rank from 1.

    Raises:
        InputError: an item is unknown, an argument has the wrong type, or there is no memory.
    """
    import polars as pl

    k, by = check_count(k, "k"), check_value(by, Similarity, "by")
    vocabulary, names = contents.data.item_vocabulary, as_ids(items, "items")
    rows = vocabulary.rows(names)
    if missing := [name for name, row in zip(names, rows, strict=True) if row < 0]:
        raise InputError(f"{vocabulary.describe_unknown(missing)}; correct it")
    size = len(vocabulary.ids)
    block = max(1, _BLOCK_NUMBERS // size)
    parts = [
        most_similar(contents.network, contents.memory, size, rows[first : first + block], k, by)
        for first in range(0, max(1, len(rows)), block)
    ]
    given, similar, scores, ranks = (np.concatenate(part) for part in zip(*parts, strict=True))
    ids = pl.Series(vocabulary.ids)
    return pl.DataFrame({
        "item_id": ids.gather(given), "similar_item_id": ids.gather(similar), "score": scores,
        "rank": ranks,
    })  # fmt: skip


def most_similar(
    network: Model, memory: Memory | None, size: int, rows: np.ndarray, k: int, by: Similarity
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of given and of similar items, scores and ranks, for M of ``size`` items at once.

    Raises:
        InputError: ``by`` is "memory", and there is none.
    """
    if by == "model":
        scores = _cosines(network, size, rows)
    elif memory is not None:
        scores = memory.matrix[rows].toarray()
        scores[scores == 0] = -np.inf  # has never followed
    else:
        raise InputError("the model has no memory of transitions; pass by='model' (--by model)")
    scores[np.arange(len(rows)), rows] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, best, axis=1)
    given, rank = np.nonzero(values > -np.inf)
    return rows[given], best[given, rank], values[given, rank], rank + 1


@torch.no_grad()
def _cosines(network: Model, size: int, rows: np.ndarray) -> np.ndarray:
    """(M, V) float32."""
    name, first = next(iter(network.item_tables.items()))
    table = network.get_parameter(name)[first : first + size].float()
    norms = torch.linalg.vector_norm(table, dim=1).clamp(min=1e-12)
    chosen = torch.from_numpy(rows).to(table.device)
    cosines: np.ndarray = (table[chosen] @ table.T / (norms[chosen, None] * norms)).cpu().numpy()
    return cosines
