"""A new network, as training starts from it.

Axes: V items, D the width of a vector.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from recblr import memory
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.memory import MemoryConfig
from recblr.models import create_model
from recblr.models.model import ITEM_VECTORS, Model
from recblr.progress import report
from recblr.ranks import ALONE, Ranks
from recblr.training.config import TrainConfig

# Symmetric counts of the pairs that the memory counts.
_COUNTS = MemoryConfig(backward=1.0, row_power=0.0, column_power=0.0)
# Of a large catalogue about so many pairs are used at most, the most frequent ones of each item.
_PAIRS = 1 << 25
_ITERATIONS = 4  # of the factorisation


def new_network(
    name: str, config: Any, training: TrainConfig, data: Sequences, ranks: Ranks = ALONE
) -> Model:
    """Create the network of a model on the CPU. The seed of the training settings decides its weights,
    with ``train.item_init = "transitions"`` also the training part of the log.

    Raises:
        InputError: the model cannot read the events, or has no table of item vectors to start.
    """
    torch.manual_seed(training.seed)
    network = create_model(
        name, config, items=len(data.item_ids), users=data.users,
        max_length=training.max_length, feature_set=data.feature_set,
    )  # fmt: skip
    if training.item_init == "transitions":
        if ITEM_VECTORS not in network.item_tables:
            raise InputError(
                f"train.item_init = 'transitions': {name} has several tables of item vectors; set "
                "train.item_init=random"
            )
        _start_from_transitions(network, data, ranks)
    return network


@torch.no_grad()
def _start_from_transitions(network: Model, data: Sequences, ranks: Ranks) -> None:
    """Replace the random item vectors: items that are near one another in the histories get similar
    vectors, as by word2vec (Levy and Goldberg, NeurIPS 2014).

    The vectors are as long as random ones. Items without a neighbour keep theirs.
    """
    report("the item vectors start from the transitions of the log")
    first = network.item_tables[ITEM_VECTORS]
    rows = network.get_parameter(ITEM_VECTORS)[first : first + len(data.item_ids)]
    dim = rows.shape[1]
    pairs = min(_COUNTS.pairs, max(16, _PAIRS // len(rows)))
    counts = memory.fit(data, replace(_COUNTS, pairs=pairs), ranks).matrix
    # Rotated at random, so that all dimensions have the same share of every factor.
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    started = factorise(positive_pmi(counts), dim) @ rotation
    lengths = started.norm(dim=1, keepdim=True)
    known = lengths > 1e-6 * lengths.max()
    started *= rows.std() * dim**0.5 / lengths.where(known, 1)
    # Of one process: elsewhere the last bits may differ.
    rows.copy_(ranks.from_last(started.to(rows.dtype).where(known, rows)))


def positive_pmi(counts: sparse.csr_array) -> sparse.csr_array:
    """The positive pointwise mutual information of each pair of different items, (V, V).

    max(0, log(C[a, b] · sum(C) / (row sum of a · column sum of b))), made symmetric.
    """
    by_row, by_column = counts.sum(1, np.float64), counts.sum(0, np.float64)
    pairs = counts.tocoo()
    row, column = pairs.coords
    expected = by_row[row] * by_column[column] / max(by_row.sum(), 1)
    values = np.log(np.maximum(pairs.data / expected, 1)) * (row != column)
    information = sparse.csr_array((values, (row, column)), counts.shape)
    symmetric = sparse.csr_array((information + information.T) / 2)
    symmetric.eliminate_zeros()
    return symmetric


def factorise(matrix: sparse.csr_array, dim: int) -> Tensor:
    """Factorise a symmetric matrix (V, V) by random projections (Halko et al., arXiv 0909.4061).

    Returns:
        (V, D) float64, the singular vectors of the largest singular values σ, each times √σ. If V < D,
        the last columns are 0.
    """
    row, column = matrix.tocoo().coords
    tensor = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([row, column])), torch.from_numpy(matrix.data),
        matrix.shape, check_invariants=True,
    )  # fmt: skip
    left, values, _ = torch.svd_lowrank(tensor, min(dim, *matrix.shape), niter=_ITERATIONS)
    return F.pad(left * values.sqrt(), (0, dim - len(values)))
