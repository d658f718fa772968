"""The command ``recblr similar``."""

from typing import Annotated, Literal, cast

import typer

from recblr.cli.options import Json, Model, print_json


def similar(
    folder: Model,
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="Ids of items.")],
    k: Annotated[int, typer.Option("-k", help="The number of similar items.")] = 10,
    by: Annotated[
        str, typer.Option(metavar="model|memory", help="Compare vectors, or count what followed.")
    ] = "model",
    as_json: Json = False,
) -> None:
    """Show the items that are most similar to given ones."""
    import recblr
    from recblr.cli.tables import print_recommendations

    recommender = recblr.load(folder, "cpu")
    kind = cast("Literal['model', 'memory']", by)  # similar_items checks it
    frame = recommender.similar_items(recommender.item_ids(items), k, kind)
    if as_json:
        print_json(frame.to_dicts())
    else:
        print_recommendations(frame)
