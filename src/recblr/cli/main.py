"""The entry point of the command line. A command parses, calls one library function, and prints."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import recblr
from recblr.cli.bench import bench
from recblr.cli.events import events
from recblr.cli.keys import key
from recblr.cli.options import (
    Columns,
    Core,
    Device,
    Format,
    ItemCategories,
    ItemVectors,
    Json,
    Log,
    Model,
    OtherLog,
    Out,
    Overwrite,
    Separator,
    Settings,
    Split,
    print_json,
    read_columns,
    read_numbers,
    read_slice,
    read_source,
)
from recblr.cli.recommend import recommend
from recblr.cli.reproduce import reproduce
from recblr.cli.serve import replay, serve, verify
from recblr.cli.similar import similar
from recblr.cli.tables import (
    print_comparison,
    print_content,
    print_duplicates,
    print_evaluations,
    print_findings,
    print_memory,
    print_summary,
)
from recblr.cli.tune import tune
from recblr.cli.update import update
from recblr.cli.vectors import vectors
from recblr.errors import DivergedError, InputError, out_of_memory

# The base class of all wrong arguments. It is click's, which some versions of typer contain.
UsageError: Any = typer.BadParameter.__base__
OUT_OF_MEMORY = (
    "out of memory; lower train.batch_size, train.window, train.max_length or the size of the model"
)


def demo(as_json: Json = False) -> None:
    """Train and evaluate a model on a simulated shop."""
    from recblr.demo import run_demo

    result = run_demo(Console(quiet=as_json))
    if as_json:
        print_json(result)


def prepare(
    log: Log,
    out: Out,
    core: Core = None,
    split: Split = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Prepare on disk within about this much memory, such as 2GB. "
            "[chosen for a log above half of the memory]",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read, filter and split a log once for many runs."""
    from recblr.data import open_log
    from recblr.data.large import prepare_large, suggest_limit
    from recblr.data.log_files import name_of
    from recblr.data.sequences import MARKER
    from recblr.files import check_absent
    from recblr.progress import report

    check_absent(out, overwrite, MARKER)
    memory_limit = memory_limit or suggest_limit(log)
    if memory_limit is None:
        source, names = read_source(log, columns, format, separator)
        data = open_log(source, core, split, names)
        data.save(out, overwrite)
        summary, core, split = data.summary, data.core, data.split.name
    else:
        report(f"{name_of(log)}: is prepared on disk, with {memory_limit} of memory for DuckDB")
        core, split = core or 1, split or "leave-one-out"
        summary = prepare_large(
            log, out, core, split, columns=read_columns(columns), format=format,
            separator=separator, memory_limit=memory_limit, overwrite=overwrite,
        )  # fmt: skip
    if as_json:
        print_json({**summary["kept"], **summary, "core": core, "split": split})
    else:
        print_summary(summary, core, split)


