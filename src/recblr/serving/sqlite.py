"""The event log in one SQLite file, for one process: what a server has without anything else.

An event is acknowledged when its transaction is on the disk: a write-ahead log, and ``synchronous`` is
FULL, as with NORMAL a power cut loses acknowledged events. The file is locked while it is open: one
process writes. What is erased is out of every table at once, and its bytes are out of the file when it
is opened the next time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from recblr.errors import InputError
from recblr.serving.events import Event, Key, User
from recblr.serving.store import ConflictError, Rows, Snapshot, StoreError, kept

FORMAT = 1
PRAGMAS = (
    "locking_mode = exclusive",  # one process, and no shared memory
    "journal_mode = wal",
    "synchronous = full",
    "secure_delete = on",  # what is erased is overwritten
    "cache_size = -65536",  # KiB
)
TABLES = """
CREATE TABLE events (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, event_id TEXT NOT NULL,
    user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_by_id ON events (tenant, event_id);
CREATE INDEX events_by_user ON events (tenant, user_id, timestamp, event_id, item_id);
CREATE TABLE users (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (tenant, user_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, count INTEGER NOT NULL,
    timestamp REAL NOT NULL, event_id TEXT NOT NULL, model TEXT NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (tenant, user_id, count)
) STRICT;
CREATE INDEX snapshots_by_model ON snapshots (model);
CREATE TABLE served (started TEXT NOT NULL, folder TEXT NOT NULL) STRICT;
CREATE TABLE erased (events INTEGER NOT NULL) STRICT;
"""


class SQLiteLog:
    """A Log in a file, made if it is not there.

    Raises:
        InputError: the file is something else, or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = apsw.Connection(str(path))
            for pragma in PRAGMAS:
                self._do(f"PRAGMA {pragma}")
            with self.transaction():
                (found,) = self._one("PRAGMA user_version")
                if found == 0 and self._one("SELECT count(*) FROM sqlite_schema") == (0,):
                    self._do(TABLES)
                    self._do(f"PRAGMA user_version = {FORMAT}")
                elif found != FORMAT:
                    raise InputError(f"{path} is no store of this version of recblr; name another")
            if self._one(
                "SELECT * FROM erased"
            ):  # pages keep shreds of what was once moved in them
                self._do("DELETE FROM erased")
                self._do("VACUUM")
                self._do("PRAGMA wal_checkpoint(TRUNCATE)")
        except apsw.NotADBError:
            raise InputError(f"{path} is no SQLite file; name another") from None
        except apsw.CantOpenError:
            raise InputError(f"{path} cannot be opened; does its folder exist?") from None
        except apsw.BusyError:
            raise InputError(
                f"{path} is open in another process; stop that server or name another file"
            ) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with _failing():
            self._do("BEGIN IMMEDIATE")
            try:
                yield
                self._do("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._do("ROLLBACK")

    def lock(self, users: Sequence[User]) -> list[int]:
        return self.versions(users)

    def versions(self, users: Sequence[User]) -> list[int]:
        with _failing():
            found = (
                self._one("SELECT version FROM users WHERE tenant = ? AND user_id = ?", user)
                for user in users
            )
            return [row[0] if row else 0 for row in found]

    def add(self, tenant: str, event: Event) -> int:
        with _failing():
            body = (event.user_id, event.item_id, event.timestamp)
            added = self._one(
                "INSERT INTO events (tenant, event_id, user_id, item_id, timestamp)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING version",
                (tenant, event.event_id, *body),
            )
            if added:
                self._do(
                    "INSERT OR REPLACE INTO users VALUES (?, ?, ?)",
                    (tenant, event.user_id, added[0]),
                )
                version: int = added[0]
                return version
            there = self._one(
                "SELECT user_id, item_id, timestamp FROM events WHERE tenant = ? AND event_id = ?",
                (tenant, event.event_id),
            )
        if there != body:
            raise ConflictError(f"event_id {event.event_id!r} is another event's already")
        return 0

    def events(self, user: User) -> Rows:
        with _failing():
            return self._all(
                "SELECT timestamp, event_id, item_id FROM events"
                " WHERE tenant = ? AND user_id = ? ORDER BY timestamp, event_id",
                user,
            )

    def snapshot(self, user: User, model: str) -> Snapshot | None:
        with _failing():
            row = self._one(
                "SELECT timestamp, event_id, count, vector FROM snapshots"
                " WHERE tenant = ? AND user_id = ? AND model = ? ORDER BY count DESC LIMIT 1",
                (*user, model),
            )
        return row and Snapshot((row[0], row[1]), row[2], np.frombuffer(row[3], np.float32))

    def keep(self, user: User, model: str, snapshots: Sequence[Snapshot]) -> None:
        with _failing():
            for it in snapshots:
                self._do(
                    "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*user, it.count, *it.key, model, it.vector.tobytes()),
                )
            counts = kept(max(it.count for it in snapshots))
            self._do(
                "DELETE FROM snapshots WHERE tenant = ? AND user_id = ?"
                f" AND (model != ? OR count NOT IN ({', '.join(map(str, counts))}))",
                (*user, model),
            )

    def drop(self, user: User, after: Key) -> None:
        with _failing():
            self._do(
                "DELETE FROM snapshots WHERE tenant = ? AND user_id = ?"
                " AND (timestamp, event_id) > (?, ?)",
                (*user, *after),
            )

    def erase(self, user: User) -> int:
        with _failing():
            for table in ("snapshots", "users", "events"):
                self._do(f"DELETE FROM {table} WHERE tenant = ? AND user_id = ?", user)
            events = self._connection.changes()
            self._do("INSERT INTO erased VALUES (?)", (events,))
        return events

    def outdated(self, model: str, limit: int) -> list[User]:
        with _failing():
            return self._all(
                "SELECT DISTINCT tenant, user_id FROM snapshots WHERE model != ? LIMIT ?",
                (model, limit),
            )

    def users(self) -> Iterable[User]:
        with _failing():
            yield from self._connection.execute("SELECT tenant, user_id FROM users")

    def users_of(self, tenant: str, limit: int) -> list[str]:
        with _failing():
            rows = self._all(
                "SELECT user_id FROM users WHERE tenant = ? ORDER BY user_id LIMIT ?",
                (tenant, limit),
            )
        return [user_id for (user_id,) in rows]

    def start(self, folder: str) -> str:
        with _failing():
            row = self._one("SELECT folder FROM served WHERE started = ?", (folder,))
            if row is None:
                self._do("DELETE FROM served")
                self._do("INSERT INTO served VALUES (?, ?)", (folder, folder))
        return row[0] if row else folder

    def swap(self, folder: str) -> None:
        with _failing():
            self._do("UPDATE served SET folder = ?", (folder,))

    def close(self) -> None:
        self._connection.close()

    def _do(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute(sql, values)

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(sql, values).fetchone()

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()


@contextmanager
def _failing() -> Iterator[None]:
    """What SQLite cannot do is a StoreError."""
    try:
        yield
    except apsw.Error as error:
        raise StoreError(f"the event log failed: {error}") from error
