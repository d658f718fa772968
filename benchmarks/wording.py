"""How tables.py words figures and lays out tables."""

from collections.abc import Iterable
from statistics import mean
from textwrap import fill
from typing import Any

NAMES = {"cpu": "CPU", "cuda": "GPU"}
Result = dict[str, Any]


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def microseconds(layer: Result) -> str:
    return f"{figure(layer['event_ns'] / 1e3)} µs"


def figure(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measured(results: Iterable[Result]) -> str:
    """When, on what, and of which commits."""
    found = list(results)
    about = [
        *sorted({it["date"][:10] for it in found}),
        *sorted({it[kind] for kind in ("hardware", "gpu") for it in found if kind in it}),
        *sorted({f"torch {it['versions']['torch']}" for it in found}),
    ]
    commits = sorted({it["commit"] or "unknown" for it in found})
    return (
        f"{', '.join(about)}; {'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"
    )


def took(runs: list[Result]) -> str:
    """Mean minutes of a run, on each kind of device."""
    found = {
        name: [run["seconds"] / 60 for run in runs if ("gpu" in run) == (device == "cuda")]
        for device, name in NAMES.items()
    }
    return ", ".join(f"{mean(it):.0f} on the {name}" for name, it in found.items() if it)


def seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def spread(line: Result, kind: str) -> str:
    """Mean ± deviation over seeds, of the figure itself or of the masked one."""
    deviation = line.get(f"{kind}deviation")
    return f"{line[f'{kind}mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def threads(result: Result) -> str:
    return "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paragraph(text: str) -> str:
    return fill(text, 118, break_long_words=False, break_on_hyphens=False)


def blocks(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
