"""Public data sets by name: found on this machine or downloaded, then read as Interactions.

A data set is one record of ``DATASETS`` and one parser of its publisher's lines. Looked up in the
folder ``RECBLR_DATA``, then in the cache, then downloaded. What is known of each: docs/datasets.md.
"""

import ast
import gzip
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from difflib import get_close_matches
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np

from recblr.data.log import Interactions, read_log
from recblr.errors import InputError
from recblr.progress import progress

TIMEOUT = 30.0  # seconds without a byte
XLONG_USERS, XLONG_SEED = 5_000, 0  # the paper samples 5,000 users and does not say how
CONVERTED = (".tsv.gz", ".tsv", ".csv", ".parquet", ".inter")  # <name>.tsv.gz in RECBLR_DATA, ...
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile)  # what a broken archive raises

Row = tuple[str, str, int]  # user, item, time: seconds since 1970, or the place in the history
Parser = Callable[[Iterable[str]], Iterator[Row]]  # may go through the lines more than once


@dataclass(frozen=True)
class Dataset:
    """One public data set: where it lives, how its lines are read, what it asks in return."""

    name: str
    title: str
    home: str = ""  # address of the file to download; none: only in converted form
    by_hand: tuple[str, ...] = ()  # the files behind a login; `home` is the page that has them
    parse: Parser | None = None  # of the files' lines
    member: str | None = None  # the file inside the zip
    md5: str | None = None  # only where the publisher publishes one
    converted: tuple[str, ...] = ()  # names of the files in our columns; none: the data set's own
    newest_first: bool = False  # the file runs backwards in time
    once: bool = False  # keep a user's latest event with an item, not the earlier ones
    by_user: bool = False  # put the events in order of user and time before their ids are numbered
    float32: bool = False  # round the times as RecBole holds them
    core: int = 5  # users and items with fewer events are filtered out, later
    credit: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """What to look for on this machine, named as the publisher names it."""
        return self.by_hand or tuple(filter(None, [self.home.rpartition("/")[2]]))


# Parsers: the lines of the original files, without their line ends, to rows. What one of them
# raises on a broken line becomes an InputError with the line's place.


def _ratings(lines: Iterable[str], separator: str, header: str | None = None) -> Iterator[Row]:
    rows = iter(lines)
    if header and next(rows, "") != header:
        raise ValueError
    for line in rows:
        user, item, _, time = line.split(separator)
        yield user, item, int(time)