def train(
    log: Log,
    out: Out,
    model: Annotated[str, typer.Option(help="The kind of model.")] = "recblr",
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PRESET", help="A TOML file or a preset. [chosen by the size of the log]"
        ),
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer reads it
    core: Core = None,
    split: Split = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    item_vectors: ItemVectors = None,
    item_categories: ItemCategories = None,
    device: Device = "auto",
    refit: Annotated[
        bool, typer.Option("--refit", help="After the evaluation, train anew on all events.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model, evaluate it and save it."""
    from recblr.allocator import keep_freed_memory
    from recblr.config import apply_settings
    from recblr.presets import read_preset
    from recblr.ranks import join
    from recblr.recommender import Recommender

    chosen = apply_settings({} if config is None else read_preset(config, model), settings)
    keep_freed_memory()
    recommender = Recommender.configured(model, chosen, device, by_size=config is None)
    source, names = read_source(log, columns, format, separator)
    recommender.fit(
        source, core=core, split=split, columns=names, out=out, refit=refit, resume=resume,
        overwrite=overwrite, item_vectors=item_vectors, item_categories=item_categories,
    )  # fmt: skip
    if not join(recommender.device).first:
        return
    if as_json:
        print_json(recommender.measured)
        return
    trained = recommender.trained
    how_to_continue = "; continue with --resume" * (trained.ended == "interrupted")
    print(
        f"best epoch {trained.best_epoch} of {trained.epoch} ({trained.ended}), "
        f"{trained.seconds:,.0f} s; model in {out}{how_to_continue}"
    )
    if (stage := recommender.stages[-1]).kind == "refit":
        print(
            f"refitted on all {stage.events:,} events, {stage.updates:,} updates in "
            f"{stage.seconds:,.0f} s; the metrics below are those of before"
        )
    if recommender.content is not None:
        print_content(recommender.content.items, recommender.data.item_counts)
    if recommender.memory_choice is not None:
        print_memory(recommender.memory_choice)
    print_evaluations(recommender.measured)
    print_duplicates(recommender.data.summary)


def evaluate(
    folder: Model,
    log: OtherLog = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    device: Device = "auto",
    k: Annotated[
        str, typer.Option("-k", "--k", metavar="K,…", help="The cutoffs of the metrics.")
    ] = "10,20",
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Further baselines, of itemknn and ease; up to minutes each."
        ),
    ] = None,
    lists: Annotated[
        bool,
        typer.Option(
            "--lists", help="Also measure coverage, popularity and diversity of the lists."
        ),
    ] = False,
    slices: Annotated[
        list[str],
        typer.Option(
            "--slice",
            metavar="FILE:COLUMN",
            help="Also measure by a column of a file with user_id or item_id. Repeatable.",
        ),
    ] = [],  # noqa: B006 - typer reads it
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Predict events of this kind only, and ask for it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on held-out events."""
    from recblr.data import report_order

    recommender = recblr.load(folder, device)
    if log is None:
        report_order(recommender.data)
    source, names = read_source(log, columns, format, separator)
    evaluations = recommender.evaluate(
        source, columns=names, k=read_numbers(k, "--k", "5,10,50"),
        baselines=baselines.split(",") if baselines else (), lists=lists,
        slice_by=[read_slice(text) for text in slices], kind=kind,
    )  # fmt: skip
    results = [evaluation.to_json() for evaluation in evaluations]
    if as_json:
        print_json(results)
    else:
        print_evaluations(results)


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="The folders of two or more trained models."),
    ],
    log: Annotated[
        str | None,
        typer.Option(metavar="LOG", help="A log. [the log the models were trained on]"),
    ] = None,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    device: Device = "auto",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Also write a report.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the accuracy and the cost of models."""
    from recblr.compare.comparison import compare as measure
    from recblr.compare.page import page
    from recblr.files import check_writable, write_errors

    if html is not None:
        check_writable(html)
    source, names = read_source(log, columns, format, separator)
    comparison = measure(folders, source, names, device)
    if html is not None:
        with write_errors(html):
            html.write_text(page(comparison), encoding="utf-8")
    if as_json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)


def export(
    folder: Model,
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a recurrent model to ONNX, to run it without PyTorch."""
    from recblr.export import export as write

    manifest = write(folder, out, overwrite)
    if as_json:
        print_json(manifest)
    else:
        print(
            f"{manifest['model']['name']} in {out}, within {manifest['difference']:.1e} of PyTorch"
        )


def doctor(as_json: Json = False) -> None:
    """Check the installation and the compiled kernels."""
    from recblr.doctor import examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_findings(findings)
    if not findings["healthy"]:
        raise typer.Exit(1)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"recblr {recblr.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Train, evaluate and serve sequential recommendation models."""


app = typer.Typer(
    callback=root, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for command in (  # in the order of the help text
    demo, prepare, train, tune, update, evaluate, compare, recommend, similar, vectors, export, serve,
    replay, verify, reproduce, doctor,
):  # fmt: skip
    app.command()(command)
app.add_typer(events, name="events")
app.add_typer(key, name="key")
app.add_typer(bench, name="bench")


def main() -> NoReturn:
    """Run the command line: a user's mistake prints one line and exits with code 2."""
    warnings.showwarning = lambda message, *_: _say(str(message))
    if "TORCHELASTIC_RUN_ID" in os.environ and "train" not in sys.argv:
        from recblr.ranks import launched

        if launched():
            _fail("torchrun is for recblr train; start this command without it", 2)
    try:
        code = app(prog_name="recblr", standalone_mode=False)
    except UsageError as error:
        _fail_by_usage(error)
    except InputError as error:
        _fail(str(error), 2)
    except DivergedError as error:
        _fail(str(error), 1)
    except OSError as error:  # of a path or a disk
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if not out_of_memory(error):
            raise
        _fail(OUT_OF_MEMORY, 1)
    if code == 130:  # typer's silent answer to Ctrl-C
        _fail("interrupted", 130)
    raise SystemExit(code or 0)


def _fail_by_usage(error: Any) -> NoReturn:
    """Say what is wrong with the arguments; without any, show the help."""
    message = error.format_message()
    if message.startswith("Usage: "):
        print(message, file=sys.stderr)
        raise SystemExit(2)
    _fail(f"{message.rstrip('.')}; see {error.ctx.command_path} --help", 2)


def _say(message: str) -> None:
    print(f"recblr: {' '.join(message.splitlines())}", file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    raise SystemExit(code)
