"""A comparison as one HTML page that needs nothing else: no network, no script."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from recblr.compare.comparison import LEVEL, METRIC, Comparison, Contender
from recblr.evaluation.metrics import CUTOFFS, METRICS

_SHOWN = [f"{name}@{k}" for k in CUTOFFS for name in METRICS]
_SEEN = {
    "unmasked": "Items of a history stay among the candidates, as in most papers.",
    "masked": "Items of a history leave the candidates, as in a shop that shows new things.",
}
_CLASSES = {"best": "best", "as good within the noise": "same", "worse": "worse"}  # of the style
# Marks of an axis of time; each is at most 2.5 times the one before.
_TIMES = [
    (number * seconds, f"{number} {unit}")
    for seconds, unit, numbers in (
        (0.001, "ms", (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1, "s", (1, 2, 5, 10, 20, 30)),
        (60, "min", (1, 2, 5, 10, 20, 30)),
        (3600, "h", (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
    )
    for number in numbers
]


@dataclass(frozen=True)
class _Bar:
    label: str
    style: str  # a class of the style sheet
    value: float
    text: str
    interval: tuple[float, float] | None = None  # drawn as a dot in it, else as a bar from 0


def page(comparison: Comparison) -> str:
    """The outcome, the figures with their intervals, the cost, and how all was measured."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        log=escape(comparison.log),
        headline=escape(comparison.headline),
        accuracy="\n".join(_accuracy(comparison, seen) for seen in comparison.protocols),
        cost=_cost(comparison),
        about=_about(comparison),
    )


def _accuracy(comparison: Comparison, seen: str) -> str:
    ranking = comparison.ranking(seen)
    rows, bars = [], []
    for contender in ranking:
        evaluation, difference = contender.evaluations[seen], contender.differences[seen]
        verdict = contender.verdict(seen)
        style, value = _CLASSES[verdict], evaluation.metrics[METRIC]
        behind = ""
        if difference is not None:
            behind = _estimate(difference.mean, difference.interval)
            behind += f"<small>p = {difference.p:.4f}</small>"
        cells = [_estimate(evaluation.metrics[name], evaluation.intervals[name]) for name in _SHOWN]
        rows.append(_row(contender.label, [behind, *cells], style, verdict))
        bars.append(
            _Bar(contender.label, style, value, f"{value:.4f}", evaluation.intervals[METRIC])
        )
    for name, floor in comparison.floors[seen].items():
        rows.append(_row(name, ["", *(f"{floor[metric]:.4f}" for metric in _SHOWN)], "floor"))
        value = floor[METRIC]
        bars.append(_Bar(name, "floor", value, f"{value:.4f}", (value, value)))
    heads = ["", "from the best", *_SHOWN]
    return f"""<h2>Accuracy, seen items {seen}</h2>
<p class="remark">{_SEEN[seen]}</p>
{_table(heads, rows)}
<figure>{_bars(bars)}
<figcaption>{METRIC} with its 95% interval, from 0.</figcaption></figure>
<h3>{METRIC} by kind of history and of target</h3>
{_slices(ranking, seen)}"""


def _slices(ranking: Sequence[Contender], seen: str) -> str:
    rows = []
    for name, about in ranking[0].evaluations[seen].slices.items():
        values = [contender.evaluations[seen].slices[name][METRIC] for contender in ranking]
        cells = [
            f"<b>{value:.4f}</b>" if value == max(values) else f"{value:.4f}" for value in values
        ]
        rows.append(_row(name, [f"{about['users']:,}", *cells]))
    return _table(["", "users", *(contender.label for contender in ranking)], rows)


def _cost(comparison: Comparison) -> str:
    heads = [
        "", "model", "parameters", "events looked at", "training, s", "recommendation, ms",
        "one more event, µs", "bytes a user",
    ]  # fmt: skip
    rows = []
    for contender in comparison.contenders:
        cost = contender.cost
        cells = [
            escape(contender.model), f"{cost.parameters:,}", f"{cost.max_length:,}",
            f"{cost.training_seconds:,.1f}", f"{cost.recommend_ms:.2f}",
            "" if cost.step_us is None else f"{cost.step_us:,.0f}", f"{cost.user_bytes:,}",
        ]  # fmt: skip
        rows.append(_row(contender.label, cells))
    scatters = "\n".join(
        f"<figure>{_scatter(comparison, seen)}\n<figcaption>{METRIC} against training time, seen "
        f"items {seen}. The strokes are 95% intervals, the dashes floors.</figcaption></figure>"
        for seen in comparison.protocols
    )
    figures = "\n".join(
        f"<figure>{_bars(bars)}\n<figcaption>{caption}</figcaption></figure>"
        for caption, bars in (
            ("Milliseconds a recommendation for one user with a full history", _bars_of(
                comparison, lambda contender: contender.cost.recommend_ms, ".2f")),
            ("Microseconds for one more event of one user, where the model has a state", _bars_of(
                comparison, lambda contender: contender.cost.step_us, ",.0f")),
            ("Bytes kept of a user: the state, or the events that the model looks at", _bars_of(
                comparison, lambda contender: contender.cost.user_bytes, ",.0f")),
        )
        if bars
    )  # fmt: skip
    return f"""<p class="remark">Training was timed where each was trained, which may have been on
other hardware. The rest was timed here, one user at a time, medians.</p>
{_table(heads, rows)}
<div class="pair">{scatters}</div>
<div class="pair">{figures}</div>"""


