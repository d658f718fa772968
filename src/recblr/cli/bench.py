"""The commands of ``recblr bench``, which measure speed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from recblr.cli.options import Device, Json, Settings, print_json, read_seeds
from recblr.cli.options import Log as LogArgument
from recblr.cli.tables import show
from recblr.errors import from_extra

LOADS = {
    "recommend": "recommend",
    "event_and_recommend": "event and recommend",
    "event": "event",
    "steady": "event and recommend, steady rate",
}

Log = Annotated[str | None, typer.Argument(help="A log. [ml-1m, or a simulated shop of its size]")]

bench = typer.Typer(
    help="Measure the speed of training and serving.", no_args_is_help=True, rich_markup_mode=None
)


@bench.command("ops")
def bench_ops(device: Device = "auto", as_json: Json = False) -> None:
    """Time each implementation of the recurrence."""
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
    show(table)


@bench.command("step")
def bench_step(device: Device = "auto", as_json: Json = False) -> None:
    """Time one more event after 10, 1,000 and 100,000 events."""
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
    show(table)


@bench.command("length")
def bench_length(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.png", help="Also draw a plot.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time a RecBLR layer and an attention layer by history length."""
    from recblr.benchmark.length import draw, time_lengths
    from recblr.device import find_device
    from recblr.files import check_writable

    if out is not None:
        check_writable(out)
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
    show(table)


