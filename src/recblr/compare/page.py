"""A comparison as one HTML page without scripts that loads nothing from elsewhere."""

from pathlib import Path
from typing import Any

from recblr.compare.charts import Chart, Mark, render, rows, scatter
from recblr.compare.comparison import LEVEL, METRIC, Comparison
from recblr.evaluation.metrics import CUTOFFS, METRICS

COLOUR_OF = {"best": "best", "as good within the noise": "same", "worse": "worse"}  # by verdict


def page(comparison: Comparison) -> str:
    """The HTML text: the outcome, figures with intervals, cost, and how everything was measured."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).parent),
    )  # fmt: skip
    return templates.get_template("page.html").render(
        comparison=comparison,
        metric=METRIC,
        columns=[f"{name}@{k}" for k in CUTOFFS for name in METRICS],
        colour_of=COLOUR_OF,
        sections=[_accuracy(comparison, seen) for seen in comparison.protocols],
        cost_charts=_cost_charts(comparison),
        facts=_facts(comparison),
    )


def _accuracy(comparison: Comparison, seen: str) -> dict[str, Any]:
    """What the page shows under one protocol, the best model first."""
    ranking, baselines = comparison.ranking(seen), comparison.baselines[seen]
    marks = []
    for contender in ranking:
        evaluation, colour = contender.evaluations[seen], COLOUR_OF[contender.verdict(seen)]
        value, interval = evaluation.metrics[METRIC], evaluation.intervals[METRIC]
        marks.append(Mark(contender.label, colour, value, interval))
    values = {name: metrics[METRIC] for name, metrics in baselines.items()}
    lines = [Mark(name, "baseline", value, (value, value)) for name, value in values.items()]
    slices = [contender.evaluations[seen].slices for contender in ranking]
    return {
        "seen": seen,
        "ranking": ranking,
        "baselines": baselines,
        "slices": [
            (name, row["users"], [metrics[name][METRIC] for metrics in slices])
            for name, row in slices[0].items()
        ],
        "chart": render(
            f"{METRIC} with its 95% interval, seen items {seen}.",
            7, 0.5 + 0.2 * len(marks + lines), rows, marks + lines, ".4f",
        ),
        "time_chart": render(
            f"{METRIC} against training time, seen items {seen}. Vertical lines are 95% intervals, "
            "dashed lines are baselines.",
            4.6, max(2.5, 0.17 * len(marks)), scatter, marks,
            [contender.cost.training_seconds for contender in ranking], lines,
        ),
    }  # fmt: skip


def _cost_charts(comparison: Comparison) -> list[Chart]:
    charts = []
    for caption, name, value_format in (
        ("Milliseconds to recommend to one user with a full history", "recommend_ms", ".2f"),
        ("Microseconds to add one event of one user to the state", "step_us", ",.0f"),
        ("Bytes for each user: the state, or the events that the model sees", "user_bytes", ",.0f"),
    ):
        values = {c.label: getattr(c.cost, name) for c in comparison.contenders}
        marks = [Mark(label, "same", value, (0, value)) for label, value in values.items() if value]
        if marks:  # models without a state have no step
            height = 0.4 + 0.2 * len(marks)
            charts.append(render(caption, 3, height, rows, marks, value_format))
    return charts


def _facts(comparison: Comparison) -> list[tuple[str, object]]:
    evaluation = comparison.contenders[0].evaluations["unmasked"]
    protocol, population = evaluation.protocol, evaluation.population
    machine = dict(comparison.provenance)
    versions = ", ".join(f"{name} {number}" for name, number in machine.pop("versions").items())
    return [
        ("log", comparison.log),
        ("data", protocol.data),
        ("split", f"{protocol.split}, {protocol.part} part"),
        ("filter", f"{protocol.core}-core"),
        ("candidates", f"all {protocol.candidates:,} items"),
        ("ties", protocol.ties),
        ("history", f"last {protocol.max_length:,} events"),
        ("users", f"{protocol.users:,}"),
        *([("other users", str(population))] if str(population) else []),
        ("intervals", "95%, bootstrap over users"),
        (
            "verdict",
            f"by {METRIC}: a paired randomisation test against the best model; worse if p < {LEVEL} "
            "after Holm's correction for all comparisons on this page. It does not cover the "
            "variation between training seeds.",
        ),
        *((contender.label, contender.folder) for contender in comparison.contenders),
        *machine.items(),
        ("versions", versions),
    ]
