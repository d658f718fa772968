"""The command ``recblr reproduce``."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recblr.cli.options import Device, Json, print_json, read_seeds


def reproduce(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="table1 to 5, figure4 to 6, examples, lengths, sparsity, diversity, time or defaults.",
        ),
    ],
    dataset: Annotated[
        list[str], typer.Option(metavar="NAME", help="A data set. Repeatable. [all]")
    ] = [],  # noqa: B006
    rows: Annotated[
        list[str], typer.Option(metavar="NAME", help="A row of the table. Repeatable. [all]")
    ] = [],  # noqa: B006
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Random seeds. [0,1,2; with --quick 0]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER",
            help="Where results are kept. [paper/results; with --quick a temporary folder]",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use a simulated shop and small models, in seconds.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="K", min=1, help="Make K runs at a time.")
    ] = 1,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Train nothing; write the page from the results."),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Reproduce a table or figure of the paper."""
    from recblr.paper.studies import RESULTS, SEEDS
    from recblr.paper.studies import reproduce as run

    with tempfile.TemporaryDirectory() as temporary:
        page = run(
            study,
            out or (Path(temporary) if quick else RESULTS),
            datasets=dataset,
            rows=rows,
            seeds=read_seeds(seeds) if seeds is not None else (0,) if quick else SEEDS,
            quick=quick,
            device=device,
            jobs=jobs,
            report_only=report_only,
            console=Console(stderr=True, quiet=as_json),
        )
    if as_json:
        print_json(page.content)
    else:
        print(page.text)
