"""Measure trained recommenders on one log: accuracy with tests of significance, and cost."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recblr.data import open_log
from recblr.data.batches import pack_latest
from recblr.data.columns import Columns
from recblr.data.vocabulary import as_list
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.evaluate import Evaluation, html_table
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.models.fused_step import FusedStep
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.progress import progress
from recblr.provenance import provenance
from recblr.recommender import Recommender, load
from recblr.timing import medians
from recblr.training.cuda_graph import Graphed

METRIC = "NDCG@10"  # decides which recommender is best
LEVEL = 0.05  # limit for the probability of any false "worse" among all comparisons
_REPEATS = 100  # calls per timing


@dataclass(frozen=True)
class Difference:
    """NDCG@10 of a recommender minus that of the best one, mean over users.

    ``interval`` is the 95% bootstrap interval of the mean. ``p`` is the p-value of a paired
    randomisation test, with Holm's correction for all differences of a comparison.
    """

    mean: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Cost:
    """What training and serving a recommender takes.

    ``training_seconds`` were measured where it was trained, possibly on other hardware. The other
    times are measured here, with the current number of torch threads: ``recommend_ms`` for the ten
    best items of one user with ``max_length`` events, ``step_us`` for adding one event to the state
    of one user (None for a model without a state). ``user_bytes`` is the size of the state, or four
    bytes for each event that the model sees.
    """

    parameters: int
    max_length: int
    training_seconds: float
    recommend_ms: float
    step_us: float | None
    user_bytes: int


@dataclass(frozen=True, eq=False)
class Contender:
    """One recommender: the folder, a short label for it, the name of the model, metrics and cost.

    The keys of ``evaluations`` and ``differences`` are the protocols, "unmasked" and "masked". The
    difference of the best recommender is None.
    """

    label: str
    folder: str
    model: str
    cost: Cost
    evaluations: dict[str, Evaluation]
    differences: dict[str, Difference | None]

    def __repr__(self) -> str:
        values = (f"{e.metrics[METRIC]:.4f} {seen}" for seen, e in self.evaluations.items())
        return f"Contender({_short(self.label)!r}, {self.model!r}, {METRIC} {', '.join(values)})"

    def verdict(self, seen: str) -> str:
        """Return "best", "as good within the noise" or "worse" under the protocol ``seen``."""
        difference = self.differences[seen]
        if difference is None:
            return "best"
        return "worse" if difference.p < LEVEL else "as good within the noise"

    def to_json(self) -> dict[str, Any]:
        """Everything except the per-user values, ready for ``json.dumps``."""
        evaluations = [
            {
                **evaluation.to_json(),
                "verdict": self.verdict(seen),
                "difference": asdict(difference)
                if (difference := self.differences[seen])
                else None,
            }
            for seen, evaluation in self.evaluations.items()
        ]
        about = {"folder": self.folder, "model": self.model, **asdict(self.cost)}
        return {**about, "evaluations": evaluations}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recommenders in the order given, with the log and the machine they were measured on."""

    contenders: list[Contender]
    log: str
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        best = [f"{_short(self.ranking(seen)[0].label)!r} {seen}" for seen in self.protocols]
        return f"Comparison({len(self.contenders)} models, best by {METRIC}: {', '.join(best)})"

    def _repr_html_(self) -> str:
        """The headline and the rankings, as tables for notebooks."""
        tables = [self._html_ranking(seen) for seen in self.protocols]
        evaluation = self.contenders[0].evaluations[self.protocols[0]]
        notes = [str(evaluation.protocol), *filter(None, [str(evaluation.population)])]
        return "".join(
            [
                f"<p>{escape(self.headline)}</p>",
                *tables,
                *(f"<p>{escape(note)}</p>" for note in notes),
            ]
        )

    def _html_ranking(self, seen: str) -> str:
        rows = []
        for contender in self.ranking(seen):
            means, difference = contender.evaluations[seen].metrics, contender.differences[seen]
            p = "" if difference is None else f"{difference.p:.4f}"
            rows.append((contender.label, means, contender.verdict(seen), p))
        rows += [(f"({name})", means, "", "") for name, means in self.baselines[seen].items()]
        heads = [seen, *self.contenders[0].evaluations[seen].metrics, "verdict", "p"]
        return html_table(
            heads,
            ([label, *(f"{mean:.4f}" for mean in means.values()), verdict, p]
             for label, means, verdict, p in rows),
        )  # fmt: skip

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self.contenders[0].evaluations)

    @property
    def baselines(self) -> dict[str, dict[str, dict[str, float]]]:
        """Metrics of the baselines by protocol; they do not depend on the recommenders."""
        return {
            seen: evaluation.baselines
            for seen, evaluation in self.contenders[0].evaluations.items()
        }

    def ranking(self, seen: str) -> list[Contender]:
        """The recommenders, best first."""
        return sorted(self.contenders, key=lambda c: -c.evaluations[seen].metrics[METRIC])

    @property
    def headline(self) -> str:
        """The outcome in one sentence, or in one per protocol if the outcomes differ."""
        outcomes = {seen: self._outcome(seen) for seen in self.protocols}
        if len(set(outcomes.values())) == 1:
            return f"Under both protocols {outcomes[self.protocols[0]]}."
        return " ".join(f"Seen items {seen}: {outcome}." for seen, outcome in outcomes.items())

    def _outcome(self, seen: str) -> str:
        best, *others = self.ranking(seen)
        parts = [f"{best.label} is best by {METRIC}"]
        for verdict in ("as good within the noise", "worse"):
            names = [other.label for other in others if other.verdict(seen) == verdict]
            parts += _statement(names, verdict)
        value = best.evaluations[seen].metrics[METRIC]
        unbeaten = [name for name, row in self.baselines[seen].items() if row[METRIC] >= value]
        return "; ".join(parts + _statement(unbeaten, "not beaten"))

    def to_json(self) -> dict[str, Any]:
        """Everything except the per-user values, ready for ``json.dumps``."""
        return {
            "headline": self.headline,
            "log": self.log,
            "artifacts": {contender.label: contender.to_json() for contender in self.contenders},
            **self.provenance,
        }


