"""The pictures of the studies. Blue and vermilion are of Okabe and Ito: the colour-blind tell them
apart; what the paper printed is hollow."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recblr.paper.verdict import MAIN, WITH_MEMORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"
COLOURS = (VERMILION, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
CHAIN = "markov chain"  # of the floors


def dots(data: Mapping[str, Any], reference: str, figure: "Figure") -> None:
    """A panel a data set: every row's figure with its interval, the published one hollow, and the
    Markov chain's as a line. Rows with the memory, whose unmasked figures are another matter, are left
    out."""
    from matplotlib.ticker import MaxNLocator

    panels = _measured(data)
    every = [it["rows"] for it in panels.values()]
    rows = [
        name
        for name in every[0]
        if not name.endswith(WITH_MEMORY)
        and any("unmasked" in it[name] or it[name]["published"] for it in every)
    ]
    figure.set_size_inches(2 + 2.6 * len(panels), 1.5 + 0.33 * len(rows))
    places = _panels(figure, len(panels), sharey=True)
    for axes, (dataset, of_data) in zip(places, panels.items(), strict=True):
        if chain := of_data["floors"].get(CHAIN):
            axes.axvline(chain["unmasked"][MAIN], color=GREY, ls=":", lw=1, zorder=0)
        for height, name in enumerate(rows):
            row = of_data["rows"][name]
            if "unmasked" in row:
                cell = row["unmasked"][MAIN]
                colour = VERMILION if name == reference else BLUE
                axes.plot(cell["interval"], [height, height], color=colour, linewidth=2)
                axes.plot(cell["mean"], height, "o", color=colour)
            if MAIN in row["published"]:
                axes.plot(row["published"][MAIN], height, "D", mec=GREY, mfc="none")
        axes.set_title(dataset, loc="left", fontsize=10)
        axes.set_xlabel(f"{MAIN}, 95% interval")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", alpha=0.3)
    places[0].set_yticks(range(len(rows)), rows)
    places[0].set_ylim(len(rows) - 0.5, -0.5)
    compared = any(MAIN in row["published"] for it in every for row in it.values())
    _legend(figure, compared, any(CHAIN in it["floors"] for it in panels.values()))


def lines(data: Mapping[str, Any], axis: str, figure: "Figure") -> None:
    """A panel a data set of several points: the figure with its interval along what the rows vary;
    dashed where the paper finds the best."""
    panels = _measured(data)
    several = {
        name: it
        for name, it in panels.items()
        if sum("unmasked" in row for row in it["rows"].values()) > 1
    }
    panels = several or panels
    figure.set_size_inches(0.6 + 2.6 * len(panels), 2.8)
    places = _panels(figure, len(panels))
    places[0].set_ylabel(f"{MAIN}, 95% interval")
    for axes, (dataset, of_data) in zip(places, panels.items(), strict=True):
        points = [
            (float(name), row["unmasked"][MAIN])
            for name, row in of_data["rows"].items()
            if "unmasked" in row
        ]
        x, cells = zip(*points, strict=True)
        for place, cell in points:
            axes.plot([place, place], cell["interval"], color=BLUE, linewidth=1.5, alpha=0.6)
        axes.plot(x, [cell["mean"] for cell in cells], "o-", color=BLUE)
        if of_data["optimum"] and "claimed" in of_data["optimum"]:
            claimed = float(of_data["optimum"]["claimed"])
            axes.axvline(claimed, color=GREY, ls="--", lw=1, zorder=0, label="best in the paper")
            axes.legend(frameon=False, fontsize=8)
        axes.set_xticks(x)
        axes.set_title(dataset, loc="left", fontsize=10)
        axes.set_xlabel(axis)
        axes.grid(axis="y", alpha=0.3)


def ratios(data: Mapping[str, Any], figure: "Figure") -> None:
    """A panel a data set: how many times the seconds of the base each row takes, published hollow."""
    panels = {name: it for name, it in data.items() if all("ratio" in row for row in it.values())}
    rows = list(dict.fromkeys(row for of_data in panels.values() for row in of_data))
    figure.set_size_inches(2.2 + 2.6 * len(panels), 1.3 + 0.33 * len(rows))
    places = _panels(figure, len(panels), sharey=True)
    for axes, (dataset, of_data) in zip(places, panels.items(), strict=True):
        for name, row in of_data.items():
            axes.plot(row["ratio"], rows.index(name), "o", color=BLUE)
            if "published_ratio" in row:
                axes.plot(row["published_ratio"], rows.index(name), "D", mec=GREY, mfc="none")
        _plain_log(axes, "x")
        axes.set_title(dataset, loc="left", fontsize=10)
        axes.set_xlabel("times the seconds")
        axes.grid(axis="x", alpha=0.3)
    places[0].set_yticks(range(len(rows)), rows)
    places[0].invert_yaxis()
    compared = any("published" in row for it in panels.values() for row in it.values())
    _legend(figure, compared)


def growth(
    data: Mapping[str, Mapping[int, Mapping[str, float]]],
    kinds: Mapping[str, str],
    figure: "Figure",
) -> None:
    """A panel a kind of cost, a line a model, along the length; the last one, ours, in vermilion.

    Args:
        data: by model and length, the costs by kind.
        kinds: the kinds and how their panels are headed.
        figure: what to draw in.
    """
    figure.set_size_inches(3.6 * len(kinds), 3.2)
    places = _panels(figure, len(kinds))
    for axes, (kind, title) in zip(places, kinds.items(), strict=True):
        for number, (model, costs) in zip(reversed(range(len(data))), data.items(), strict=True):
            points = [(length, cost[kind]) for length, cost in costs.items() if kind in cost]
            if points:
                x, y = zip(*points, strict=True)
                colour, marker = COLOURS[number], MARKERS[number]
                axes.plot(x, y, color=colour, marker=marker, markersize=4, label=model)
        _plain_log(axes, "y")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("longest history")
        axes.grid(alpha=0.3)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _measured(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: of_data
        for name, of_data in data.items()
        if any("unmasked" in row for row in of_data["rows"].values())
    }


def _panels(figure: "Figure", count: int, sharey: bool = False) -> Sequence["Axes"]:
    places: Sequence[Axes] = figure.subplots(1, count, squeeze=False, sharey=sharey)[0]
    for axes in places:
        axes.spines[["top", "right"]].set_visible(False)
    return places


def _plain_log(axes: "Axes", which: str) -> None:
    """A logarithmic axis labelled 1, 2, 5, 10 …"""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _legend(figure: "Figure", published: bool, chain: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="none", marker="o", color=BLUE, label="measured")]
    if published:
        mark = Line2D([], [], ls="none", marker="D", mec=GREY, mfc="none", label="published")
        handles.append(mark)
    if chain:
        handles.append(Line2D([], [], ls=":", color=GREY, label="Markov chain, untrained"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
