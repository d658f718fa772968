"""Full ranking of the held-out events, in blocks, under named protocols.

Two protocols, always both: **unmasked** leaves the items of a user's history among the candidates (the
paper's and RecBole's way), **masked** takes them out (what a user of a shop sees). They do not compare.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recblr.data.batches import PackedBatch, latest, ranges
from recblr.data.sequences import Part, Sequences
from recblr.errors import DivergedError, InputError
from recblr.evaluation import metrics
from recblr.memory import MemoryConfig, fit
from recblr.progress import progress

Scorer = Callable[[PackedBatch], Tensor]
"""Scores (B, V) of every item as the next one of each history of a batch, on any device."""

_BLOCK = 1 << 22  # numbers in memory at once, so that they also stay in the cache
_EVENT = 256  # of them for an event on its way through a model
_USERS = 16  # at least, if it is for the items: a block reads all of them


@dataclass(frozen=True)
class Protocol:
    """How a figure was measured; figures of unlike protocols do not compare."""

    split: str
    part: str
    core: int  # k of the k-core filter
    candidates: int  # the full catalogue, V
    seen: str  # "unmasked" or "masked"
    max_length: int  # events of the history the model sees
    users: int
    data: str  # fingerprint
    ties: str = "against the target"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics with the protocol they were measured by.

    ``ranks`` (U,) of the targets and ``users`` (U,) whose they are; ``floors`` the same metrics of
    each of :data:`FLOORS`; ``slices`` the metrics by history length and by popularity of the target.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    floors: dict[str, dict[str, float]]
    slices: dict[str, dict[str, float]]
    ranks: np.ndarray = field(repr=False)
    users: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the per-user values, as plain values."""
        return {
            "metrics": self.metrics,
            "protocol": asdict(self.protocol),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "floors": self.floors,
            "slices": self.slices,
        }


def rank_targets(
    scorer: Scorer, data: Sequences, part: Part, max_length: int, title: str = ""
) -> dict[str, np.ndarray]:
    """The rank of each user's held-out event, ``{"unmasked": (U,), "masked": (U,), "users": (U,)}``.

    rank = 1 + candidates with a greater score + other candidates with an equal score, so that a
    constant scorer earns nothing. Under "masked" a target that the user has seen is no candidate
    and comes last. A target that is not in the catalogue comes behind it. A user who did nothing
    before the target is left out. The ranks are counted where the scores are.

    Raises:
        DivergedError: a score is not finite.
    """
    catalogue = len(data.item_ids)
    users = predicted_users(data, part)
    found: dict[str, list[Tensor]] = {"unmasked": [], "masked": []}
    finite = []
    with progress(title or f"ranking ({part})", len(users)) as advance:
        for batch in history_batches(data, part, users, max_length):
            scores = scorer(batch)
            finite.append(scores.isfinite().all())
            target = batch.targets.to(scores.device).unsqueeze(1)
            # An item that is not in the catalogue has no score: it ranks behind everything.
            missing = target.squeeze(1) >= catalogue
            target = target.clamp(max=catalogue - 1)
            found["unmasked"].append(_rank(scores, target, missing))
            hide(scores, batch)
            found["masked"].append(_rank(scores, target, missing))
            advance(len(scores))
    expect_finite(torch.stack(finite))  # at the end, as the host has to wait for a GPU
    ranks = {name: torch.cat(blocks).cpu().numpy() for name, blocks in found.items()}
    return {"users": users} | ranks


def predicted_users(data: Sequences, part: Part) -> np.ndarray:
    """(U,) those with an event to predict in ``part`` and one before it.

    Raises:
        InputError: there is none.
    """
    rows = getattr(data.split, part)
    users = np.flatnonzero((rows >= 0) & (rows > data.offsets[:-1]))
    if not len(users):
        raise InputError(f"no user has an event to predict in the {part} part; give a longer log")
    return users


def history_batches(
    data: Sequences, part: Part, users: np.ndarray, max_length: int
) -> Iterator[PackedBatch]:
    """The histories before the held-out event of each user, which is the target, a block at a time."""
    block = block_size(len(data.item_ids), max_length)
    for some in np.split(users, range(block, len(users), block)):
        batch = latest(
            data.items, data.offsets[some], getattr(data.split, part)[some], max_length, "last"
        )
        yield replace(batch, users=torch.from_numpy(some))