def compare(
    folders: Iterable[str | Path], log: Any = None, columns: Columns | None = None,
    device: str = "auto",
) -> Comparison:  # fmt: skip
    """Measure artifacts on one log and compare each with the best.

    Args:
        folders: two or more artifacts.
        log: anything that :func:`recblr.open_log` opens; by default the log that all were trained
            on. Another log is read in the vocabulary of each artifact, see
            :meth:`Recommender.evaluate`.
        columns: our column names to those of ``log``.
        device: where to score, as in :class:`Recommender`.

    Raises:
        InputError: fewer than two artifacts, the same one twice, a folder that is not an artifact,
            or artifacts that differ in split, core, catalogue, ``max_length`` or, without ``log``, in
            the data.
    """
    folders = as_list(folders, "folders")
    labels = _labels(folders)
    if log is None and columns is not None:
        raise InputError("columns are given without a log; give the log, too")
    loaded = {label: load(folder, device) for label, folder in zip(labels, folders, strict=True)}
    _check_comparable(loaded, log is None)
    first = loaded[labels[0]].data
    data = None if log is None else open_log(log, first.core, first.split.name, columns)
    measured = {
        label: {evaluation.protocol.seen: evaluation for evaluation in recommender.evaluate(data)}
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
    """The last parts of each path, as many as make the labels differ."""
    if len(folders) < 2:
        raise InputError("a comparison needs at least two artifacts; give their folders")
    for folder in folders:
        if not isinstance(folder, str | PathLike):
            raise InputError(f"{folder!r} is not the path of an artifact; give folders")
    paths = [Path(folder).resolve() for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise InputError(f"{folders[number]} is given twice; give each artifact once")
    choices = (["/".join(path.parts[-parts:]) for path in paths] for parts in count(1))
    return next(labels for labels in choices if len(set(labels)) == len(labels))


def _check_comparable(loaded: Mapping[str, Recommender], same_data: bool) -> None:
    first, *others = ((label, _basis(recommender)) for label, recommender in loaded.items())
    hints = {
        "data": "; give one log to measure both on",
        "max_length": "; train one of them again with the train.max_length of the other",
    }
    for field, value in first[1].items():
        for label, basis in others:
            if basis[field] != value and (same_data or field != "data"):
                raise InputError(
                    f"{first[0]} and {label} cannot be compared because their {field} differs: "
                    f"{value} and {basis[field]}{hints.get(field, '')}"
                )


def _basis(recommender: Recommender) -> dict[str, str]:
    """What metrics depend on besides the model, causes before their effects."""
    data = recommender.data
    ids = sorted(map(repr, data.item_ids.to_pylist()))  # in any order; 7 differs from "7"
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
    return {
        "split": data.split.name,
        "core": str(data.core),
        "catalogue": f"{len(ids):,} items (hash {digest})",
        "data": data.fingerprint,
        "max_length": str(recommender.training.max_length),
    }


def _differences(
    measured: Mapping[str, Mapping[str, Evaluation]],
) -> dict[str, dict[str, Difference | None]]:
    """The difference between each recommender and the best one, by label and protocol."""
    differences: dict[str, dict[str, Difference | None]] = {label: {} for label in measured}
    uncorrected: list[tuple[str, str, Difference]] = []
    protocols = list(next(iter(measured.values())))
    with progress("comparing", len(protocols) * len(measured)) as advance:
        for seen in protocols:
            gains = {
                label: metrics.per_user(evaluations[seen].ranks)[METRIC]
                for label, evaluations in measured.items()
            }
            best = max(gains, key=lambda label: gains[label].mean())
            for label, gain in gains.items():
                differences[label][seen] = None
                if label != best:
                    mean = float(gain.mean() - gains[best].mean())
                    interval = difference_interval(gain, gains[best])
                    p = paired_test(gain, gains[best])
                    uncorrected.append((label, seen, Difference(mean, interval, p)))
                advance(1)
    corrected = holm(np.array([difference.p for _, _, difference in uncorrected]))
    for (label, seen, difference), p in zip(uncorrected, corrected.tolist(), strict=True):
        differences[label][seen] = replace(difference, p=p)
    return differences


def _costs(loaded: Mapping[str, Recommender]) -> dict[str, Cost]:
    device = next(iter(loaded.values())).device
    recommend = medians({label: _recommend(rec) for label, rec in loaded.items()}, device, _REPEATS)
    networks = {label: rec.network for label, rec in loaded.items()}
    steps = {
        label: _step(net) for label, net in networks.items() if isinstance(net, RecurrentModel)
    }
    step = medians(steps, device, _REPEATS)
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


def _recommend(recommender: Recommender) -> Callable[[], object]:
    """Rank all items for one user with as many events as the model sees, and take the ten best."""
    known, length = len(recommender.data.item_ids), recommender.training.max_length
    history = pack_latest(
        np.arange(length) % known, np.array([0]), np.array([length]), length, "none"
    )
    batch = replace(history, users=torch.tensor([0]))
    return lambda: recommender.score(batch).topk(min(10, known))


def _step(network: RecurrentModel) -> Callable[[], object]:
    """Add one event to the state of one user."""
    step = (
        Graphed(FusedStep(network).step)
        if isinstance(network, RecBLR)
        else torch.no_grad()(network.step)
    )
    state = network.initial_state(1)
    item = torch.zeros(1, dtype=torch.int64, device=state.device)
    return lambda: step(item, state)


def _short(label: str) -> str:
    """The end of a label that is long."""
    return label if len(label) <= 24 else f"…{label[-23:]}"


def _statement(names: Sequence[str], predicate: str) -> list[str]:
    """ "a is ...", "a and b are ..." or "a, b and c are ..."; empty without names."""
    if len(names) < 2:
        return [f"{name} is {predicate}" for name in names]
    return [f"{', '.join(names[:-1])} and {names[-1]} are {predicate}"]
