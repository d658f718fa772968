"""The studies by name, from ``studies.toml``, and how one is made."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from recblr.config import did_you_mean
from recblr.device import find_device
from recblr.errors import DivergedError, InputError, out_of_memory
from recblr.paper.accuracy import MEMORY, Accuracy
from recblr.paper.cost import Cost, Sizes
from recblr.paper.distances import Distances
from recblr.paper.jobs import DIED, InProcess, Make
from recblr.paper.logs import TABLES, open_dataset
from recblr.paper.measurements import Measurement
from recblr.paper.report import Page, Study, check_folder, read_record, write, write_index

RESULTS = Path("paper") / "results"
SEEDS = (0, 1, 2)
KINDS = {"accuracy": Accuracy, "sizes": Sizes, "cost": Cost, "distances": Distances}
UNAVAILABLE, DIVERGED, NO_MEMORY, REFUSED, NOT_RUN, _ = REASONS = (
    "data set not available", "training diverged", "out of memory", "could not start", "not run", DIED,
)  # fmt: skip


def read_study(kind: str, datasets: Any, rows: Any, published: str = "", **more: Any) -> Study:
    """A study from its table in ``studies.toml``."""
    if not isinstance(rows, dict):  # models, some " + memory"
        on = " memory.enabled=true"
        rows = {row: row.lower().replace("-", "").replace(MEMORY, on) for row in rows}
    if not isinstance(datasets, dict):
        datasets = dict.fromkeys(datasets, "")
    rows = {row: words.split() for row, words in rows.items()}
    for name, settings in datasets.items():
        datasets[name] = settings.split() if isinstance(settings, str) else settings
    figures: dict[str, Any] = {}
    for line in published.strip().splitlines():
        dataset, metric, *values = line.split()
        for row, value in zip(rows, values, strict=False):
            figures.setdefault(dataset, {}).setdefault(row, {})[metric] = float(value)
    study = {"rows": rows, "datasets": datasets, "published": figures, "notes": _NOTES[kind]}
    return KINDS[kind](**study, **more)


_NOTES = TABLES.pop("notes")
STUDIES = {name: read_study(**table) for name, table in TABLES.items()}


def reproduce(
    name: str, folder: Path = RESULTS, *, datasets: Sequence[str] = (), rows: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS, quick: bool = False, device: str = "auto",
    jobs: int = 1, report_only: bool = False, console: Console,
) -> Page:  # fmt: skip
    """Make what is missing of a study, or of some of its data sets, rows and seeds; write its page.

    The page has all that ``folder`` holds of these and the default seeds, and is written after Ctrl-C
    too. A run that another process is making is left to it; one that fails is reported with the reason.
    With ``jobs`` above 1 that many processes share the device. With ``quick`` the study is of
    simulated data; with ``report_only`` nothing is made.

    Raises:
        InputError: no such study, data set, row or device, or ``folder`` holds something else; or
            several jobs would share a device whose costs are measured.
    """
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}{did_you_mean(name, STUDIES)}")
    kind = find_device(device).type
    if jobs > 1 and isinstance(STUDIES[name], Cost):
        raise InputError(f"{name} measures time and memory, one run at a time; leave out --jobs")
    study = STUDIES[name].small() if quick else STUDIES[name]
    chosen = _choose(_choose(study.measurements(seeds, kind), "dataset", datasets), "row", rows)
    index = (folder.parent if folder == RESULTS else folder) / "README.md"
    command = f"recblr reproduce {name}{' --quick' * quick}"
    check_folder(folder, index, name, command)
    failed = dict((read_record(folder / f"{name}.json") or {}).get("failed", {}))
    try:
        if not report_only:
            _make(chosen, folder, command, device, jobs, console, failed)
    finally:
        every = sorted({*seeds, *([] if quick else SEEDS)})
        measurements = study.measurements(every, kind)
        absent = [one for one in measurements if one.find(folder) is None]
        kept = {(one.dataset, one.row) for one in measurements if one not in absent}
        failed = {one.name: failed[one.name] for one in absent if one.name in failed}
        # Older pages have the error itself, of a data set in almost all cases.
        failed = {name: why if why in REASONS else UNAVAILABLE for name, why in failed.items()}
        reasons: dict[tuple[str, str], dict[str, None]] = {}
        for one in absent:
            place, reason = (one.dataset, one.row), failed.get(one.name, NOT_RUN)
            if place not in kept:
                reasons.setdefault(place, {})[reason] = None
            elif reason != NOT_RUN:
                reasons.setdefault(place, {})[f"{one.name}: {reason}"] = None
        missing = {place: "; ".join(texts) for place, texts in reasons.items()}
        report = study.report(folder, every, missing)
        report = replace(report, data={**report.data, "failed": failed})
        page = write(name, command, study, report, missing, folder)
        write_index(STUDIES, folder, index)
    return page


def _choose(every: Sequence[Measurement], key: str, names: Sequence[str]) -> list[Measurement]:
    """The measurements of these data sets or rows, all where none are named; case is ignored."""
    known = {getattr(one, key).lower(): getattr(one, key) for one in every}
    for name in names:
        if name.lower() not in known:
            what, hint = key.replace("dataset", "data set"), did_you_mean(name.lower(), known)
            raise InputError(f"this study has no {what} {name!r}{hint}")
    wanted = {known[name.lower()] for name in names or known}
    return [one for one in every if getattr(one, key) in wanted]


def _make(
    measurements: Sequence[Measurement], folder: Path, command: str, device: str, jobs: int,
    console: Console, failed: dict[str, str],
) -> None:  # fmt: skip
    """Make those that are missing, and put into ``failed`` why one could not be made."""
    tell = partial(console.print, highlight=False, soft_wrap=True)
    unavailable: set[str] = set()
    command += f" --jobs {jobs}" if jobs > 1 else ""
    make: Make = partial(_try, folder=folder, command=command, device=device)
    if jobs > 1:
        make = InProcess(make, jobs)

    def attempt(numbered: tuple[int, Measurement]) -> None:
        number, one = numbered
        reason = UNAVAILABLE
        if one.dataset not in unavailable:
            tell(f"{number} of {len(measurements)}: {one.name}")
            reason, error = make(one)
            if reason:
                tell(f"{one.name}: {reason}: {error}")
            unavailable.update({one.dataset} if reason == UNAVAILABLE else ())
        if reason:
            failed[one.name] = reason

    missing = [it for it in enumerate(measurements, 1) if it[1].find(folder) is None]
    if jobs == 1:
        for numbered in missing:
            attempt(numbered)
        return
    # A row with the memory needs the plain run of its seed, which another process would be making.
    for memory in (False, True):
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(attempt, (it for it in missing if it[1].has_memory == memory)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _try(one: Measurement, folder: Path, command: str, device: str) -> tuple[str, str]:
    """Make a measurement; return the reason and the error if that fails, otherwise twice ""."""
    reason = UNAVAILABLE
    try:
        open_dataset(one.dataset)
        reason = REFUSED
        one.make(folder, command, device)
    except Exception as error:
        if isinstance(error, DivergedError):
            reason = DIVERGED
        elif out_of_memory(error):
            reason = NO_MEMORY
        elif not isinstance(error, InputError):
            raise
        return reason, str(error).partition("\n")[0]
    return "", ""
