"""The event log in a SQLite file, for one process. It needs no other server.

A transaction is on disk when it is committed: ``synchronous`` is FULL, because with NORMAL and a
write-ahead log a power cut loses committed transactions. The file is locked while it is open, so one
process uses it at a time. An erasure removes a user from all tables at once; leftover bytes in the
file are removed when it is opened the next time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from recblr.errors import InputError
from recblr.serving.sql import FORMAT, SQLLog
from recblr.serving.storage import Event, User

PRAGMAS = (
    "locking_mode = exclusive",  # one process, and no shared memory
    "journal_mode = wal",
    "synchronous = full",
    "secure_delete = on",  # deleted rows are overwritten
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
CREATE TABLE served (
    one INTEGER PRIMARY KEY, folder TEXT NOT NULL, model TEXT NOT NULL, started TEXT NOT NULL
) STRICT;
CREATE TABLE erased (events INTEGER NOT NULL) STRICT;
"""


class SQLiteLog(SQLLog):
    """An EventLog in a file, which is created if it does not exist.

    Raises:
        InputError: the file is not an event log, or another process has it open.
    """

    BEGIN = "BEGIN IMMEDIATE"
    ERRORS = apsw.Error

    def __init__(self, path: Path) -> None:
        self.name, self._units = str(path), {}
        try:
            # The absolute path, as SQLite keeps "" and ":memory:" in memory.
            self._connection = apsw.Connection(str(path.absolute()))
            for pragma in PRAGMAS:
                self._run(f"PRAGMA {pragma}")
            self._run(self.BEGIN)
            ((version,),) = self._run("PRAGMA user_version")
            if version == 0 and self._run("SELECT count(*) FROM sqlite_schema") == [(0,)]:
                self._run(TABLES)
                self._run(f"PRAGMA user_version = {FORMAT}")
            elif version != FORMAT:
                raise InputError(
                    f"{path} is not an event log of this version of recblr; choose another file"
                )
            self._run("COMMIT")
            if self._run("SELECT * FROM erased"):  # pages keep copies of rows that SQLite has moved
                self._run("DELETE FROM erased")
                self._run("VACUUM")
                self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        except apsw.NotADBError:
            raise InputError(f"{path} is not a SQLite file; choose another file") from None
        except apsw.CantOpenError:
            raise InputError(f"{path} cannot be opened; does its folder exist?") from None
        except apsw.BusyError:
            raise InputError(
                f"{path} is open in another process; stop that server or choose another file"
            ) from None
        except apsw.Error as error:  # a damaged file, a read-only file, a full disk
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path} cannot be used as an event log ({reason}); restore it from a backup, or "
                "choose another file"
            ) from None

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def _in_transaction(self) -> bool:
        return self._connection.in_transaction

    def lock(self, users: Sequence[User]) -> list[int]:
        return self.versions(users)  # this process is the only writer

    def versions(self, users: Sequence[User]) -> list[int]:
        rows = (
            self._one("SELECT version FROM users WHERE tenant = ? AND user_id = ?", user)
            for user in users
        )
        return [row[0] if row else 0 for row in rows]

    def add(self, events: Sequence[tuple[str, Event]]) -> list[int]:
        return [self._add(tenant, event) for tenant, event in events]

    def _add(self, tenant: str, event: Event) -> int:
        body = (event.user_id, event.item_id, event.timestamp)
        added = self._one(
            "INSERT INTO events (tenant, event_id, user_id, item_id, timestamp)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING version",
            (tenant, event.event_id, *body),
        )
        if added:
            self._do(
                "INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (tenant, event.user_id, added[0])
            )
            version: int = added[0]
            return version
        existing = self._one(
            "SELECT user_id, item_id, timestamp FROM events WHERE tenant = ? AND event_id = ?",
            (tenant, event.event_id),
        )
        return 0 if existing == body else -1

    def erase(self, user: User) -> int:
        events = super().erase(user)
        self._do("INSERT INTO erased VALUES (?)", (events,))
        return events

    def close(self) -> None:
        self._connection.close()
