"""The charts of a comparison, drawn by matplotlib, as SVG in the colours of the page."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the light theme. The finished SVG uses the CSS variables of these names, which
# page.html defines for the light and the dark theme.
COLOURS = {
    "ink": "#1c1e21", "faint": "#6a7078", "line": "#dfe2e6", "best": "#00795a", "same": "#0072b2",
    "worse": "#b94f14", "baseline": "#8a9099",
}  # fmt: skip
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "lines.markersize": 5,
    "ytick.left": False,
    **dict.fromkeys(("grid.color", "xtick.color"), COLOURS["line"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor"), COLOURS["faint"]),
    **dict.fromkeys(("text.color", "ytick.labelcolor"), COLOURS["ink"]),
}  # fmt: skip
_HALF = 12  # characters: half of the longest label that a chart has room for


@dataclass(frozen=True)
class Mark:
    """A point on a line: a value and its interval, or a cost and the line from 0 to it."""

    label: str
    colour: str  # of COLOURS
    value: float
    interval: tuple[float, float]

    @property
    def short_label(self) -> str:
        """The label without its middle where it is too long."""
        fits = len(self.label) <= 2 * _HALF
        return self.label if fits else f"{self.label[: _HALF - 1]}…{self.label[-_HALF:]}"


class Chart(NamedTuple):
    """An SVG element: its caption, its ``viewBox`` and its content."""

    caption: str
    view_box: str
    content: str


def render(
    caption: str, width: float, height: float, draw: Callable[..., None], *arguments: Any
) -> Chart:
    """Call ``draw(axes, *arguments)`` on axes of this size in inches.

    The same arguments give the same text.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    svg = StringIO()
    # With the caption as salt, each chart of a page has ids of its own.
    with style.context(["default", {**_STYLE, "svg.hashsalt": caption}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a browser has more fonts
        figure = Figure((width, height), layout="constrained")
        draw(figure.subplots(subplot_kw={"frame_on": False}), *arguments)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
    root = re.search(r'viewBox="(.*?)".*?</defs>(.*)</svg>', svg.getvalue(), re.DOTALL)
    assert root is not None
    # The page's own font, and no ids such as figure_1, which every chart has.
    content = re.sub(r' id="[\w.]+_\d+"| font-family: [^;]*;', "", root[2])
    for name, colour in COLOURS.items():
        content = content.replace(f": {colour}", f": var(--{name})")
    return Chart(caption, root[1], content)


def rows(axes: "Axes", marks: Sequence[Mark], value_format: str) -> None:
    """A row for each mark: its label, the mark on an axis from 0, its value."""
    beside: dict[str, Any] = {"va": "center_baseline", "transform": axes.get_yaxis_transform()}
    for row, mark in enumerate(marks):
        axes.plot(mark.interval, (row, row), color=COLOURS[mark.colour], alpha=0.5, linewidth=3)
        axes.plot(mark.value, row, "o", color=COLOURS[mark.colour], clip_on=False)
        axes.text(1.03, row, format(mark.value, value_format), **beside)
    axes.set_yticks(range(len(marks)), [mark.short_label for mark in marks])
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * max(mark.interval[1] for mark in marks) or 1)
    axes.grid(axis="x")


def scatter(
    axes: "Axes", marks: Sequence[Mark], seconds: Sequence[float], baselines: Sequence[Mark]
) -> None:
    """Values against training time, which is logarithmic; labels on the right; baselines as lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    times = [max(time, 1e-3) for time in seconds]
    for number, (mark, time) in enumerate(zip(marks, times, strict=True)):
        axes.plot((time, time), mark.interval, color=COLOURS[mark.colour], alpha=0.5)
        axes.plot(time, mark.value, "o", color=COLOURS[mark.colour], clip_on=False)
        axes.annotate(
            mark.short_label, (time, mark.value), va="center", textcoords="axes fraction",
            xytext=(1.06, 1 - (number + 0.5) / len(marks)), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": COLOURS["faint"], "linewidth": 0.5},
        )  # fmt: skip
    low, high = axes.get_ylim()
    above: dict[str, Any] = {"va": "bottom", "transform": axes.get_yaxis_transform()}
    for line in baselines:
        if low <= line.value <= high:
            axes.axhline(line.value, color=COLOURS[line.colour], ls="--", lw=0.8, zorder=1)
            axes.text(0.01, line.value, line.label, color=COLOURS["faint"], **above)
    axes.set_ylim(max(0, low), high)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2, max(times) * 2)
    steps = (1,) if max(times) > 30 * min(times) else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training time, s")
    axes.grid(axis="y")
