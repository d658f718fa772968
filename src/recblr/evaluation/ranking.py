"""Full ranking of held-out events under two protocols.

**unmasked** keeps the items of a user's history as candidates, as the paper and RecBole do. **masked**
removes them, as a shop does. Figures of one protocol do not compare with those of the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recblr.data.batches import PackedBatch, pack_latest, ranges
from recblr.data.sequences import Part, Sequences
from recblr.errors import DivergedError, InputError
from recblr.evaluation import metrics
from recblr.memory import MemoryConfig, fit
from recblr.progress import progress

Scorer = Callable[[PackedBatch], Tensor]
"""Scores (B, V) of every item as the next one of each history of a batch, on any device."""

_BLOCK_NUMBERS = 1 << 22  # in memory at a time, so that they stay in the cache
_EVENT_NUMBERS = 256  # in memory for each event inside a model
_MIN_USERS = 16  # in a block, as each block reads the whole table of items


@dataclass(frozen=True)
class Protocol:
    """How a figure was measured. Figures of different protocols do not compare."""

    split: str
    part: str
    core: int  # k of the k-core filter
    candidates: int  # the full catalogue, V
    seen: str  # "unmasked" or "masked"
    max_length: int  # events of a history that the model reads
    users: int
    data: str  # fingerprint of the log
    ties: str = "against the target"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of U users and the protocol that they were measured by.

    Attributes:
        protocol: how they were measured.
        metrics: means over the users, by name.
        intervals: 95% bootstrap intervals of the means.
        baselines: the same metrics of each of :data:`BASELINES`.
        slices: the metrics by history length and by popularity of the target.
        ranks: (U,) the rank of each user's target, from 1.
        users: (U,) the users.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, dict[str, float]]
    slices: dict[str, dict[str, float]]
    ranks: np.ndarray = field(repr=False)
    users: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but ``ranks`` and ``users``, as JSON values."""
        return {
            "metrics": self.metrics,
            "protocol": asdict(self.protocol),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "baselines": self.baselines,
            "slices": self.slices,
        }


def rank_targets(
    scorer: Scorer, data: Sequences, part: Part, max_length: int, title: str = ""
) -> dict[str, np.ndarray]:
    """Rank each user's held-out event among all items.

    rank = 1 + items with a greater score + other items with an equal score, so that a constant scorer
    earns nothing. Under "masked", seen items score -∞, also a target that was seen before. A target
    that is not in the catalogue has rank V + 1. A user without an event before the target is left out.

    Returns:
        ``{"unmasked": (U,), "masked": (U,), "users": (U,)}``, ranks and users.

    Raises:
        DivergedError: a score is not finite.
        InputError: no user has a target.
    """
    catalogue = len(data.item_ids)
    users = predicted_users(data, part)
    blocks: dict[str, list[Tensor]] = {"unmasked": [], "masked": []}
    finite = []
    with progress(title or f"ranking ({part})", len(users)) as advance:
        for batch in history_batches(data, part, users, max_length):
            scores = scorer(batch)
            finite.append(scores.isfinite().all())
            target = batch.targets.to(scores.device).unsqueeze(1)
            # A target that is not in the catalogue has no score.
            missing = target.squeeze(1) >= catalogue
            target = target.clamp(max=catalogue - 1)
            blocks["unmasked"].append(_rank(scores, target, missing))
            mask_seen(scores, batch)
            blocks["masked"].append(_rank(scores, target, missing))
            advance(len(scores))
    expect_finite(torch.stack(finite))  # once, as the host waits for a GPU here
    ranks = {name: torch.cat(parts).cpu().numpy() for name, parts in blocks.items()}
    return {"users": users} | ranks


def predicted_users(data: Sequences, part: Part) -> np.ndarray:
    """(U,) the users with an event to predict in ``part`` and an event before it.

    Raises:
        InputError: there are none.
    """
    rows = getattr(data.split, part)
    users = np.flatnonzero((rows >= 0) & (rows > data.offsets[:-1]))
    if not len(users):
        raise InputError(f"no user has an event to predict in the {part} part; give a longer log")
    return users


