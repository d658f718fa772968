"""The tables and sentences that commands print for people."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recblr.compare.comparison import Comparison
    from recblr.data.content import ItemContent
    from recblr.memory_search import Choice

COMPARED = ("HR@10", "NDCG@10")


def show(table: Table) -> None:
    """Print a table without cutting a cell; a terminal that is too narrow wraps its lines."""
    Console(width=1_000_000).print(table)


def print_summary(summary: dict[str, Any], core: int, split: str) -> None:
    """What a log held, what the filter kept of it, and how it is split."""
    table = Table("", "users", "items", "interactions", box=None)
    for name, row in (("read", summary["read"]), (f"kept ({core}-core)", summary["kept"])):
        table.add_row(name, *(f"{row[key]:,}" for key in ("users", "items", "interactions")))
    show(table)
    print(
        f"{split}: {summary['training_interactions']:,} training events, "
        f"{summary['validation_users']:,} validation users, {summary['test_users']:,} test users"
    )
    if "order" in summary:  # absent in folders of version 0.1.0
        print(f"events {summary['order']}")
    print_duplicates(summary)


def print_duplicates(summary: dict[str, Any]) -> None:
    """How many rows of a log are repeated, if any."""
    if duplicates := summary["duplicate_rows_kept"]:
        print(f"{duplicates:,} rows repeat the user, item and time of another row; all are kept")


def print_evaluations(evaluations: list[dict[str, Any]]) -> None:
    """Metrics with their intervals beside the baselines, the protocol, and slices of users."""
    from recblr.evaluation.evaluate import Population, Protocol
    from recblr.evaluation.metrics import headline

    baselines = evaluations[0]["baselines"]
    # Two lines a name, or a terminal of 80 columns cuts the intervals.
    heads = [name.replace(" ", "\n") for name in baselines]
    hit_rate, ndcg = headline(evaluations[0]["metrics"])
    table = Table("seen", "metric", "model", "95% interval", *heads, box=None)
    for evaluation in evaluations:
        for metric, value in evaluation["metrics"].items():
            low, high = evaluation["intervals"][metric]
            table.add_row(
                evaluation["protocol"]["seen"], metric, f"{value:.4f}", f"{low:.4f}-{high:.4f}",
                *(f"{evaluation['baselines'][name][metric]:.4f}" for name in baselines),
            )  # fmt: skip
    show(table)
    for evaluation in evaluations:
        for name, metrics in evaluation["baselines"].items():
            if metrics[ndcg] > evaluation["metrics"][ndcg]:
                print(
                    f"the baseline {name} has a higher {ndcg}, {metrics[ndcg]:.4f} "
                    f"({evaluation['protocol']['seen']})"
                )
    print(f"protocol: {Protocol(**evaluations[0]['protocol'])}")
    if others := str(Population(**evaluations[0]["population"])):
        print(f"users: {others}")
    slices = Table("slice (masked)", "users", hit_rate, ndcg, box=None)
    for name, row in evaluations[1]["slices"].items():
        slices.add_row(name, f"{row['users']:,}", f"{row[hit_rate]:.4f}", f"{row[ndcg]:.4f}")
    show(slices)
    if evaluations[0].get("lists"):  # measured only if asked for
        lists = Table("seen", "of the lists", "model", *heads, box=None)
        for evaluation in evaluations:
            for metric in evaluation["lists"]["model"]:
                values = (row[metric] for row in evaluation["lists"].values())
                lists.add_row(
                    evaluation["protocol"]["seen"], metric, *(f"{value:.4f}" for value in values)
                )
        show(lists)


def print_memory(choice: "Choice") -> None:
    """The memory of transitions that validation chose."""
    best, network_alone = choice.best, choice.trials[0]
    without = "" if network_alone.weight else f", {network_alone.masked:.4f} without"
    print(
        f"memory of transitions: weight {best.weight:g}, scale {best.scale:g}, repeat {best.repeat:g}; "
        f"validation NDCG@10 (masked) {best.masked:.4f}{without}, on {choice.users:,} users"
    )


def print_content(content: "ItemContent", counts: "np.ndarray") -> None:
    """How much content items have, and how many items are known only by it."""
    alone = int((content.given & (counts == 0)).sum())
    print(
        f"content of {content.given.sum():,} of {len(counts):,} items: vectors of "
        f"{len(content.mean):,} numbers, {len(content.names):,} categories; {alone:,} of them have no "
        "training event"
    )


def print_comparison(comparison: "Comparison") -> None:
    """The ranking under each protocol, what each model costs, and how it was measured."""
    print(comparison.headline)
    for seen in comparison.protocols:
        show(_ranking(comparison, seen))
    show(_costs(comparison))
    evaluation = comparison.contenders[0].evaluations["unmasked"]
    print(
        f"protocol: {evaluation.protocol}; 95% intervals, p after Holm's correction. Training times "
        "are those of the training runs; the rest is timed here on "
        f"{comparison.provenance['threads']} thread(s)."
    )
    if others := str(evaluation.population):
        print(f"users: {others}")


def _ranking(comparison: "Comparison", seen: str) -> Table:
    table = Table(seen, *COMPARED, "from the best", "verdict", box=None)
    for contender in comparison.ranking(seen):
        evaluation, difference = contender.evaluations[seen], contender.differences[seen]
        cells = [
            _estimate(evaluation.metrics[name], evaluation.intervals[name], "-")
            for name in COMPARED
        ]
        verdict = contender.verdict(seen)
        if difference is None:
            cells += ["", verdict]
        else:
            cells.append(_estimate(difference.mean, difference.interval, " to "))
            cells.append(f"{verdict}\np = {difference.p:.4f}")
        table.add_row(Text(contender.label), *cells)
    for name, metrics in comparison.baselines[seen].items():
        table.add_row(f"({name})", *(f"{metrics[metric]:.4f}" for metric in COMPARED))
    return table


def _costs(comparison: "Comparison") -> Table:
    table = Table(
        "", "model", "para-\nmeters", "training\ns", "recommend\nms", "event\nµs",
        "bytes\nper user", box=None,
    )  # fmt: skip
    for contender in comparison.contenders:
        cost = contender.cost
        table.add_row(
            Text(contender.label), contender.model, f"{cost.parameters:,}",
            f"{cost.training_seconds:,.1f}", f"{cost.recommend_ms:.2f}",
            "" if cost.step_us is None else f"{cost.step_us:,.0f}", f"{cost.user_bytes:,}",
        )  # fmt: skip
    return table


def _estimate(value: float, interval: tuple[float, float], between: str) -> str:
    low, high = interval
    return f"{value:.4f}\n{low:.4f}{between}{high:.4f}"


def print_recommendations(frame: "pl.DataFrame") -> None:
    """Recommended or similar items, one a row: for whom or what, rank, item and score."""
    whose, item = (name for name in frame.columns if name.endswith("_id"))
    table = Table(whose, "rank", item, "score", box=None)
    for row in frame.iter_rows(named=True):
        names = Text(str(row[whose])), Text(str(row[item]))
        table.add_row(names[0], str(row["rank"]), names[1], f"{row['score']:.3f}")
    show(table)


def print_findings(findings: dict[str, Any]) -> None:
    """What ``recblr doctor`` has found, one finding a row."""
    table = Table(box=None, show_header=False)
    for name, value in findings.items():
        shown = "none" if value is None else f"{value:.1e}" if isinstance(value, float) else value
        table.add_row(name.replace("_", " "), str(shown))
    show(table)
