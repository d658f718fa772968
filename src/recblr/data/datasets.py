"""Public data sets by name: read from this machine, or downloaded once.

A data set is one record of ``DATASETS`` with a parser of its publisher's format. It is looked up in
the folder ``RECBLR_DATA``, then in the cache, then downloaded. docs/datasets.md describes each.
"""

import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from recblr.config import did_you_mean
from recblr.data import parsers
from recblr.data.log import Interactions, read_log
from recblr.data.parsers import DAMAGED
from recblr.errors import InputError
from recblr.progress import progress

TIMEOUT = 30.0  # seconds without a byte
CONVERTED = (".tsv.gz", ".tsv", ".csv", ".parquet", ".inter")  # <name>.tsv.gz in RECBLR_DATA, ...


@dataclass(frozen=True)
class Dataset:
    """One public data set: where it is published, how it is read, and its terms."""

    name: str
    title: str
    home: str = ""  # address of the file to download; empty: only in converted form
    by_hand: tuple[
        str, ...
    ] = ()  # files that need a login; ``home`` is then the page that has them
    parse: parsers.Parser | None = None  # of the publisher's files
    member: str | None = None  # the file inside the zip
    md5: str | None = None  # only if the publisher publishes one
    converted: tuple[
        str, ...
    ] = ()  # names of files in our columns; empty: the name of the data set
    newest_first: bool = False  # the file starts with the latest event
    once: bool = False  # keep only the latest event of a user with an item
    by_user: bool = False  # sort the events by user and time before ids are numbered
    float32: bool = False  # round the times to float32, as RecBole does
    core: int = 5  # the default filter: users and items with fewer events are removed
    credit: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The publisher's names of the files."""
        return self.by_hand or tuple(filter(None, [self.home.rpartition("/")[2]]))


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
    parse=partial(parsers.ratings, separator="::"),
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
            parse=partial(parsers.ratings, separator="\t"),
            credit=_MOVIELENS_CREDIT,
        ),
        Dataset(
            name="ml-latest-small",
            title="MovieLens latest small, movie ratings",
            home=f"{_MOVIELENS}/ml-latest-small.zip",
            member="ml-latest-small/ratings.csv",
            md5=None,  # the file and its published checksum change over time
            parse=partial(parsers.ratings, separator=",", header="userId,movieId,rating,timestamp"),
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
            parse=parsers.amazon,
            credit=_AMAZON_CREDIT,
        ),
        Dataset(
            name="sports",
            title="Amazon Sports and Outdoors, product reviews to 2014",
            home=f"{_AMAZON}/reviews_Sports_and_Outdoors_5.json.gz",
            parse=parsers.amazon,
            credit=_AMAZON_CREDIT,
        ),
        Dataset(
            name="steam",
            title="Steam, reviews of video games",
            home="http://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz",
            parse=parsers.steam,
            credit="Kang and McAuley, SASRec, ICDM 2018. No licence stated.",
        ),
        Dataset(
            name="gowalla",
            title="Gowalla, check-ins at places",
            home="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
            parse=parsers.gowalla,
            newest_first=True,
            once=True,  # as the paper's counts require
            credit=_GOWALLA_CREDIT,
        ),
        Dataset(
            name="gowalla-10core",
            title="Gowalla as graph recommenders filter it, unlike the paper",
            credit=_GOWALLA_CREDIT,
        ),
        Dataset(
            name="xlong",
            title="XLong, 5,000 long histories of Alibaba clicks",
            home="https://tianchi.aliyun.com/dataset/22482",
            by_hand=("train_corpus_total_dual.txt", "test_corpus_total_dual.txt"),
            parse=parsers.xlong,
            credit="Ren et al., Lifelong Sequential Modeling, SIGIR 2019. Terms behind the login.",
        ),
    )
}


def dataset(name: str) -> Dataset:
    """The record of a data set. InputError, with a suggestion, for an unknown name."""
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}{did_you_mean(name.lower(), DATASETS)}")
    return DATASETS[name]


def cache_folder() -> Path:
    """The folder of downloads: ``RECBLR_CACHE``, or ``recblr`` in the platform's cache folder.

    Raises:
        InputError: ``RECBLR_CACHE`` is a URL.
    """
    if own := os.environ.get("RECBLR_CACHE"):
        if "://" in own:
            raise InputError(
                f"RECBLR_CACHE={own}: is a URL; give a folder for downloads, and the URL of Redis in "
                "RECBLR_STATE_CACHE"
            )
        return Path(own).expanduser()
    places = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}
    base = os.environ.get("XDG_CACHE_HOME") or places.get(sys.platform, "~/.cache")
    return Path(base).expanduser() / "recblr"


