"""Read a log of events from files or a frame.

Files are read in blocks, whose ids become codes at once. Errors name the file, line or row, and column.
sources.py says where a log may be, columns.py which columns are read, times.py and ids.py how.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recblr.data.columns import Choice, Columns, check_columns, choose_columns
from recblr.data.histories import explode, is_list
from recblr.data.ids import IdColumn
from recblr.data.kinds import KindColumn, Kinds
from recblr.data.log_files import name_of
from recblr.data.sources import DAMAGED, open_tables
from recblr.data.table import Table
from recblr.data.times import TimeColumn, describe_times
from recblr.data.values import BadValue, shorten
from recblr.data.weights import WeightColumn
from recblr.errors import InputError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, eq=False)
class Interactions:
    """N events with codes instead of ids, in 16 bytes per event.

    Attributes:
        users, items: (N,) int32 indices into ``user_ids`` and ``item_ids``, in the order of the log.
        timestamps: (N,) int64 or float64; None if the log has no times and is in order of time.
        user_ids, item_ids: every id once, string or int64, unchanged, in order of first appearance.
        source: the name of the log in messages.
        dates: whether the times were dates.
        unit: of the times: "seconds", "milliseconds", "microseconds" or "nanoseconds" since 1970, or ""
            for numbers in no known unit. Dates are in microseconds, or nanoseconds if they have them.
        ordered_by: the column that orders the events; "" for the order of the rows.
        unused_times: columns that look like times and were not read.
        weights: (N,) how much each event counts as a target of training; None if all count alike.
        kinds: what sort of event each is; None if the log has no kinds.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[Any] | None
    user_ids: pa.Array
    item_ids: pa.Array
    source: str
    dates: bool = False
    unit: str = ""
    ordered_by: str = ""
    unused_times: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    kinds: Kinds | None = None

    def __repr__(self) -> str:
        return (
            f"Interactions({shorten(Path(self.source).name, 28)}: {len(self):,} events, "
            f"{len(self.user_ids):,} users, {len(self.item_ids):,} items, {shorten(self.order, 72)})"
        )

    @property
    def order(self) -> str:
        """What orders the events, in words."""
        if self.timestamps is not None:
            described = describe_times(self.timestamps, self.unit, self.dates)
            return f"ordered by {self.ordered_by or 'timestamp'!r} ({described})"
        if self.ordered_by:
            return f"ordered by {self.ordered_by!r}, the place in the history"
        if self.unused_times:
            listed = ", ".join(map(repr, self.unused_times))
            return f"in the order of the rows (not used, but similar to times: {listed})"
        return "in the order of the rows (no column of times)"

    def __len__(self) -> int:
        return len(self.users)

    def kind_texts(self) -> list[str]:
        """(N,) the kind of each event, "" for none."""
        if self.kinds is None:
            return [""] * len(self)
        return np.array(["", *self.kinds.names], object)[self.kinds.codes].tolist()

    def to_polars(self) -> "pl.DataFrame":
        """The events with their ids: user_id, item_id and, if there, timestamp, weight and kind."""
        import polars as pl

        coded = {"user_id": (self.user_ids, self.users), "item_id": (self.item_ids, self.items)}
        frame = {name: pl.Series(ids).gather(codes) for name, (ids, codes) in coded.items()}
        if self.timestamps is not None:
            frame["timestamp"] = pl.Series(self.timestamps)
        if self.weights is not None:
            frame["weight"] = pl.Series(self.weights)
        if self.kinds is not None:
            frame["kind"] = pl.Series([None, *self.kinds.names]).gather(self.kinds.codes)
        return pl.DataFrame(frame)