@bench.command("train")
def bench_train(
    data: Log = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare the time of an epoch with that of its matrix products."""
    from recblr.benchmark.train import default_log, time_training
    from recblr.data import open_log
    from recblr.device import find_device

    log = default_log() if data is None else open_log(data)
    result = time_training(log, find_device(device))
    if as_json:
        _print_measured("train" if data is None else f"train {data}", device, result)
        return
    table = Table(result["log"], "all positions", "prefix samples", box=None)
    both = [result["all_positions"], result["prefixes"]]
    for key, name, digits in (
        ("epoch_seconds", "seconds per epoch", 2), ("events_per_second", "events per second", 0),
        ("products_seconds", "matrix products alone, seconds", 2),
        ("times_products", "epoch / matrix products", 2),
    ):  # fmt: skip
        table.add_row(name, *(f"{kind[key]:,.{digits}f}" for kind in both))
    for part in both[0]["parts"]:
        table.add_row(f"  {part}", *(f"{kind['parts'][part]:.0%}" for kind in both))
    show(table)
    if both[1]["estimated"]:
        print("prefix samples: estimated from a few batches")


@bench.command("padded")
def bench_padded(data: Log = None, as_json: Json = False) -> None:
    """Compare an epoch on packed and on padded histories, on a CPU."""
    from recblr.benchmark.padded import time_padded
    from recblr.benchmark.train import default_log
    from recblr.data import open_log

    result = time_padded(default_log() if data is None else open_log(data))
    if as_json:
        _print_measured("padded" if data is None else f"padded {data}", None, result)
        return
    seconds = result["epoch_seconds"]
    print(
        f"seconds per epoch: {seconds['packed']:,.2f} packed, {seconds['padded twin']:,.2f} padded"
    )
    print(f"packed is {result['times_faster_than']['padded twin']:.1f} times faster")


@bench.command("prepare")
def bench_prepare(
    events: Annotated[
        list[int], typer.Option(min=10_000, help="Events of a simulated log. Repeatable.")
    ] = [50_000_000],  # noqa: B006 - typer reads it
    per_user: Annotated[int, typer.Option(min=1, help="Mean number of events of a user.")] = 100,
    files: Annotated[int, typer.Option(min=1, help="Number of files of the log.")] = 1,
    core: Annotated[int, typer.Option(min=1, help="k of the k-core filter.")] = 5,
    memory_limit: Annotated[
        str | None, typer.Option(help="Prepare on disk with this limit of memory, such as 1GB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the time and memory of `recblr prepare`."""
    from recblr.benchmark.prepare import time_prepare

    rows = [time_prepare(number, per_user, files, core, memory_limit) for number in events]
    if as_json:
        command = "prepare" + "".join(f" --events {number}" for number in events)
        command += f" --per-user {per_user} --files {files} --core {core}"
        command += f" --memory-limit {memory_limit}" if memory_limit else ""
        _print_measured(command, None, {"rows": rows})
        return
    for row in rows:
        print(
            f"{row['events']:,} events: {row['seconds']} s, {row['cpu_seconds']} s of the processor, "
            f"peak {row['peak_gib']} GiB"
        )


@bench.command("update")
def bench_update(
    log: LogArgument,
    known: Annotated[
        list[int], typer.Option(min=1, max=8, help="Tenths of the log before it. Repeatable.")
    ] = [8],  # noqa: B006 - typer reads it
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare an update by a tenth of a log with training anew."""
    from recblr.benchmark.update import time_updates
    from recblr.config import apply_settings
    from recblr.data.datasets import DATASETS, load_dataset
    from recblr.data.log import read_log

    source = load_dataset(log) if log in DATASETS else read_log(log)
    result = time_updates(source, apply_settings({}, settings), known, device)
    if as_json:
        options = [f"--known {number}" for number in known] + [f"--set {text}" for text in settings]
        _print_measured(" ".join(["update", log, *options]), device, result)
        return
    table = Table("tenths", "model", "NDCG@10 of the next tenth", "seconds", box=None)
    for row in result["rows"]:
        for name in ("before", "memory only", "update", "anew"):
            seconds = sum(value for key, value in row[name].items() if key.endswith("seconds"))
            table.add_row(f"{row['known']}", name, f"{row[name]['NDCG@10']:.4f}", f"{seconds:,.1f}")
    show(table)


@bench.command("content")
def bench_content(
    seeds: Annotated[str, typer.Option(metavar="N,…", help="Seeds of shop and training.")] = "0",
    settings: Settings = [],  # noqa: B006 - typer reads it
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure what content of items is worth, by the training events of the target."""
    from recblr.benchmark.content import GROUPS, measure_content
    from recblr.config import apply_settings

    result = measure_content(apply_settings({}, settings), read_seeds(seeds), device)
    if as_json:
        options = "".join(f" --set {text}" for text in settings)
        _print_measured(f"content --seeds {seeds}{options}", device, result)
        return
    heads = (f"HR@10, {group} events" for group in GROUPS)
    table = Table("seed", "part", "", *heads, box=None)
    for row in result["rows"]:
        cells = (f"{row[group]['HR@10']:.4f}" for group in GROUPS)
        table.add_row(f"{row['seed']}", row["part"], row["scorer"], *cells)
    show(table)


@bench.command("kinds")
def bench_kinds(
    seeds: Annotated[str, typer.Option(metavar="N,…", help="Seeds of shop and training.")] = "0",
    settings: Settings = [],  # noqa: B006 - typer reads it
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure what kinds of events are worth, for the next purchase."""
    from recblr.benchmark.kinds import measure_kinds
    from recblr.config import apply_settings

    result = measure_kinds(apply_settings({}, settings), read_seeds(seeds), device)
    if as_json:
        options = "".join(f" --set {text}" for text in settings)
        _print_measured(f"kinds --seeds {seeds}{options}", device, result)
        return
    table = Table("seed", "log", "HR@10", "NDCG@10", box=None)
    for row in result["rows"]:
        table.add_row(f"{row['seed']}", row["log"], f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}")
    show(table)


@bench.command("serve")
def bench_serve(as_json: Json = False) -> None:
    """Load a server and measure its throughput, latency and memory."""
    with from_extra("serve"):
        from recblr.benchmark.serve import time_serving
    result = time_serving()
    if as_json:
        _print_measured("serve", None, result)
        return
    table = Table("items", "load", "per second", "p50 ms", "p90 ms", "p99 ms", box=None)
    for row in result["catalogues"]:
        for key, name in LOADS.items():
            load = row[key]
            quantiles = (f"{load[quantile]:.1f}" for quantile in ("p50", "p90", "p99"))
            table.add_row(f"{row['items']:,}", name, f"{load['per_second']:,}", *quantiles)
    show(table)
    times = ", ".join(
        f"{row['median']:.0f} after {row['history']:,}" for row in result["histories"]
    )
    print(f"a durable event after so many events, µs: {times}")
    print(f"memory per cached user: {result['user_bytes']:,} bytes")
    print(f"longest pause of the machine itself: {result['gaps']['longest']} ms")


@bench.command("gpu")
def bench_gpu(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The folder of the results.")
    ],
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="N", min=0.1, help="How long it may take.")
    ] = 9.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use small sizes, to try the command.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Test and measure all that a GPU can show in N minutes.

    The most valuable steps come first. If the command is repeated, it goes on where it ended.
    """
    from recblr.benchmark.gpu import measure_all
    from recblr.benchmark.gpu_table import summarize
    from recblr.device import find_device

    found = find_device(device)
    measure_all(out, minutes, found, quick)
    print("\n".join(summarize(out, found.type)))


def _print_measured(command: str, device: str | None, result: dict[str, Any]) -> None:
    from recblr.provenance import provenance

    option = "" if device is None else f" --device {device}"
    print_json({**provenance(f"recblr bench {command}{option} --json"), **result})
