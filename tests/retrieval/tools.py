"""Vectors, the true results and fixtures for the tests of retrieval."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from recblr import retrieval
from recblr.inverted_file import InvertedFile, divide
from recblr.ops import candidates, library
from recblr.retrieval import Added

Rows = Sequence[int] | np.ndarray


@pytest.fixture(params=["vnni", "plain", "float32"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan by VNNI's instructions and by plain loops, and no compiled functions."""
    has_vnni = library.AVAILABLE and candidates.HAS_VNNI
    if request.param == "vnni" and not has_vnni:
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(candidates, "HAS_VNNI", request.param == "vnni", raising=False)
    if request.param == "float32":
        monkeypatch.setattr(library, "AVAILABLE", False)


@pytest.fixture
def always_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact scans catalogues of any size, instead of scoring all items of a small one."""
    monkeypatch.setattr(retrieval, "_SCORE_ALL", 0)


def truth(
    vectors: Tensor,
    queries: Tensor,
    k: int,
    hidden: Sequence[Rows] | None = None,
    allowed: Sequence[Rows | None] | None = None,
    added: Sequence[Added | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sort all scores in float64, equal ones by item, and drop the items that filters exclude."""
    scores = queries.double().numpy() @ vectors.double().numpy().T
    for row, values in zip(scores, added or (), strict=added is not None):
        if values is not None:
            row[values[0]] += values[1]
    best, items = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    for b, row in enumerate(scores):
        order = np.lexsort((np.arange(len(row)), -row)).tolist()
        only = None if allowed is None else allowed[b]
        kept = [
            item
            for item in order
            if (hidden is None or item not in hidden[b]) and (only is None or item in only)
        ][:k]
        best[b, : len(kept)], items[b, : len(kept)] = row[kept], kept
    return best, items


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed: int, *shape: int) -> Tensor:
    """Small integers: products without rounding, many of them equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def clustered(seed: int, items: int, width: int = 16, clusters: int = 60) -> tuple[Tensor, Tensor]:
    """Vectors of various lengths around centres, and queries near the centres."""
    centres = normal(seed, clusters, width)
    vectors = centres[torch.arange(items) % clusters] + 0.3 * normal(seed + 1, items, width)
    vectors *= 1 + 0.2 * normal(seed + 2, items, 1).abs()
    return vectors, centres.repeat(4, 1) + 0.3 * normal(seed + 3, 4 * clusters, width)


def inverted(vectors: Tensor, queries: Tensor | None = None) -> InvertedFile:
    """An inverted file, whose recall is measured on ``queries`` or the vectors."""
    return InvertedFile(vectors, divide(vectors, vectors if queries is None else queries))


def added_values(seed: int, size: int, count: int, largest: float) -> Added:
    """Values up to ``largest`` for some items, as of a memory, and a constant for two repeats."""
    rng = np.random.default_rng(seed)
    items = np.sort(rng.permutation(size)[:count])
    values = (largest * rng.random(count) ** 4).astype(np.float32)
    values[:2] += (-1) ** seed * 3 * largest
    return items, values


def assert_same_scores(ours: np.ndarray, exact: np.ndarray, vectors: Tensor, q: Tensor) -> None:
    """Equal up to the rounding of float32. A missed item would leave a lower score in its rank."""
    bound = 1e-6 * q.norm(dim=1, keepdim=True).numpy() * vectors.norm(dim=1).max().item()
    assert ours.dtype == np.float32
    finite = np.isfinite(exact)
    assert (np.isfinite(ours) == finite).all()
    assert (np.abs(np.where(finite, ours, 0) - np.where(finite, exact, 0)) <= bound).all()


def by_item(values: dict[int, float]) -> Added:
    items = np.array(sorted(values), np.int64)
    return items, np.array([values[item] for item in items.tolist()], np.float32)