def _amazon(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        review = json.loads(line)
        yield review["reviewerID"], review["asin"], review["unixReviewTime"]


def _steam(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        review = ast.literal_eval(line)  # a Python literal with u'' strings, not JSON
        day = date.fromisoformat(review["date"]) - date(1970, 1, 1)
        # Every review has a username, only some a user_id.
        yield review["username"], review["product_id"], day.days * 86_400


def _gowalla(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        user, time, _, _, place = line.split("\t")
        yield user, place, int(datetime.fromisoformat(time).timestamp())


def _xlong(lines: Iterable[str]) -> Iterator[Row]:
    """Line number, user, history by commas, next item, a negative item and more, by tabs.

    A user has several lines whose histories overlap; the last one stands for the user.
    """
    last = {line.split("\t", 2)[1]: number for number, line in enumerate(lines)}

    def draw(user: str) -> bytes:  # unlike a random generator, the same in every version
        return hashlib.sha256(f"{XLONG_SEED}:{user}".encode()).digest()

    chosen = {last[user] for user in sorted(last, key=draw)[:XLONG_USERS]}
    for number, line in enumerate(lines):
        if number in chosen:
            _, user, history, target, *_ = line.split("\t")
            for position, item in enumerate([*history.split(","), target]):
                yield user, item, position


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
_MOVIELENS_CREDIT = (
    "Harper and Konstan, The MovieLens Datasets, ACM TiiS 2015. For research, with citation; "
    "not to be redistributed."
)
_AMAZON = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_CREDIT = "McAuley et al., Image-based Recommendations, SIGIR 2015. No licence stated."
_GOWALLA_CREDIT = "Cho, Myers and Leskovec, Friendship and Mobility, KDD 2011. No licence stated."

_ML_1M = Dataset(
    name="ml-1m",
    title="MovieLens 1M, movie ratings",
    home=f"{_MOVIELENS}/ml-1m.zip",
    member="ml-1m/ratings.dat",
    md5="c4d9eecfca2ab87c1945afe126590906",
    parse=partial(_ratings, separator="::"),
    converted=("ml-1m-times", "ml-1m"),
    by_user=True,
    credit=_MOVIELENS_CREDIT,
)

DATASETS: dict[str, Dataset] = {
    record.name: record
    for record in (
        Dataset(
            name="ml-100k",
            title="MovieLens 100K, movie ratings",
            home=f"{_MOVIELENS}/ml-100k.zip",
            member="ml-100k/u.data",
            md5="0e33842e24a9c977be4e0107933c0723",
            parse=partial(_ratings, separator="\t"),
            credit=_MOVIELENS_CREDIT,
        ),
        Dataset(
            name="ml-latest-small",
            title="MovieLens latest small, movie ratings",
            home=f"{_MOVIELENS}/ml-latest-small.zip",
            member="ml-latest-small/ratings.csv",
            md5=None,  # published, but the data set and so its checksum change over time
            parse=partial(_ratings, separator=",", header="userId,movieId,rating,timestamp"),
            credit=_MOVIELENS_CREDIT,
        ),
        _ML_1M,
        replace(
            _ML_1M,
            name="ml-1m-recbole",
            title="MovieLens 1M in the order RecBole gives it",
            converted=("ml-1m-times",),
            float32=True,
        ),
        Dataset(
            name="beauty",
            title="Amazon Beauty, product reviews to 2014",
            home=f"{_AMAZON}/reviews_Beauty_5.json.gz",
            parse=_amazon,
            credit=_AMAZON_CREDIT,
        ),
        Dataset(
            name="sports",
            title="Amazon Sports and Outdoors, product reviews to 2014",
            home=f"{_AMAZON}/reviews_Sports_and_Outdoors_5.json.gz",
            parse=_amazon,
            credit=_AMAZON_CREDIT,
        ),
        Dataset(
            name="steam",
            title="Steam, reviews of video games",
            home="http://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz",
            parse=_steam,
            credit="Kang and McAuley, SASRec, ICDM 2018. No licence stated.",
        ),
        Dataset(
            name="gowalla",
            title="Gowalla, check-ins at places",
            home="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
            parse=_gowalla,
            newest_first=True,
            once=True,  # or the paper's counts do not come out
            credit=_GOWALLA_CREDIT,
        ),
        Dataset(
            name="gowalla-10core",
            title="Gowalla as graph recommenders filter it, not the paper's",
            credit=_GOWALLA_CREDIT,
        ),
        Dataset(
            name="xlong",
            title="XLong, 5,000 long histories of Alibaba clicks",
            home="https://tianchi.aliyun.com/dataset/22482",
            by_hand=("train_corpus_total_dual.txt", "test_corpus_total_dual.txt"),
            parse=_xlong,
            credit="Ren et al., Lifelong Sequential Modeling, SIGIR 2019. Terms behind the login.",
        ),
    )
}


def dataset_names() -> list[str]:
    """The names ``load_dataset`` knows."""
    return list(DATASETS)


def dataset(name: str) -> Dataset:
    """The record of a data set. InputError, with near matches, for an unknown name."""
    if name not in DATASETS:
        near = get_close_matches(name.lower(), DATASETS) or dataset_names()
        raise InputError(f"unknown data set {name!r}; did you mean {', '.join(near)}?")
    return DATASETS[name]


def cache_folder() -> Path:
    """Where downloads are kept: ``RECBLR_CACHE``, or the platform's place for caches."""
    if own := os.environ.get("RECBLR_CACHE"):
        return Path(own).expanduser()
    places = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}
    base = os.environ.get("XDG_CACHE_HOME") or places.get(sys.platform, "~/.cache")
    return Path(base).expanduser() / "recblr"


def load_dataset(name: str) -> Interactions:
    """A data set as published, not yet filtered to its record's ``core``.

    Downloads it if it is neither in the folder ``RECBLR_DATA`` nor in the cache. InputError if it
    cannot be had or is broken; the message says where to get it and where to put it.
    """
    record = dataset(name)
    folders = [cache_folder()]
    if own := os.environ.get("RECBLR_DATA"):
        data = Path(own).expanduser()
        if not data.is_dir():
            raise InputError(f"RECBLR_DATA: {data} is no folder; set it to one or unset it")
        folders.insert(0, data)
        for path in _converted(record, data):
            if path.is_file():
                return _read_converted(record, path)
    for folder in folders if record.files else []:
        paths = [folder / file for file in record.files]
        if all(path.is_file() for path in paths):
            return _read_original(record, paths)
    if not record.files:
        raise InputError(f"{name} is not published for download; {_by_hand(name + '.tsv.gz')}")
    if record.by_hand:
        files = " and ".join(record.by_hand)
        raise InputError(f"{name} needs a login: get it at {record.home}; {_by_hand(files)}")
    return _read_original(record, [_download(record)])


def _by_hand(files: str) -> str:
    return f"put {files} in a folder and set RECBLR_DATA to that folder"


def _converted(record: Dataset, folder: Path) -> Iterator[Path]:
    for name in record.converted or (record.name,):
        for suffix in CONVERTED:
            yield folder / (name + suffix)


def _read_converted(record: Dataset, path: Path) -> Interactions:
    names: list[str] = []
    with suppress(*DAMAGED, ValueError):  # read_log says it better
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            names = pq.read_schema(path).names
        else:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as lines:
                names = re.split(r"[,\t]", lines.readline().strip())
    # Some public sources have no timestamps left, only each event's place in the history.
    if "order" in names and "timestamp" not in names:
        log = read_log(path, columns={"timestamp": "order"})
        assert log.timestamps is not None
        rows = np.lexsort((log.timestamps, log.users))
        # A place is no time: a split by time is to refuse it.
        return replace(log, users=log.users[rows], items=log.items[rows], timestamps=None)
    log = read_log(path)
    return _by_user(log, record.float32) if record.by_user else log


def _by_user(log: Interactions, float32: bool) -> Interactions:
    """The events by user and time, ties as they stand in the log, and the ids numbered anew.

    Users keep the order of their first appearance. With ``float32`` the times are those that a
    float32 can hold: in 2000 to 2003, multiples of 64 seconds.
    """
    if log.timestamps is None:  # then the order of the log is the order in time
        return log
    times = log.timestamps
    if float32:
        times = times.astype(np.float32).astype(times.dtype)
    frame = replace(log, timestamps=times).to_polars()[np.lexsort((times, log.users))]
    return replace(read_log(frame), source=log.source, dates=log.dates)


class _Lines:
    """The text lines of the files, one file after the other; remembers the last one read."""

    def __init__(self, record: Dataset, paths: list[Path]) -> None:
        self.record, self.paths = record, paths
        self.path, self.number, self.last = paths[0], 0, b""

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            self.path, self.number, self.last = path, 0, b""
            with (
                path.open("rb") as packed,
                _unpacked(packed, path.name, self.record.member) as lines,
                progress(f"reading {path.name}", path.stat().st_size) as advance,
            ):
                done = 0
                for self.number, self.last in enumerate(lines, 1):
                    if self.number % 10_000 == 0:
                        advance(packed.tell() - done)
                        done = packed.tell()
                    yield self.last.decode().rstrip("\r\n")


def _unpacked(packed: IO[bytes], name: str, member: str | None) -> IO[bytes] | gzip.GzipFile:
    if member is not None:
        archive = zipfile.ZipFile(packed)
        if member not in archive.namelist():
            raise zipfile.BadZipFile(f"no {member} inside")
        return archive.open(member)
    return gzip.open(packed) if name.endswith(".gz") else packed


def _read_original(record: Dataset, paths: list[Path]) -> Interactions:
    import polars as pl

    users: list[str] = []
    items: list[str] = []
    times = array("q")
    lines = _Lines(record, paths)
    assert record.parse is not None  # a data set with files has a parser
    try:
        for user, item, time in record.parse(lines):
            if not (user and item):
                raise ValueError
            times.append(time)
            # Interned, because millions of rows share their ids.
            users.append(sys.intern(user))
            items.append(sys.intern(item))
        if not users:
            raise ValueError
    except DAMAGED as failure:
        raise InputError(
            f"{lines.path} is damaged ({failure}); delete it and run again, or get it anew "
            f"from {record.home}"
        ) from failure
    except (ValueError, LookupError, TypeError, SyntaxError, OverflowError) as broken:
        start = lines.last[:60].decode(errors="replace").strip()
        raise InputError(
            f"{lines.path}, line {lines.number}: {start!r} is no line of {record.title}; "
            f"get the file anew from {record.home}"
        ) from broken
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": np.frombuffer(times, dtype=np.int64)},
        schema_overrides={"user_id": pl.String, "item_id": pl.String},
    )
    if record.newest_first:
        frame = frame.reverse()  # so that of two events at the same time the older one comes first
    if record.once:
        frame = frame.sort("timestamp", maintain_order=True)
        frame = frame.unique(["user_id", "item_id"], keep="last", maintain_order=True)
    log = replace(read_log(frame), source=" + ".join(map(str, paths)))
    return _by_user(log, record.float32) if record.by_user else log


def _download(record: Dataset) -> Path:
    (name,) = record.files
    target = cache_folder() / name
    part = target.with_name(name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(record, part)
            with part.open("rb") as packed, _unpacked(packed, name, record.member) as lines:
                lines.readline()
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)  # Ctrl-C too leaves nothing behind
    except (*DAMAGED, HTTPException) as failure:
        if isinstance(failure, HTTPError):
            failure.close()  # it is the server's answer as well
        why = failure.reason if type(failure) is URLError else failure
        raise InputError(
            f"{record.name}: no download from {record.home} ({why}); try again, or get it by "
            f"hand and {_by_hand(name)}"
        ) from failure
    return target


def _fetch(record: Dataset, part: Path) -> None:
    request = Request(record.home, headers={"User-Agent": "recblr"})
    with urlopen(request, timeout=TIMEOUT) as response, part.open("wb") as out:
        length = int(response.headers.get("Content-Length", 0))
        digest = hashlib.md5(usedforsecurity=False)
        with progress(f"downloading {record.name}", length or None) as advance:
            while block := response.read(1 << 18):
                out.write(block)
                digest.update(block)
                advance(len(block))
        if length and out.tell() != length:
            raise OSError(f"cut off after {out.tell():,} of {length:,} bytes")
    if record.md5 and digest.hexdigest() != record.md5:
        raise OSError(f"its MD5 is {digest.hexdigest()}, not {record.md5} as published")
