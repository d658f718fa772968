"""The page shows everything that was measured, in tables and charts, and loads nothing."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from compare.fixtures import SEEN, with_outcome
from recblr.compare.charts import COLOURS, Mark, render, rows, scatter
from recblr.compare.comparison import Comparison
from recblr.compare.page import page

VOID = {"meta", "path", "use", "rect"}


class Reader(HTMLParser):
    """Checks that tags are balanced and ids differ; collects the tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(html: str) -> Reader:
    """The reader of a page whose charts have a name, stay within their borders and use the theme."""
    reader = Reader(html)
    width = height = 0.0
    for tag, attributes in reader.tags:
        if tag == "svg":
            _, _, width, height = map(float, attributes["viewbox"].split())
            assert attributes["role"] == "img"
            assert attributes["aria-label"] in reader.text
        if tag in ("use", "text"):
            assert 0 <= float(attributes["x"]) <= width
            assert 0 <= float(attributes["y"]) <= height
        if tag == "path":  # markers have coordinates around 0
            points = re.findall(r"([\d.-]+) ([\d.-]+)\s", attributes["d"])
            assert all(-10 <= float(x) <= width and -10 <= float(y) <= height for x, y in points)
        if tag == "text" or "stroke" in attributes.get("style", ""):
            assert re.search(r"(fill|stroke): var\(--\w+\)", attributes["style"])
    return reader


@pytest.fixture(scope="module")
def html(comparison: Comparison) -> str:
    return page(comparison)


def test_the_page_shows_everything(comparison: Comparison, html: str) -> None:
    text = read(html).text
    assert html.startswith("<!doctype html>")
    assert comparison.headline in text
    for seen in SEEN:
        for contender in comparison.contenders:
            evaluation, difference = contender.evaluations[seen], contender.differences[seen]
            for name, value in evaluation.metrics.items():
                low, high = evaluation.intervals[name]
                assert f"{value:.4f} {low:.4f} … {high:.4f}" in text
            assert f"{contender.label} {contender.verdict(seen)}" in text
            if difference is not None:
                assert f"p = {difference.p:.4f}" in text
            for name, values in evaluation.slices.items():
                assert f"{name} {values['users']:,}" in text
                assert f"{values['NDCG@10']:.4f}" in text
        for name, row in comparison.baselines[seen].items():
            assert f"{name} {row['HR@10']:.4f}" in text
    for contender in comparison.contenders:
        assert f"{contender.cost.parameters:,}" in text
        assert f"{contender.cost.user_bytes:,}" in text
    protocol = comparison.contenders[0].evaluations["masked"].protocol
    for fact in (protocol.data, protocol.ties, "all 24 items", comparison.provenance["date"]):
        assert fact in text


def test_the_page_needs_nothing_else(html: str) -> None:
    tags = {tag for tag, _ in Reader(html).tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"https?:|//|@import|url\((?!#)|\bon\w+=", html)
    assert 'name="viewport"' in html


def test_both_themes_define_the_colours_of_the_charts(html: str) -> None:
    light, dark = html.split("@media (prefers-color-scheme: dark)")
    dark = dark[: dark.index("</style>")]
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour}" in light
        assert re.search(rf"--{name}: #[0-9a-f]{{6}}", dark)


def test_the_same_comparison_gives_the_same_page(comparison: Comparison, html: str) -> None:
    assert page(comparison) == html


