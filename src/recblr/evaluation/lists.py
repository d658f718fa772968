"""What the lists of recommended items are like, beyond whether they hold the target."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from recblr.data.sequences import Sequences
from recblr.evaluation.baselines import user_items
from recblr.evaluation.ranking import PROTOCOLS


class Lists:
    """The lists of the k best items of all users, counted block by block.

    The popularity of an item is the share of training users who have it in the training part; an item
    of none counts as one of a single user.

    Args:
        popularity: (V,) that of each item.
        cutoffs: the lengths k of the lists.
        vectors: (V, D) unit vectors of the items, for the diversity.
    """

    def __init__(
        self, popularity: np.ndarray, cutoffs: Iterable[int], vectors: Tensor | None = None
    ) -> None:
        self._popularity, self._cutoffs, self._vectors = popularity, tuple(cutoffs), vectors
        keys = [(seen, k) for seen in PROTOCOLS for k in self._cutoffs]
        size = len(popularity)
        self._counts = {key: np.zeros(size, np.int64) for key in keys}  # lists of an item
        self._distances = {key: np.zeros(2) for key in keys}  # sum over lists, number of lists

    def add(self, seen: str, scores: Tensor) -> None:
        """Count the lists by scores (B, V) under a protocol; an item with -∞ is in no list."""
        best = scores.topk(min(max(self._cutoffs), scores.shape[1]))
        shown = best.values > -torch.inf
        for k in self._cutoffs:
            items = best.indices[:, :k][shown[:, :k]].cpu().numpy()
            self._counts[seen, k] += np.bincount(items, minlength=scores.shape[1])
        if self._vectors is None:
            return
        vectors = self._vectors.to(scores.device)[best.indices] * shown.unsqueeze(2)
        for k in self._cutoffs:
            length = shown[:, :k].sum(1)
            pairs = length * (length - 1)
            # The cosines of all ordered pairs of unit vectors: the square of their sum, less one each.
            cosines = vectors[:, :k].sum(1).square().sum(1) - length
            distances = (1 - cosines / pairs)[pairs > 0]
            self._distances[seen, k] += (float(distances.sum()), len(distances))

    def metrics(self, seen: str) -> dict[str, float]:
        """The metrics under a protocol for each k, ``{"coverage@10": …}``.

        - coverage: the share of the catalogue that is in at least one list.
        - Gini: the Gini index of the numbers of lists that the items of the catalogue are in: 0 if all
          are in as many, near 1 if few items fill all lists.
        - popularity: the mean popularity of the items of the lists.
        - novelty: the mean of -log2(popularity) of these items, in bits.
        - diversity: one minus the cosine of two items of a list, mean over pairs, then over lists.
        """
        return {
            f"{name}@{k}": float(value)
            for k in self._cutoffs
            for name, value in self._at(seen, k).items()
        }

    def _at(self, seen: str, k: int) -> dict[str, float]:
        counts = self._counts[seen, k]
        size, total = len(counts), max(1, counts.sum())
        values = {
            "coverage": np.count_nonzero(counts) / size,
            "Gini": (2 * np.arange(size) - size + 1) @ np.sort(counts) / (size * total),
            "popularity": counts @ self._popularity / total,
            "novelty": counts @ -np.log2(self._popularity) / total,
        }
        distances, lists = self._distances[seen, k]
        return values | ({"diversity": distances / lists} if lists else {})


def lists_of(
    names: Iterable[str], data: Sequences, cutoffs: Iterable[int], vectors: Tensor | None = None
) -> dict[str, Lists]:
    """Empty :class:`Lists` for scorers of these names; ``vectors`` (V, D) need not be unit vectors."""
    matrix, cutoffs = user_items(data), tuple(cutoffs)
    training_users = np.count_nonzero(np.diff(matrix.indptr))
    popularity = np.maximum(matrix.sum(0, np.float64), 1) / max(1, training_users)
    unit_vectors = None if vectors is None else normalize(vectors.float(), dim=1)
    return {name: Lists(popularity, cutoffs, unit_vectors) for name in names}
