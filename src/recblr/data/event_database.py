"""A database of events on disk: DuckDB holds the events of a log, codes, filters and sorts them.

Axes: N events, U users, V items.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recblr.data import split as splits
from recblr.data.columns import Choice, Columns
from recblr.data.ids import IdChecker
from recblr.data.kinds import KindColumn
from recblr.data.log import Interactions, read_blocks, warn_of_equal_places
from recblr.data.log_files import name_of
from recblr.data.sequences import ID_BLOCK
from recblr.data.times import UNITS, TimeColumn
from recblr.data.weights import WeightColumn
from recblr.errors import InputError, from_extra

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BLOCK_EVENTS = 1 << 19  # sorted events in memory at a time
Cuts = tuple[Any, Any]  # the times at which validation and test begin


@dataclass(frozen=True)
class StoredLog:
    """What is known of a log whose events are in the database.

    Attributes:
        description: the log without its events; its times are extremes of those of the log.
        timed: whether the events have times.
        time: the SQL of what orders the events, before their rows; "0" for nothing.
    """

    description: Interactions
    timed: bool
    time: str


class EventDatabase:
    """The events of one log. Its methods are called in the order in which they stand here."""

    def __init__(self, connection: "DuckDBPyConnection") -> None:
        self._connection = connection

    def read(
        self, source: str | Path, columns: Columns | None, format: str | None, separator: str | None
    ) -> StoredLog:
        """Fill the table ``raw``: row, ids, and the time as a whole, decimal or exact number.

        Arguments and errors are those of :func:`recblr.read_log`.
        """
        users, items, times = _Last(IdChecker().check), _Last(IdChecker().check), TimeColumn()
        encoders = {
            "user_id": users, "item_id": items, "timestamp": times, "weight": WeightColumn(),
            "kind": KindColumn(),
        }  # fmt: skip
        rows, any_exact, choice = 0, False, Choice({})
        for choice in read_blocks(source, encoders, columns, format, separator):
            for name in sorted({"weight", "kind"} & choice.columns.keys()):
                raise InputError(
                    f"{name_of(source)}: a log that is prepared on disk cannot have {name}s; leave "
                    f"them out with columns={{{name!r}: None}} (command line: --columns {name}=)"
                )
            count = len(users.block)
            values, exact = times.take() if "timestamp" in choice.columns else (None, None)
            any_exact |= exact is not None
            kind = "exact" if exact is not None else "" if values is None else values.dtype.kind
            block = {
                "event": pa.array(np.arange(rows, rows + count)),
                "user_id": users.block.dictionary_decode(),
                "item_id": items.block.dictionary_decode(),
                "whole": pa.array(values) if kind == "i" else pa.nulls(count, pa.int64()),
                "decimal": pa.array(values) if kind == "f" else pa.nulls(count, pa.float64()),
                "exact": pa.array(exact) if kind == "exact" else pa.nulls(count, pa.int64()),
            }
            self._connection.register("block", pa.table(block))
            self._connection.execute(
                f"{'INSERT INTO raw' if rows else 'CREATE TABLE raw AS'} FROM block"
            )
            rows += count
        self._connection.unregister("block")
        name, nobody = name_of(source), np.empty(0, np.int32)
        extremes = times.finish(name)
        log = Interactions(
            nobody, nobody, extremes, pa.array([]), pa.array([]), name, times.dates, times.unit,
            str(choice.columns.get("timestamp", "")), tuple(map(str, choice.unused)),
        )  # fmt: skip
        if extremes is None:
            return StoredLog(log, False, "0")
        time = _time(times.read_unit, any_exact, extremes.dtype.kind)
        if not choice.is_place:
            return StoredLog(log, True, time)
        log = replace(log, timestamps=None, unit="")
        twice = f"SELECT 1 FROM raw GROUP BY user_id, {time} HAVING count(*) > 1 LIMIT 1"
        if self._value(twice) is None:
            return StoredLog(log, False, time)
        warn_of_equal_places(name)
        return StoredLog(replace(log, ordered_by=""), False, "0")

    def code(self, log: StoredLog) -> dict[str, int]:
        """Make the tables of users and items, with ids in order of first appearance, and of events,
        with the rows of the ids there as codes. Return how many there are of each.
        """
        for kind in ("user", "item"):
            first = f"SELECT {kind}_id AS id, min(event) AS first FROM raw GROUP BY 1"
            self._connection.execute(
                f"CREATE TABLE {kind}s AS SELECT id FROM ({first}) ORDER BY first"
            )
        self._connection.execute("SET preserve_insertion_order = false")
        self._connection.execute(
            f"""CREATE TABLE events AS
            SELECT event, users.rowid::INTEGER AS u, items.rowid::INTEGER AS i, {log.time} AS t
            FROM raw JOIN users ON user_id = users.id JOIN items ON item_id = items.id"""
        )
        self._connection.execute("SET preserve_insertion_order = true")
        self._connection.execute("DROP TABLE raw")
        return self._counts("users", "items", "events")

    def time_cuts(self, log: StoredLog, last: bool) -> Cuts:
        """The cuts of :func:`recblr.data.split.time_cuts`, with its errors."""
        if not log.timed:
            return splits.time_cuts(None)
        if last:
            test = self._after_quantile()
            return self._after_quantile(f"t < {test!r}"), test
        validation, test = (self._quantile(share, math.ceil) for share in (0.8, 0.9))
        if not self._value("SELECT min(t) FROM events") < validation < test:
            raise InputError(splits.TOO_FEW)
        return validation, test

    def _after_quantile(self, where: str = "true") -> Any:
        low = self._quantile(0.9, math.floor, where)
        later = f"SELECT min(t) FROM events WHERE {where} AND t > ?"
        cut = None if low is None else self._value(later, low)
        if cut is None:
            raise InputError(splits.TOO_FEW)
        return cut

    def _quantile(self, share: float, rounded: Callable[[float], int], where: str = "true") -> Any:
        count = self._value(f"SELECT count(*) FROM events WHERE {where}")
        place = max(0, rounded((count - 1) * share))
        return self._value(f"SELECT t FROM events WHERE {where} ORDER BY t LIMIT 1 OFFSET {place}")

    def filter(self, core: int, cuts: Cuts | None) -> dict[str, int]:
        """Make the tables of the users, items and events that the k-core filter keeps; return how many
        of each are left. With ``cuts``, only events before the first of them count.
        """
        execute = self._connection.execute
        if core == 1 and cuts is None:  # all are kept
            for name in ("users", "items", "events"):
                execute(f"CREATE VIEW kept_{name} AS FROM {name}")
            return self._counts("users", "items", "events")
        where = "" if cuts is None else f"WHERE t < {cuts[0]!r}"
        execute(f"CREATE TABLE counted AS SELECT u, i FROM events {where}")
        before, count = -1, self._count("counted")
        while core > 1 and count != before:
            enough = " AND ".join(
                f"{code} IN (SELECT {code} FROM counted GROUP BY {code} HAVING count(*) >= {core})"
                for code in "ui"
            )
            execute(f"CREATE TABLE fewer AS FROM counted WHERE {enough}")
            execute("DROP TABLE counted")
            execute("ALTER TABLE fewer RENAME TO counted")
            before, count = count, self._count("counted")
        for kind in ("user", "item"):
            code = kind[0]
            execute(
                f"""CREATE TABLE kept_{kind}s AS SELECT id, {code} FROM {kind}s
                JOIN (SELECT DISTINCT {code} FROM counted) ON {kind}s.rowid = {code} ORDER BY {code}"""
            )
        execute("DROP TABLE counted")
        execute(
            """CREATE VIEW kept_events AS
            SELECT event, kept_users.rowid::INTEGER AS u, kept_items.rowid::INTEGER AS i, t
            FROM events JOIN kept_users USING (u) JOIN kept_items USING (i)"""
        )
        return self._counts("kept_users", "kept_items", "kept_events")

    def histories(self, newest_first: bool = False) -> Iterator[tuple[np.ndarray, ...]]:
        """Users, items, times and rows of the kept events, sorted by user and time, in blocks of whole
        histories. ``newest_first`` reverses the order of the rows at equal times.
        """
        reader = self._connection.sql(
            f"""SELECT u, i, t, event FROM kept_events
            ORDER BY u, t, event {"DESC" if newest_first else ""}"""
        ).to_arrow_reader(_BLOCK_EVENTS)
        rest: tuple[np.ndarray, ...] = ()
        for batch in reader:
            block = tuple(column.to_numpy() for column in batch.columns)
            if rest:
                block = tuple(map(np.concatenate, zip(rest, block, strict=True)))
            end = int(np.searchsorted(block[0], block[0][-1]))
            rest = tuple(array[end:] for array in block)
            if end:
                yield tuple(array[:end] for array in block)
        if rest:
            yield rest

    def ids(self, kind: str) -> pa.RecordBatchReader:
        """The kept ids of the kind "user" or "item", in blocks."""
        query = f"SELECT id AS {kind}_id FROM kept_{kind}s"
        return self._connection.sql(query).to_arrow_reader(ID_BLOCK)

    def _value(self, query: str, *values: Any) -> Any:
        """The first value of the first row of a query; None if it has no row."""
        rows = self._connection.execute(query, values).fetchall()
        return rows[0][0] if rows else None

    def _count(self, table: str) -> int:
        return int(self._value(f"SELECT count(*) FROM {table}"))

    def _counts(self, users: str, items: str, events: str) -> dict[str, int]:
        tables = {"users": users, "items": items, "interactions": events}
        return {name: self._count(table) for name, table in tables.items()}


class _Last:
    """Keeps the last block of a column."""

    def __init__(self, read: Callable[[pa.Array], Any]) -> None:
        self._read = read
        self.block: Any = None

    def add(self, column: pa.Array) -> None:
        self.block = self._read(column)


def _time(unit: str, any_exact: bool, kind: str) -> str:
    """The SQL of a time, from the columns of ``raw``, as :meth:`TimeColumn.finish` converts it."""
    if not any_exact:
        return "COALESCE(decimal, CAST(whole AS DOUBLE))" if kind == "f" else "whole"
    size = UNITS[unit or "seconds"]
    factor, rest = (size, 1) if size <= 1000 else (size // 1000, 1000)
    rounded = f"CAST(round_even(decimal * {factor}, 0) AS BIGINT) * {rest}"
    return f"COALESCE(exact, whole * {size}, {rounded})"


@contextmanager
def open_database(out: Path, folder: Path, memory_limit: str) -> Iterator[EventDatabase]:
    """A new database in a temporary folder below ``folder``.

    Raises:
        InputError: DuckDB is not installed, or has too little memory or disk; it names ``out``.
    """
    with from_extra("large"):
        import duckdb
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            with duckdb.connect(f"{work}/events.duckdb") as connection:
                connection.execute(f"SET memory_limit = '{memory_limit}'")
                connection.execute(f"SET temp_directory = '{work}/spilled'")
                # DuckDB would print its bars to standard output, before our JSON.
                connection.execute("SET enable_progress_bar = false")
                yield EventDatabase(connection)
        except duckdb.OutOfMemoryException as error:
            raise InputError(
                f"{out}: DuckDB cannot prepare the log within {memory_limit} of memory and the free "
                "disk; give more memory (--memory-limit) or a larger disk"
            ) from error
        except duckdb.IOException as error:
            problem = str(error).splitlines()[0]
            raise InputError(
                f"{out}: cannot be written ({problem}); choose another path"
            ) from error