def hide(scores: Tensor, batch: PackedBatch) -> None:
    """Set the scores (B, V) of what each history holds, ``batch.seen``, to -∞, in place."""
    assert batch.seen is not None
    row, item = batch.seen.to(scores.device)
    scores[row, item] = -torch.inf


def expect_finite(finite: Tensor) -> None:
    """DivergedError unless ``finite`` is true throughout, as a score of NaN would pass for rank 1."""
    if not finite.all():
        raise DivergedError("a score is not finite: the model has diverged; nothing is ranked")


def block_size(catalogue: int, max_length: int) -> int:
    """How many users to score at a time."""
    by_items = max(_USERS, _BLOCK // catalogue)
    return max(1, min(by_items, _BLOCK // (_EVENT * max_length)))


def _rank(scores: Tensor, target: Tensor, missing: Tensor) -> Tensor:
    ranks = (scores >= scores.gather(1, target)).sum(1)
    return torch.where(missing, scores.shape[1] + 1, ranks)


def popularity(data: Sequences) -> Scorer:
    """A floor: every user is offered the items in order of their training count."""
    counts = torch.from_numpy(data.item_counts.astype(np.float32))
    return lambda batch: counts.repeat(len(batch.offsets) - 1, 1)


def markov(data: Sequences) -> Scorer:
    """A floor: a first-order Markov chain, the items by how often they followed the user's last one.

    Only within the training part of one user's history. Items that followed equally often, or never,
    stand in order of their training count. In memory are the pairs that occur, not all V x V.
    """
    starts, catalogue = data.offsets[:-1], len(data.item_ids)
    rows = ranges(starts, np.maximum(data.split.train_end - starts - 1, 0))
    pairs = (data.items[rows], data.items[rows + 1])
    # Whole numbers, exact in float64: one more transition outweighs any training count.
    weight = np.full(len(rows), 1.0 + data.item_counts.max(initial=0))
    followed = sparse.csr_array((weight, pairs), (catalogue, catalogue))

    def score(batch: PackedBatch) -> Tensor:
        last = batch.items[batch.offsets[1:] - 1].numpy()
        return torch.from_numpy(followed[last].toarray() + data.item_counts)

    return score


def transitions(data: Sequences) -> Scorer:
    """A floor: the memory of transitions alone, with the default numbers of memory.py.

    Items that it does not reach stand in order of their training count.
    """
    memory = fit(data, MemoryConfig())
    # So small that they order only items to which the memory gives the same score.
    counts = torch.from_numpy(data.item_counts / (1e9 * data.item_counts.max(initial=1)))
    return lambda batch: memory.add_to(counts.repeat(len(batch.offsets) - 1, 1), batch)


FLOORS: dict[str, Callable[[Sequences], Scorer]] = {
    "popularity": popularity,
    "markov chain": markov,
    "transitions": transitions,
}
"""What a model has to beat to be worth its training, by name."""


def evaluate(
    scorer: Scorer, data: Sequences, max_length: int, part: Part = "test"
) -> list[Evaluation]:
    """Measure a scorer under both protocols, with the floors beside it.

    Args:
        scorer: scores of histories.
        data: the log, split.
        max_length: events of the history the scorer is shown, the latest.
        part: which held-out events.
    """
    ours = rank_targets(scorer, data, part, max_length)
    floors = {
        name: rank_targets(floor(data), data, part, MemoryConfig.reach, f"{name} ({part})")
        for name, floor in FLOORS.items()
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
            {name: metrics.means(floor[seen]) for name, floor in floors.items()},
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
    """Masks (U,): quarters of the users by history length; targets by the items' share of events."""
    lengths = rows - data.offsets[users]
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="higher"))
    edges = np.repeat(edges, 2) if len(edges) == 1 else edges
    found = {}
    for low, high in pairwise(edges):
        last = high == edges[-1]
        name = f"history {low}-{high if last else high - 1}"
        found[name] = (lengths >= low) & ((lengths <= high) if last else (lengths < high))
    counts = np.append(data.item_counts, 0)
    order = np.argsort(-data.item_counts, kind="stable")
    ahead = np.cumsum(counts[order]) - counts[order]  # events of more popular items
    group = np.full(len(counts), 2)
    group[order] = np.digitize(ahead / max(1, counts.sum()), [0.5, 0.8])
    names = ("popular items (half of events)", "middle items (next 30%)", "rare items (last 20%)")
    for number, name in enumerate(names):
        found[name] = group[data.items[rows]] == number
    return found
