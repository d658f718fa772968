"""The command ``recblr update``."""

from dataclasses import asdict
from typing import Annotated

import typer

from recblr.cli.options import (
    Columns,
    Device,
    Format,
    ItemCategories,
    ItemVectors,
    Json,
    Log,
    Model,
    Out,
    Overwrite,
    Separator,
    print_json,
    read_source,
)


def update(
    folder: Model,
    log: Log,
    out: Out,
    memory_only: Annotated[
        bool, typer.Option("--memory-only", help="Count the transitions, do not train: seconds.")
    ] = False,
    columns: Columns = None,
    format: Format = None,
    separator: Separator = None,
    item_vectors: ItemVectors = None,
    item_categories: ItemCategories = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add new events, users and items to a model without training from scratch."""
    import recblr
    from recblr import artifact
    from recblr.allocator import keep_freed_memory
    from recblr.files import check_absent
    from recblr.training.stage import describe

    check_absent(out, overwrite, artifact.MARKER)
    keep_freed_memory()
    recommender = recblr.load(folder, device)
    source, names = read_source(log, columns, format, separator)
    added = recommender.update(
        source, memory_only=memory_only, columns=names, item_vectors=item_vectors,
        item_categories=item_categories,
    )  # fmt: skip
    recommender.save(out, overwrite)
    stage = recommender.stages[-1]
    if as_json:
        print_json({**asdict(added), "stage": asdict(stage)})
        return
    print(f"{log}: {added}")
    print(f"{stage.updates:,} updates in {stage.seconds:,.0f} s ({describe(recommender.stages)})")
    print(f"model in {out}")
