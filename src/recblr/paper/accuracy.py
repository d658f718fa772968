"""Studies of accuracy: models trained on data sets and tested. Axes: S seeds, U users."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.paper.charts import dots
from recblr.paper.measurements import Baselines, Measurement, Run, unpack_ranks
from recblr.paper.report import Line, Missing, Record, Report, Study, table
from recblr.renamed import current_evaluation

MAIN = "NDCG@10"  # the metric by which rows are compared
ALPHA = 0.01  # of the paper's star
CHAIN, TRANSITIONS = "markov chain", "transitions"  # baselines; the second is the memory alone
MEMORY = " + memory"  # ends the name of a row whose scores the memory of transitions adds to
COLUMNS = {
    "row": "row", "mean": "ours", "deviation": "±", "star": "star", "interval": "95% interval",
    "published": "published", "percent": "difference %", "verdict": "verdict",
    "masked_mean": "masked", "masked_deviation": "± masked",
    "masked_interval": "95% interval masked", "ahead": "ahead", "best_other": "ahead of",
    "ahead_interval": "95% interval ahead", "p": "p",
}  # fmt: skip
RUN = ("seed", "examples", "parameters", "epochs", "best_epoch", "ended", "seconds", "hardware",
       "gpu", "threads", "date", "commit", "memory")  # fmt: skip
Rows = Mapping[str, Mapping[str, np.ndarray]]
"""By row and metric, the value of each user (U,), a mean over the seeds."""
Leads = dict[tuple[str, str], dict[str, Any]]
"""How far the reference row is "ahead" and the "p" of that, by data set and another row or a metric."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Study):
    """A table of figures, or figures along an axis. The settings of a data set are for all rows there.
    Rows with and without the memory are not compared.

    Attributes:
        reference: the row that is compared with every other row.
        axis: what the rows vary; their names are then its values.
        optimum: by data set, the row that the paper finds best along the axis.
    """

    reference: str = ""
    axis: str = ""
    optimum: Mapping[str, str] = field(default_factory=dict)

    def measurements(self, seeds: Sequence[int], device: str) -> list[Measurement]:
        """All runs, and the baselines if a row has the memory."""
        memory = any(row.endswith(MEMORY) for row in self.rows)
        return [Baselines(dataset, TRANSITIONS) for dataset in self.datasets if memory] + [
            Run(dataset, row, model, (*self.datasets[dataset], *settings), seed)
            for dataset, seed in product(self.datasets, seeds)
            for row, (model, *settings) in self.rows.items()
        ]

    def report(self, folder: Path, seeds: Sequence[int], missing: Missing) -> Report:
        records = {name: self._records(name, folder, seeds) for name in self.datasets}
        lines = {name: self._lines(name, kept, missing) for name, kept in records.items()}
        rows = {name: _values(kept, memory=False) for name, kept in records.items()}
        memory = {name: _values(kept, memory=True) for name, kept in records.items()}
        self._compare(lines, rows, memory)
        verdicts = {name: self._verdict(name, lines[name], rows[name], missing) for name in lines}
        figures = [*chain(*lines.values())]
        main = [line for line in figures if line["metric"] == MAIN and records[line["dataset"]]]
        for name in (name for name, kept in records.items() if not kept):
            reasons = "; ".join(dict.fromkeys(missing[name, row] for row in self.rows))
            main.append({"dataset": name, "row": "all", "verdict": f"not measured: {reasons}"})
        runs = [
            {"dataset": name, "row": row, **{key: record[key] for key in RUN if key in record}}
            for name, kept in records.items()
            for row, record in _each(kept)
            if row != TRANSITIONS
        ]
        tables = [
            f"## {name}: {MAIN}\n\n" + table(COLUMNS, [x for x in main if x["dataset"] == name])
            for name in records
        ]
        all_columns = {"dataset": "data set", "row": "row", "metric": "metric"} | COLUMNS
        every = table(all_columns, [line for line in figures if "mean" in line])
        details = f"{table(('dataset', 'row', *RUN), runs)}\n\n## All metrics\n\n{every}"
        reached = [f"{text} on {name}" for name in verdicts if (text := verdicts[name]["figure"])]
        shown = [row for row in self.rows if not row.endswith(MEMORY)]
        drawn = [line for line in main if line["row"] in (*shown, CHAIN * (not self.axis))]
        draw = partial(dots, drawn, shown, ("mean", "published"), MAIN, highlight=self.reference)
        return Report(
            headline=f"{self._what}: {', '.join(reached)}" if reached else "",
            table="\n\n".join(tables),
            sentences=[verdict["sentence"] for verdict in verdicts.values()],
            details=details if runs else "",
            data={"figures": figures, "runs": runs, "verdicts": verdicts},
            records=[record for kept in records.values() for _, record in _each(kept)],
            picture=draw if runs else None,
        )

    @property
    def _what(self) -> str:
        return f"best {self.axis}" if self.axis else f"{MAIN} of {self.reference}"

    def _records(
        self, dataset: str, folder: Path, seeds: Sequence[int]
    ) -> dict[str, dict[int, Record]]:
        """By row and seed, the records of the runs on a data set; and of the baselines beside them."""
        records: dict[str, dict[int, Record]] = {}
        for run in self.measurements(seeds, "cpu"):
            if run.dataset == dataset and isinstance(run, Run) and (record := run.find(folder)):
                records.setdefault(run.row, {})[run.seed] = record
        if records and (record := Baselines(dataset, TRANSITIONS).find(folder)):
            records[TRANSITIONS] = {0: record}
        data = {record["test"][0]["protocol"]["data"]: row for row, record in _each(records)}
        if len(data) > 1:
            unlike = ", ".join(f"{fingerprint} ({row})" for fingerprint, row in data.items())
            raise InputError(f"{folder / dataset}: runs on different data, {unlike}; delete one")
        return records

    def _lines(
        self, dataset: str, records: Mapping[str, Mapping[int, Record]], missing: Missing
    ) -> list[Line]:
        """A line for each metric of each row and baseline."""
        lines: dict[tuple[str, str], Line] = {}
        for row in self.rows:
            published = self.published.get(dataset, {}).get(row, {})
            lines |= {(row, metric): {"published": paper} for metric, paper in published.items()}
            if row not in records:
                for metric in published or [MAIN]:
                    reason = f"not measured: {missing[dataset, row]}"
                    lines.setdefault((row, metric), {})["verdict"] = reason
                continue
            masked = summary(_ranks(records[row].values(), "masked"))
            for metric, ours in summary(_ranks(records[row].values(), "unmasked")).items():
                line = lines.setdefault((row, metric), {})
                line |= ours | {f"masked_{key}": value for key, value in masked[metric].items()}
                if paper := published.get(metric):
                    low, high = ours["interval"]
                    side = "better" if ours["mean"] > paper else "worse"
                    line["verdict"] = "reproduced" if low <= paper <= high else side
                    line["percent"] = 100 * (ours["mean"] / paper - 1)
        for _, record in _each(records):
            for key, evaluation in zip(("mean", "masked_mean"), record["test"], strict=True):
                for name, values in current_evaluation(evaluation)["baselines"].items():
                    for metric, value in values.items():
                        lines.setdefault((name, metric), {})[key] = value
        return [
            {"dataset": dataset, "row": row, "metric": metric, **line}
            for (row, metric), line in lines.items()
        ]

    def _compare(
        self, lines: Mapping[str, list[Line]], rows: Mapping[str, Rows], memory: Mapping[str, Rows]
    ) -> None:
        """Add to the lines the lead of the reference row over theirs, and its stars."""
        ahead = leads(self.reference, rows) | leads(self.reference + MEMORY, memory)
        judged = {name: rows[name] for name in rows if self.published.get(name)}
        plain = [row for row in self.rows if not row.endswith(MEMORY)]
        earned = stars(self.reference, judged, len(plain))
        for line in chain(*lines.values()):
            if line["metric"] == MAIN:
                line |= ahead.get((line["dataset"], line["row"]), {})
            if line["row"] == self.reference:
                line |= earned.get((line["dataset"], line["metric"]), {})

    def _verdict(
        self, dataset: str, lines: Sequence[Line], rows: Rows, missing: Missing
    ) -> dict[str, Any]:
        """The facts about a data set and their sentence."""
        main = {line["row"]: line for line in lines if line["metric"] == MAIN}
        ours = main.get(self.reference, {})
        complete = self.axis and len(rows) == len(self.rows)
        best = optimum(rows, self.optimum.get(dataset)) if complete else {}
        figure = best.get("best", f"{ours['mean']:.4f}" if "mean" in ours else "")
        beside = []
        if "verdict" in best:
            beside.append(f"paper {best['claimed']}, {best['verdict']}")
        elif "percent" in ours:
            beside.append(f"paper {ours['published']:.4f}, {ours['verdict']}")
        if "mean" in (with_memory := main.get(self.reference + MEMORY, {})):
            beside.append(f"with memory {with_memory['mean']:.4f}")
        figure += f" ({'; '.join(beside)})" if beside else ""
        facts = [f"{self._what} {figure}"] if figure else []
        for kind in ("", MEMORY):
            ahead = [line for line in main.values() if "ahead_interval" in line]
            ahead = [line for line in ahead if line["row"].endswith(MEMORY) == bool(kind)]
            if ahead:
                least = min(ahead, key=lambda line: line["ahead"])
                share = f"{abs(least['ahead']) / least['mean']:.1%} " if least["mean"] else ""
                side = "ahead of" if least["ahead"] > 0 else "behind"
                lead = f"{share}{side} {least['row']} (p = {least['p']:.2g})"
                facts.append(f"{self.reference}{kind} {lead}")
        verdicts = [line["verdict"].split(":")[0] for line in lines if "published" in line]
        counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(Counter(verdicts).items()))
        facts += [f"published figures: {counts}"] if counts else []
        failed = [row for row in self.rows if "mean" in main[row] and (dataset, row) in missing]
        facts += [f"without {missing[dataset, row]}" for row in failed]
        remark = f" ({self.remarks[dataset]})" if dataset in self.remarks else ""
        sentence = "; ".join(facts) or ("no comparison" if rows else "not measured")
        return {"figure": figure, "sentence": f"{dataset}{remark}: {sentence}.", "optimum": best}


