"""The paper's tables and figures by name, and how one is made."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console

from recblr.config import did_you_mean
from recblr.data.associative_recall import AssociativeRecall
from recblr.data.sequences import Sequences
from recblr.device import find_device
from recblr.errors import DivergedError, InputError, out_of_memory
from recblr.paper import published
from recblr.paper.accuracy import Accuracy, Row
from recblr.paper.counts import Counts
from recblr.paper.distances import Distances
from recblr.paper.efficiency import BASE, SERIAL, Lengths, Scans
from recblr.paper.logs import XLONG_LIKE
from recblr.paper.report import (
    Cell,
    Page,
    Report,
    Why,
    check_folder,
    read_record,
    reason,
    write,
    write_index,
)
from recblr.paper.verdict import WITH_MEMORY

RESULTS = Path("paper") / "results"
SEEDS = (0, 1, 2)


class Study(Protocol):
    """A table or a figure: its measurements, and what they come to."""

    @property
    def title(self) -> str:
        """How its page is headed."""

    def open(self, name: str) -> Sequences:
        """A data set of the study; InputError if it cannot be had here."""

    def smoke(self) -> "Study":
        """The same study of a simulated shop, a matter of seconds."""

    def cells(self, seeds: Sequence[int], device: str) -> list[Cell]:
        """All its measurements; ``device`` is "cpu" or "cuda"."""

    def report(self, folder: Path, seeds: Sequence[int], why: Why) -> Report:
        """What those in ``folder`` come to; ``why`` a row of a data set has none."""


FIVE: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("ml-1m-recbole", "gowalla", "steam", "beauty", "sports"), ()
)
RECBOLE = {
    "ml-1m-recbole": "MovieLens-1M in the order that RecBole gives it, times rounded to 64 seconds: "
    "the paper was measured with RecBole, and its figures belong to this order (docs/datasets.md)."
}
OWN_ORDER = "MovieLens-1M by exact times, the product's own order"


def with_memory(name: str) -> Row:
    """A row whose scores the memory of transitions adds to."""
    return Row(name + WITH_MEMORY, name.lower(), ("memory.enabled=true",))


OPEN = tuple(Row(name, name.lower()) for name in ("GRU4Rec", "SASRec", "LRURec", "RecBLR"))

STUDIES: dict[str, Study] = {
    "table1": Accuracy(
        "Table 1: nine models",
        rows=(
            *(Row(name, name.lower().replace("-", "")) for name in published.MODELS),
            *map(with_memory, ("SASRec", "LRURec", "RecBLR")),
        ),
        datasets=dict.fromkeys(
            ("ml-1m-recbole", "ml-1m", "gowalla", "gowalla-10core", "steam", "beauty", "sports"), ()
        ),
        published=published.TABLE_1,
        remarks={
            **RECBOLE,
            "ml-1m": f"{OWN_ORDER}: harder to predict, not the paper's, no verdict.",
            "gowalla-10core": "Not the paper's Gowalla: no verdict.",
        },
        reference="RecBLR",
    ),
    "table2": Counts(
        "Table 2: the data sets",
        datasets=tuple(published.TABLE_2),
        published=published.TABLE_2,
        remarks={
            "ml-1m": "the same in RecBole's order, `ml-1m-recbole`",
            "xlong": "the paper's 66,822,348 interactions are not of 5,000 users with 785.9 each, "
            "but of the data before they were sampled",
        },
    ),
    "table3": Accuracy(
        "Table 3: RecBLR without its parts",
        rows=(
            Row("Default"),
            Row("Single recurrent layer", settings=("model.layers=1",)),
            Row("BD-LRU only", settings=("model.gated=false",)),
            Row("w/o Conv1D", settings=("model.convolution=false",)),
            Row("w/o PFFN", settings=("model.feed_forward=false",)),
            Row("w/o custom initialization", settings=("model.custom_init=false",)),
        ),
        datasets=FIVE,
        published=published.TABLE_3,
        remarks=RECBOLE,
        reference="Default",
    ),
    "table4": Accuracy(
        "Table 4: long histories",
        rows=tuple(Row(name, name.lower()) for name in published.LONG_MODELS),
        datasets={"xlong": (), "ml-1m": ("train.max_length=3000", "train.window=3000")},
        published=published.TABLE_4,
        remarks={
            "ml-1m": f"Whole histories of {OWN_ORDER}: the paper does not have them, so there is no "
            "verdict and no need of RecBole's order."
        },
        reference="RecBLR",
    ),
    "table5": Scans(
        "Table 5: seconds an epoch by scan and padding",
        rows={
            SERIAL: ("recblr", "train.scan=serial"),
            "sequence padding": ("recblr", "train.scan=sequence-padding"),
            BASE: ("recblr", "train.scan=embedding-padding"),
            "packed, no padding": ("recblr", "train.scan=packed"),
        },
        logs={"ml-1m": ((200,), 2048), "gowalla-10core": ((100,), 2048), XLONG_LIKE: ((257,), 512)},
        published={
            log: dict(zip((SERIAL, "sequence padding", BASE), published.TABLE_5[name], strict=True))
            for log, name in (
                ("ml-1m", "ml-1m"),
                ("gowalla-10core", "gowalla"),
                (XLONG_LIKE, "xlong"),
            )
        },
        stand_ins=("gowalla-10core", XLONG_LIKE),
    ),
    "figure4": Lengths(
        "Figure 4: cost by length of history",
        rows={
            "SASRec": ("sasrec", ""),
            "LRURec": ("lrurec", ""),
            "LRURec, sequence padding": ("lrurec", "train.scan=sequence-padding"),
            "RecBLR": ("recblr", ""),
        },
        logs={XLONG_LIKE: (tuple(range(100, 1001, 100)), 512)},
    ),
    "figure5": Accuracy(
        "Figure 5: the expansion factor",
        rows=tuple(Row(f"{n}", settings=(f"model.expansion={n}",)) for n in (1, 2, 3, 4)),
        datasets=FIVE,
        remarks=RECBOLE,
        axis="expansion factor",
        optimum=dict.fromkeys(FIVE, "2"),
    ),
    "figure6": Accuracy(
        "Figure 6: the dropout",
        rows=tuple(
            Row(f"{p}", settings=(f"model.dropout={p}",)) for p in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
        ),
        datasets=FIVE,
        remarks=RECBOLE,
        axis="dropout",
        optimum={
            "ml-1m-recbole": "0.2",
            "gowalla": "0.4",
            "steam": "0.4",
            "beauty": "0.5",
            "sports": "0.5",
        },
    ),
    # What the paper leaves open.
    "examples": Accuracy(
        "Prefix samples beside all positions",
        rows=(
            Row("all positions"),
            Row("prefix samples", settings=("train.examples=prefixes",)),
        ),
        datasets=dict.fromkeys(("ml-1m", "beauty", "sports"), ()),
        remarks={"ml-1m": f"{OWN_ORDER}, as no published figure stands beside it."},
        reference="all positions",
    ),
    "lengths": Distances(
        "Lengths: an event that depends on one far back",
        rows={name: name.lower() for name in ("GRU4Rec", "SASRec", "LRURec", "RecBLR")},
        recall=AssociativeRecall(),
        farther=(300, 1_000, 3_000, 10_000, 30_000, 100_000),
        settings=("train.epochs=10", "train.batch_size=1024", "train.lr=0.003"),
    ),
    "sparsity": Accuracy(
        "Sparsity: MovieLens-1M with some of its events",
        rows=OPEN,
        datasets=dict.fromkeys(("ml-1m-10%", "ml-1m-25%", "ml-1m-50%", "ml-1m"), ()),
        remarks={
            "ml-1m-10%": f"All four are of {OWN_ORDER}, as no published figure stands beside them."
        },
        reference="RecBLR",
    ),
    "time": Accuracy(
        "Time: MovieLens-1M split by time",
        rows=(Row("SASRec", "sasrec"), Row("RecBLR"), with_memory("RecBLR")),
        datasets={"ml-1m-time-last": ()},
        remarks={
            "ml-1m-time-last": f"{OWN_ORDER}; the split `time-last` (docs/protocols.md). *Time "
            "to Split* (RecSys 2025, arXiv 2507.16289) has an NDCG@10, seen items masked, of 0.0948 "
            "for SASRec, 0.0830 for GRU4Rec, 0.0867 for BERT4Rec. It also tests users without training "
            "events, 1,209 users against the 1,015 here: no verdict."
        },
        reference="RecBLR",
    ),
    "diversity": Accuracy(
        "Diversity: simulated shops whose customers have one, three or eight interests",
        rows=OPEN,
        datasets=dict.fromkeys(("shop-1-interests", "shop-3-interests", "shop-8-interests"), ()),
        reference="RecBLR",
    ),
}


def reproduce(
    name: str,
    folder: Path = RESULTS,
    *,
    datasets: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    device: str = "auto",
    report_only: bool = False,
    console: Console,
) -> Page:
    """Make what is missing of a study, and its page: <name>.md, .json and .png in ``folder``.

    The page is of all that ``folder`` holds, whichever part of it is made now, and is made after Ctrl-C
    too: parts may be made side by side, and a run that another process is at is left to it. A data set
    that cannot be had, and a run that fails, are named with the reason.

    Args:
        name: in :data:`STUDIES`.
        folder: where results are kept.
        datasets, rows: make only these, by default all.
        seeds: make these; the page is of these and of the default ones.
        quick: the study of a simulated shop.
        device: where to train.
        report_only: make nothing.
        console: told which run is under way.

    Raises:
        InputError: no such study, data set, row or device, or ``folder`` holds something else.
    """
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}{did_you_mean(name, STUDIES)}")
    kind = find_device(device).type
    study = STUDIES[name].smoke() if quick else STUDIES[name]
    chosen = _chosen(study.cells(seeds, kind), datasets, rows)
    index = (folder.parent if folder == RESULTS else folder) / "README.md"
    command = f"recblr reproduce {name}{' --quick' * quick}"
    tell = partial(console.print, highlight=False, soft_wrap=True)
    check_folder(folder, index, name, command)
    failed: dict[str, str] = {}  # cells, and why
    try:
        if not report_only:
            _make(study, chosen, folder, command, device, tell, failed)
    finally:
        every = sorted({*seeds, *([] if quick else SEEDS)})
        cells = study.cells(every, kind)
        failed = (read_record(folder / f"{name}.json") or {}).get("failed", {}) | failed
        done = {cell.name for cell in cells if cell.find(folder) is not None}
        failed = {it.name: failed[it.name] for it in cells if it.name in failed.keys() - done}
        why = _reasons(cells, done, failed, f"no run; `{command}`")
        report = study.report(folder, every, why)
        if quick:
            report = replace(report, verdict="Smoke run: no published value.")
        report = replace(report, data={**report.data, "failed": failed})
        page = write(name, command, study.title, report, why, folder)
        write_index(STUDIES, folder, index)
    return page


def _make(
    study: Study, cells: Sequence[Cell], folder: Path, command: str, device: str,
    tell: Callable[[str], None], failed: dict[str, str],
) -> None:  # fmt: skip
    """Make those that are missing, and note in ``failed`` why each of them that fails does."""
    absent: dict[str, str] = {}  # data sets, and why
    for number, cell in enumerate(cells, 1):
        if cell.find(folder) is not None:
            continue
        if cell.dataset not in absent:
            tell(f"{number} of {len(cells)}: {cell.name}")
            try:
                study.open(cell.dataset)
            except InputError as error:
                absent[cell.dataset] = reason(error)
                tell(f"{cell.dataset}: not measured: {error}")
        if cell.dataset in absent:
            failed[cell.name] = absent[cell.dataset]
            continue
        try:
            cell.make(folder, command, device)
            continue
        except (InputError, DivergedError) as error:
            failed[cell.name] = reason(error)
        except Exception as error:
            if not out_of_memory(error):
                raise
            failed[cell.name] = "out of memory"
        tell(f"{cell.name}: not measured: {failed[cell.name]}")


def _chosen(cells: Sequence[Cell], datasets: Sequence[str], rows: Sequence[str]) -> list[Cell]:
    """Those of the data sets and the rows asked for, all where none are; upper case counts as lower."""
    chosen = list(cells)
    for kind, names in (("dataset", datasets), ("row", rows)):
        known = {getattr(cell, kind).lower(): getattr(cell, kind) for cell in cells}
        for name in names:
            if name.lower() not in known:
                what = {"dataset": "data set", "row": "row"}[kind]
                raise InputError(
                    f"this study has no {what} {name!r}{did_you_mean(name.lower(), known)}"
                )
        if names:
            wanted = {known[name.lower()] for name in names}
            chosen = [cell for cell in chosen if getattr(cell, kind) in wanted]
    return chosen


def _reasons(
    cells: Sequence[Cell], done: Set[str], failed: Mapping[str, str], otherwise: str
) -> Why:
    """Why each row without a result has none, and which of the others lacks some by a failure."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.dataset, cell.row), []).append(cell)
    why: dict[tuple[str, str], str] = {}
    for key, of_row in rows.items():
        told = {cell.name: failed[cell.name] for cell in of_row if cell.name in failed}
        if done.isdisjoint(cell.name for cell in of_row):
            why[key] = "; ".join(dict.fromkeys(told.values())) or otherwise
        elif told:
            why[key] = "; ".join(f"{name}: {reason}" for name, reason in told.items())
    return why
