"""Full ranking of held-out events under two protocols.

**unmasked** keeps the items of a user's history as candidates, as the paper and RecBole do. **masked**
removes them, as a shop does. Figures of one protocol do not compare with those of the other.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any, get_args

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

MISSED = 2**31 - 1  # the rank of a target that cannot be recommended, behind every cutoff
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

    def __repr__(self) -> str:
        return (
            f"Protocol({self.split} {self.part}, {self.seen}, {self.core}-core, "
            f"{self.candidates:,} items, last {self.max_length:,} events, {self.users:,} users, "
            f"data {self.data})"
        )

    def __str__(self) -> str:
        return (
            f"{self.split} {self.part}, {self.core}-core, full ranking of {self.candidates:,} items, "
            f"ties {self.ties}, last {self.max_length:,} events, {self.users:,} users, data {self.data}"
        )


@dataclass(frozen=True)
class Population:
    """Which users of a log an evaluation measures, counts as missed and leaves out.

    Those that count as missed are measured, and each is in one of the groups.
    """

    users: int  # measured: they have an event to predict
    unknown_history: int  # missed: the model knows no item before the target
    unknown_target: int  # missed: the model does not know the target
    without_target: int  # left out: no event to predict
    filtered: int  # left out: removed by the k-core filter
    seen_target: int = 0  # missed under "masked": the target is in the history

    def __str__(self) -> str:
        """The users other than those with a rank by score; "" if there are none."""
        reasons = (
            (self.unknown_history, "missed (no item of the history is known)"),
            (self.unknown_target, "missed (the target is not known)"),
            (self.seen_target, "missed if masked (the target is in the history)"),
            (self.without_target, "left out (no event to predict)"),
            (self.filtered, "left out (removed by the filter)"),
        )
        return ", ".join(f"{number:,} {reason}" for number, reason in reasons if number)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of U users and the protocol that they were measured by.

    Attributes:
        protocol: how they were measured.
        metrics: means over the users, by name.
        intervals: 95% bootstrap intervals of the means.
        baselines: the same metrics of each of :data:`BASELINES`.
        slices: the metrics by history length and by popularity of the target.
        population: how many users are measured, count as missed and are left out.
        ranks: (U,) the rank of each user's target, from 1; :data:`MISSED` if it cannot be recommended.
        users: (U,) the users.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, dict[str, float]]
    slices: dict[str, dict[str, float]]
    population: Population
    ranks: np.ndarray
    users: np.ndarray

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.metrics[name]:.4f}" for name in ("HR@10", "NDCG@10"))
        missed = int((self.ranks == MISSED).sum())
        return (
            f"Evaluation({self.protocol.seen}: {shown}; {self.protocol.split} {self.protocol.part}, "
            f"{len(self.ranks):,} users{f', {missed:,} missed' * bool(missed)})"
        )

    def _repr_html_(self) -> str:
        """The metrics beside those of the baselines, a table for notebooks."""
        rows = [
            [name, f"{value:.4f}", "{:.4f}-{:.4f}".format(*self.intervals[name]),
             *(f"{baseline[name]:.4f}" for baseline in self.baselines.values())]
            for name, value in self.metrics.items()
        ]  # fmt: skip
        heads = [self.protocol.seen, "model", "95% interval", *self.baselines]
        notes = [str(self.protocol), *filter(None, [str(self.population)])]
        return html_table(heads, rows) + "".join(f"<p>{escape(note)}</p>" for note in notes)

    def to_json(self) -> dict[str, Any]:
        """Everything but ``ranks`` and ``users``, as JSON values."""
        return {
            "metrics": self.metrics,
            "protocol": asdict(self.protocol),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "baselines": self.baselines,
            "slices": self.slices,
            "population": asdict(self.population),
        }


def rank_targets(
    scorer: Scorer, data: Sequences, part: Part, max_length: int, title: str = ""
) -> dict[str, np.ndarray]:
    """Rank each user's held-out event among all items.

    rank = 1 + items with a greater score + other items with an equal score, so that a constant scorer
    earns nothing. A target that cannot be recommended has rank :data:`MISSED`: one that is not in the
    catalogue, that of a user without an event before it, and, under "masked", one that was seen before.

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
            seen = scores.gather(1, target).squeeze(1) == -torch.inf
            blocks["masked"].append(_rank(scores, target, missing | seen))
            advance(len(scores))
    expect_finite(torch.stack(finite))  # once, as the host waits for a GPU here
    ranks = {name: torch.cat(parts).cpu().numpy() for name, parts in blocks.items()}
    return _with_missed({"users": users, **ranks}, _without_history(data, part))


def predicted_users(data: Sequences, part: Part) -> np.ndarray:
    """(U,) the users with an event to predict in ``part`` and an event before it.

    Raises:
        InputError: there are none, or the part is unknown.
    """
    if part not in (parts := get_args(Part)):
        raise InputError(f"part = {part!r}: choose one of {', '.join(parts)}")
    rows = getattr(data.split, part)
    users = np.flatnonzero((rows >= 0) & (rows > data.offsets[:-1]))
    if not len(users):
        known = ""
        if np.any(rows >= 0):  # unknown items were removed from another log
            known = " after an item that the model knows"
        raise InputError(
            f"no user has an event to predict in the {part} part{known}; give a longer log"
        )
    return users


def _without_history(data: Sequences, part: Part) -> np.ndarray:
    """The users with an event to predict and none before it. Only other logs have such users, from
    which items that the model does not know are removed."""
    rows = getattr(data.split, part)
    return np.flatnonzero((rows >= 0) & (rows == data.offsets[:-1]))


def _with_missed(ranks: dict[str, np.ndarray], users: np.ndarray) -> dict[str, np.ndarray]:
    """The ranks of :func:`rank_targets` with further users, whose targets are missed."""
    order = np.argsort(np.concatenate([ranks["users"], users]))
    further = {name: users if name == "users" else np.full(len(users), MISSED) for name in ranks}
    return {name: np.concatenate([ranks[name], further[name]])[order] for name in ranks}


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
    return torch.where(missing, MISSED, ranks)


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
    population = _population(data, part, ours)
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
            population,
            ours[seen],
            users,
        )
        for seen in ("unmasked", "masked")
    ]  # fmt: skip


def _population(data: Sequences, part: Part, ranks: dict[str, np.ndarray]) -> Population:
    users = ranks["users"]
    rows = getattr(data.split, part)[users]
    known_history = rows > data.offsets[users]
    unknown_target = data.items[rows] >= len(data.item_ids)
    read, kept = (data.summary.get(name, {}).get("users", 0) for name in ("read", "kept"))
    return Population(
        len(users), int((~known_history).sum()), int((known_history & unknown_target).sum()),
        data.users - len(users), read - kept,
        int(((ranks["masked"] == MISSED) & (ranks["unmasked"] != MISSED)).sum()),
    )  # fmt: skip


def html_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table of text."""
    lines = [("th", heads), *(("td", row) for row in rows)]
    return "<table>{}</table>".format(
        "".join(
            "<tr>{}</tr>".format("".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts))
            for tag, texts in lines
        )
    )


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
