"""Prepare a log that does not fit into memory, with its events in a database on disk.

The folder equals that of ``prepare`` and ``Sequences.save``: the same arrays, ids, summary and
fingerprint. Files are read in the same way, with the same errors.

Axes: N events, U users.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recblr.config import check_count
from recblr.data import split as splits
from recblr.data.columns import Columns
from recblr.data.event_database import Cuts, EventDatabase, StoredLog, open_database
from recblr.data.log_files import STDIN, find_files, is_remote
from recblr.data.preparing import SURE, PartCounts, count_duplicates, steps, summarise
from recblr.data.sequences import ID_BLOCK, MARKER, file_blocks, fingerprint
from recblr.data.sources import COMPRESSIONS
from recblr.errors import InputError
from recblr.files import new_folder
from recblr.progress import progress

# Bytes of memory that `prepare` needs for each byte of a file: of text, and of Parquet or packed text.
_PLAIN, _PACKED = 3, 10
_SPLIT = ("train_end", "validation", "test")  # the rows of split.npy


def suggest_limit(source: str) -> str | None:
    """A memory limit for :func:`prepare_large`.

    None for a log that fits into half of the memory, for what is not a file, folder or pattern, and
    without DuckDB.
    """
    is_log = Path(source).exists() and not (Path(source) / MARKER).exists()
    are_files = source != STDIN and (is_log or is_remote(source) or glob.has_magic(source))
    if not are_files or find_spec("duckdb") is None:
        return None
    packed = {*COMPRESSIONS, ".parquet", ".pq"}
    needed = sum(
        file.size * (_PACKED if file.path.suffix.lower() in packed else _PLAIN)
        for file in find_files(source)
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{max(1, memory // 4 >> 30)}GB" if needed > memory // 2 else None


def prepare_large(
    source: str | Path, out: Path, core: int = 1, split: str = "leave-one-out", *,
    columns: Columns | None = None, format: str | None = None, separator: str | None = None,
    memory_limit: str = "1GB", overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Read, filter, sort and split a log on disk, and write the prepared folder ``out``.

    A call that is interrupted or fails leaves nothing behind.

    Args:
        source: the path of a log as for :func:`recblr.read_log`, as are ``columns``, ``format`` and
            ``separator``.
        out: a new folder. While the call runs, its disk holds up to 100 bytes for each event.
        core: as for :func:`recblr.prepare`, as is ``split``.
        memory_limit: the limit of DuckDB's memory, such as "1GB" or "500MB". Reading the files takes
            up to 900 MB beside it.
        overwrite: replace the prepared folder ``out``.

    Returns:
        The summary of the histories.

    Raises:
        InputError: as for :func:`recblr.read_log` and :func:`recblr.prepare`; DuckDB is not installed,
            or has too little memory or disk.
    """
    core, split = check_count(core, "core"), splits.check_split(split)
    if not re.fullmatch(r"[1-9][0-9]*(MB|GB)", memory_limit):
        raise InputError(f"memory limit {memory_limit!r}: write a number and MB or GB, such as 2GB")
    with (
        new_folder(out, overwrite, MARKER) as folder,
        open_database(out, folder, memory_limit) as database,
    ):
        log = database.read(source, columns, format, separator)
        with progress("coding and filtering", 2) as advance:
            read = database.code(log)
            advance(1)
            by_time = split != "leave-one-out"
            cuts = database.time_cuts(log, split == "time-last") if by_time else None
            kept = database.filter(core, cuts)
            advance(1)
        writer = _Writer(database, folder, log, split, cuts, kept)
        writer.write()
        newest_first = log.timed and writer.newest_first
        if newest_first:
            writer.write(newest_first=True)
        for kind in ("user", "item"):
            reader = database.ids(kind)
            with pq.ParquetWriter(folder / f"{kind}s.parquet", reader.schema) as file:
                for batch in reader:
                    file.write_batch(batch)
        summary = summarise(
            log.description, read, kept, core, split, writer.counts, newest_first,
            writer.duplicates if log.timed else None,
        )  # fmt: skip
        metadata = {
            "split": split, "core": core, "fingerprint": _fingerprint(folder, kept),
            "summary": summary,
        }  # fmt: skip
        (folder / MARKER).write_text(json.dumps(metadata, indent=2) + "\n")
    return summary


