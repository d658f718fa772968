"""The command line: parse, call one library function, print."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from recblr.bench.commands import bench
from recblr.errors import DivergedError, InputError
from recblr.options import Device, Json, print_json

app = typer.Typer(
    help="From a log of who did what when to recommendations, with numbers one can trust.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(bench, name="bench")

Log = Annotated[
    str, typer.Argument(metavar="LOG", help="A log file, a prepared folder, or a data set's name.")
]
Model = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Core = Annotated[
    int | None,
    typer.Option(help="Keep users and items with this many events. [data sets: 5, files: 1]"),
]
Split = Annotated[str | None, typer.Option(help="leave-one-out (default) or time.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="OURS=THEIRS,…", help="Column names, such as user_id=userId."),
]
Overwrite = Annotated[bool, typer.Option(help="Replace the output folder if it exists.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, such as train.lr=0.001; repeatable."
    ),
]


@app.command()
def demo(as_json: Json = False) -> None:
    """Simulate a shop, train, measure and recommend."""
    from recblr.demo import run_demo

    result = run_demo(Console(quiet=as_json))
    if as_json:
        print_json(result)


@app.command()
def prepare(
    log: Log,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    core: Core = None,
    split: Split = None,
    columns: Columns = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read, filter and split a log once, for many runs."""
    from recblr.data import open_log
    from recblr.folders import check_absent

    check_absent(out, overwrite)
    data = open_log(log, core, split, _columns(columns))
    data.save(out, overwrite)
    kept = data.summary["kept"]
    if as_json:
        print_json({**kept, **data.summary, "core": data.core, "split": data.split.name})
    else:
        _print_summary(data.summary, data.core, data.split.name)


@app.command()
def train(
    log: Log,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the model to write.")],
    model: Annotated[str, typer.Option(help="The model.")] = "recblr",
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE|PRESET", help="TOML, or a preset's name. [a data set's own]"),
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer reads it
    core: Core = None,
    split: Split = None,
    columns: Columns = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run stopped.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model, measure it and keep it."""
    from recblr.config import apply_settings
    from recblr.memory import keep_freed_memory
    from recblr.presets import read_preset
    from recblr.recommender import Recommender

    chosen = apply_settings(read_preset(config, log, model), settings)
    keep_freed_memory()
    recommender = Recommender.configured(model, chosen, device)
    recommender.fit(
        log, core=core, split=split, columns=_columns(columns), out=out, resume=resume,
        overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json(recommender.measured)
        return
    trained = recommender.trained
    print(
        f"best epoch {trained.best_epoch} of {trained.epoch} ({trained.ended}), "
        f"{trained.seconds:,.0f} s; model in {out}"
    )
    _print_evaluations(recommender.measured)


@app.command()
def evaluate(
    folder: Model,
    log: Annotated[
        str | None, typer.Argument(metavar="LOG", help="A log; by default the one trained on.")
    ] = None,
    columns: Columns = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on held-out events."""
    import recblr

    evaluations = [
        evaluation.to_json()
        for evaluation in recblr.load(folder, device).evaluate(log, columns=_columns(columns))
    ]
    if as_json:
        print_json(evaluations)
    else:
        _print_evaluations(evaluations)


