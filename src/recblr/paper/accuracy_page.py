"""A study of accuracy in words and tables, from what :meth:`Accuracy.report` keeps as JSON."""

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from recblr.paper.report import p_value, table
from recblr.paper.verdict import MAIN, WITH_MEMORY

SHOWN = (MAIN, "HR@10")  # in the compact table
VERDICTS = ("reproduced", "better", "worse", "not measured")
MEMORY = (
    " A row “+ memory” adds the memory of transitions (docs/memory.md) to the network of the row of "
    "that name, the same one where it was at hand, else one trained alike. Where no user ever comes "
    "back to an item, the memory puts the items of the history last, so that its unmasked and masked "
    "figures are nearly equal: compare such a row with the others by the masked figures."
)
ENDED = {"converged": "patience", "epochs": "epochs"}

Data = Mapping[str, Any]
"""By data set."""


def headline(data: Data, reference: str, axis: str) -> str:
    """What the reference row reaches, or where the best of a line lies."""
    found = []
    for dataset, of_data in data.items():
        row = of_data["rows"].get(reference, {})
        if axis and of_data["optimum"]:
            found.append(f"{of_data['optimum']['best']} on {dataset}")
        elif "unmasked" in row:
            cell = row["unmasked"][MAIN]
            paper = f" (paper {cell['published']:.4f})" if "published" in cell else ""
            found.append(f"{cell['mean']:.4f}{paper} on {dataset}")
    what = f"best {axis}" if axis else f"{MAIN} of {reference}"
    return f"{what}, {_seeds(data)}: {', '.join(found)}" if found else ""


def verdict(data: Data) -> str:
    """What our figures say of the paper's, of who is ahead, of the order, of the optimum."""
    ahead = [_ahead(data, "against", ""), _ahead(data, "against_memory", WITH_MEMORY)]
    sentences = [_figures(data), *ahead, _order(data), _optimum(data)]
    return " ".join(filter(None, sentences)) or (
        "No published figure, and too few rows are measured to be compared."
        if any(_measured(of_data) for of_data in data.values())
        else "Nothing is measured yet."
    )


def _figures(data: Data) -> str:
    verdicts = [
        row["unmasked"][metric]["verdict"] if "unmasked" in row else "not measured"
        for of_data in data.values()
        for row in of_data["rows"].values()
        for metric in row["published"]
    ]
    counts = [f"{verdicts.count(it)} {it}" for it in VERDICTS if it in verdicts]
    return f"Of {len(verdicts)} published figures: {', '.join(counts)}." if verdicts else ""


def _ahead(data: Data, key: str, kind: str) -> str:
    found = []
    for dataset, of_data in data.items():
        if not of_data[key]:
            continue
        row, comparison = min(of_data[key].items(), key=lambda it: it[1]["difference"])
        theirs = of_data["rows"][row]["unmasked"][MAIN]["mean"]
        share = f"{abs(comparison['difference']) / theirs:.1%} " if theirs else ""
        how = "ahead of" if comparison["difference"] > 0 else "behind"
        found.append(f"{share}{how} {row} on {dataset} ({p_value(comparison['p'])})")
    reference = next((of_data["reference"] for of_data in data.values()), "")
    about = f"{reference}{kind} and the best of the other{kind} rows in {MAIN}"
    return f"{about}: {'; '.join(found)}." if found else ""


def _order(data: Data) -> str:
    found = []
    for dataset, of_data in data.items():
        if order := of_data["order"]:
            wrong = len(order["other_way"])
            found.append(
                f"{order['tau']:.2f} on {dataset} ({order['rows']} rows, "
                f"{wrong} pair{'s' * (wrong != 1)} the other way by more than chance)"
            )
    return f"Agreement with the published order, Kendall's tau: {'; '.join(found)}." * bool(found)


def _optimum(data: Data) -> str:
    found = [
        f"{optimum['verdict']} on {dataset} (paper {optimum['claimed']}; here {optimum['best']}, "
        f"{'not ' * (optimum['verdict'] == 'reproduced')}ahead by more than chance)"
        for dataset, of_data in data.items()
        if (optimum := of_data["optimum"]) and "claimed" in optimum
    ]
    return f"The best value: {'; '.join(found)}." if found else ""


