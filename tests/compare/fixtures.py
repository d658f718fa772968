"""Three trained recommenders of one log, and their comparison."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor, nn

from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from recblr.compare.comparison import Comparison, Difference, compare
from recblr.data.batches import PackedBatch
from recblr.memory import MemoryConfig
from recblr.models import MODELS
from recblr.models.model import Model
from recblr.recommender import Recommender

SEEN = ("unmasked", "masked")
UNTRAINED = replace(TINY_TRAINING, epochs=1, lr=1e-9)


@dataclass(frozen=True)
class LastItemConfig:
    dim: int = 8


class LastItem(Model):
    """Predicts from the last item alone: a model without a state."""

    def __init__(self, items: int, config: LastItemConfig) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.linear = nn.Linear(config.dim, config.dim)

    @property
    def item_embeddings(self) -> Tensor:
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        vectors: Tensor = self.linear(self.embedding(batch.items[batch.positions]))
        return vectors


@pytest.fixture(scope="module")
def compared_folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Artifacts trained on one log: ``model``, ``dull`` (no learning) and ``last`` (no state).

    The model of ``last`` is registered only while the tests of one module run.
    """
    folder = tmp_path_factory.mktemp("compared")
    dull = Recommender("recblr", replace(TINY_MODEL, dim=4), UNTRAINED, MemoryConfig(enabled=False))
    dull.fit(tiny.log, out=folder / "dull")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "last-item", (LastItem, LastItemConfig))
        Recommender("last-item", LastItemConfig(), TINY_TRAINING).fit(tiny.log, out=folder / "last")
        yield [tiny.artifact, folder / "dull", folder / "last"]


@pytest.fixture(scope="module")
def comparison(compared_folders: list[Path]) -> Comparison:
    return compare(compared_folders)


def with_outcome(
    comparison: Comparison,
    values: dict[str, tuple[float, float | None]],
    spread: float = 0.05,
    baseline: float = 0.1,
) -> Comparison:
    """The comparison with other values under both protocols.

    Args:
        comparison: gives everything else.
        values: NDCG@10 and p by label.
        spread: half the width of the intervals.
        baseline: NDCG@10 of each baseline.
    """
    changed = []
    for label, (ndcg, p) in values.items():
        contender = comparison.contenders[0]
        interval = (max(0.0, ndcg - spread), min(1.0, ndcg + spread))
        evaluations = {
            seen: replace(
                old,
                metrics={**old.metrics, "NDCG@10": ndcg},
                intervals={**old.intervals, "NDCG@10": interval},
                baselines={
                    name: {**row, "NDCG@10": baseline} for name, row in old.baselines.items()
                },
            )
            for seen, old in contender.evaluations.items()
        }
        difference = None if p is None else Difference(-0.1, (-0.2, 0.0), p)
        differences = dict.fromkeys(SEEN, difference)
        changed.append(
            replace(contender, label=label, evaluations=evaluations, differences=differences)
        )
    return replace(comparison, contenders=changed)