@app.command()
def recommend(
    folder: Model,
    user: Annotated[list[str], typer.Option(help="A user of the log; repeatable.")] = [],  # noqa: B006
    history: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Item ids, oldest first.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Users, one id a line.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items each.")] = 10,
    allow: Annotated[str | None, typer.Option(metavar="A,B", help="Only these items.")] = None,
    deny: Annotated[str | None, typer.Option(metavar="A,B", help="Not these items.")] = None,
    hide_seen: Annotated[
        bool, typer.Option(help="Leave out items the history holds already.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write .parquet or .csv instead.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recommend to users of the log or to any history."""
    import recblr

    if (len(user) > 0) + (history is not None) + (users is not None) != 1:
        raise InputError("give --user, --history or --users, one of the three")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"{out}: the file must end in .parquet or .csv")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; create it first")
    recommender = recblr.load(folder, device)
    names = user or _lines(users) if history is None else None
    frame = recommender.recommend(
        users=None if names is None else recommender.user_ids(names),
        histories=None if history is None else [recommender.item_ids(history.split(","))],
        k=k,
        allow=None if allow is None else recommender.item_ids(allow.split(",")),
        deny=None if deny is None else recommender.item_ids(deny.split(",")),
        hide_seen=hide_seen,
    )
    if out is not None:
        frame.write_parquet(out) if out.suffix == ".parquet" else frame.write_csv(out)
    if as_json:
        print_json(frame.to_dicts())
    elif out is None:
        table = Table("user_id", "rank", "item_id", "score", box=None)
        for row in frame.iter_rows(named=True):
            table.add_row(
                str(row["user_id"]), str(row["rank"]), str(row["item_id"]), f"{row['score']:.3f}"
            )
        Console().print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine and the fast paths on it."""
    from recblr.doctor import examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        table = Table(box=None, show_header=False)
        for name, value in findings.items():
            table.add_row(name.replace("_", " "), str(value))
        Console().print(table)
    if not findings["healthy"]:
        raise typer.Exit(1)


def main() -> NoReturn:
    """The entry point: a user's mistake is one line and exit code 2."""
    warnings.showwarning = lambda message, *_: print(f"recblr: {message}", file=sys.stderr)
    try:
        app(prog_name="recblr")
    except InputError as error:
        _fail(str(error), 2)
    except DivergedError as error:
        _fail(str(error), 1)
    except SystemExit as end:
        if end.code == 130:  # typer's silent answer to Ctrl-C
            _fail("interrupted", 130)
        raise
    raise SystemExit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"recblr: {message}", file=sys.stderr)
    raise SystemExit(code)


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours and equals and theirs for ours, equals, theirs in pairs):
        raise InputError(f"--columns {text}: write user_id=theirs,item_id=theirs,timestamp=theirs")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _lines(path: Path | None) -> list[str]:
    assert path is not None
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def _print_summary(summary: dict[str, Any], core: int, split: str) -> None:
    read, kept = summary["read"], summary["kept"]
    table = Table("", "users", "items", "interactions", box=None)
    for name, row in (("read", read), (f"kept ({core}-core)", kept)):
        table.add_row(name, *(f"{row[key]:,}" for key in ("users", "items", "interactions")))
    Console().print(table)
    duplicates = summary["duplicate_rows_kept"]
    print(
        f"{split}: {summary['training_interactions']:,} events train, "
        f"{summary['validation_users']:,} users validate, {summary['test_users']:,} test"
    )
    print(
        "no timestamps: the order of the file is the order of time"
        if duplicates is None
        else f"{duplicates:,} rows repeat another in user, item and time; they are kept"
    )


def _print_evaluations(evaluations: list[dict[str, Any]]) -> None:
    table = Table("seen items", "metric", "model", "95% interval", "popularity", box=None)
    for evaluation in evaluations:
        for name, value in evaluation["metrics"].items():
            low, high = evaluation["intervals"][name]
            table.add_row(
                evaluation["protocol"]["seen"], name, f"{value:.4f}", f"{low:.4f}-{high:.4f}",
                f"{evaluation['popularity'][name]:.4f}",
            )  # fmt: skip
    Console().print(table)
    protocol = evaluations[0]["protocol"]
    print(
        f"protocol: {protocol['split']} {protocol['part']}, {protocol['core']}-core, full ranking "
        f"of {protocol['candidates']:,} items, ties {protocol['ties']}, last "
        f"{protocol['max_length']} events, {protocol['users']:,} users, data {protocol['data']}"
    )
    slices = Table("slice (masked)", "users", "HR@10", "NDCG@10", box=None)
    for name, row in evaluations[1]["slices"].items():
        slices.add_row(name, f"{row['users']:,}", f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}")
    Console().print(slices)