def _each(records: Mapping[str, Mapping[int, Record]]) -> list[tuple[str, Record]]:
    """The records with their rows."""
    return [(row, record) for row in records for record in records[row].values()]


def _ranks(records: Iterable[Record], seen: str) -> np.ndarray:
    """(S, U) of S records."""
    return np.stack([unpack_ranks(record["ranks"][seen]) for record in records])


def _values(records: Mapping[str, Mapping[int, Record]], memory: bool) -> Rows:
    """The values of the rows with the memory, or without it, over the seeds that all of them have."""
    rows = [row for row in records if row.endswith(MEMORY) == memory and row != TRANSITIONS]
    seeds = sorted(set.intersection(*(set(records[row]) for row in rows))) if rows else []
    kept = {row: [records[row][seed] for seed in seeds] for row in rows if seeds}
    return {row: per_user(_ranks(kept[row], "unmasked")) for row in kept}


def per_user(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric (U,) of ranks (S, U), averaged over the seeds."""
    return {name: values.mean(0) for name, values in metrics.per_user(ranks).items()}


def summary(ranks: np.ndarray) -> dict[str, dict[str, Any]]:
    """By metric of ranks (S, U): mean, deviation over seeds (None of one seed), and 95% interval."""
    seeds = [metrics.means(seed_ranks) for seed_ranks in ranks]
    cells = {}
    for name, users in per_user(ranks).items():
        means = [seed[name] for seed in seeds]
        deviation = float(np.std(means, ddof=1)) if len(means) > 1 else None
        interval = [*metrics.mean_interval(users)]
        cells[name] = {"mean": float(np.mean(means)), "deviation": deviation, "interval": interval}
    return cells


def leads(reference: str, datasets: Mapping[str, Rows]) -> Leads:
    """By data set and row, the lead of the reference row in :data:`MAIN`; one family of p."""
    leads: Leads = {}
    for dataset, rows in datasets.items():
        for row in rows.keys() - {reference} if reference in rows else ():
            ours, theirs = rows[reference][MAIN], rows[row][MAIN]
            interval = [*difference_interval(ours, theirs)]
            leads[dataset, row] = {**_lead(ours, theirs), "ahead_interval": interval}
    return _corrected(leads)


def stars(reference: str, datasets: Mapping[str, Rows], count: int) -> Leads:
    """By data set and metric, the lead of the reference row over the best other row, with a star if it
    is more than chance and all ``count`` rows are there; one family of p."""
    stars: Leads = {}
    for dataset, rows in datasets.items():
        others = [row for row in rows if row != reference]
        for metric, ours in rows.get(reference, {}).items() if others else ():
            best = others[int(np.argmax([rows[row][metric].mean() for row in others]))]
            stars[dataset, metric] = {**_lead(ours, rows[best][metric]), "best_other": best}
    for (dataset, _), star in _corrected(stars).items():
        earned = star["ahead"] > 0 and star["p"] < ALPHA and len(datasets[dataset]) == count
        star["star"] = "*" if earned else ""
    return stars


def optimum(rows: Rows, claimed: str | None) -> dict[str, Any]:
    """The best row, and whether the row that the paper finds best is as good within the interval."""
    best = max(rows, key=lambda row: rows[row][MAIN].mean())
    if claimed is None:
        return {"best": best}
    lead = [*difference_interval(rows[best][MAIN], rows[claimed][MAIN])]
    verdict = "reproduced" if lead[0] <= 0 else "not reproduced"
    return {"best": best, "claimed": claimed, "interval": lead, "verdict": verdict}


def _lead(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    return {"ahead": float((ours - theirs).mean()), "p": paired_test(ours, theirs)}


def _corrected(leads: Leads) -> Leads:
    """The leads with Holm's correction of their p."""
    corrected = holm(np.array([lead["p"] for lead in leads.values()]))
    for lead, p in zip(leads.values(), corrected.tolist(), strict=True):
        lead["p"] = p
    return leads