class _Writer:
    """Writes the events and the split of a prepared folder.

    Attributes:
        counts: the events of the parts.
        duplicates: the number of rows that repeat another.
        newest_first: whether the log has its newest events first.
    """

    def __init__(
        self, database: EventDatabase, folder: Path, log: StoredLog, split: str, cuts: Cuts | None,
        kept: dict[str, int],
    ) -> None:  # fmt: skip
        self._database, self._folder, self._log = database, folder, log
        self._split, self._cuts = split, cuts
        self._users, self._events = kept["users"], kept["interactions"]
        self.counts, self.duplicates, self.newest_first = PartCounts(), 0, False

    def write(self, newest_first: bool = False) -> None:
        """Write items, offsets and times; ``newest_first`` as for :meth:`EventDatabase.histories`."""
        self.counts, self.duplicates = PartCounts(), 0
        later, forward, base = 0, False, 0
        parts = [self._folder / f"{part}.part" for part in _SPLIT]
        with ExitStack() as files, progress("sorting", self._events) as advance:
            items = files.enter_context(_array(self._folder / "items.npy", "<i4", self._events))
            offsets = files.enter_context(
                _array(self._folder / "offsets.npy", "<i8", self._users + 1)
            )
            split = [files.enter_context(part.open("wb")) for part in parts]
            times: BinaryIO | None = None
            offsets.write(bytes(8))
            for u, i, t, row in self._database.histories(newest_first):
                if self._log.timed and times is None:
                    path = self._folder / "times.npy"
                    times = files.enter_context(_array(path, t.dtype.str, self._events))
                if times is not None:
                    times.write(t.tobytes())
                items.write(i.tobytes())
                ends = np.append(np.flatnonzero(u[1:] != u[:-1]) + 1, len(u))
                offsets.write((ends + base).tobytes())
                self._write_split(np.concatenate([[0], ends]), t, base, split)
                later_here, forward_here = steps(row, u, t)
                later, forward = later + later_here, forward or forward_here
                self.duplicates += count_duplicates(u, i, t)
                base += len(u)
                advance(len(u))
        with _array(self._folder / "split.npy", "<i8", len(_SPLIT), self._users) as file:
            for part in parts:
                for block in file_blocks(part, 8 * self._users):
                    file.write(block)
                part.unlink()
        self.newest_first = later >= SURE and not forward

    def _write_split(
        self, offsets: np.ndarray, times: np.ndarray, base: int, files: Sequence[BinaryIO]
    ) -> None:
        """The split of a block of histories, whose first row is ``base``."""
        if self._cuts is None:
            split = splits.leave_one_out(offsets)
        else:
            split = splits.by_time(offsets, times, self._cuts, self._split == "time-last")
        self.counts += PartCounts.of(split, offsets)
        for file, name in zip(files, _SPLIT, strict=True):
            rows = getattr(split, name)
            file.write(np.where(rows >= 0, rows + base, -1).tobytes())


@contextmanager
def _array(path: Path, dtype: str, *shape: int) -> Iterator[BinaryIO]:
    """A new file of a NumPy array, without its numbers."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _fingerprint(folder: Path, kept: dict[str, int]) -> str:
    users, events = kept["users"], kept["interactions"]
    sizes = {"items": 4 * events, "offsets": 8 * (users + 1), "split": 8 * len(_SPLIT) * users}
    arrays = chain.from_iterable(
        file_blocks(folder / f"{name}.npy", size) for name, size in sizes.items()
    )
    return fingerprint(
        arrays, (_id_blocks(folder / f"{kind}s.parquet") for kind in ("user", "item"))
    )


def _id_blocks(path: Path) -> Iterator[pa.Array]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(ID_BLOCK):
            yield batch.column(0)