def test_charts_hold_the_values_of_the_tables(comparison: Comparison, html: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 2 * len(SEEN) + 3
    for seen, chart in zip(SEEN, charts, strict=False):
        text = Reader(chart).text
        for contender in comparison.contenders:
            assert contender.label in text
            assert f"{contender.evaluations[seen].metrics['NDCG@10']:.4f}" in text
        for name, row in comparison.baselines[seen].items():
            assert name in text
            assert f"{row['NDCG@10']:.4f}" in text
    for cost in (contender.cost for contender in comparison.contenders):
        assert f"{cost.recommend_ms:.2f}" in Reader(charts[-3]).text
        assert cost.step_us is None or f"{cost.step_us:,.0f}" in Reader(charts[-2]).text
        assert f"{cost.user_bytes:,}" in Reader(charts[-1]).text


def test_names_are_escaped(comparison: Comparison, html: str) -> None:
    odd = "<b>\"&'$x ${log}{{ 7 }}"
    changed = with_outcome(comparison, {odd: (0.9, None), f"{odd}2": (0.8, 0.01)})
    reader = read(page(replace(changed, log=odd)))
    assert {tag for tag, _ in reader.tags} == {tag for tag, _ in Reader(html).tags}
    assert f"Recommenders compared on {odd}" in reader.text
    assert reader.text.count(f"{odd}2") > 5  # the tables and the charts


def test_a_long_name_or_a_name_in_another_script(comparison: Comparison) -> None:
    long = "runs/2024-05-17/a-very-long-name"
    reader = read(page(with_outcome(comparison, {long: (0.9, None), "推薦": (0.8, 0.01)})))
    assert f"{long} best" in reader.text
    assert "runs/2024-0…ry-long-name" in reader.text
    assert reader.text.count("推薦") > 5


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 0.3, 25.0, 3e3, 1e6, 1e9])
@pytest.mark.parametrize("other", [None, 0.01])
def test_any_training_time_is_drawn(seconds: float, other: float | None) -> None:
    marks = [Mark("a", "best", 0.5, (0.4, 0.6)), Mark("b", "worse", 0.3, (0.2, 0.4))]
    times = [seconds, seconds if other is None else other]
    caption, view_box, content = render("by time", 4.6, 2.5, scatter, marks, times, marks[1:])
    svg = f'<svg viewBox="{view_box}" role="img" aria-label="{caption}">{content}</svg>{caption}'
    read(svg)
    assert 2 <= len(re.findall(r"text-anchor: middle[^>]*>[\d.,e+]+<", svg)) <= 9  # times


@pytest.mark.parametrize("ndcg", [0.0, 1.0])
def test_equal_outcomes_are_drawn(comparison: Comparison, ndcg: float) -> None:
    outcome = {"a": (ndcg, None), "b": (ndcg, 1.0)}
    read(page(with_outcome(comparison, outcome, spread=0.0, baseline=ndcg)))


def test_models_without_a_state_have_no_chart_of_steps(comparison: Comparison, html: str) -> None:
    caption = "Microseconds to add one event"
    assert caption in html
    stateless = [
        replace(contender, cost=replace(contender.cost, step_us=None))
        for contender in comparison.contenders
    ]
    assert caption not in page(replace(comparison, contenders=stateless))


def test_many_models_are_drawn(comparison: Comparison) -> None:
    values = {f"model {n}": (0.5 + n / 1e4, None if n == 39 else 0.5) for n in range(40)}
    reader = read(page(with_outcome(comparison, values)))
    assert all(f"model {n} " in reader.text for n in range(40))
    # The labels of the charts are at least as far apart as their letters are high.
    chart = next(a for a in reader.attributes("svg") if "training time" in a["aria-label"])
    start = reader.tags.index(("svg", chart))
    heights = [
        float(attributes["y"])
        for tag, attributes in reader.tags[start:]
        if tag == "text" and "text-anchor: start" in attributes["style"]
    ][:40]
    assert all(after - before > 8 for before, after in pairwise(heights))


def test_a_chart_does_not_depend_on_the_users_settings() -> None:
    import matplotlib as mpl

    marks = [Mark("a", "best", 0.5, (0.4, 0.6))]
    chart = render("caption", 3, 1, rows, marks, ".2f")
    with mpl.rc_context({"font.size": 20, "xtick.direction": "in", "svg.fonttype": "path"}):
        assert render("caption", 3, 1, rows, marks, ".2f") == chart