def _bars_of(
    comparison: Comparison, value_of: Callable[[Contender], float | None], form: str
) -> list[_Bar]:
    values = [(contender.label, value_of(contender)) for contender in comparison.contenders]
    return [
        _Bar(label, "cost", value, format(value, form))
        for label, value in values
        if value is not None
    ]


def _about(comparison: Comparison) -> str:
    protocol = comparison.contenders[0].evaluations["unmasked"].protocol
    machine = dict(comparison.provenance)
    versions = ", ".join(f"{name} {number}" for name, number in machine.pop("versions").items())
    facts = [
        ("log", comparison.log),
        ("data", protocol.data),
        ("split", f"{protocol.split}, {protocol.part} part"),
        ("filter", f"{protocol.core}-core"),
        ("candidates", f"all {protocol.candidates:,} items"),
        ("ties", protocol.ties),
        ("users", f"{protocol.users:,}"),
        ("intervals", "95%, bootstrap over users"),
        (
            "verdict",
            f"by {METRIC}: a paired randomisation test against the best one; worse if p < {LEVEL} "
            "after Holm's correction for all comparisons of this page. It says nothing of other "
            "seeds of training.",
        ),
        *((contender.label, contender.folder) for contender in comparison.contenders),
        *((name, str(value)) for name, value in machine.items()),
        ("versions", versions),
    ]
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts)
    return "<dl>" + "\n".join(lines) + "</dl>"


# ---- pieces --------------------------------------------------------------------------------------


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(label: str, cells: Iterable[str], style: str = "", below: str = "") -> str:
    """Cells are HTML already; ``below`` stands under the label."""
    name = escape(label) + (f"<small>{below}</small>" if below else "")
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{style}"><th>{name}</th>{rest}</tr>'


def _estimate(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{value:.4f}<small>{low:.4f} … {high:.4f}</small>"


def _bars(bars: Sequence[_Bar]) -> str:
    """Bars from 0, or dots with their intervals, one below the other."""
    longest = max((bar.interval or (0, bar.value))[1] for bar in bars) or 1
    lines = []
    for bar in bars:
        place, label = 100 * bar.value / longest, escape(bar.label)
        if bar.interval is None:
            marks = f'<i class="bar" style="width: {place:.2f}%"></i>'
        else:
            low, high = (100 * end / longest for end in bar.interval)
            marks = (
                f'<i class="reach" style="left: {low:.2f}%; width: {high - low:.2f}%"></i>'
                f'<i class="dot" style="left: {place:.2f}%"></i>'
            )
        lines.append(
            f'<span title="{label}">{label}</span>'
            f'<span class="track {bar.style}">{marks}</span><span>{bar.text}</span>'
        )
    return '<div class="bars">' + "\n".join(lines) + "</div>"


def _scatter(comparison: Comparison, seen: str) -> str:
    """Accuracy against the logarithm of training time, names beside the points."""
    ranking = comparison.ranking(seen)
    width, height = 420, max(240, 16 * len(ranking) + 60)
    left, right, top, bottom = 46, width - 132, 8, height - 28
    times = [max(contender.cost.training_seconds, 0.002) for contender in ranking]
    ends = [end for c in ranking for end in c.evaluations[seen].intervals[METRIC]]
    first, last = math.log(min(times) / 2), math.log(max(times) * 2)
    pad = 0.08 * (max(ends) - min(ends)) or 0.01
    lowest, highest = max(0, min(ends) - pad), max(ends) + pad

    def across(seconds: float) -> float:
        return left + (right - left) * (math.log(seconds) - first) / (last - first)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - lowest) / (highest - lowest)

    parts = []
    marks = [(seconds, text) for seconds, text in _TIMES if first <= math.log(seconds) <= last]
    for seconds, text in marks[:: 1 + len(marks) // 6]:  # five, or a few more
        x = across(seconds)
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{text}</text>'
        )
    step = 10 ** math.floor(math.log10((highest - lowest) / 2))
    step *= 2 if (highest - lowest) / step > 5 else 1
    for number in range(math.ceil(lowest / step), math.floor(highest / step) + 1):
        y, text = up(number * step), f"{number * step:.4g}"
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="axis" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for name, floor in comparison.floors[seen].items():
        if lowest <= floor[METRIC] <= highest:
            y = up(floor[METRIC])
            parts.append(
                f'<line class="level" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="axis" x="{left + 4}" y="{y - 4:.1f}">{name}</text>'
            )
    heights = [up(contender.evaluations[seen].metrics[METRIC]) for contender in ranking]
    for contender, seconds, y, beside in zip(
        ranking, times, heights, _apart(heights, 16, bottom), strict=True
    ):
        x, (low, high) = across(seconds), contender.evaluations[seen].intervals[METRIC]
        label = contender.label
        short = label if len(label) <= 16 else f"{label[:15]}…"
        parts.append(
            f'<g class="{_CLASSES[contender.verdict(seen)]}"><title>{escape(label)}</title>'
            f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{right + 4}" y2="{beside:.1f}"/>'
            f'<line class="reach" x1="{x:.1f}" x2="{x:.1f}" y1="{up(low):.1f}" '
            f'y2="{up(high):.1f}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
            f'<text x="{right + 8}" y="{beside + 4:.1f}">{escape(short)}</text></g>'
        )
    name = f"{METRIC} against training time, seen items {seen}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        + "\n".join(parts)
        + "</svg>"
    )


def _apart(heights: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Rising heights moved as little as keeps them ``gap`` apart and above ``bottom``."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = bottom
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - gap
    return placed
