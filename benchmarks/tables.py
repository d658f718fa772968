"""Write the figures of the pages from the results kept, draw their pictures, and list the settings.

    python benchmarks/tables.py [DIR]

With DIR, first keep the results of `recblr bench gpu -o DIR`. A section is what lies between its two
markers. A test writes all sections anew and expects the pages as they are.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from wording import (
    NAMES,
    Result,
    blocks,
    figure,
    measured,
    microseconds,
    paragraph,
    seconds,
    seeds,
    spread,
    table,
    threads,
    took,
)  # fmt: skip

from recblr.benchmark.length import draw
from recblr.serving.settings import as_table

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    ROOT / name for name in ("README.md", "docs/results.md", "docs/operating.md", "docs/scale.md")
)
RESULTS = ROOT / "benchmarks" / "results"
TABLE_1 = ROOT / "paper" / "results" / "table1.json"
DEFAULTS = TABLE_1.with_name("defaults.json")
METRICS = [f"{name}@{k}" for k in (10, 20) for name in ("HR", "NDCG", "MRR")]
LEAD = MASKED = ["HR@10", "NDCG@10"]  # shown first, and of the second protocol
FIGURES = [("", metric) for metric in METRICS] + [("masked_", metric) for metric in MASKED]
BEST_KNOWN: dict[tuple[str, str], tuple[str, float, float]] = {
    ("ml-1m-recbole", "unmasked"): ("RecGRELA", 0.3311, 0.1959),
    ("ml-1m", "masked"): ("HSTU by RecTools, which sees the target's time", 0.3642, 0.2164),
    ("beauty", "unmasked"): ("RecBLR", 0.0881, 0.0446),
    ("beauty", "masked"): ("WEARec", 0.1041, 0.0614),
    ("sports", "unmasked"): ("RecBLR", 0.0500, 0.0238),
    ("sports", "masked"): ("WEARec", 0.0631, 0.0367),
}
"""By data set and protocol the highest published figures we know of models that use only item ids:
model, HR@10, NDCG@10."""


def keep(folder: Path) -> None:
    """Keep the results of ``recblr bench gpu``: its figures, and the records that are not there yet."""
    for path in folder.glob("*-cuda.json"):
        content = json.loads(path.read_text())
        if "--quick" in content["command"]:
            sys.exit(f"{path}: --quick only tries the command; measure without it")
        if "records" not in content:
            shutil.copyfile(path, RESULTS / path.name)
        for name, record in content.get("records", {}).items():
            if not (target := TABLE_1.parent / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(record, indent=1) + "\n")


def write(text: str) -> str:
    """``text`` with every section made anew but those that nothing has been measured for."""

    def section(found: re.Match[str]) -> str:
        made = SECTIONS[found[2]]()
        return found[1] + (f"{made}\n" if made else found[3]) + found[4]

    pattern = r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)"
    return re.sub(pattern, section, text, flags=re.DOTALL)


def accuracy() -> str:
    """RecBLR and the best other model, with and without the memory of transitions, beside the published
    figures; nothing if there is no table 1 yet."""
    if not TABLE_1.exists():
        return ""
    content = json.loads(TABLE_1.read_text())
    lines, minutes = [], []
    for dataset, rows in by_row(content["figures"]).items():
        runs: dict[str, list[Result]] = {}
        for run in (run for run in content["runs"] if run["dataset"] == dataset):
            runs.setdefault(run["row"], []).append(run)
        shown = {}
        for memory in (False, True):
            kind = {name: rows[name] for name in runs if name.endswith("memory") == memory}
            ours = "RecBLR + memory" if memory else "RecBLR"
            if ours in kind:
                shown[ours] = ours
                minutes += [] if memory else [f"{dataset} {took(runs[ours])}"]
                kind.pop(ours)
            if kind:
                best = max(kind, key=lambda name: kind[name]["NDCG@10"]["mean"])
                shown[f"best baseline, {best}"] = best
        for label, name in shown.items():
            figures = (spread(rows[name][metric], kind) for kind, metric in FIGURES)
            lines.append([dataset, f"{label}, {seeds(len(runs[name]))}", *figures])
        for name, row in rows.items() if runs else ():
            if name not in runs and "mean" in row["NDCG@10"]:  # a baseline, which has no runs
                figures = (spread(row[metric], kind) for kind, metric in FIGURES)
                lines.append([dataset, name, *figures])
        paper = [line["published"] for line in rows["RecBLR"].values() if "published" in line]
        if runs and paper:
            figures = (f"{figure:.4f}" for figure in paper)
            lines.append([dataset, "RecBLR as published", *figures, *[""] * len(MASKED)])
    head = ["data", "run", *METRICS, *(f"masked {metric}" for metric in MASKED)]
    about = f"`{content['command']}`; {content['measured']}"
    about += f" Minutes a seed of RecBLR: {'; '.join(minutes)}." if minutes else ""
    more = f"Every model and verdict: [table 1](../{TABLE_1.with_suffix('.md').relative_to(ROOT)})."
    return blocks(table(head, lines), paragraph(f"{about} {more}"))


def lead() -> str:
    """HR@10 and NDCG@10 of RecBLR as in the paper, with the memory and by the defaults, beside the best
    published figures."""
    table_1, defaults = (
        by_row(json.loads(page.read_text())["figures"]) if page.exists() else {}
        for page in (TABLE_1, DEFAULTS)
    )
    if not table_1:
        return ""
    lines = []
    for (dataset, seen), (model, *best) in BEST_KNOWN.items():
        key = "mean" if seen == "unmasked" else "masked_mean"
        names = ("transitions", "RecBLR", "RecBLR + memory")
        rows = [table_1.get(dataset, {}).get(name, {}) for name in names]
        rows.append(defaults.get(dataset, {}).get("RecBLR + memory", {}))
        ours = [
            " / ".join(f"{row[metric][key]:.4f}" for metric in LEAD)
            if key in row.get(LEAD[0], {})
            else "-"
            for row in rows
        ]
        figures = " / ".join(f"{figure:.4f}" for figure in best)
        lines.append([dataset, seen, *ours, f"{figures} {model}"])
    head = ["data", "seen items", "counts alone", "RecBLR", "RecBLR + memory", "`recblr train`",
            "best published"]  # fmt: skip
    return blocks(table(head, lines))


def by_row(figures: Iterable[Result]) -> dict[str, dict[str, dict[str, Result]]]:
    """The figures of table 1 by data set, row and metric."""
    rows: dict[str, dict[str, dict[str, Result]]] = {}
    for line in figures:
        of_row = rows.setdefault(line["dataset"], {}).setdefault(line["row"], {})
        of_row[line["metric"]] = line
    return rows


def speed() -> str:
    """The jobs of a day: an epoch, an event, a log."""
    training, steps = by_device("train"), by_device("step")
    twin = read("epoch-cpu")
    prepare, on_disk = read("prepare"), read("prepare-disk")
    head = ["speed", *NAMES.values(), "command"]
    rows = [
        ["an epoch of all positions", *(epoch(it, "all_positions") for it in training.values()),
         "`recblr bench train`"],
        ["an epoch of prefix samples, as in the paper",
         *(epoch(it, "prefixes") for it in training.values()), "`recblr bench train`"],
        ["an epoch packed against its plain padded twin", against_twin(twin), "",
         "`recblr bench padded`"],
        ["an event after 10, 1,000, 100,000 events of history",
         *(event(it) for it in steps.values()), "`recblr bench step`"],
        ["`recblr prepare` on 50 million events", preparation(prepare), "",
         "`recblr bench prepare`"],
        ["the same on disk, 100 million events", preparation(on_disk), "",
         "`recblr bench prepare --events 100000000 --memory-limit 1GB`"],
    ]  # fmt: skip
    done = [it for it in (*training.values(), *steps.values(), twin, prepare, on_disk) if it]
    logs = sorted({it["log"] for it in training.values() if it})
    about = [f"Epochs of {' and '.join(logs)}"] * bool(logs)
    for device in NAMES:
        of_device = [it for it in done if ("gpu" in it) == (device == "cuda")]
        about += [f"{NAMES[device]}: {measured(of_device)}"] * bool(of_device)
    note = paragraph(f"{'; '.join(about)}.") if about else ""
    return blocks(table(head, rows), note, not_measured(train=training, step=steps))


def parts() -> str:
    """What a training step spends its time on."""
    shares = [
        f"A step on the {NAMES[device]}: "
        + ", ".join(f"{part} {share:.0%}" for part, share in it["all_positions"]["parts"].items())
        for device, it in by_device("train").items()
        if it and "all_positions" in it
    ]
    whole = [
        f"On the {NAMES[device]} an evaluation takes {seconds(it['evaluation_seconds'])}, and all "
        f"{it['run']['epochs']} epochs of the preset {seconds(it['run']['seconds'])} with validation"
        for device, it in by_device("train").items()
        if it and {"evaluation_seconds", "run"} <= it.keys()
    ]
    return blocks(*(paragraph(f"{text}.") for text in (*shares, *whole)))


def recurrence() -> str:
    """The recurrence with its gates, in all forms."""
    ops, parts = by_device("ops"), []
    for device, result in ops.items():
        if result is None:
            continue
        columns = {"forward_ns": "forward, ns an element", "both_ns": "forward and backward",
                   "times_slower": "times slower", "peak_bytes": "peak bytes an element"}  # fmt: skip
        columns = {key: head for key, head in columns.items() if key in result["rows"][0]}
        rows = [
            [row["name"], *(figure(row[key]) for key in columns)]
            if row["gate"] == "ok"
            else [row["name"], row["gate"], *[""] * (len(columns) - 1)]
            for row in result["rows"]
        ]
        parts.append(table([f"recurrence on the {NAMES[device]}", *columns.values()], rows))
        size = " × ".join(f"{n:,}" for n in result["shape"])
        text = f"{size} sequences, events and channels in {result['dtype']}"
        if device == "cuda":
            text += (
                f"; of the {result['copy_gb_per_s']:,.0f} GB/s of a copy, fused reaches "
                f"{result['forward_share']:.0%} forward and {result['backward_share']:.0%} backward"
            )
        parts.append(
            paragraph(f"{text}; `recblr bench ops`; {threads(result)}; {measured([result])}.")
        )
        if device == "cuda":
            rows = [
                [f"{row['length']:,}", *(figure(row[key]) for key in columns)]
                for row in result["lengths"]
            ]
            parts.append(table(["fused, events of a sequence", *columns.values()], rows))
    if exam := read("exam-cuda"):
        tests = f"{exam['passed']:,} tests passed on the GPU and {len(exam['failed'])} failed"
        parts.append(paragraph(f"{tests}; `make gpu`; {measured([exam])}."))
    return blocks(*parts, not_measured(ops=ops))


def length() -> str:
    """How cost grows with the length of a history."""
    lengths, parts = by_device("length"), []
    for device, result in lengths.items():
        if result is None:
            continue
        parts.append(f"![cost by length of history](../{picture(device).relative_to(ROOT)})")
        costs = []
        for name, title in (("recblr", "a RecBLR layer"), ("attention", "an attention layer")):
            rows = [row for row in result["rows"] if row[name]["event_ns"] is not None]
            costs.append(
                f"{title} {microseconds(rows[0][name])} in histories of {rows[0]['length']:,} events "
                f"and {microseconds(rows[-1][name])} in ones of {rows[-1]['length']:,}"
            )
        text = f"On the {NAMES[device]} training on an event takes {', '.join(costs)}"
        parts.append(
            paragraph(f"{text}; `recblr bench length`; {threads(result)}; {measured([result])}.")
        )
    about = (
        "The attention is PyTorch's own, a call an operator; the step of RecBLR is one call in all."
    )
    return blocks(*parts, about if parts else "", not_measured(length=lengths))


def serving() -> str:
    """A server under load, by catalogue."""
    found, rows = read("serve-cpu"), []
    if found is None:
        return ""
    for it in found["catalogues"]:
        best = [
            f"{it[name]['per_second']:,}" for name in ("recommend", "event_and_recommend", "event")
        ]
        steady = it["steady"]
        ms = ", ".join(f"{steady[name]:.1f}" for name in ("p50", "p90", "p99"))
        rows.append([f"{it['items']:,}", *best, f"{ms} at {it['steady_per_second']:,} a second"])
    head = ["items", "recommendations a second", "with a durable event each", "durable events",
            "ms with an event each, p50, p90, p99"]  # fmt: skip
    events = ", ".join(f"{it['median']:.0f}" for it in found["histories"])
    lengths = ", ".join(f"{it['history']:,}" for it in found["histories"])
    text = (
        f"A durable event alone takes {events} µs after {lengths} events of history. A user at hand "
        f"takes {found['user_bytes']:,} bytes of memory, a million {found['user_bytes'] / 1e3:.1f} GB. "
        f"{found['clients']} clients in another process, k = 20; with nothing else to do the machine "
        f"kept a busy loop waiting {found['gaps']['longest']:.0f} ms at most; `recblr bench serve`; "
        f"{measured([found])}."
    )
    return blocks(table(head, rows), paragraph(text))


def preparations() -> str:
    """`recblr prepare` by the size and kind of the log."""
    rows, found = [], []
    for name in ("", "-disk", "-folder", "-few-users", "-many-users"):
        if (result := read(f"prepare{name}")) is None:
            continue
        found.append(result)
        for row in result["rows"]:
            log = "1 file" if row["files"] == 1 else f"{row['files']} files"
            rows.append([
                f"{row['events']:,}", f"{row['per_user']}", log,
                "on disk" if "--memory-limit" in result["command"] else "in memory",
                f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}", f"{row['peak_gib']:.2f}",
                f"`{row['fingerprint']}`",
            ])  # fmt: skip
    head = ["events", "a user", "log", "prepared", "seconds", "of the processor", "GiB at the peak",
            "fingerprint"]  # fmt: skip
    commands = sorted({f"`{it['command'].removesuffix(' --json')}`" for it in found})
    note = paragraph(f"{'; '.join(commands)}; {measured(found)}.") if found else ""
    return blocks(table(head, rows), note)


SECTIONS = {
    make.__name__: make
    for make in (lead, accuracy, speed, parts, recurrence, length, serving, preparations)
}
SECTIONS["settings"] = as_table


def epoch(result: Result | None, kind: str) -> str:
    if result is None or kind not in result:
        return "not measured"
    found = result[kind]
    about = "estimated" if found["estimated"] else f"{found['events_per_second']:,.0f} events/s"
    return (
        f"{seconds(found['epoch_seconds'])} ({about}), {found['times_products']:.1f} times its bare "
        f"matrix products; {threads(result)}"
    )


def against_twin(result: Result | None) -> str:
    if result is None:
        return "not measured"
    packed, padded = (result["epoch_seconds"][name] for name in ("packed", "padded twin"))
    faster = result["times_faster_than"]["padded twin"]
    return f"{seconds(packed)}, {seconds(padded)}: {faster:.1f} times faster; {threads(result)}"


def event(result: Result | None) -> str:
    if result is None:
        return "not measured"
    return ", ".join(f"{row['median']:.0f}" for row in result["steps"]) + f" µs; {threads(result)}"


def preparation(result: Result | None) -> str:
    if result is None:
        return "not measured"
    row = result["rows"][-1]
    return f"{seconds(row['seconds'])}, {row['peak_gib']:.1f} GiB at its peak; {threads(result)}"


def picture(device: str) -> Path:
    return RESULTS / f"length-{device}.png"


def not_measured(**results: dict[str, Result | None]) -> str:
    """The commands of the results that are missing."""
    commands = [
        f"`recblr bench {name} --device {device} --json > benchmarks/results/{name}-{device}.json`"
        for name, found in results.items()
        for device, result in found.items()
        if result is None
    ]
    return "Not measured: " + ",\n".join(commands) + "." if commands else ""


def by_device(name: str) -> dict[str, Result | None]:
    return {device: read(f"{name}-{device}") for device in NAMES}


def read(name: str) -> Result | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        keep(Path(folder))
    for device, result in by_device("length").items():
        if result:
            draw(result, picture(device))
    for page in PAGES:
        page.write_text(write(page.read_text()))