def read_log(
    source: Any, *, columns: Columns | None = None, format: str | None = None,
    separator: str | None = None,
) -> Interactions:  # fmt: skip
    """Read user_id, item_id and, if there, timestamp, weight and kind of every event, in order.

    Dates become microseconds since 1970, UTC, or nanoseconds if they have them.

    Args:
        source: the path of a file or of a folder of files, a pattern such as ``clicks/*.csv``, "-" for
            standard input, or a frame of Polars, pandas or Arrow; see docs/data-formats.md.
        columns: our column names to those of the log: ``{"user_id": "userId"}``; for text without a
            line of names, to positions from 1: ``{"user_id": 1}``. With ``timestamp`` None the events
            stay in the order of the rows; with ``weight`` None all events count alike, and with
            ``kind`` None they have no kinds.
        format: csv, tsv, inter, dat, histories, jsonl or parquet; by default by the file's ending.
        separator: what separates the fields of text, such as ";".

    Raises:
        InputError: a value or column is missing, ambiguous or damaged; nothing is repaired.
    """
    users, items, times = IdColumn(), IdColumn(), TimeColumn()
    weights, kinds = WeightColumn(), KindColumn()
    encoders: dict[str, Any] = {
        "user_id": users, "item_id": items, "timestamp": times, "weight": weights, "kind": kinds
    }  # fmt: skip
    choice, *_ = read_blocks(source, encoders, columns, format, separator)
    name = name_of(source)
    # Joining the blocks of a column needs twice its memory, so Arrow's unused memory goes first.
    pa.default_memory_pool().release_unused()
    log = Interactions(
        users.finish(), items.finish(), times.finish(name), users.ids, items.ids, name, times.dates,
        times.unit, str(choice.columns.get("timestamp", "")), tuple(map(str, choice.unused)),
        weights.finish(), kinds.finish(),
    )  # fmt: skip
    return _by_place(log) if choice.is_place else log


def read_blocks(
    source: Any, encoders: Mapping[str, Any], columns: Columns | None = None,
    format: str | None = None, separator: str | None = None,
) -> Iterator[Choice]:  # fmt: skip
    """Read a log in blocks; arguments and errors are those of :func:`read_log`.

    Yields:
        The columns that are read, each time that the ``encoders``, by our column names, have the next
        block. There is at least one block.
    """
    checked = check_columns(columns)
    given = [column for column in checked.values() if column is not None]
    by_position = bool(given) and all(isinstance(column, int) for column in given)
    choice, empty = Choice({}), True
    for name, open_table in open_tables(source, format, separator, by_position):
        try:
            with open_table() as table:
                if choice.columns:
                    _expect_columns(table, choice)
                else:
                    choice = choose_columns(table, checked)
                for _ in _encode(table, choice, encoders):
                    empty = False
                    yield choice
        except DAMAGED as error:
            raise InputError(
                f"{name}: cannot be read to its end ({shorten(str(error), 120)}); the file is damaged, "
                "truncated or has the wrong extension: download or write it again"
            ) from error
    if empty:
        raise InputError(
            f"{name_of(source)}: has columns but no events; give a log with at least one event"
        )


def _expect_columns(table: Table, choice: Choice) -> None:
    for column in choice.columns.values():
        if table.names.count(column) != 1:
            raise InputError(
                f"{table.where}: no column {column!r}, which the first file has; give files with the "
                "same columns"
            )


def _encode(table: Table, choice: Choice, encoders: Mapping[str, Any]) -> Iterator[None]:
    for arrays, location in table.read(choice.columns):
        name, rows = "item_id", None
        try:
            if is_list(arrays["item_id"]):
                arrays, rows = explode(arrays)
            if not len(arrays["item_id"]):
                continue
            for name, array in arrays.items():
                encoders[name].add(array)
        except BadValue as error:
            row = error.row if rows is None else int(rows[error.row])
            raise InputError(f"{location(name, row)}: {error}") from None
        yield


def _by_place(log: Interactions) -> Interactions:
    """A log whose times are places in histories, sorted by these; they are not times."""
    places, users = log.timestamps, log.users
    assert places is not None
    rows = np.lexsort((places, users))
    users, places = users[rows], places[rows]
    if np.any((users[1:] == users[:-1]) & (places[1:] == places[:-1])):
        warn_of_equal_places(log.source)
        return replace(log, timestamps=None, unit="", ordered_by="")
    return replace(
        log, users=users, items=log.items[rows], timestamps=None, unit="",
        weights=None if log.weights is None else log.weights[rows],
        kinds=None if log.kinds is None else log.kinds.at(rows),
    )  # fmt: skip


def warn_of_equal_places(source: str) -> None:
    """Warn that the places of a log in histories are none, as a user has the same number twice."""
    warnings.warn(
        f"{source}: the column 'order' has the same number twice for a user, so it is not the place in "
        "the history; the order of the rows is used as the order in time",
        stacklevel=4,  # the caller of read_log
    )
