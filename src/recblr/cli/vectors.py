"""The command ``recblr vectors``."""

from typing import Annotated, Literal, cast

import typer

from recblr.cli.options import Device, Json, Model, Out, Overwrite, print_json


def vectors(
    folder: Model,
    out: Out,
    format: Annotated[
        str, typer.Option(metavar="parquet|numpy", help="The format of the files.")
    ] = "parquet",
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the vectors of items and users, whose dot products are scores."""
    import recblr
    from recblr.files import check_absent
    from recblr.vectors import MARKER

    check_absent(out, overwrite, MARKER)
    recommender = recblr.load(folder, device)
    kind = cast("Literal['parquet', 'numpy']", format)  # save_vectors checks it
    about = recommender.save_vectors(out, kind, overwrite)
    if as_json:
        print_json(about)
        return
    (items, width), (users, _) = about["items"], about["users"]
    print(f"vectors of {items:,} items and {users:,} users, {width} numbers each, in {out}")
