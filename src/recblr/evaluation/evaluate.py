"""Evaluations: metrics beside those of baselines, with the protocol that they were measured by."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recblr.data.sequences import Part, Sequences
from recblr.evaluation import metrics
from recblr.evaluation.baselines import choose_baselines
from recblr.evaluation.lists import lists_of
from recblr.evaluation.ranking import CPU, MISSED, PROTOCOLS, Scorer, rank_targets
from recblr.evaluation.slices import column_slices, read_columns, standard_slices
from recblr.memory import MemoryConfig
from recblr.ranks import ALONE, Ranks


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
        baselines: the same metrics of each baseline.
        slices: the metrics by history length, by popularity of the target, and by columns asked for.
        population: how many users are measured, count as missed and are left out.
        ranks: (U,) the rank of each user's target, from 1; :data:`MISSED` if it cannot be recommended.
        users: (U,) the users.
        lists: what the lists of recommended items are like, see :class:`Lists`; for "model" and for
            each baseline. Empty unless asked for.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, dict[str, float]]
    slices: dict[str, dict[str, float]]
    population: Population
    ranks: np.ndarray
    users: np.ndarray
    lists: dict[str, dict[str, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {self.metrics[name]:.4f}" for name in metrics.headline(self.metrics)
        )
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
        tables = html_table(heads, rows)
        if self.lists:
            names = self.lists["model"]
            columns = self.lists.values()
            rows = [[name, *(f"{values[name]:.4f}" for values in columns)] for name in names]
            tables += html_table(["lists", *self.lists], rows)
        notes = [str(self.protocol), *filter(None, [str(self.population)])]
        return tables + "".join(f"<p>{escape(note)}</p>" for note in notes)

    def to_json(self) -> dict[str, Any]:
        """Everything but ``ranks`` and ``users``, as JSON values."""
        return {
            "metrics": self.metrics,
            "protocol": asdict(self.protocol),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "baselines": self.baselines,
            "slices": self.slices,
            "population": asdict(self.population),
            **({"lists": self.lists} if self.lists else {}),
        }


def evaluate(
    scorer: Scorer, data: Sequences, max_length: int, part: Part = "test", k: Any = metrics.CUTOFFS,
    baselines: Any = (), lists: bool = False, item_vectors: Tensor | None = None,
    slice_by: Any = (), processes: Ranks = ALONE, device: torch.device = CPU,
) -> list[Evaluation]:  # fmt: skip
    """Measure a scorer and the baselines under both protocols.

    Args:
        scorer: the scores of histories.
        data: the log, split.
        max_length: how many events of a history, the latest, the scorer gets.
        part: the held-out events to rank.
        k: one cutoff of the metrics, or several.
        baselines: names of :data:`recblr.evaluation.baselines.FURTHER`, beside those of every
            evaluation.
        lists: also measure the lists of recommended items.
        item_vectors: (V, D) vectors by which the diversity of lists is measured.
        slice_by: pairs of a table and the name of its column, see
            :func:`recblr.evaluation.slices.read_columns`.
        processes: those that divide the users; each calls this function with the same arguments.
        device: that of the scorer.

    Returns:
        The evaluations under "unmasked" and "masked".

    Raises:
        DivergedError: a score is not finite.
        InputError: no user has an event to predict, ``k`` is not a positive whole number, a
            baseline is unknown or not possible for so large a catalogue, or a table is wrong.
    """
    cutoffs = metrics.as_cutoffs(k)
    fits, columns = choose_baselines(baselines, data), read_columns(slice_by, data)
    counted = lists_of(("model", *fits), data, cutoffs, item_vectors) if lists else {}
    observers = {name: each.add for name, each in counted.items()}
    ours = rank_targets(
        scorer, data, part, max_length, observe=observers.get("model"), processes=processes,
        device=device,
    )  # fmt: skip
    theirs = {
        name: rank_targets(
            fit(data),
            data,
            part,
            MemoryConfig.reach,
            f"{name} ({part})",
            observers.get(name),
            processes=processes,
        )
        for name, fit in fits.items()
    }
    users = ours["users"]
    slices = standard_slices(data, part, users)
    for column in columns:
        slices |= column_slices(column, data, part, users)
    population = _population(data, part, ours)
    return [
        Evaluation(
            Protocol(
                data.split.name, part, data.core, len(data.item_ids), seen, max_length, len(users),
                data.fingerprint,
            ),
            metrics.means(ours[seen], cutoffs),
            metrics.intervals(ours[seen], cutoffs),
            {name: metrics.means(ranks[seen], cutoffs) for name, ranks in theirs.items()},
            _sliced(ours[seen], slices, cutoffs),
            population,
            ours[seen],
            users,
            {name: each.metrics(seen) for name, each in counted.items()},
        )
        for seen in PROTOCOLS
    ]  # fmt: skip


def _sliced(
    ranks: np.ndarray, slices: dict[str, np.ndarray], cutoffs: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """The number of users and the metrics of each slice that is not empty, from masks (U,)."""
    return {
        name: {"users": int(mask.sum()), **metrics.means(ranks[mask], cutoffs)}
        for name, mask in slices.items()
        if mask.any()
    }


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
