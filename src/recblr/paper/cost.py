"""Studies of size (Table 2) and of cost, by scan and padding (Table 5) and by length (Figure 4)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

from recblr.errors import InputError
from recblr.paper.charts import curves, dots
from recblr.paper.measurements import Size, Timing
from recblr.paper.report import Line, Missing, Record, Report, Study, table

COSTS = {"epoch_seconds": "seconds an epoch", "inference_seconds": "seconds of inference",
         "peak_mib": "peak MiB"}  # fmt: skip
COLUMNS = {
    "device": "device", "dataset": "data set", "row": "row", "length": "longest history", **COSTS,
    "ratio": "ratio", "published": "seconds, paper", "published_ratio": "ratio, paper",
    "note": "not measured",
}  # fmt: skip


class Sizes(Study):
    """The size of each data set; its rows are the counts."""

    def measurements(self, seeds: Sequence[int], device: str) -> list[Size]:
        """The size of each data set."""
        return [Size(dataset, dataset) for dataset in self.datasets]

    def report(self, folder: Path, seeds: Sequence[int], missing: Missing) -> Report:
        records = {size.dataset: size.find(folder) for size in self.measurements(seeds, "cpu")}
        lines = list[Line]()
        for dataset, record in records.items():
            published = self.published.get(dataset, {})
            paper = {f"{count}, paper": cell["count"] for count, cell in published.items()}
            ours = {count: record[count] for count in self.rows} if record else {}
            equal = [*ours.values()] == [*paper.values()]
            verdict = "equal" if equal else "different" if paper else "not in the paper"
            verdict = verdict if ours else f"not measured: {missing[dataset, dataset]}"
            lines.append({"data set": dataset, **ours, **paper, "verdict": verdict})
        columns = chain(*((count, f"{count}, paper") for count in self.rows))
        remarks = {name: f" ({remark})" for name, remark in self.remarks.items()}
        verdicts = {line["data set"]: line["verdict"] for line in lines}
        return Report(
            headline=", ".join(f"{name} {verdicts[name]}" for name in records if records[name]),
            table=table(["data set", *columns, "verdict"], lines),
            sentences=[f"{name}: {verdicts[name]}{remarks.get(name, '')}." for name in verdicts],
            data={"sizes": lines},
            records=[record for record in records.values() if record],
        )


@dataclass(frozen=True, kw_only=True)
class Cost(Study):
    """Costs on each kind of device. A data set has the longest histories to keep and the samples of a
    batch, ``published`` the paper's seconds an epoch.

    Attributes:
        claims: what the paper says; a cost, and pairs of rows of which the first needs less of it.
        long: events of a history from which on the claims hold.
        base: the row by which the seconds of the others are divided.
        stand_ins: data sets that are not the paper's.
    """

    claims: Mapping[str, Sequence[Any]]
    long: int = 0
    base: str = ""
    stand_ins: Sequence[str] = ()

    def small(self) -> "Cost":
        lengths = [16] if self.base else [8, 16]
        return replace(super().small(), datasets={"simulated": (lengths, 1024)})

    def measurements(self, seeds: Sequence[int], device: str) -> list[Timing]:
        """All timings on a kind of device; they are not repeated over seeds."""
        share = 4 if device == "cpu" else 1
        return [
            Timing(dataset, row, model, ("train.examples=prefixes", f"train.max_length={length}",
                   f"train.batch_size={samples // share}", *settings), length, device, not self.base)
            for dataset, (lengths, samples) in self.datasets.items()
            for length in lengths
            for row, (model, *settings) in self.rows.items()
        ]  # fmt: skip

    def report(self, folder: Path, seeds: Sequence[int], missing: Missing) -> Report:
        lines, claims, records = list[Line](), list[Line](), list[Record]()
        for device in ("cuda", "cpu"):
            timings = self.measurements(seeds, device)
            kept = [(timing, record) for timing in timings if (record := timing.find(folder))]
            machines = {
                f"{r['hardware']} {r.get('gpu', '')} {r['threads']} threads" for _, r in kept
            }
            if len(machines) > 1:
                where = f"{folder / 'timings' / device}: timed on different machines"
                raise InputError(f"{where}, {'; '.join(sorted(machines))}; delete all but one")
            new = [self._line(timing, record) for timing, record in kept]
            claims += self._judge(new)
            lines += new
            records += [record for _, record in kept]
        counts = Counter(claim["verdict"] for claim in claims)
        sentence = "{dataset}, {device}: {claim}: {verdict}{ratios}."
        absent = [{"dataset": key[0], "row": key[1], "note": missing[key]} for key in missing]
        return Report(
            headline=", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
            table=table(COLUMNS, [*lines, *absent]),
            sentences=[sentence.format(**claim) for claim in claims],
            data={"costs": lines, "claims": claims},
            records=records,
            picture=self._picture([x for x in lines if x["device"] == lines[0]["device"]]),
        )

    def _line(self, timing: Timing, record: Record) -> Line:
        """The costs of a row, and the paper's."""
        line = {"device": timing.kind, "dataset": timing.dataset, "row": timing.row,
                "length": timing.length}  # fmt: skip
        line |= {cost: record[cost] for cost in COSTS if record.get(cost) is not None}
        if paper := self.published.get(timing.dataset, {}).get(timing.row):
            base = self.published[timing.dataset][self.base]
            line["published"] = paper["seconds"]
            line["published_ratio"] = paper["seconds"] / base["seconds"]
        return line

    def _judge(self, lines: Sequence[Line]) -> list[Line]:
        """Whether the claims hold for the data sets on a device; adds the ratios to the base."""
        claims = list[Line]()
        for dataset in dict.fromkeys(line["dataset"] for line in lines):
            costs = {(x["row"], x["length"]): x for x in lines if x["dataset"] == dataset}
            for (_, length), line in costs.items():
                if base := costs.get((self.base, length)):
                    line["ratio"] = line["epoch_seconds"] / base["epoch_seconds"]
            for claim, (cost, *pairs) in self.claims.items():
                shares = {
                    length: [costs[a, length][cost] / costs[b, length][cost] for a, b in pairs]
                    for length in sorted({length for _, length in costs})
                    if length >= self.long
                    and all(cost in costs.get((row, length), {}) for row in chain(*pairs))
                }
                holds = all(share < 1 for share in chain(*shares.values()))
                verdict = "the same" if dataset in self.stand_ins else "reproduced"
                verdict = (verdict if holds else f"not {verdict}") if shares else "not measured"
                longest = shares.get(max(shares, default=0), [])
                last = " and ".join(f"{share:.2f}" for share in longest)
                ratios = f" ({last} of it at {max(shares):,} events)" if shares else ""
                claims.append({"device": lines[0]["device"], "dataset": dataset, "claim": claim,
                               "verdict": verdict, "ratios": ratios})  # fmt: skip
        return claims

    def _picture(self, lines: Sequence[Line]) -> Callable[..., None] | None:
        """The ratios of each data set by row, or the costs of each row by length."""
        if self.base and any("ratio" in line for line in lines):
            keys = ("ratio", "published_ratio")
            return partial(dots, lines, [*self.rows], keys, f"times {self.base}")
        panels: dict[str, Any] = {title: {row: {} for row in self.rows} for title in COSTS.values()}
        for line, cost in product(lines, COSTS):
            if cost in line:
                panels[COSTS[cost]][line["row"]][line["length"]] = line[cost]
        return (
            partial(curves, panels, "longest history", "linear")
            if lines and not self.base
            else None
        )
