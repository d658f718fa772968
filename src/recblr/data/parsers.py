"""The file formats of the public data sets: lines of text to rows of user, item and time."""

import ast
import gzip
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import IO

from recblr.progress import progress

XLONG_USERS, XLONG_SEED = 5_000, 0  # the paper samples 5,000 users but does not say how
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile)  # what a broken archive raises

Row = tuple[str, str, int]  # user, item, time: seconds since 1970, or the place in the history
Parser = Callable[[Iterable[str]], Iterator[Row]]
"""Yields the rows of the lines, which have no line ends; may iterate over the lines more than once.

On an invalid line it raises any ValueError, LookupError, TypeError, SyntaxError or OverflowError.
"""


def ratings(lines: Iterable[str], separator: str, header: str | None = None) -> Iterator[Row]:
    """MovieLens: user, item, rating, time."""
    rows = iter(lines)
    if header and next(rows, "") != header:
        raise ValueError
    for line in rows:
        user, item, _, time = line.split(separator)
        yield user, item, int(time)


def amazon(lines: Iterable[str]) -> Iterator[Row]:
    """One JSON object per line."""
    for line in lines:
        review = json.loads(line)
        yield review["reviewerID"], review["asin"], review["unixReviewTime"]


def steam(lines: Iterable[str]) -> Iterator[Row]:
    """One Python literal per line, with ``u''`` strings, which are not JSON."""
    for line in lines:
        review = ast.literal_eval(line)
        day = date.fromisoformat(review["date"]) - date(1970, 1, 1)
        # Every review has a username, only some have a user_id.
        yield review["username"], review["product_id"], day.days * 86_400


def gowalla(lines: Iterable[str]) -> Iterator[Row]:
    """User, ISO time, latitude, longitude, place, separated by tabs."""
    for line in lines:
        user, time, _, _, place = line.split("\t")
        yield user, place, int(datetime.fromisoformat(time).timestamp())


def xlong(lines: Iterable[str]) -> Iterator[Row]:
    """Number, user, history separated by commas, next item, a negative item and more, by tabs.

    A user has several lines with overlapping histories; only the last line counts.
    """
    last = {line.split("\t", 2)[1]: number for number, line in enumerate(lines)}

    def draw(user: str) -> bytes:  # the same in every version, unlike a random generator
        return hashlib.sha256(f"{XLONG_SEED}:{user}".encode()).digest()

    chosen = {last[user] for user in sorted(last, key=draw)[:XLONG_USERS]}
    for number, line in enumerate(lines):
        if number in chosen:
            _, user, history, target, *_ = line.split("\t")
            for position, item in enumerate([*history.split(","), target]):
                yield user, item, position


class Lines:
    """The text lines of several files, one file after the other.

    ``path``, ``number`` (from 1) and ``last`` (bytes) describe the line that was read last.
    """

    def __init__(self, paths: list[Path], member: str | None) -> None:
        self.paths, self.member = paths, member
        self.path, self.number, self.last = paths[0], 0, b""

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            self.path, self.number, self.last = path, 0, b""
            with (
                path.open("rb") as packed,
                unpacked(packed, path.name, self.member) as lines,
                progress(f"reading {path.name}", path.stat().st_size) as advance,
            ):
                done = 0
                for self.number, self.last in enumerate(lines, 1):
                    if self.number % 10_000 == 0:
                        advance(packed.tell() - done)
                        done = packed.tell()
                    yield self.last.decode().rstrip("\r\n")


def unpacked(packed: IO[bytes], name: str, member: str | None) -> IO[bytes] | gzip.GzipFile:
    """The content of ``member`` of a zip file, of a file whose name ends in .gz, or of another file."""
    if member is not None:
        archive = zipfile.ZipFile(packed)
        if member not in archive.namelist():
            raise zipfile.BadZipFile(f"no {member} inside")
        return archive.open(member)
    return gzip.open(packed) if name.endswith(".gz") else packed