def history_batches(
    data: Sequences, part: Part, users: np.ndarray, max_length: int
) -> Iterator[PackedBatch]:
    """Blocks of users: the events before the held-out event of each user, and that event as target."""
    size = block_size(len(data.item_ids), max_length)
    targets = getattr(data.split, part)
    for block in np.split(users, range(size, len(users), size)):
        batch = pack_latest(data.items, data.offsets[block], targets[block], max_length, "last")
        yield replace(batch, users=torch.from_numpy(block))


def mask_seen(scores: Tensor, batch: PackedBatch) -> None:
    """Set the scores (B, V) of the items of each history, ``batch.seen``, to -∞, in place."""
    assert batch.seen is not None
    row, item = batch.seen.to(scores.device)
    scores[row, item] = -torch.inf


def expect_finite(finite: Tensor) -> None:
    """DivergedError unless all of ``finite`` is true; a score of NaN would otherwise get rank 1."""
    if not finite.all():
        raise DivergedError(
            "a score is not finite: the model has diverged; train it again with a lower train.lr"
        )


def block_size(catalogue: int, max_length: int) -> int:
    """The number of users to score at a time."""
    by_items = max(_MIN_USERS, _BLOCK_NUMBERS // catalogue)
    return max(1, min(by_items, _BLOCK_NUMBERS // (_EVENT_NUMBERS * max_length)))


def _rank(scores: Tensor, target: Tensor, missing: Tensor) -> Tensor:
    ranks = (scores >= scores.gather(1, target)).sum(1)
    return torch.where(missing, scores.shape[1] + 1, ranks)


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
    # Small enough to order only items with equal scores of the memory.
    counts = torch.from_numpy(data.item_counts / (1e9 * data.item_counts.max(initial=1)))
    return lambda batch: memory.add_to(counts.repeat(len(batch.offsets) - 1, 1), batch)


BASELINES: dict[str, Callable[[Sequences], Scorer]] = {
    "popularity": popularity,
    "markov chain": markov,
    "transitions": transitions,
}
"""Simple scorers to compare a model with, by name."""


def evaluate(
    scorer: Scorer, data: Sequences, max_length: int, part: Part = "test"
) -> list[Evaluation]:
    """Measure a scorer and the baselines under both protocols.

    Args:
        scorer: the scores of histories.
        data: the log, split.
        max_length: how many events of a history, the latest, the scorer gets.
        part: the held-out events to rank.

    Returns:
        The evaluations under "unmasked" and "masked".

    Raises:
        DivergedError: a score is not finite.
        InputError: no user has an event to predict.
    """
    ours = rank_targets(scorer, data, part, max_length)
    baselines = {
        name: rank_targets(baseline(data), data, part, MemoryConfig.reach, f"{name} ({part})")
        for name, baseline in BASELINES.items()
    }
    users = ours["users"]
    rows = getattr(data.split, part)[users]
    slices = _slices(data, users, rows)
    return [
        Evaluation(
            Protocol(
                data.split.name, part, data.core, len(data.item_ids), seen, max_length, len(users),
                data.fingerprint,
            ),
            metrics.means(ours[seen]),
            metrics.intervals(ours[seen]),
            {name: metrics.means(baseline[seen]) for name, baseline in baselines.items()},
            {
                name: {"users": int(mask.sum()), **metrics.means(ours[seen][mask])}
                for name, mask in slices.items()
                if mask.any()
            },
            ours[seen],
            users,
        )
        for seen in ("unmasked", "masked")
    ]  # fmt: skip


def _slices(data: Sequences, users: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (U,) by name: quarters of the users by history length, targets by popularity."""
    lengths = rows - data.offsets[users]
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="higher"))
    edges = np.repeat(edges, 2) if len(edges) == 1 else edges
    masks = {}
    for low, high in pairwise(edges):
        last = high == edges[-1]
        name = f"history {low}-{high if last else high - 1}"
        masks[name] = (lengths >= low) & ((lengths <= high) if last else (lengths < high))
    counts = np.append(data.item_counts, 0)
    order = np.argsort(-data.item_counts, kind="stable")
    more_popular = np.cumsum(counts[order]) - counts[order]  # events of more popular items
    group = np.full(len(counts), 2)
    group[order] = np.digitize(more_popular / max(1, counts.sum()), [0.5, 0.8])
    names = ("popular items (half of events)", "middle items (next 30%)", "rare items (last 20%)")
    for number, name in enumerate(names):
        masks[name] = group[data.items[rows]] == number
    return masks
