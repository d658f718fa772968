"""Items that are similar to given ones, by the vectors of the model or by the memory of transitions.

Axes: M given items, V items, D the width of a vector.
"""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.nn import functional as F

from recblr.artifact import Artifact
from recblr.config import check_count, check_value
from recblr.data.vocabulary import as_ids
from recblr.errors import InputError

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
    if by == "memory" and contents.memory is None:
        raise InputError("the model has no memory of transitions; pass by='model' (--by model)")
    vocabulary, names = contents.data.item_vocabulary, as_ids(items, "items")
    rows = vocabulary.rows(names)
    if missing := [name for name, row in zip(names, rows, strict=True) if row < 0]:
        raise InputError(f"{vocabulary.describe_unknown(missing)}; correct it")
    size = len(vocabulary.ids)
    block = max(1, _BLOCK_NUMBERS // size)
    parts = [
        _best(contents, rows[first : first + block], min(k, size - 1), by)
        for first in range(0, max(1, len(rows)), block)
    ]
    given, similar, scores, ranks = (np.concatenate(part) for part in zip(*parts, strict=True))
    ids = pl.Series(vocabulary.ids)
    return pl.DataFrame({
        "item_id": ids.gather(given), "similar_item_id": ids.gather(similar), "score": scores,
        "rank": ranks,
    })  # fmt: skip


def _best(
    contents: Artifact, rows: np.ndarray, k: int, by: Similarity
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of given and similar items, scores and ranks, for a block of items."""
    scores = _cosines(contents, rows) if by == "model" else _transitions(contents, rows)
    scores[np.arange(len(rows)), rows] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, best, axis=1)
    given, rank = np.nonzero(values > -np.inf)
    return rows[given], best[given, rank], values[given, rank], rank + 1


def _cosines(contents: Artifact, rows: np.ndarray) -> np.ndarray:
    """(M, V) float32."""
    name, first = next(iter(contents.network.item_tables.items()))
    table = contents.network.get_parameter(name).detach()
    vectors = F.normalize(table[first : first + len(contents.data.item_ids)].float())
    cosines: np.ndarray = (vectors[rows] @ vectors.T).cpu().numpy()
    return cosines


def _transitions(contents: Artifact, rows: np.ndarray) -> np.ndarray:
    """(M, V) float32; -∞ where no event has followed."""
    assert contents.memory is not None
    scores: np.ndarray = contents.memory.matrix[rows].toarray()
    scores[scores == 0] = -np.inf
    return scores
