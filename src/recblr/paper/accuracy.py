"""Studies of accuracy: models trained on data sets and measured, seen items unmasked and masked.

Axes: S seeds, U users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recblr.errors import InputError
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.paper import accuracy_page as page
from recblr.paper import figures
from recblr.paper.logs import SIMULATED, open_dataset
from recblr.paper.published import Published
from recblr.paper.report import Cell, Record, Report, Why
from recblr.paper.runs import Run, find_floors, make, make_floors, result, unpack_ranks
from recblr.paper.verdict import (
    ALPHA,
    MAIN,
    WITH_MEMORY,
    best,
    contradictions,
    judged,
    order,
    per_user,
)  # fmt: skip

SEEN = ("unmasked", "masked")  # the paper's way first
FLOOR = "transitions"  # the memory by itself, of the floors


@dataclass(frozen=True)
class Row:
    """A model by its recipe with some settings changed: a row of a table, a point of a line."""

    name: str
    model: str = "recblr"
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Runs:
    """A row on a data set: the records of its seeds, and by protocol their ranks (S, U)."""

    records: Sequence[Record]
    ranks: Mapping[str, np.ndarray]

    @property
    def seeds(self) -> list[int]:
        """Of the records."""
        return [record["seed"] for record in self.records]

    def values(self, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """Every metric (U,) of these seeds, seen items unmasked."""
        return per_user(self.ranks[SEEN[0]][[self.seeds.index(seed) for seed in seeds]])


@dataclass(frozen=True)
class Accuracy:
    """A table of figures, or lines. Rows with and without the memory of transitions are not compared.

    Attributes:
        title: how its page is headed.
        rows: what is trained.
        datasets: on what, with the settings that all rows change there.
        published: the paper's figures, seen items unmasked.
        remarks: on a data set, such as that it is not the paper's.
        reference: the row that is held against all others, and with the memory against all others
            that have it.
        axis: what the rows vary, where the picture is of lines; their names are then its values.
        optimum: by data set the row that the paper finds best.
    """

    title: str
    rows: tuple[Row, ...]
    datasets: Mapping[str, tuple[str, ...]]
    published: Published = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    axis: str = ""
    optimum: Mapping[str, str] = field(default_factory=dict)

    open = staticmethod(open_dataset)

    def smoke(self) -> "Accuracy":
        """The same study of a simulated shop, a matter of seconds."""
        return replace(self, datasets={SIMULATED: ()}, published={}, remarks={}, optimum={})

    def cells(self, seeds: Sequence[int], device: str) -> list[Cell]:
        """All runs; of a study with the memory of transitions also the memory by itself."""
        alone = [
            Cell(
                dataset, FLOOR, f"{dataset} {FLOOR}",
                partial(find_floors, dataset), partial(make_floors, dataset),
            )
            for dataset in self.datasets
            if any(row.name.endswith(WITH_MEMORY) for row in self.rows)
        ]  # fmt: skip
        return alone + [
            Cell(
                dataset, row.name, f"{dataset} {row.name} seed {seed}",
                partial(result, run), partial(make, run),
            )
            for dataset in self.datasets
            for seed in seeds
            for row in self.rows
            for run in [self._run(dataset, row, seed)]
        ]  # fmt: skip

    def report(self, folder: Path, seeds: Sequence[int], why: Why) -> Report:
        """What the runs in ``folder`` come to; seeds that have not been run are left out.

        Args:
            folder: where they are kept.
            seeds: which of them.
            why: why a row of a data set has no run.

        Raises:
            InputError: the runs of a data set were made on unlike data.
        """
        found = {dataset: self._find(dataset, folder, seeds) for dataset in self.datasets}
        data = {dataset: self._measure(dataset, runs, why) for dataset, runs in found.items()}
        values = {dataset: _shared(runs, memory=False) for dataset, runs in found.items()}
        _compare(self.reference, values, data)
        memories = {dataset: _shared(runs, memory=True) for dataset, runs in found.items()}
        for dataset, against in _against(self.reference + WITH_MEMORY, memories).items():
            data[dataset]["against_memory"] = against
        for dataset, of_rows in values.items():
            data[dataset]["order"] = _order(of_rows, self.published.get(dataset, {}))
            line = self.axis and len(of_rows) == len(self.rows)
            claimed = self.optimum.get(dataset)
            data[dataset]["optimum"] = _optimum(of_rows, claimed) if line else None
        records = [
            record for runs in found.values() for it in runs.values() for record in it.records
        ]
        draw = figures.lines if self.axis else figures.dots
        return Report(
            headline=page.headline(data, self.reference, self.axis),
            verdict=page.verdict(data),
            summary=page.summary(data),
            details=page.details(data),
            data={"datasets": data},
            records=records,
            draw=partial(draw, data, self.axis or self.reference) if records else None,
        )

    def _run(self, dataset: str, row: Row, seed: int) -> Run:
        return Run(dataset, row.model, (*self.datasets[dataset], *row.settings), seed)

    def _find(self, dataset: str, folder: Path, seeds: Sequence[int]) -> dict[str, _Runs]:
        """The rows of a data set that have a run, and what needs none."""
        found: dict[str, _Runs] = {}
        logs: dict[str, str] = {}
        for row in self.rows:
            runs = (self._run(dataset, row, seed) for seed in seeds)
            records = [record for run in runs if (record := result(run, folder)) is not None]
            if not records:
                continue
            logs |= {record["test"][0]["protocol"]["data"]: row.name for record in records}
            ranks = {
                seen: np.stack([unpack_ranks(record["ranks"][seen]) for record in records])
                for seen in SEEN
            }
            found[row.name] = _Runs(records, ranks)
        if found and (record := find_floors(dataset, folder)) is not None:
            logs |= {record["test"][0]["protocol"]["data"]: FLOOR}
            found[FLOOR] = _Runs([record], {})
        if len(logs) > 1:
            unlike = ", ".join(f"{log} ({row})" for log, row in logs.items())
            raise InputError(f"{folder / dataset}: runs on unlike data, {unlike}; delete the wrong")
        return found

    def _measure(self, dataset: str, runs: Mapping[str, _Runs], why: Why) -> dict[str, Any]:
        """The figures of every row, and of the floors."""
        rows: dict[str, Any] = {}
        for row in self.rows:
            published = self.published.get(dataset, {}).get(row.name, {})
            rows[row.name] = {"published": published}
            if row.name in runs:
                it = runs[row.name]
                rows[row.name] |= {
                    "runs": [_about(record) for record in it.records],
                    "unmasked": judged(it.ranks["unmasked"], published),
                    "masked": judged(it.ranks["masked"], {}),
                    "failed": why.get((dataset, row.name), ""),
                }
            else:
                rows[row.name]["not_measured"] = why[dataset, row.name]
        records = [record for it in runs.values() for record in it.records]
        return {
            "remark": self.remarks.get(dataset, ""),
            "reference": self.reference,
            "rows": rows,
            "floors": _floors(records),
        }


def _shared(runs: Mapping[str, _Runs], memory: bool) -> dict[str, dict[str, np.ndarray]]:
    """By row, of those with the memory or without, every metric (U,), of the seeds that all have, so
    that like stands beside like."""
    runs = {row: it for row, it in runs.items() if it.ranks and row.endswith(WITH_MEMORY) == memory}
    seeds = set.intersection(*(set(it.seeds) for it in runs.values())) if runs else set()
    return {row: it.values(sorted(seeds)) for row, it in runs.items()} if seeds else {}


def _about(record: Record) -> dict[str, Any]:
    """What a figure stands beside."""
    names = ("seed", "examples", "memory", "parameters", "epochs", "best_epoch", "ended", "seconds",
             "hardware", "gpu", "threads", "date", "commit")  # fmt: skip
    return {name: record[name] for name in names if name in record}


def _floors(records: Sequence[Record]) -> dict[str, Any]:
    """By name and protocol, the metrics of what a model has to beat; the same in all runs."""
    floors: dict[str, Any] = {}
    for record in records:
        for seen, evaluation in zip(SEEN, record["test"], strict=True):
            for name, values in evaluation["floors"].items():
                floors.setdefault(name, {})[seen] = values
    return floors


def _compare(
    reference: str,
    found: Mapping[str, Mapping[str, dict[str, np.ndarray]]],
    data: Mapping[str, Any],
) -> None:
    """Put in how the reference row stands to the others, and whether it has its stars: is ahead of the
    best of all others in a metric, by more than chance. The p of the stars are one family."""
    against = _against(reference, found)
    for dataset, of_rows in found.items():
        values = dict(of_rows)
        ours = values.pop(reference, None)
        data[dataset]["against"], data[dataset]["stars"] = against[dataset], {}
        if ours is None or not values:
            continue
        published = any(row["published"] for row in data[dataset]["rows"].values())
        for metric, of_users in ours.items() if published else ():
            row = best({row: theirs[metric] for row, theirs in values.items()})
            difference = float((of_users - values[row][metric]).mean())
            p = paired_test(of_users, values[row][metric])
            data[dataset]["stars"][metric] = {"against": row, "difference": difference, "p": p}
    _correct([it for of_data in data.values() for it in of_data["stars"].values()])
    for dataset, of_data in data.items():
        rows = [row for row in of_data["rows"] if not row.endswith(WITH_MEMORY)]
        whole = len(found[dataset]) == len(rows)  # or the best may be among the missing
        for star in of_data["stars"].values():
            star["earned"] = bool(whole and star["difference"] > 0 and star["p"] < ALPHA)


def _against(
    reference: str, found: Mapping[str, Mapping[str, dict[str, np.ndarray]]]
) -> dict[str, dict[str, Any]]:
    """By data set, the reference row less each of the others in :data:`MAIN`; all p are one family."""
    against = {
        dataset: {
            row: _difference(of_rows[reference][MAIN], theirs[MAIN])
            for row, theirs in of_rows.items()
            if reference in of_rows and row != reference
        }
        for dataset, of_rows in found.items()
    }
    _correct([it for of_data in against.values() for it in of_data.values()])
    return against


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    return {
        "difference": float((ours - theirs).mean()),
        "interval": list(difference_interval(ours, theirs)),
        "p": paired_test(ours, theirs),
    }


def _correct(family: Sequence[dict[str, Any]]) -> None:
    """Holm's correction of every p of a family of comparisons."""
    for comparison, p in zip(family, holm(np.array([it["p"] for it in family])), strict=True):
        comparison["p"] = float(p)


