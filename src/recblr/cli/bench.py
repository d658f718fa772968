"""The commands of ``recblr bench``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recblr.cli.options import Device, Json, print_json
from recblr.errors import from_extra

SERVED = {
    "recommend": "recommend",
    "event_and_recommend": "event and recommend",
    "event": "event",
    "steady": "event and recommend, steadily",
}

bench = typer.Typer(help="Measure speed.", no_args_is_help=True, rich_markup_mode=None)


@bench.command("ops")
def bench_ops(device: Device = "auto", as_json: Json = False) -> None:
    """Time the recurrence in every form, its gradients checked first."""
    from recblr.benchmark.ops import time_ops
    from recblr.device import find_device

    result = time_ops(find_device(device).type)
    if as_json:
        _print_measured("ops", device, {"threads": 1, **result})
        return
    table = Table("recurrence", "gate", "forward ns", "both ns", "times slower", box=None)
    for row in result["rows"]:
        numbers = (row[name] for name in ("forward_ns", "both_ns", "times_slower"))
        cells = ("" if number is None else f"{number:.2f}" for number in numbers)
        table.add_row(row["name"], row["gate"], *cells)
    Console().print(table)


@bench.command("step")
def bench_step(device: Device = "auto", as_json: Json = False) -> None:
    """Time an event after 10, 1,000 and 100,000 events: flat."""
    from recblr.benchmark.step import time_steps
    from recblr.device import find_device

    rows = time_steps(find_device(device))
    if as_json:
        _print_measured("step", device, {"threads": 1, "steps": rows})
        return
    table = Table("events before", "median µs", "fastest tenth µs", "slowest tenth µs", box=None)
    for row in rows:
        table.add_row(
            f"{row['history']:,}", *(f"{row[name]:.0f}" for name in ("median", "p10", "p90"))
        )
    Console().print(table)


@bench.command("length")
def bench_length(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.png", help="Draw it, too.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """How cost grows with length: a RecBLR layer beside attention."""
    from recblr.benchmark.length import draw, time_lengths
    from recblr.device import find_device

    result = time_lengths(find_device(device))
    if as_json:
        _print_measured("length", device, result)
    else:
        _print_lengths(result)
    if out is not None:
        draw(result, out)


def _print_lengths(result: dict[str, Any]) -> None:
    names = ("recblr", "attention")
    keys = [
        key for key in ("event_ns", "peak_mib", "step_us") if key in result["rows"][0]["recblr"]
    ]
    heads = [f"{name}\n{key.replace('_', ' ')}" for key in keys for name in names]
    table = Table("history", *heads, box=None)
    for row in result["rows"]:
        numbers = (row[name][key] for key in keys for name in names)
        cells = ("" if number is None else f"{number:,.0f}" for number in numbers)
        table.add_row(f"{row['length']:,}", *cells)
    Console().print(table)


@bench.command("train")
def bench_train(
    data: Annotated[
        str | None,
        typer.Argument(help="A log, as for recblr train. [ml-1m, or a simulated shop of its size]"),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time an epoch of training beside its bare matrix products."""
    from recblr.benchmark.train import default_log, time_training
    from recblr.data import open_log
    from recblr.device import find_device

    where = find_device(device)
    result = time_training(default_log() if data is None else open_log(data), where)
    if as_json:
        _print_measured("train" if data is None else f"train {data}", device, result)
        return
    table = Table(result["log"], "all positions", "prefix samples", box=None)
    both = [result["all_positions"], result["prefixes"]]
    for key, name, digits in (
        ("epoch_seconds", "seconds an epoch", 2), ("events_per_second", "events a second", 0),
        ("products_seconds", "bare products, seconds", 2), ("times_products", "times as long", 2),
    ):  # fmt: skip
        table.add_row(name, *(f"{kind[key]:,.{digits}f}" for kind in both))
    for part in both[0]["parts"]:
        table.add_row(f"  {part}", *(f"{kind['parts'][part]:.0%}" for kind in both))
    Console().print(table)
    if both[1]["estimated"]:
        print("prefix samples: estimated from a few batches")


@bench.command("serve")
def bench_serve(as_json: Json = False) -> None:
    """Load a server: requests a second, latency, memory."""
    with from_extra("serve"):
        from recblr.benchmark.serve import time_serving
    result = time_serving()
    if as_json:
        _print_measured("serve", None, result)
        return
    table = Table("items", "load", "a second", "p50 ms", "p90 ms", "p99 ms", box=None)
    for row in result["catalogues"]:
        for name, load in SERVED.items():
            it = row[name]
            cells = (f"{it[q]:.1f}" for q in ("p50", "p90", "p99"))
            table.add_row(f"{row['items']:,}", load, f"{it['per_second']:,}", *cells)
    Console().print(table)
    events = ", ".join(f"{it['median']:.0f} after {it['history']:,}" for it in result["histories"])
    print(f"a durable event, µs: {events}")
    print(f"a user at hand: {result['user_bytes']:,} bytes")
    print(f"the machine's own gaps: {result['gaps']['longest']} ms at most")


def _print_measured(command: str, device: str | None, result: dict[str, Any]) -> None:
    from recblr.provenance import provenance

    where = "" if device is None else f" --device {device}"
    print_json({**provenance(f"recblr bench {command}{where} --json"), **result})
