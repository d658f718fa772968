"""The command ``recblr recommend``."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recblr.cli.options import (
    Device,
    Json,
    Model,
    check_parent,
    print_json,
    read_ids,
    read_lines,
)
from recblr.cli.tables import print_recommendations
from recblr.errors import InputError

if TYPE_CHECKING:
    from recblr.recommender import Recommender


def recommend(
    folder: Model,
    user: Annotated[list[str], typer.Option(help="A user of the log. Repeatable.")] = [],  # noqa: B006
    history: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Item ids, oldest first, quoted as in CSV.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with one user id per line.")
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="All users of the log. Resumes if it was interrupted.")
    ] = False,
    k: Annotated[int, typer.Option("-k", help="The number of items per user.")] = 10,
    allow: Annotated[
        str | None, typer.Option(metavar="A,B", help="Recommend only these items.")
    ] = None,
    deny: Annotated[str | None, typer.Option(metavar="A,B", help="Exclude these items.")] = None,
    hide_seen: Annotated[bool, typer.Option(help="Exclude items of the history.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The file to write, .parquet or .csv (not with --all)."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recommend items for users of the log or for any history."""
    import recblr

    if (len(user) > 0) + (history is not None) + (users is not None) + everyone != 1:
        raise InputError("give exactly one of --user, --history, --users and --all")
    if everyone and (out is None or out.suffix != ".parquet" or as_json):
        raise InputError("--all writes Parquet: give -o FILE.parquet and no --json")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"{out}: the file must end in .parquet or .csv")
    if out is not None:
        check_parent(out)
    recommender = recblr.load(folder, device)
    items = None if history is None else _items(recommender, "history", history)
    options: dict[str, Any] = {
        "k": k,
        "allow": None if allow is None else _items(recommender, "allow", allow),
        "deny": None if deny is None else _items(recommender, "deny", deny),
        "hide_seen": hide_seen,
    }
    if everyone:
        assert out is not None
        recommender.recommend_all(out, **options)
        print(f"recommendations for {recommender.data.users:,} users in {out}")
        return
    if items is not None:
        frame = recommender.recommend(histories=[items], **options)
    else:
        ids = recommender.user_ids(user if users is None else read_lines(users))
        frame = recommender.recommend(users=ids, **options)
    if out is not None:
        frame.write_parquet(out) if out.suffix == ".parquet" else frame.write_csv(out)
        if not as_json:
            print(f"recommendations for {frame['user_id'].n_unique():,} users in {out}")
    if as_json:
        print_json(frame.to_dicts())
    elif out is None:
        print_recommendations(frame)


def _items(recommender: "Recommender", option: str, text: str) -> list[str | int]:
    """The item ids of an option, with a warning if the model knows only some of them."""
    import pyarrow as pa

    from recblr.data.sequences import index_in

    ids = recommender.item_ids(read_ids(text))
    catalogue = recommender.data.item_ids
    unknown = index_in(pa.array(ids, catalogue.type), catalogue) < 0
    if unknown.any() and not unknown.all():
        warnings.warn(
            f"--{option}: ignored {unknown.sum()} of {len(ids)} items, which the model does not "
            f"know, such as {ids[unknown.argmax()]!r}",
            stacklevel=2,
        )
    return ids
