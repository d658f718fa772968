"""The pictures of the studies, in colours that colour-blind people can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recblr.paper.report import Line

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"  # the first two are of Okabe and Ito
COLOURS = (VERMILION, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def dots(
    lines: Sequence[Line], rows: Sequence[str], keys: tuple[str, str], label: str, path: Path,
    highlight: str = "",
) -> None:  # fmt: skip
    """A panel a data set: by row, the value with its interval, and the published value hollow, by their
    ``keys`` in the lines. Other rows are dotted lines; the row ``highlight`` is vermilion."""
    value, published = keys
    datasets = list(dict.fromkeys(line["dataset"] for line in lines if value in line))
    figure, panels = _panels(len(datasets), (2.6, 1.7 + 0.33 * len(rows)))
    legend: dict[str, Any] = {}
    for line in (line for line in lines if line["dataset"] in datasets):
        axes, row = panels[datasets.index(line["dataset"])], line["row"]
        height = rows.index(row) if row in rows else -1
        colour = VERMILION if row == highlight else BLUE
        if row not in rows:
            legend[row] = axes.axvline(line[value], color=GREY, ls=":", zorder=0)
        elif value in line:
            interval = line.get("interval", [line[value]] * 2)
            axes.plot(interval, [height] * 2, color=colour, linewidth=2)
            (legend["measured"],) = axes.plot(line[value], height, "o", color=colour)
        if published in line:
            mark = axes.plot(line[published], height, "D", color=GREY, mfc="none")
            legend["published"] = mark[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        axes.set(title=dataset, xlabel=label, ylim=(len(rows) - 0.5, -0.5), yticks=[])
    panels[0].set_yticks(range(len(rows)), rows)
    _save(figure, legend, path)


def curves(
    panels: Mapping[str, Mapping[str, Mapping[float, float]]], label: str, scale: str, path: Path
) -> None:
    """A panel a quantity: by row, its values along a number, on an axis of this scale, "linear" or
    "log"; the last row, ours, in vermilion."""
    figure, places = _panels(len(panels), (3.6, 3.2))
    legend: dict[str, Any] = {}
    for axes, (title, rows) in zip(places, panels.items(), strict=True):
        for number, (row, values) in enumerate(rows.items(), 1 - len(rows)):
            style, colour = "osD^vP"[-number] + "-", COLOURS[-number]
            (legend[row],) = axes.plot([*values], [*values.values()], style, color=colour)
        axes.set(title=title, xlabel=label, xscale=scale)
    _save(figure, legend, path)


def _panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((max(6, 1 + size[0] * count), size[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, legend: Mapping[str, Any], path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.legend([*legend.values()], [*legend], loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=160)
