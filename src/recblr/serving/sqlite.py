"""The event log in a SQLite file, for one process. It needs no other server.

A transaction is on disk when it is committed: ``synchronous`` is FULL, because with NORMAL and a
write-ahead log a power cut loses committed transactions. A server locks the file beside it that ends
in ``.lock``, so that there is one; backups and exports may read at the same time. An erasure removes a
user from all tables at once; leftover bytes in the file are removed when it is opened the next time.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
from filelock import FileLock, Timeout

from recblr.errors import InputError
from recblr.serving.sql import BY_USER, FORMAT, OLD_SNAPSHOTS, UPGRADABLE, SQLLog
from recblr.serving.storage import Event, EventKey, StorageError, User

PRAGMAS = (
    "journal_mode = wal",
    "synchronous = full",
    "secure_delete = on",  # deleted rows are overwritten
    "cache_size = -65536",  # KiB
)
SNAPSHOTS = """
CREATE TABLE snapshots (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, count INTEGER NOT NULL,
    known INTEGER NOT NULL, timestamp REAL NOT NULL, event_id TEXT NOT NULL, model TEXT NOT NULL,
    vector BLOB NOT NULL, PRIMARY KEY (tenant, user_id, count)
) STRICT;
CREATE INDEX snapshots_by_model ON snapshots (model);
"""
TABLES = f"""
CREATE TABLE events (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, event_id TEXT NOT NULL,
    user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp REAL NOT NULL,
    kind TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX events_by_id ON events (tenant, event_id);
CREATE INDEX events_by_user ON events {BY_USER};
CREATE TABLE users (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (tenant, user_id)
) STRICT, WITHOUT ROWID;
{SNAPSHOTS}
CREATE TABLE served (
    one INTEGER PRIMARY KEY, folder TEXT NOT NULL, model TEXT NOT NULL, started TEXT NOT NULL
) STRICT;
CREATE TABLE erased (events INTEGER NOT NULL) STRICT;
"""
ADD_KINDS = f"""
ALTER TABLE events ADD COLUMN kind TEXT NOT NULL DEFAULT '';
DROP INDEX events_by_user;
CREATE INDEX events_by_user ON events {BY_USER};
"""
BUSY_MILLISECONDS = 5_000  # for another process to end its transaction
CHECK_BYTES = 1 << 16  # that the disk must have room for


class SQLiteLog(SQLLog):
    """An EventLog in a file, which is created if it does not exist.

    Raises:
        InputError: the file is not an event log, or another process has it open.
    """

    BEGIN = "BEGIN IMMEDIATE"
    VIEW = "BEGIN"
    ERRORS = apsw.Error
    local = True

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.name, self._units = str(path), {}
        self._lock = None if shared else FileLock(f"{path.absolute()}.lock", mode=0o600, timeout=0)
        # The absolute path, as SQLite keeps "" and ":memory:" in memory.
        self._path = path.absolute()
        try:
            with _open_errors(path):
                self._open(path, shared)
        except BaseException:
            if self._lock is not None and self._lock.is_locked:
                Path(self._lock.lock_file).unlink()
                self._lock.release()
            raise

    def _open(self, path: Path, shared: bool) -> None:
        if self._path.parent.is_dir():  # otherwise SQLite says what is wrong
            self._path.touch(mode=0o600)
            self._path.chmod(0o600)
            if self._lock is not None:
                self._lock.acquire()
        self._connection = apsw.Connection(str(self._path))
        self._connection.set_busy_timeout(BUSY_MILLISECONDS)
        for pragma in PRAGMAS:
            self._run(f"PRAGMA {pragma}")
        self._prepare_tables(path)
        # Pages keep copies of rows that SQLite has moved.
        if not shared and self._run("SELECT * FROM erased LIMIT 1"):
            self._compact()
        self._file = _identity(self._path)

    def _prepare_tables(self, path: Path) -> None:
        """Create the tables, or upgrade those of an older format."""
        self._run(self.BEGIN)
        ((version,),) = self._run("PRAGMA user_version")
        if version == 0 and self._run("SELECT count(*) FROM sqlite_schema") == [(0,)]:
            self._run(TABLES)
        elif version in UPGRADABLE:
            if version in OLD_SNAPSHOTS:
                self._run("DROP TABLE snapshots")
                self._run(SNAPSHOTS)
            self._run(ADD_KINDS)
        elif version != FORMAT:
            raise InputError(
                f"{path} is not an event log that this version of recblr can read; upgrade recblr, "
                "or choose another file"
            )
        if version != FORMAT:
            self._run(f"PRAGMA user_version = {FORMAT}")
        self._run("COMMIT")

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
        body = (event.user_id, event.item_id, event.timestamp, event.kind)
        added = self._one(
            "INSERT INTO events (tenant, event_id, user_id, item_id, timestamp, kind)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING version",
            (tenant, event.event_id, *body),
        )
        if added:
            self._do(
                "INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (tenant, event.user_id, added[0])
            )
            version: int = added[0]
            return version
        existing = self._one(
            "SELECT user_id, item_id, timestamp, kind FROM events WHERE tenant = ? AND event_id = ?",
            (tenant, event.event_id),
        )
        return 0 if existing == body else -1

    def erase(self, user: User) -> int:
        events = super().erase(user)
        self._do("INSERT INTO erased VALUES (?)", (events,))
        return events

    def _next_version(self) -> int:
        self._do("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'events'")
        ((version,),) = self._all("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(version)

    def remove(self, user: User, event_id: str) -> tuple[EventKey, int] | None:
        removed = super().remove(user, event_id)
        if removed is not None:
            self._do("INSERT INTO erased VALUES (1)")
        return removed

    def check(self) -> None:
        try:
            if _identity(self._path) != self._file:
                raise StorageError(f"{self.name} was replaced by another file; restart the server")
            with tempfile.TemporaryFile(dir=self._path.parent) as file:
                file.write(bytes(CHECK_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"events cannot be added to {self.name}: {error.strerror or error}"
            ) from None
        with self.transaction():
            self._do(f"PRAGMA user_version = {FORMAT}")  # a write of one page

    def _compact(self) -> None:
        for statement in ("DELETE FROM erased", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            self._run(statement)

    def compact(self) -> None:
        try:
            self._compact()
        except apsw.Error as error:
            raise StorageError(f"the event log failed: {error}") from error

    def copy_to(self, path: Path) -> None:
        """Write a copy of the log, as it is at one moment, to a new file."""
        path.touch(mode=0o600)
        self._do("VACUUM INTO ?", (str(path.absolute()),))

    def damage(self) -> str:
        """What is wrong with the file; empty if nothing is."""
        (first, *_) = self._all("PRAGMA integrity_check(1)")
        return "" if first == ("ok",) else str(first[0])

    def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            self._lock.release()


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file from another of the same name."""
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def _open_errors(path: Path) -> Iterator[None]:
    """Turn an error of opening a file into an InputError that says what to do."""
    try:
        yield
    except apsw.NotADBError:
        raise InputError(f"{path} is not a SQLite file; choose another file") from None
    except apsw.CantOpenError:
        raise InputError(f"{path} cannot be opened; does its folder exist?") from None
    except (apsw.BusyError, Timeout):
        raise InputError(
            f"{path} is open in another process; stop that server or choose another file"
        ) from None
    except (apsw.Error, OSError) as error:  # a damaged file, a read-only file, a full disk
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} cannot be used as an event log ({reason}); restore it from a backup, or "
            "choose another file"
        ) from None
