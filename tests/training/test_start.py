"""Item vectors that training starts from, against slow plain oracles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from recblr import memory
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.memory import MemoryConfig
from recblr.models import MODELS
from recblr.training.config import TrainConfig
from recblr.training.start import factorise, new_network, positive_pmi

START = TrainConfig(item_init="transitions")
COUNTS = MemoryConfig(backward=1, row_power=0, column_power=0)


def counts_of(rng: np.random.Generator, size: int, density: float) -> sparse.csr_array:
    counts = np.triu(rng.random((size, size)) * (rng.random((size, size)) < density))
    return sparse.csr_array(counts + counts.T)


def test_the_information_of_pairs_is_as_by_its_definition() -> None:
    counts = counts_of(np.random.default_rng(0), 17, 0.4)
    dense, total = counts.toarray(), counts.sum()
    expected = np.zeros_like(dense)
    for a in range(17):
        for b in range(17):
            if a != b and dense[a, b]:
                value = np.log(dense[a, b] * total / (dense[a].sum() * dense[:, b].sum()))
                expected[a, b] = max(0.0, value)
    np.testing.assert_allclose(positive_pmi(counts).toarray(), expected, atol=1e-12)


def test_the_factors_are_almost_the_best_of_their_rank() -> None:
    matrix = positive_pmi(counts_of(np.random.default_rng(1), 60, 0.2))
    left, values, _ = np.linalg.svd(matrix.toarray())
    projected = left[:, :8].T @ matrix.toarray()
    torch.manual_seed(0)
    factors = factorise(matrix, 8).numpy()
    basis, _ = np.linalg.qr(factors)
    captured = np.linalg.norm(basis.T @ matrix.toarray()) / np.linalg.norm(projected)
    assert captured > 0.98
    np.testing.assert_allclose((factors**2).sum(0)[:4], values[:4], rtol=0.05)


def test_few_items_and_no_pairs_at_all_have_factors() -> None:
    few = positive_pmi(counts_of(np.random.default_rng(2), 3, 1.0))
    assert factorise(few, 8).shape == (3, 8)
    assert not factorise(sparse.csr_array((5, 5)), 2).any()


def spread(vectors: torch.Tensor) -> float:
    deviations = torch.nn.functional.normalize(vectors).std(0)
    return float(deviations.max() / deviations.min())


def vectors_of(data: Sequences, training: TrainConfig, name: str = "recblr") -> torch.Tensor:
    network = new_network(name, MODELS[name][1](), training, data)
    first = network.item_tables["embedding.weight"]
    rows: torch.Tensor = network.embedding.weight.detach()[first : first + len(data.item_ids)]
    return rows


@pytest.mark.parametrize("name", [name for name in MODELS if name != "fpmc"])
def test_items_that_are_near_one_another_start_with_similar_vectors(
    name: str, sequences: Sequences
) -> None:
    random = vectors_of(sequences, TrainConfig(), name)
    started = vectors_of(sequences, START, name)
    assert torch.equal(started, vectors_of(sequences, START, name))
    np.testing.assert_allclose(
        started.norm(dim=1), random.std() * random.shape[1] ** 0.5, rtol=1e-5
    )

    items, lengths = sequences.training_part()
    ends = np.cumsum(lengths)
    beside = np.setdiff1d(np.arange(len(items) - 1), ends - 1)
    beside = beside[items[beside] != items[beside + 1]]
    directions = torch.nn.functional.normalize(started)
    near = (directions[items[beside]] * directions[items[beside + 1]]).sum(1).mean()
    assert near > (directions @ directions.T).mean() + 0.05


def test_the_dimensions_share_the_factors_and_the_seed_decides_how(sequences: Sequences) -> None:
    started = vectors_of(sequences, START)
    factors = factorise(positive_pmi(memory.fit(sequences, COUNTS).matrix), started.shape[1])
    assert spread(started) < spread(factors) / 2
    other = vectors_of(sequences, replace(START, seed=1))
    assert not torch.allclose(started, other, atol=1e-3)
    torch.testing.assert_close(started @ started.T, other @ other.T, rtol=0.1, atol=1e-3)


def test_an_item_without_a_neighbour_keeps_its_random_vector(sequences: Sequences) -> None:
    alone = replace(sequences, items=np.zeros_like(sequences.items))  # one item, no pair
    assert torch.equal(vectors_of(alone, START), vectors_of(alone, TrainConfig()))


def test_a_model_with_several_tables_cannot_start_from_transitions(sequences: Sequences) -> None:
    with pytest.raises(InputError, match=r"several tables of item vectors; set train\.item_init"):
        vectors_of(sequences, START, "fpmc")
