"""Studies of cost: seconds an epoch by scan and padding (Table 5), and cost by length (Figure 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recblr.errors import InputError
from recblr.paper import figures
from recblr.paper.logs import SIMULATED, open_dataset
from recblr.paper.report import Cell, Record, Report, Why, number, table
from recblr.paper.timings import Timing, find, make

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEVICES = {"cuda": "GPU", "cpu": "CPU"}
SERIAL, BASE = "serial scan", "embedding padding"
LONG = 700  # events of a history from which on the paper calls it long
ABOUT = """An epoch has a sample of every prefix of every history, the paper's way. It is timed by some
of its batches, after others to warm up, and scaled by their events; inference is the median of five.
The paper's batches are of 2,048 samples, 512 on XLong; on a CPU a quarter of that, to fit its memory.
The paper's GPU is an A100.
Each cell is one such timing, on a machine that had other work: differences of a fifth are noise.
Memory is what training takes at its peak beyond the log and the weights. Two logs stand in for the
paper's: `gowalla-10core` is another filter of Gowalla, `xlong-like` a simulated shop with histories as
long as those of XLong, of 300 users and far fewer items."""

ORDER = (
    "`ml-1m` has its events in the order of exact times, the paper's has them in RecBole's: the "
    "histories are equally long, and no cost depends on the order of the events in them."
)

Key = tuple[str, str, int]
"""Log, row, longest history."""
Costs = dict[str, dict[int, dict[str, float]]]
"""By row, longest history, and kind of cost."""


@dataclass(frozen=True)
class _Part:
    """What the measurements on one kind of device come to, see :class:`Report`."""

    headline: str
    verdict: str
    tables: list[str]
    data: dict[str, Any]
    draw: "Callable[[Figure], None] | None"


@dataclass(frozen=True)
class Efficiency:
    """A study of cost; its page has a part for each kind of device it was measured on.

    Attributes:
        title: how its page is headed.
        rows: a model and a setting, by name.
        logs: the longest histories that are kept, and the samples of the paper's batches, by name.
        published: the paper's seconds an epoch, by log and row.
        stand_ins: logs that are not the paper's.
    """

    title: str
    rows: Mapping[str, tuple[str, str]]
    logs: Mapping[str, tuple[tuple[int, ...], int]]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stand_ins: tuple[str, ...] = ()

    inference: ClassVar[bool]
    small: ClassVar[tuple[int, ...]]  # longest histories of a smoke run
    open = staticmethod(open_dataset)

    def smoke(self) -> "Efficiency":
        """The same of a simulated shop, a matter of seconds."""
        return replace(self, logs={SIMULATED: (self.small, 1024)}, published={})

    def timings(self, kind: str) -> dict[Key, Timing]:
        """All measurements on a kind of device."""
        share = 4 if kind == "cpu" else 1
        return {
            (log, row, length): Timing(
                log,
                model,
                (
                    "train.examples=prefixes",
                    f"train.max_length={length}",
                    f"train.batch_size={samples // share}",
                    *filter(None, [setting]),
                ),
                self.inference,
            )
            for log, (lengths, samples) in self.logs.items()
            for length in lengths
            for row, (model, setting) in self.rows.items()
        }

    def cells(self, seeds: Sequence[int], device: str) -> list[Cell]:
        """All measurements on a kind of device; they are not repeated over seeds."""
        return [
            Cell(
                log, row, f"{log} {row}, {length} events",
                partial(find, timing, device), partial(make, timing),
            )
            for (log, row, length), timing in self.timings(device).items()
        ]  # fmt: skip

    def report(self, folder: Path, seeds: Sequence[int], why: Why) -> Report:
        """What the measurements in ``folder`` come to, see :meth:`Accuracy.report`."""
        parts: dict[str, _Part] = {}
        records: list[Record] = []
        for kind in DEVICES:
            timings = self.timings(kind).items()
            found = {key: it for key, timing in timings if (it := find(timing, kind, folder))}
            machines = {(it["hardware"], it.get("gpu"), it["threads"]) for it in found.values()}
            if len(machines) > 1:
                raise InputError(
                    f"{folder / 'timings' / kind}: timed on unlike machines, "
                    f"{'; '.join(sorted(map(str, machines)))}; delete those of one"
                )
            if found:
                parts[kind] = self.examine(found)
                records += found.values()
        verdicts = [f"On the {DEVICES[kind]}: {part.verdict}" for kind, part in parts.items()]
        verdict = " ".join(verdicts) or "Nothing is measured yet."
        summary = []
        for kind, part in parts.items():
            summary += [f"## {DEVICES[kind]}", *part.tables]
        summary.append(
            "\n".join(f"- {log}, {row}: not measured: {why[log, row]}" for log, row in why)
        )
        kind, first = next(iter(parts.items()), ("", None))
        return Report(
            headline=f"on the {DEVICES[kind]} {first.headline}" if first and first.headline else "",
            verdict=verdict,
            summary="\n\n".join(filter(None, summary)),
            details=ABOUT,
            data={"devices": {kind: part.data for kind, part in parts.items()}},
            records=records,
            draw=first.draw if first else None,
        )

    def examine(self, found: Mapping[Key, Record]) -> _Part:
        """What the measurements on one kind of device come to."""
        raise NotImplementedError


class Scans(Efficiency):
    """Table 5. The verdict is on the order of the scans, as the machine is another one."""

    inference = False
    small = (16,)

    def examine(self, found: Mapping[Key, Record]) -> _Part:
        data: dict[str, dict[str, dict[str, float]]] = {}
        for (log, row, _), record in found.items():
            data.setdefault(log, {})[row] = _costs(record)
        for log, rows in data.items():
            paper = self.published.get(log, {})
            for row, costs in rows.items():
                if BASE in rows:
                    costs["ratio"] = costs["train"] / rows[BASE]["train"]
                if row in paper:
                    costs["published"] = paper[row]
                    costs["published_ratio"] = paper[row] / paper[BASE]
        serial = [
            f"{rows[SERIAL]['ratio']:.1f}"
            + (f" (paper {paper['published_ratio']:.1f})" if "published" in paper else "")
            + f" on {log}"
            for log, rows in data.items()
            if (paper := rows.get(SERIAL, {})).get("ratio")
        ]
        keys = ("train", "ratio", "published", "published_ratio", "memory")
        head = ["log", "scan", "seconds an epoch", "times", "published", "times", "peak MiB"]
        lines = [
            [log, row, *(number(costs.get(key)) for key in keys)]
            for log, rows in data.items()
            for row, costs in rows.items()
        ]
        return _Part(
            headline=f"{SERIAL} over {BASE}: {', '.join(serial)}" if serial else "",
            verdict=self._order(data),
            tables=[table(head, lines), f"Times: of the seconds of {BASE}.", ORDER],
            data=data,
            draw=partial(figures.ratios, data)
            if any(BASE in rows for rows in data.values())
            else None,
        )

    def _order(self, data: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
        """Whether the scans that the paper has come in the same order."""
        found = []
        words = {
            (False, True): "reproduced", (False, False): "not reproduced",
            (True, True): "the same", (True, False): "not the same",
        }  # fmt: skip
        for log, paper in self.published.items():
            rows = data.get(log, {})
            if all(row in rows for row in paper):
                ours = sorted(paper, key=lambda row: rows[row]["train"])
                same = ours == sorted(paper, key=lambda row: paper[row])
                stands_in = log in self.stand_ins
                remark = " (not the paper's log)" * stands_in
                found.append(f"{words[stands_in, same]} on {log}{remark}")
            else:
                found.append(f"not measured on {log}")
        return f"the order of the paper's three is {', '.join(found)}."


class Lengths(Efficiency):
    """Figure 4. The paper's figures are lost, the verdict is on what its text says of them."""

    inference = True
    small = (8, 16)

    # Who is to need less of what than whom.
    claims: ClassVar[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
        ("train", "RecBLR", ("SASRec", "LRURec")),
        ("memory", "RecBLR", ("SASRec", "LRURec")),
        ("inference", "RecBLR", ("SASRec",)),
        ("train", "LRURec", ("LRURec, sequence padding",)),
    )
    kinds: ClassVar[Mapping[str, str]] = {
        "train": "training, seconds an epoch",
        "inference": "inference, seconds of all users",
        "memory": "training, peak MiB",
    }

    def examine(self, found: Mapping[Key, Record]) -> _Part:
        data: Costs = {row: {} for row in self.rows}
        for (_, row, length), record in found.items():
            data[row][length] = _costs(record)
        lengths = sorted({length for _, _, length in found})
        tables = []
        for kind, title in self.kinds.items():
            lines = [
                [f"{length:,}", *(number(data[row].get(length, {}).get(kind)) for row in data)]
                for length in lengths
            ]
            tables.append(table([title, *data], lines))
        claims = [self._claim(data, *claim) for claim in self.claims]
        longest = {
            row: costs[lengths[-1]]["train"] for row, costs in data.items() if lengths[-1] in costs
        }
        shown = ", ".join(f"{row} {number(value)}" for row, value in longest.items())
        return _Part(
            headline=f"seconds an epoch at {lengths[-1]:,} events: {shown}",
            verdict="; ".join(claims) + ".",
            tables=tables,
            data=dict(data),
            draw=partial(figures.growth, data, self.kinds),
        )

    def _claim(self, data: Costs, kind: str, less: str, more: tuple[str, ...]) -> str:
        """Whether a row needs less than others at all long lengths, and how much at the longest."""
        what = {"train": "training time", "memory": "memory", "inference": "inference time"}[kind]
        claim = f"{less} needs less {what} than {' and '.join(more)} at {LONG} events and more"
        lengths = [
            length
            for length in sorted(data[less])
            if length >= LONG and all(kind in data[row].get(length, {}) for row in (less, *more))
        ]
        if not lengths:
            return f"{claim}: not measured"
        holds = all(
            data[less][length][kind] < data[row][length][kind] for length in lengths for row in more
        )
        shares = [
            f"{data[less][lengths[-1]][kind] / data[row][lengths[-1]][kind]:.2f}" for row in more
        ]
        said = "reproduced" if holds else "not reproduced"
        return f"{claim}: {said} ({' and '.join(shares)} of it at {lengths[-1]:,})"


def _costs(record: Record) -> dict[str, float]:
    kinds = {"train": "epoch_seconds", "inference": "inference_seconds", "memory": "peak_mib"}
    return {kind: record[key] for kind, key in kinds.items() if record.get(key) is not None}