def summary(data: Data) -> str:
    """A compact table a data set, and why what is not in it is not."""
    parts = [_about(data)] if any(map(_measured, data.values())) else []
    for dataset, of_data in data.items():
        rows = of_data["rows"]
        reasons = {name: row["not_measured"] for name, row in rows.items() if "not_measured" in row}
        parts += [f"## {dataset}", of_data["remark"]]
        if len(reasons) < len(rows):
            parts.append(_compact(of_data))
            parts.append("\n".join(f"- {row}: not measured: {it}" for row, it in reasons.items()))
            failed = {name: row["failed"] for name, row in rows.items() if row.get("failed")}
            parts.append("\n".join(f"- {row}: without {it}" for row, it in failed.items()))
        else:
            parts += [f"Not measured: {it}" for it in dict.fromkeys(reasons.values())]
    return "\n\n".join(filter(None, parts))


def _about(data: Data) -> str:
    """What weakens the figures, to be read before them."""
    others = {
        f"{name} ({run['examples'].replace('-', ' ')})"
        for of_data in data.values()
        for name, row in _measured(of_data).items()
        for run in row["runs"]
        if run["examples"] != "all-positions"
    }
    apart = f" Not trained on all positions of a history at once: {', '.join(sorted(others))}."
    return (
        "Every row is trained by the recipe of its data set, found with RecBLR on validation; none has "
        "had a search of its own (docs/reproducing.md says which has a setting of its own). "
        f"{_seeds(data).capitalize()} a row: the verdicts "
        f"are by intervals over users, which say nothing of the seed.{apart if others else ''}"
        f"{MEMORY * any(it.endswith(WITH_MEMORY) for of in data.values() for it in _measured(of))}"
    )


def _compact(of_data: Mapping[str, Any]) -> str:
    rows = of_data["rows"]
    compared = any(row["published"] for row in rows.values())
    head = ["seen items unmasked"]
    for metric in SHOWN:
        head += [metric, *(["published", "difference", "verdict"] if compared else [])]
    head.append(f"masked {MAIN}")
    lines = []
    for name, row in rows.items():
        lines.append([name])
        for metric in SHOWN:
            cell = row["unmasked"][metric] if "unmasked" in row else {"verdict": "not measured"}
            star = "*" * (name == of_data["reference"] and _starred(of_data, metric))
            lines[-1].append(f"{_mean(cell)}{star}" if "mean" in cell else "")
            if compared:
                lines[-1] += [
                    f"{row['published'][metric]:.4f}" if metric in row["published"] else "",
                    f"{cell['percent']:+.1f}%" if "percent" in cell else "",
                    cell.get("verdict", ""),
                ]
        lines[-1].append(_mean(row["masked"][MAIN]) if "masked" in row else "")
    for name, floor in of_data["floors"].items():
        lines.append([name])
        for metric in SHOWN:
            lines[-1] += [f"{floor['unmasked'][metric]:.4f}", *([""] * 3 if compared else [])]
        lines[-1].append(f"{floor['masked'][MAIN]:.4f}")
    return table(head, lines)


def details(data: Data) -> str:
    """All metrics under both protocols, the comparisons, and what the figures rest on."""
    parts = []
    for dataset, of_data in data.items():
        measured = _measured(of_data)
        if not measured:
            continue
        parts += [f"## {dataset} in full", _in_full(measured, of_data["floors"])]
        if of_data["against"]:
            parts += [
                f"{of_data['reference']} less each of the others, {MAIN}, seen items unmasked; p of a "
                "paired randomisation test over users, after Holm over all such rows of this page:",
                _against(of_data["against"]),
            ]
            if of_data["stars"]:
                parts += [
                    "The star: ahead of the best of the others, p < 0.01 after Holm over all metrics "
                    "and data sets of this page; only where all rows are measured.",
                    _stars(of_data["stars"]),
                ]
        if of_data["against_memory"]:
            parts += ["The same of the rows with the memory:", _against(of_data["against_memory"])]
        parts += [_other_way(of_data["order"]), "The runs:", _runs(measured)]
    return "\n\n".join(filter(None, parts))


