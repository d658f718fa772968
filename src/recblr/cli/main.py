"""The command line: parse, call one library function, print."""

import csv
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recblr.cli.bench import bench
from recblr.cli.options import Columns, Device, Json, print_json, read_columns
from recblr.cli.serve import add_commands
from recblr.errors import DivergedError, InputError, out_of_memory

if TYPE_CHECKING:
    from recblr.compare.comparison import Comparison
    from recblr.memory_search import Choice

app = typer.Typer(
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
Split = Annotated[str | None, typer.Option(help="leave-one-out (default), time or time-last.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the output folder if it exists.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, such as train.lr=0.001; repeatable."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"recblr {version('recblr')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    """From a log of who did what when to recommendations, with numbers one can trust."""


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
    from recblr.data.sequences import MARK
    from recblr.files import check_absent

    check_absent(out, overwrite, MARK)
    data = open_log(log, core, split, read_columns(columns))
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
        typer.Option(metavar="FILE|PRESET", help="TOML, or a preset's name. [by the log's size]"),
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
    from recblr.allocator import keep_freed_memory
    from recblr.config import apply_settings
    from recblr.presets import read_preset
    from recblr.recommender import Recommender

    chosen = apply_settings({} if config is None else read_preset(config, model), settings)
    if not as_json:  # a line an epoch
        logging.basicConfig(format="%(message)s")
        logging.getLogger("recblr").setLevel(logging.INFO)
    keep_freed_memory()
    recommender = Recommender.configured(model, chosen, device, by_size=config is None)
    recommender.fit(
        log, core=core, split=split, columns=read_columns(columns), out=out, resume=resume,
        overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json(recommender.measured)
        return
    trained = recommender.trained
    go_on = "; --resume goes on from there" * (trained.ended == "interrupted")
    print(
        f"best epoch {trained.best_epoch} of {trained.epoch} ({trained.ended}), "
        f"{trained.seconds:,.0f} s; model in {out}{go_on}"
    )
    if recommender.memory_choice is not None:
        _print_memory(recommender.memory_choice)
    _print_evaluations(recommender.measured)
    _print_duplicates(recommender.data.summary)


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
        for evaluation in recblr.load(folder, device).evaluate(log, columns=read_columns(columns))
    ]
    if as_json:
        print_json(evaluations)
    else:
        _print_evaluations(evaluations)


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of trained models, two or more.")
    ],
    log: Annotated[
        str | None, typer.Option(metavar="LOG", help="A log; by default the one all trained on.")
    ] = None,
    columns: Columns = None,
    device: Device = "auto",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write a report, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure models beside one another: accuracy and cost."""
    from recblr.compare.comparison import compare as measure
    from recblr.compare.page import page

    if html is not None and not html.parent.is_dir():
        raise InputError(f"the folder {html.parent} does not exist; create it first")
    comparison = measure(folders, log, read_columns(columns), device)
    if html is not None:
        try:
            html.write_text(page(comparison), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{html}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json(comparison.to_json())
    else:
        _print_comparison(comparison)


@app.command()
def recommend(
    folder: Model,
    user: Annotated[list[str], typer.Option(help="A user of the log; repeatable.")] = [],  # noqa: B006
    history: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Item ids, oldest first, quoted as in CSV.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Users, one id a line.")
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Every user of the log; goes on if killed.")
    ] = False,
    k: Annotated[int, typer.Option("-k", help="How many items each.")] = 10,
    allow: Annotated[str | None, typer.Option(metavar="A,B", help="Only these items.")] = None,
    deny: Annotated[str | None, typer.Option(metavar="A,B", help="Not these items.")] = None,
    hide_seen: Annotated[
        bool, typer.Option(help="Leave out items the history holds already.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write .parquet, or .csv (not --all)."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recommend to users of the log or to any history."""
    import pyarrow as pa

    import recblr
    from recblr.data.sequences import index_in

    if (len(user) > 0) + (history is not None) + (users is not None) + everyone != 1:
        raise InputError("give --user, --history or --users, or --all; one of the four")
    if everyone and (out is None or out.suffix != ".parquet" or as_json):
        raise InputError("--all writes Parquet: give -o FILE.parquet and no --json")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"{out}: the file must end in .parquet or .csv")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; create it first")
    recommender = recblr.load(folder, device)
    catalogue = recommender.data.item_ids

    def items(option: str, text: str | None) -> list[str | int] | None:
        if text is None:
            return None
        ids = recommender.item_ids(next(csv.reader([text], skipinitialspace=True), []))
        strange = index_in(pa.array(ids, catalogue.type), catalogue) < 0
        if strange.any() and not strange.all():
            warnings.warn(
                f"--{option}: the model does not know {strange.sum()} of {len(ids)} items, such as "
                f"{ids[strange.argmax()]!r}; passed over",
                stacklevel=2,
            )
        return ids

    past = items("history", history)
    options: dict[str, Any] = {
        "k": k, "allow": items("allow", allow), "deny": items("deny", deny), "hide_seen": hide_seen,
    }  # fmt: skip
    if everyone:
        assert out is not None
        recommender.recommend_all(out, **options)
        print(f"{recommender.data.users:,} users in {out}")
        return
    names = user or _lines(users) if past is None else None
    frame = recommender.recommend(
        users=None if names is None else recommender.user_ids(names),
        histories=None if past is None else [past],
        **options,
    )
    if out is not None:
        frame.write_parquet(out) if out.suffix == ".parquet" else frame.write_csv(out)
        if not as_json:
            print(f"{frame['user_id'].n_unique():,} users in {out}")
    if as_json:
        print_json(frame.to_dicts())
    elif out is None:
        table = Table("user_id", "rank", "item_id", "score", box=None)
        for row in frame.iter_rows(named=True):
            of_user, item = (escape(str(row[name])) for name in ("user_id", "item_id"))
            table.add_row(of_user, str(row["rank"]), item, f"{row['score']:.3f}")
        Console().print(table)


@app.command()
def export(
    folder: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a recurrent model as ONNX, to serve without PyTorch."""
    from recblr.export import export as write

    manifest = write(folder, out, overwrite)
    if as_json:
        print_json(manifest)
    else:
        print(
            f"{manifest['model']['name']} in {out}, within {manifest['difference']:.1e} of PyTorch"
        )


# serve, key, replay, verify: here, as help lists commands in the order of the file.
add_commands(app)


@app.command()
def reproduce(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="table1 to 5, figure4 to 6, examples, lengths, sparsity, diversity or time.",
        ),
    ],
    dataset: Annotated[
        list[str], typer.Option(metavar="NAME", help="Only this data set; repeatable. [all]")
    ] = [],  # noqa: B006
    rows: Annotated[
        list[str], typer.Option(metavar="NAME", help="Only this row; repeatable. [all]")
    ] = [],  # noqa: B006
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="[0,1,2; with --quick 0]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="[paper/results; with --quick one that goes]"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="On a simulated shop, in seconds.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, write the page anew.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a table or figure of the paper anew, with a verdict."""
    from recblr.paper.studies import RESULTS, SEEDS
    from recblr.paper.studies import reproduce as run

    with tempfile.TemporaryDirectory() as temporary:
        page = run(
            study,
            out or (Path(temporary) if quick else RESULTS),
            datasets=dataset,
            rows=rows,
            seeds=_seeds(seeds) or ((0,) if quick else SEEDS),
            quick=quick,
            device=device,
            report_only=report_only,
            console=Console(stderr=True, quiet=as_json),
        )
    if as_json:
        print_json(page.content)
    else:
        print(page.text)


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
            shown = (
                "none" if value is None else f"{value:.1e}" if isinstance(value, float) else value
            )
            table.add_row(name.replace("_", " "), str(shown))
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
    except Exception as error:
        if not out_of_memory(error):
            raise
        _fail(
            "out of memory; lower train.batch_size, train.window, train.max_length or the size of "
            "the model",
            1,
        )
    raise SystemExit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"recblr: {message}", file=sys.stderr)
    raise SystemExit(code)


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise InputError(f"--seeds {text}: write whole numbers, such as 0,1,2") from error


def _lines(path: Path | None) -> list[str]:
    assert path is not None
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error})") from error


def _print_summary(summary: dict[str, Any], core: int, split: str) -> None:
    read, kept = summary["read"], summary["kept"]
    table = Table("", "users", "items", "interactions", box=None)
    for name, row in (("read", read), (f"kept ({core}-core)", kept)):
        table.add_row(name, *(f"{row[key]:,}" for key in ("users", "items", "interactions")))
    Console().print(table)
    print(
        f"{split}: {summary['training_interactions']:,} events train, "
        f"{summary['validation_users']:,} users validate, {summary['test_users']:,} test"
    )
    if summary["duplicate_rows_kept"] is None:
        print("no timestamps: the order of the file is the order of time")
    _print_duplicates(summary)


def _print_duplicates(summary: dict[str, Any]) -> None:
    if duplicates := summary["duplicate_rows_kept"]:
        print(f"{duplicates:,} rows repeat another in user, item and time; they are kept")


def _print_evaluations(evaluations: list[dict[str, Any]]) -> None:
    floors = evaluations[0]["floors"]
    heads = (floor.replace(" ", "\n") for floor in floors)  # or intervals are cut at 80 columns
    table = Table("seen", "metric", "model", "95% interval", *heads, box=None)
    for evaluation in evaluations:
        for name, value in evaluation["metrics"].items():
            low, high = evaluation["intervals"][name]
            table.add_row(
                evaluation["protocol"]["seen"], name, f"{value:.4f}", f"{low:.4f}-{high:.4f}",
                *(f"{evaluation['floors'][floor][name]:.4f}" for floor in floors),
            )  # fmt: skip
    Console().print(table)
    for evaluation in evaluations:
        ours, seen = evaluation["metrics"]["NDCG@10"], evaluation["protocol"]["seen"]
        for name in floors:
            if (floor := evaluation["floors"][name]["NDCG@10"]) > ours:
                print(f"{name}, which needs no training, is ahead: {floor:.4f} NDCG@10 ({seen})")
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


def _print_memory(choice: "Choice") -> None:
    best, alone = choice.best, choice.trials[0]
    without = "" if alone.weight else f", {alone.masked:.4f} without"
    print(
        f"memory of transitions: weight {best.weight:g}, scale {best.scale:g}, repeat {best.repeat:g}; "
        f"validation NDCG@10 (masked) {best.masked:.4f}{without}, on {choice.users:,} users"
    )


def _print_comparison(comparison: "Comparison") -> None:
    print(comparison.headline)
    shown = ("HR@10", "NDCG@10")
    for seen in comparison.protocols:
        table = Table(seen, *shown, "from the best", "verdict", box=None)
        for contender in comparison.ranking(seen):
            evaluation, difference = contender.evaluations[seen], contender.differences[seen]
            cells = [
                _estimate(evaluation.metrics[name], evaluation.intervals[name], "-")
                for name in shown
            ]
            verdict = contender.verdict(seen)
            if difference is None:
                cells += ["", verdict]
            else:
                cells.append(_estimate(difference.mean, difference.interval, " to "))
                cells.append(f"{verdict}\np = {difference.p:.4f}")
            table.add_row(escape(contender.label), *cells)
        for name, floor in comparison.floors[seen].items():
            table.add_row(f"({name})", *(f"{floor[metric]:.4f}" for metric in shown))
        Console().print(table)
    table = Table(
        "", "model", "events\nlooked at", "para-\nmeters", "training\ns", "recommend\nms",
        "event\nµs", "bytes\na user", box=None,
    )  # fmt: skip
    for contender in comparison.contenders:
        cost = contender.cost
        table.add_row(
            escape(contender.label), contender.model, f"{cost.max_length:,}",
            f"{cost.parameters:,}", f"{cost.training_seconds:,.1f}", f"{cost.recommend_ms:.2f}",
            "" if cost.step_us is None else f"{cost.step_us:,.0f}", f"{cost.user_bytes:,}",
        )  # fmt: skip
    Console().print(table)
    protocol = comparison.contenders[0].evaluations["unmasked"].protocol
    print(
        f"protocol: {protocol.split} {protocol.part}, {protocol.core}-core, full ranking of "
        f"{protocol.candidates:,} items, ties {protocol.ties}, {protocol.users:,} users, data "
        f"{protocol.data}; 95% intervals, p after Holm's correction. Training was timed where each "
        f"was trained, the rest here on {comparison.provenance['threads']} thread(s)."
    )


def _estimate(value: float, interval: tuple[float, float], between: str) -> str:
    low, high = interval
    return f"{value:.4f}\n{low:.4f}{between}{high:.4f}"
