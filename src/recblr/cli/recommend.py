"""The command ``recblr recommend``."""

import csv
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recblr.cli.options import Device, Json, Model, print_json
from recblr.cli.tables import print_recommendations
from recblr.errors import InputError

if TYPE_CHECKING:
    from recblr.data.vocabulary import Id
    from recblr.fitted import FittedModel


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
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="With --all: the I-th of N parts of the users."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Rerank lists: the item_id of the rows of each user_id of a file."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="The number of items per user.")] = 10,
    allow: Annotated[
        str | None, typer.Option(metavar="A,B", help="Recommend only these items.")
    ] = None,
    deny: Annotated[str | None, typer.Option(metavar="A,B", help="Exclude these items.")] = None,
    hide_seen: Annotated[
        bool | None,
        typer.Option(help="Exclude items of the history. [yes; no with --candidates]"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Items for events of this kind, such as purchase. [any]"),
    ] = None,
    unknown: Annotated[
        str,
        typer.Option(
            metavar="error|skip|popular", help="For unknown ids: refuse, skip, or popular items."
        ),
    ] = "error",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="The file to write, .parquet or .csv; --all: .parquet, with --shard a folder.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recommend items for users of the log or for any history."""
    import recblr
    from recblr.files import check_writable, write_errors
    from recblr.progress import report
    from recblr.training.stage import describe_unseen

    given = (bool(user), history is not None, users is not None, everyone, candidates is not None)
    if sum(given) != 1:
        raise InputError("give exactly one of --user, --history, --users, --candidates and --all")
    part = None if shard is None else _read_shard(shard)
    if part and not (everyone and out is not None and not out.suffix and not as_json):
        raise InputError("--shard needs --all and -o FOLDER, and no --json")
    if everyone and not part and (out is None or out.suffix != ".parquet" or as_json):
        raise InputError("--all writes Parquet: give -o FILE.parquet and no --json")
    if out is not None and not part and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"{out}: the file must end in .parquet or .csv")
    if out is not None and not part:
        check_writable(out)
    lists = {
        name: None if text is None else _read_list(name, text)
        for name, text in (("history", history), ("allow", allow), ("deny", deny))
    }
    names = user if users is None else _read_lines(users)
    recommender = recblr.load(folder, device)
    if not as_json and (note := describe_unseen(recommender.stages)):
        report(note)
    items = {
        name: None if texts is None else recommender.item_ids(texts)
        for name, texts in lists.items()
    }
    options: dict[str, Any] = {
        "k": k, "allow": items["allow"], "deny": items["deny"], "unknown": unknown,
        "kind": kind,
        **({} if hide_seen is None else {"hide_seen": hide_seen}),
    }  # fmt: skip
    if everyone:
        assert out is not None
        recommender.recommend_all(out, shard=part, **options)
        whom = f"{recommender.data.users:,} users" if part is None else f"part {shard} of the users"
        print(f"recommendations for {whom} in {out}")
        return
    if history is not None:
        frame = recommender.recommend(histories=[items["history"]], **options)
    elif candidates is not None:
        lists_of = _read_candidates(candidates, recommender)
        frame = recommender.recommend(users=list(lists_of), candidates=lists_of, **options)
    else:
        frame = recommender.recommend(users=recommender.user_ids(names), **options)
    if out is not None:
        with write_errors(out):
            frame.write_parquet(out) if out.suffix == ".parquet" else frame.write_csv(out)
        if not as_json:
            print(f"recommendations for {frame['user_id'].n_unique():,} users in {out}")
    if as_json:
        print_json(frame.to_dicts())
    elif out is None:
        print_recommendations(frame)


def _read_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch("([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text)
    if not match:
        raise InputError(f"--shard {text}: write I/N, such as 2/8 for the second of eight parts")
    return int(match[1]), int(match[2])


def _read_list(option: str, text: str) -> list[str]:
    """Ids from a comma-separated list, quoted as in CSV."""
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        reason = str(error)
        if "end of data" in reason:
            reason = "a quote is not closed"
        elif "new-line" in reason:
            reason = "a line break is not in quotes; separate ids by commas"
        raise InputError(f"--{option} {text!r}: {reason}") from None


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file without the empty ones."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not valid UTF-8 ({error})") from error
    names = [line.removesuffix("\r") for line in lines if line.strip("\r")]
    if not names:
        warnings.warn(f"{path} has no user ids, so that nothing is recommended", stacklevel=2)
    return names


def _read_candidates(path: str, model: "FittedModel") -> dict["Id", Any]:
    """The items of each user of a file of the formats of a log."""
    import numpy as np

    from recblr.data.log import read_log

    log = read_log(path, columns={"timestamp": None})
    items = np.array(model.item_ids(log.item_ids), dtype=object)
    by_user = np.argsort(log.users, kind="stable")
    lists = np.split(items[log.items[by_user]], np.bincount(log.users).cumsum()[:-1])
    return dict(zip(model.user_ids(log.user_ids), lists, strict=True))