def _in_full(measured: Mapping[str, Any], floors: Mapping[str, Any]) -> str:
    head = ["row", "metric", "unmasked", "95% interval", "published", "difference", "verdict",
            "masked", "95% interval"]  # fmt: skip
    lines = []
    for name, row in measured.items():
        for metric, cell in row["unmasked"].items():
            paper = ["", "", ""]
            if "published" in cell:
                difference = f"{cell['difference']:+.4f} ({cell['percent']:+.1f}%)"
                paper = [f"{cell['published']:.4f}", difference, cell["verdict"]]
            masked = row["masked"][metric]
            lines.append(
                [
                    name,
                    metric,
                    _mean(cell),
                    _interval(cell),
                    *paper,
                    _mean(masked),
                    _interval(masked),
                ]
            )
    for name, floor in floors.items():
        for metric, value in floor["unmasked"].items():
            masked = f"{floor['masked'][metric]:.4f}"
            lines.append([name, metric, f"{value:.4f}", "", "", "", "", masked, ""])
    return table(head, lines)


def _against(against: Mapping[str, Any]) -> str:
    lines = [
        [row, f"{it['difference']:+.4f}", _interval(it), p_value(it["p"])]
        for row, it in against.items()
    ]
    return table(["against", "difference", "95% interval", "p"], lines)


def _stars(stars: Mapping[str, Any]) -> str:
    lines = [
        [metric, it["against"], f"{it['difference']:+.4f}", p_value(it["p"]), "*" * it["earned"]]
        for metric, it in stars.items()
    ]
    return table(["metric", "best of the others", "difference", "p", "star"], lines)


def _other_way(order: Mapping[str, Any] | None) -> str:
    pairs = (
        [f"{it['better']} better than {it['worse']}" for it in order["other_way"]] if order else []
    )
    about = "The other way than published by more than chance (p < 0.01)"
    return f"{about}: {', '.join(pairs)}." if pairs else ""


def _runs(measured: Mapping[str, Any]) -> str:
    head = ["row", "examples", "parameters", "seeds", "epochs, the best", "ended by",
            "seconds a seed", "hardware", "date", "commit"]  # fmt: skip
    lines = []
    memory = any("memory" in run for row in measured.values() for run in row["runs"])
    head += ["weight, scale, repeat of the memory"] * memory
    for name, row in measured.items():
        runs, seconds = row["runs"], _seconds(row["runs"])
        lines.append(
            [
                name,
                _each(run["examples"] for run in runs),
                _each(f"{run['parameters']:,}" for run in runs),
                _each(str(run["seed"]) for run in runs),
                _each(f"{run['epochs']}, {run['best_epoch']}" for run in runs),
                _each(ENDED[run["ended"]] for run in runs),
                "; ".join(f"{it:,.0f}" for it in seconds.values()),
                "; ".join(seconds),
                _each(run["date"][:10] for run in runs),
                _each(run["commit"] or "unknown" for run in runs),
                *[_each(_memory(run["memory"]) for run in runs if "memory" in run)] * memory,
            ]
        )
    return table(head, lines)


def _seconds(runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of a seed, by machine."""
    found: dict[str, list[float]] = {}
    for run in runs:
        machine = run.get("gpu", f"{run['hardware']}, {run['threads']} threads")
        found.setdefault(machine, []).append(run["seconds"])
    return {machine: mean(it) for machine, it in found.items()}


def _memory(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{chosen[name]:g}" for name in ("weight", "scale", "repeat"))


def _each(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _measured(of_data: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that have a figure."""
    return {name: row for name, row in of_data["rows"].items() if "unmasked" in row}


def _seeds(data: Data) -> str:
    """How many seeds a row has, from the fewest to the most."""
    counts = {len(row["runs"]) for it in data.values() for row in _measured(it).values()}
    some = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    return f"{some} seed{'s' * (max(counts) > 1)}"


def _starred(of_data: Mapping[str, Any], metric: str) -> bool:
    return metric in of_data["stars"] and bool(of_data["stars"][metric]["earned"])


def _mean(cell: Mapping[str, Any]) -> str:
    spread = "" if cell["deviation"] is None else f" ± {cell['deviation']:.4f}"
    return f"{cell['mean']:.4f}{spread}"


def _interval(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{low:.4f} to {high:.4f}"
