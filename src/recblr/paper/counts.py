"""Table 2: the size of the data sets after their filter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from recblr.paper.logs import SIMULATED, open_dataset
from recblr.paper.report import Cell, Record, Report, Why, read_record, replace_file, table
from recblr.provenance import provenance

COUNTS = ("users", "items", "interactions", "average length")


@dataclass(frozen=True)
class Counts:
    """A row a data set.

    Attributes:
        title: how its page is headed.
        datasets: which.
        published: what the paper counts, by data set in the order of :data:`COUNTS`.
        remarks: on a data set.
    """

    title: str
    datasets: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]]
    remarks: Mapping[str, str] = field(default_factory=dict)

    open = staticmethod(open_dataset)

    def smoke(self) -> "Counts":
        """The same of a simulated shop."""
        return replace(self, datasets=(SIMULATED,), published={}, remarks={})

    def cells(self, seeds: Sequence[int], device: str) -> list[Cell]:
        """A count a data set."""
        return [
            Cell(name, name, name, partial(_find, name), partial(_make, name))
            for name in self.datasets
        ]

    def report(self, folder: Path, seeds: Sequence[int], why: Why) -> Report:
        """What the counts in ``folder`` come to, see :meth:`Accuracy.report`."""
        data: dict[str, Any] = {}
        records, lines, verdicts = [], [], []
        for name in self.datasets:
            published, record = self.published.get(name), _find(name, folder)
            data[name] = {"published": published, "remark": self.remarks.get(name, "")}
            if record is None:
                data[name]["not_measured"] = verdict = why[name, name]
                cells = ["-"] * len(COUNTS)
            else:
                records.append(record)
                counts = [record[count] for count in COUNTS]
                verdict = "" if published is None else _judge(counts, published)
                data[name] |= {"counts": counts, "verdict": verdict}
                cells = list(map(_count, counts))
            if published is not None:
                verdicts.append(verdict if record else "not measured")
            said = verdict if record else f"not measured: {verdict}"
            papers = [_count(count) for count in published or ()] or [""] * len(COUNTS)
            both = [
                f"{ours} / {paper}" if paper else ours
                for ours, paper in zip(cells, papers, strict=True)
            ]
            lines.append([name, *both, "; ".join(filter(None, [said, data[name]["remark"]]))])
        kinds = ("equal", "unlike", "not measured")
        counted = ", ".join(f"{verdicts.count(it)} {it}" for it in kinds if it in verdicts)
        return Report(
            headline=", ".join(
                f"{name} {data[name]['verdict']}" for name in data if data[name].get("verdict")
            ),
            verdict=f"Of {len(verdicts)} data sets of the paper: {counted}.",
            summary=table(["data set, ours / paper", *COUNTS, "verdict"], lines),
            details="",
            data={"datasets": data},
            records=records,
            draw=None,
        )


def _find(name: str, folder: Path) -> Record | None:
    return read_record(folder / name / "counts.json")


def _make(name: str, folder: Path, command: str, device: str) -> Record:
    kept = open_dataset(name).summary["kept"]
    length = kept["interactions"] / kept["users"]
    record = {
        "dataset": name,
        **provenance(command, "cpu"),
        **kept,
        "average length": round(length, 1),
    }
    replace_file(folder / name / "counts.json", json.dumps(record, indent=1) + "\n")
    return record


def _judge(counts: Sequence[float], published: Sequence[float]) -> str:
    return "equal" if list(counts) == list(published) else "unlike"


def _count(count: float) -> str:
    return f"{count:,}"