def _order(
    found: Mapping[str, dict[str, np.ndarray]], published: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """How our order of the rows agrees with the published one, and the pairs that differ from it by
    more than chance."""
    values = {row: of_row[MAIN] for row, of_row in found.items() if row in published}
    ours = {row: float(of_users.mean()) for row, of_users in values.items()}
    theirs = {row: published[row][MAIN] for row in ours}
    tau = order(ours, theirs)
    if tau is None:
        return None
    pairs: list[dict[str, Any]] = [
        {"better": first, "worse": second, "p": paired_test(values[first], values[second])}
        for first, second in contradictions(ours, theirs)
    ]
    _correct(pairs)
    return {"rows": len(ours), "tau": tau, "other_way": [it for it in pairs if it["p"] < ALPHA]}


def _optimum(rows: Mapping[str, dict[str, np.ndarray]], claimed: str | None) -> dict[str, Any]:
    """The best row, and whether the one that the paper names is as good within the interval."""
    values = {row: of_row[MAIN] for row, of_row in rows.items()}
    found: dict[str, Any] = {"best": best(values)}
    if claimed is not None:
        low, _ = interval = difference_interval(values[found["best"]], values[claimed])
        found |= {
            "claimed": claimed,
            "interval": list(interval),  # of the best one's lead
            "verdict": "reproduced" if low <= 0 else "not reproduced",
        }
    return found
