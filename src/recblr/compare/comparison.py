"""Trained recommenders beside one another on one log: how good each is, and what it costs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recblr.benchmark.step import served_step
from recblr.data import open_log
from recblr.data.batches import latest
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import Evaluation
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.progress import progress
from recblr.provenance import provenance
from recblr.recommender import Recommender, load
from recblr.timing import medians

METRIC = "NDCG@10"  # by which the best one is chosen
LEVEL = 0.05  # how often the whole family of comparisons may call a model worse that is not
_REPEATS = 100  # of a call that is timed


@dataclass(frozen=True)
class Difference:
    """How far a recommender is from the best one, in mean NDCG@10 over users; below 0 is worse.

    ``interval`` is the 95% bootstrap interval of this one difference, ``p`` of the paired
    randomisation test after Holm's correction for all comparisons made.
    """

    mean: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Cost:
    """What a recommender takes.

    ``training_seconds`` where it was trained, which may have been another machine. Here, by the
    threads that torch is set to: ``recommend_ms`` the ten best items for one user with
    ``max_length`` events; ``step_us`` one more event of one user, None for a model without a state.
    ``user_bytes`` kept of a user: the state, or four bytes for each event that the model looks at.
    """

    parameters: int
    max_length: int
    training_seconds: float
    recommend_ms: float
    step_us: float | None
    user_bytes: int


@dataclass(frozen=True, eq=False)
class Contender:
    """One recommender: its folder and a short name of it, its kind of model, figures and cost.

    ``evaluations`` and ``differences`` by protocol, "unmasked" and "masked"; the difference of the
    best one is None.
    """

    label: str
    folder: str
    model: str
    cost: Cost
    evaluations: dict[str, Evaluation]
    differences: dict[str, Difference | None]

    def verdict(self, seen: str) -> str:
        """ "best", "as good within the noise" or "worse"."""
        difference = self.differences[seen]
        if difference is None:
            return "best"
        return "worse" if difference.p < LEVEL else "as good within the noise"

    def to_json(self) -> dict[str, Any]:
        """All but the per-user values, as plain values."""
        evaluations = []
        for seen, evaluation in self.evaluations.items():
            difference = self.differences[seen]
            evaluations.append(
                {
                    **evaluation.to_json(),
                    "verdict": self.verdict(seen),
                    "difference": None if difference is None else asdict(difference),
                }
            )
        about = {"folder": self.folder, "model": self.model, **asdict(self.cost)}
        return {**about, "evaluations": evaluations}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recommenders in the order they were named, the log they were measured on, and on what machine."""

    contenders: list[Contender]
    log: str
    provenance: dict[str, Any]

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self.contenders[0].evaluations)

    @property
    def floors(self) -> dict[str, dict[str, dict[str, float]]]:
        """Metrics of the floors by protocol; they do not depend on the recommenders."""
        return {
            seen: evaluation.floors for seen, evaluation in self.contenders[0].evaluations.items()
        }

    def ranking(self, seen: str) -> list[Contender]:
        """The best one first."""
        return sorted(
            self.contenders, key=lambda c: c.evaluations[seen].metrics[METRIC], reverse=True
        )

    @property
    def headline(self) -> str:
        """The outcome in a sentence, or one for each protocol where they differ."""
        said = {seen: self._outcome(seen) for seen in self.protocols}
        if len(set(said.values())) == 1:
            return f"Under both protocols {said[self.protocols[0]]}."
        return " ".join(f"Seen items {seen}: {outcome}." for seen, outcome in said.items())

    def _outcome(self, seen: str) -> str:
        best, *others = self.ranking(seen)
        parts = [f"{best.label} is best by {METRIC}"]
        for verdict in ("as good within the noise", "worse"):
            names = [other.label for other in others if other.verdict(seen) == verdict]
            if names:
                parts.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {verdict}")
        reached = best.evaluations[seen].metrics[METRIC]
        unbeaten = [name for name, floor in self.floors[seen].items() if floor[METRIC] >= reached]
        if unbeaten:
            parts.append(f"{_listed(unbeaten)} {'is' if len(unbeaten) == 1 else 'are'} not beaten")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All but the per-user values, as plain values."""
        return {
            "headline": self.headline,
            "log": self.log,
            "artifacts": {contender.label: contender.to_json() for contender in self.contenders},
            **self.provenance,
        }


def compare(
    folders: Sequence[str | Path], log: Any = None, columns: Mapping[str, str] | None = None,
    device: str = "auto",
) -> Comparison:  # fmt: skip
    """Measure artifacts on one log, each against the best of them.

    Args:
        folders: two or more artifacts.
        log: whatever :func:`recblr.open_log` opens; by default the one that all were trained on.
            Another log is read in each one's vocabulary, as :meth:`Recommender.evaluate` does.
        columns: our column names to those of ``log``.
        device: where to score, as in :class:`Recommender`.

    Raises:
        InputError: there is but one artifact, one is named twice or is none, or two differ in what
            their figures depend on: split, core, catalogue or, without ``log``, the data.
    """
    labels = _labels(folders)
    if log is None and columns is not None:
        raise InputError("columns belong to a log; name the log as well")
    loaded = {label: load(folder, device) for label, folder in zip(labels, folders, strict=True)}
    _check_alike(loaded, log is None)
    first = loaded[labels[0]].data
    data = None if log is None else open_log(log, first.core, first.split.name, columns)
    measured = {
        label: {found.protocol.seen: found for found in recommender.evaluate(data)}
        for label, recommender in loaded.items()
    }
    costs, differences = _costs(loaded), _differences(measured)
    return Comparison(
        [
            Contender(
                label, str(folder), loaded[label].model, costs[label], measured[label],
                differences[label],
            )
            for label, folder in zip(labels, folders, strict=True)
        ],
        str((first if data is None else data).summary.get("source", "")),
        provenance("recblr compare"),
    )  # fmt: skip


def _labels(folders: Sequence[str | Path]) -> list[str]:
    """As much of the end of each path as tells them all apart."""
    if len(folders) < 2:
        raise InputError("a comparison needs two artifacts or more; name their folders")
    paths = [Path(folder).resolve() for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise InputError(f"{folders[number]} is named twice; name each artifact once")
    tries = (["/".join(path.parts[-parts:]) for path in paths] for parts in count(1))
    return next(labels for labels in tries if len(set(labels)) == len(labels))


def _check_alike(loaded: Mapping[str, Recommender], same_data: bool) -> None:
    facts = {label: _facts(recommender.data) for label, recommender in loaded.items()}
    first, *others = facts
    for field, ours in facts[first].items():
        for other in others:
            theirs = facts[other][field]
            if theirs != ours and (same_data or field != "data"):
                hint = "; name one log to measure both on" if field == "data" else ""
                raise InputError(
                    f"{first} and {other} do not compare: {field} {ours} and {theirs}{hint}"
                )


def _facts(data: Sequences) -> dict[str, str]:
    """What figures depend on, those first that explain the ones behind them."""
    ids = sorted(map(repr, data.item_ids.to_pylist()))  # in any order; 7 is not "7"
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
    return {
        "split": data.split.name,
        "core": str(data.core),
        "catalogue": f"{len(ids):,} items (hash {digest})",
        "data": data.fingerprint,
    }


def _differences(
    measured: Mapping[str, Mapping[str, Evaluation]],
) -> dict[str, dict[str, Difference | None]]:
    """Of each contender from the best one, under each protocol."""
    found: dict[str, dict[str, Difference | None]] = {label: {} for label in measured}
    family: list[tuple[str, str, Difference]] = []
    protocols = list(next(iter(measured.values())))
    with progress("comparing", len(protocols) * len(measured)) as advance:
        for seen in protocols:
            gains = {
                label: metrics.per_user(evaluations[seen].ranks)[METRIC]
                for label, evaluations in measured.items()
            }
            best = max(gains, key=lambda label: gains[label].mean())
            for label, ours in gains.items():
                found[label][seen] = None
                if label != best:
                    mean = float(ours.mean() - gains[best].mean())
                    interval = difference_interval(ours, gains[best])
                    p = paired_test(ours, gains[best])
                    family.append((label, seen, Difference(mean, interval, p)))
                advance(1)
    corrected = holm(np.array([difference.p for _, _, difference in family]))
    for (label, seen, difference), p in zip(family, corrected.tolist(), strict=True):
        found[label][seen] = replace(difference, p=p)
    return found


def _costs(loaded: Mapping[str, Recommender]) -> dict[str, Cost]:
    device = next(iter(loaded.values())).device
    recommending = {label: _recommendation(rec) for label, rec in loaded.items()}
    stepping = {
        label: _step(rec.network)
        for label, rec in loaded.items()
        if isinstance(rec.network, RecurrentModel)
    }
    recommend = medians(recommending, device, _REPEATS)
    step = medians(stepping, device, _REPEATS)
    return {
        label: Cost(
            sum(parameter.numel() for parameter in rec.network.parameters()),
            rec.training.max_length,
            rec.trained.seconds,
            recommend[label] * 1e3,
            step[label] * 1e6 if label in step else None,
            rec.network.initial_state(1).nbytes if label in step else 4 * rec.training.max_length,
        )
        for label, rec in loaded.items()
    }


def _recommendation(recommender: Recommender) -> Callable[[], object]:
    """The ten best items for one user of the log with the longest history that the model looks at."""
    known, length = len(recommender.data.item_ids), recommender.training.max_length
    history = latest(np.arange(length) % known, np.array([0]), np.array([length]), length, "none")
    batch = replace(history, users=torch.tensor([0]))
    return lambda: recommender.score(batch).topk(min(10, known))


def _step(network: RecurrentModel) -> Callable[[], object]:
    """One more event of one user."""
    step = served_step(network) if isinstance(network, RecBLR) else torch.no_grad()(network.step)
    state = network.initial_state(1)
    item = torch.zeros(1, dtype=torch.int64, device=state.device)
    return lambda: step(item, state)


def _listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
