"""Simple scorers to compare a model with. They need no training."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import lapack
from torch import Tensor

from recblr.config import did_you_mean
from recblr.data.batches import PackedBatch, ranges
from recblr.data.sequences import Sequences
from recblr.data.vocabulary import as_list
from recblr.errors import InputError
from recblr.evaluation.ranking import Scorer
from recblr.memory import MemoryConfig, fit, largest
from recblr.progress import progress

Fit = Callable[[Sequences], Scorer]
"""Makes a scorer from the training part of a log."""

EASE_ITEMS = 30_000  # 3.6 GB
_BLOCK_ITEMS = 1024  # compared with all others at a time


def popularity(data: Sequences) -> Scorer:
    """A baseline: items by their number of training events, the same for every user."""
    counts = torch.from_numpy(data.item_counts.astype(np.float32))
    return lambda batch: counts.repeat(len(batch.offsets) - 1, 1)


def markov(data: Sequences) -> Scorer:
    """A baseline: a first-order Markov chain, items by how often they followed the user's last item.

    Transitions are those within a user's training part. Items that followed equally often are in order
    of their number of training events. Memory grows with the pairs that occur, not with V².
    """
    starts, catalogue = data.offsets[:-1], len(data.item_ids)
    rows = ranges(starts, np.maximum(data.split.train_end - starts - 1, 0))
    pairs = (data.items[rows], data.items[rows + 1])
    # One transition outweighs any number of training events. Whole numbers are exact in float64.
    weight = np.full(len(rows), 1.0 + data.item_counts.max(initial=0))
    followed = sparse.csr_array((weight, pairs), (catalogue, catalogue))

    def score(batch: PackedBatch) -> Tensor:
        last = batch.items[batch.offsets[1:] - 1].numpy()
        return torch.from_numpy(followed[last].toarray() + data.item_counts)

    return score


def transitions(data: Sequences) -> Scorer:
    """A baseline: the memory of transitions alone, with the default settings of memory.py.

    Items with equal scores are in order of their number of training events.
    """
    memory = fit(data, MemoryConfig())
    counts = torch.from_numpy(_tie_breakers(data))
    return lambda batch: memory.add_to(counts.repeat(len(batch.offsets) - 1, 1), batch)


def item_knn(data: Sequences, neighbours: int = 200, shrinkage: float = 10) -> Scorer:
    """A baseline: items by their similarity to those of the history, whatever its order.

    The similarity of two items is the cosine of their users, n_ab / (√(n_a n_b) + shrinkage), where
    n_ab users have both in the training part. The score of an item is the sum of the similarities of
    its nearest ``neighbours`` that are in the history (Sarwar et al., WWW 2001).
    """
    users = user_items(data)
    counts = users.sum(0)
    rows = []
    for first, shared in _shared_users(users):
        similarity = shared.tocoo()
        a, b = similarity.coords[0] + first, similarity.coords[1]
        similarity.data = np.where(
            a == b, 0, similarity.data / (np.sqrt(counts[a] * counts[b]) + shrinkage)
        )
        nearest = similarity.tocsr()
        nearest.eliminate_zeros()
        rows.append(largest(nearest, neighbours))
    return _sum_over_history(sparse.vstack(rows).T.tocsr(), data)


def ease(data: Sequences, l2: float = 250) -> Scorer:
    """A baseline: EASE, the linear model in closed form (Steck, WWW 2019; arXiv 1905.03375).

    X (U, V) has the items of each user, and P = (XᵀX + l2 · I)⁻¹. The score of item b is the sum of the
    weights -P[a, b] / P[b, b] over the items a ≠ b of the history. Needs a dense table of V² float32.
    """
    users = user_items(data)
    table = np.empty((users.shape[1],) * 2, np.float32)
    for first, shared in _shared_users(users):
        table[first : first + shared.shape[0]] = shared.toarray()
    table[np.diag_indices_from(table)] += l2
    # In place: LAPACK reads columns first, and the transposed table is the same.
    factor, failed = lapack.spotrf(table.T, overwrite_a=1)
    upper, _ = lapack.spotri(factor, overwrite_c=1)
    if failed:
        raise InputError("ease has no solution in float32 for this log; leave this baseline out")
    inverse = upper.T  # only its lower triangle is set
    for item in range(len(inverse)):
        inverse[item, item + 1 :] = inverse[item + 1 :, item]
    inverse /= -inverse.diagonal().copy()
    np.fill_diagonal(inverse, 0)
    return _sum_over_history(inverse, data)


def user_items(data: Sequences) -> sparse.csr_array:
    """(U, V) float32: 1 where a user has an item in the training part."""
    items, lengths = data.training_part()
    owners = np.repeat(np.arange(data.users), lengths)
    ones = np.ones(len(items), np.float32)
    matrix = sparse.csr_array((ones, (owners, items)), (data.users, len(data.item_ids)))
    matrix.data[:] = 1  # repeats are summed
    return matrix


def _shared_users(users: sparse.csr_array) -> Iterator[tuple[int, sparse.csr_array]]:
    """Blocks of rows of XᵀX, the numbers of users that two items share, and the first item of each."""
    items = sparse.csr_array(users.T)
    with progress("comparing items", items.shape[0]) as advance:
        for first in range(0, items.shape[0], _BLOCK_ITEMS):
            block = items[first : first + _BLOCK_ITEMS]
            yield first, block @ users
            advance(block.shape[0])


def _tie_breakers(data: Sequences) -> np.ndarray:
    """(V,) the numbers of training events, so small that they order only items with equal scores."""
    return data.item_counts / (1e9 * data.item_counts.max(initial=1))


def _sum_over_history(weights: Any, data: Sequences) -> Scorer:
    """Scores that are sums of rows of ``weights`` (V, V) over the distinct items of a whole history.

    Items with equal scores are in order of their number of training events.
    """
    counts = _tie_breakers(data)

    def score(batch: PackedBatch) -> Tensor:
        assert batch.seen is not None
        row, item = batch.seen.numpy()
        shape = (len(batch.offsets) - 1, len(counts))
        history = sparse.csr_array((np.ones(len(row), np.float32), (row, item)), shape)
        history.data[:] = 1
        scores = history @ weights
        scores = scores.toarray() if sparse.issparse(scores) else scores
        return torch.from_numpy(scores + counts)

    return score


BASELINES: dict[str, Fit] = {
    "popularity": popularity,
    "markov chain": markov,
    "transitions": transitions,
}
"""The baselines of every evaluation, by name."""

FURTHER: dict[str, Fit] = {"itemknn": item_knn, "ease": ease}
"""Baselines that an evaluation has if asked: they take up to minutes and more memory."""


def choose_baselines(names: Any, data: Sequences) -> dict[str, Fit]:
    """Those of every evaluation, and the further ones of these names.

    Raises:
        InputError: a name is unknown, or the catalogue is too large for it.
    """
    chosen = as_list([names] if isinstance(names, str) else names, "baselines")
    for name in chosen:
        if name not in FURTHER:
            raise InputError(f"unknown baseline {name!r}{did_you_mean(name, FURTHER)}")
    if "ease" in chosen and (size := len(data.item_ids)) > EASE_ITEMS:
        raise InputError(
            f"the baseline ease needs a table of {4 * size**2 / 1e9:,.1f} GB for {size:,} items; it is "
            f"possible up to {EASE_ITEMS:,} items, so leave it out"
        )
    return BASELINES | {name: FURTHER[name] for name in chosen}