def load_dataset(name: str) -> Interactions:
    """A data set as published, before the filter ``core`` of its record.

    Downloads it if it is neither in the folder ``RECBLR_DATA`` nor in the cache.

    Raises:
        InputError: it cannot be downloaded or is damaged; the message says where to get it and
            where to put it.
    """
    record = dataset(name)
    folders = [cache_folder()]
    if own := os.environ.get("RECBLR_DATA"):
        data = Path(own).expanduser()
        if not data.is_dir():
            raise InputError(f"RECBLR_DATA: {data} is not a folder; set it to a folder or unset it")
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
    log = read_log(path)
    return _by_user(log, record.float32) if record.by_user else log


def _by_user(log: Interactions, float32: bool) -> Interactions:
    """Sort the events by user and time, ties in the order of the log, and number the ids again.

    Users keep the order of their first appearance. ``float32`` rounds the times to float32, which
    from 2000 to 2003 gives multiples of 64 seconds.
    """
    if log.timestamps is None:  # the order of the log is the order in time
        return log
    times = log.timestamps
    if float32:
        times = times.astype(np.float32).astype(times.dtype)
    rows = np.lexsort((times, log.users))
    items = log.items[rows]
    # The items in order of their first event, and the place of each in that order.
    _, first = np.unique(items, return_index=True)
    by_first = np.argsort(first)
    places = np.empty_like(items, shape=len(by_first))
    places[by_first] = np.arange(len(by_first))
    return replace(
        log,
        users=log.users[rows],
        items=places[items],
        timestamps=times[rows],
        item_ids=log.item_ids.take(by_first),
    )


def _read_original(record: Dataset, paths: list[Path]) -> Interactions:
    import polars as pl

    users: list[str] = []
    items: list[str] = []
    times = array("q")
    lines = parsers.Lines(paths, record.member)
    assert record.parse is not None  # a data set with files has a parser
    try:
        for user, item, time in record.parse(lines):
            if not (user and item):
                raise ValueError
            times.append(time)
            # Interned, because millions of rows share few ids.
            users.append(sys.intern(user))
            items.append(sys.intern(item))
        if not users:
            raise ValueError
    except DAMAGED as failure:
        raise InputError(
            f"{lines.path} is damaged ({failure}); delete it and run again, or download it again "
            f"from {record.home}"
        ) from failure
    except (ValueError, LookupError, TypeError, SyntaxError, OverflowError) as broken:
        start = lines.last[:60].decode(errors="replace").strip()
        raise InputError(
            f"{lines.path}, line {lines.number}: {start!r} is not a valid line of {record.title}; "
            f"download the file again from {record.home}"
        ) from broken
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": np.frombuffer(times, dtype=np.int64)},
        schema_overrides={"user_id": pl.String, "item_id": pl.String},
    )
    if record.newest_first:
        frame = frame.reverse()  # so that the older of two events at the same time comes first
    if record.once:
        frame = frame.sort("timestamp", maintain_order=True)
        frame = frame.unique(["user_id", "item_id"], keep="last", maintain_order=True)
    log = replace(read_log(frame), source=" + ".join(map(str, paths)))
    return _by_user(log, record.float32) if record.by_user else log


def _download(record: Dataset) -> Path:
    """Download the file into the cache; a download that fails leaves nothing there."""
    try:
        import pooch  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"{record.name}: no download, as pooch is not installed; {_by_hand(record.files[0])}"
        ) from error
    pooch.get_logger().setLevel("WARNING")
    (name,) = record.files
    checksum = f"md5:{record.md5}" if record.md5 else None
    fetch = partial(_fetch, record)
    try:
        file = pooch.retrieve(record.home, checksum, name, cache_folder(), downloader=fetch)
    except (*DAMAGED, ValueError) as error:
        raise InputError(
            f"{record.name}: no download from {record.home} ({_root_cause(error)}); try again, or "
            f"download it by hand and {_by_hand(name)}"
        ) from error
    return Path(file)


def _fetch(record: Dataset, url: str, path: str, _: object) -> None:
    """Download to the temporary file ``path`` of pooch, and check that it is the archive."""
    import requests

    headers = {"User-Agent": "recblr"}
    with (
        requests.get(url, headers=headers, timeout=TIMEOUT, stream=True) as response,
        open(path, "wb") as file,
    ):
        response.raise_for_status()
        response.raw.enforce_content_length = True  # the default from urllib3 2 on
        # Some servers declare a .gz file as an encoding, which requests would remove.
        response.raw.headers.pop("Content-Encoding", None)
        size = int(response.headers.get("Content-Length", 0)) or None
        with progress(f"downloading {record.name}", size) as advance:
            for block in response.iter_content(1 << 18):
                file.write(block)
                advance(len(block))
    (name,) = record.files
    with open(path, "rb") as packed, parsers.unpacked(packed, name, record.member) as lines:
        lines.readline()
    Path(path).chmod(0o644)  # pooch makes the file private, but a cache may be shared


def _root_cause(error: BaseException) -> BaseException:
    """The error that requests and urllib3 wrap; its message is the clear one."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return _root_cause(cause) if cause else error
