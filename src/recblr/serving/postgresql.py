"""The event log in PostgreSQL, for several processes on several machines.

A transaction that changes the events of a user holds an advisory lock of that user until it ends, so
that changes by different workers follow one another. A commit waits for the disk; a database with
``fsync = off`` is refused. The transaction of a worker that hangs is rolled back after ten seconds,
which releases its locks.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from recblr.errors import InputError
from recblr.serving.settings import ServerSettings
from recblr.serving.sql import BY_USER, FORMAT, OLD_SNAPSHOTS, UPGRADABLE, SQLLog
from recblr.serving.storage import Event, StorageError, User, user_digest

SETTINGS = """
SET search_path = recblr;
SET synchronous_commit = on;
SET client_encoding = 'UTF8';
SET lock_timeout = '15s';
SET idle_in_transaction_session_timeout = '10s';
"""
# Text is sorted by its bytes, as in SQLite and in Python, whatever the collation of the database is.
SNAPSHOTS = """
CREATE TABLE recblr.snapshots (
    tenant TEXT COLLATE "C" NOT NULL, user_id TEXT COLLATE "C" NOT NULL, count BIGINT NOT NULL,
    known BIGINT NOT NULL, timestamp DOUBLE PRECISION NOT NULL, event_id TEXT COLLATE "C" NOT NULL,
    model TEXT NOT NULL, vector BYTEA NOT NULL,
    PRIMARY KEY (tenant, user_id, count)
);
CREATE INDEX snapshots_by_model ON recblr.snapshots (model);
"""
TABLES = f"""
CREATE SCHEMA recblr;
CREATE TABLE recblr.format AS SELECT {FORMAT} AS format, gen_random_uuid()::text AS log;
CREATE TABLE recblr.events (
    version BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL, event_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL, item_id TEXT COLLATE "C" NOT NULL,
    timestamp DOUBLE PRECISION NOT NULL, kind TEXT COLLATE "C" NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX events_by_id ON recblr.events (tenant, event_id);
CREATE INDEX events_by_user ON recblr.events {BY_USER};
CREATE TABLE recblr.users (
    tenant TEXT COLLATE "C" NOT NULL, user_id TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
{SNAPSHOTS}
CREATE TABLE recblr.served (
    one INTEGER PRIMARY KEY, folder TEXT NOT NULL, model TEXT NOT NULL, started TEXT NOT NULL
);
"""
ADD_KINDS = f"""
ALTER TABLE recblr.events ADD COLUMN kind TEXT COLLATE "C" NOT NULL DEFAULT '';
DROP INDEX recblr.events_by_user;
CREATE INDEX events_by_user ON recblr.events {BY_USER};
UPDATE recblr.format SET format = {FORMAT};
"""
SCHEMA_LOCK = 7_164_226  # the advisory lock while the tables are created
LOCK_SECONDS = 20.0  # for PostgreSQL to answer a statement that may wait for other workers
CONNECT_SECONDS = 2  # for a new connection
RETRY_SECONDS = 1.0  # pause after no connection could be made; calls fail at once
USER_LOCKS = 4096  # for all users together: PostgreSQL has room for about 10,000 locks


class PostgreSQLLog(SQLLog):
    """An EventLog in the schema ``recblr`` of a database, which is created if it does not exist.

    If the connection is lost, the current call fails and the next one connects again. ``id``
    identifies the log, also after it is moved to another database.

    Raises:
        InputError: there is no such database, or it is not safe for events.
    """

    BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # a transaction sees what it has waited for
    VIEW = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
    ERRORS = psycopg.Error
    _closed = False

    def __init__(self, url: str, seconds: float = ServerSettings.postgresql_seconds) -> None:
        self._url, self._units, self._call_seconds = url, {}, seconds
        self._retry_at, self._give_up_at = 0.0, float("inf")
        self._connection: psycopg.Connection[Any] | None = None
        try:
            with closing(psycopg.connect(url, connect_timeout=5)) as connection:
                _create_tables(connection)
            self._connection = self._connect()
            info = self._connection.info
            self.name = f"PostgreSQL {info.host}:{info.port}/{info.dbname}"
            threading.Thread(target=self._watch, name="deadlines", daemon=True).start()
            ((self.id,),) = self._run("SELECT log FROM format")
        except psycopg.Error as error:
            raise InputError(f"--store: PostgreSQL: {str(error).strip().splitlines()[0]}") from None

    def _connect(self) -> "psycopg.Connection[Any]":
        if time.monotonic() < self._retry_at:
            raise psycopg.OperationalError("PostgreSQL does not answer")
        self._retry_at = time.monotonic() + CONNECT_SECONDS + RETRY_SECONDS
        connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=CONNECT_SECONDS, keepalives_idle=5,
            keepalives_interval=2, keepalives_count=3, tcp_user_timeout=10_000,
        )  # fmt: skip
        with self._deadline(connection, self._call_seconds):
            connection.execute(SETTINGS)
        self._retry_at = 0.0
        return connection

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        if (self._connection is None or self._connection.closed) and not self.inside:
            self._connection = self._connect()
        assert self._connection is not None
        with self._deadline(self._connection, self._seconds(sql)):
            cursor = self._connection.execute(sql.replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []

    def _seconds(self, sql: str) -> float:
        """How long a statement may take."""
        if sql.startswith("VACUUM"):
            return float("inf")
        return LOCK_SECONDS if "lock" in sql else self._call_seconds

    @contextmanager
    def _deadline(self, connection: "psycopg.Connection[Any]", seconds: float) -> Iterator[None]:
        """Break the connection if the block takes longer; what waits in it then raises an error."""
        self._waited_for = connection
        self._give_up_at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._give_up_at = float("inf")

    def _watch(self) -> None:
        while not self._closed:
            if time.monotonic() > self._give_up_at:
                self._give_up_at = float("inf")
                with suppress(OSError, psycopg.Error):
                    file = socket.socket(fileno=os.dup(self._waited_for.fileno()))
                    file.shutdown(socket.SHUT_RDWR)
                    file.close()
            time.sleep(0.2)

    def _next_version(self) -> int:
        ((version,),) = self._all("SELECT nextval(pg_get_serial_sequence('events', 'version'))")
        return int(version)

    def compact(self) -> None:
        self._do("VACUUM events, snapshots, users")

    def check(self) -> None:
        with self.transaction():
            # Writes to the log of PostgreSQL, without a lock that other workers would wait for.
            self._do("SELECT pg_logical_emit_message(true, 'recblr', '')")
            if self._one("SELECT pg_is_in_recovery()") == (True,):
                raise StorageError("the event log failed: PostgreSQL is a read-only replica")

    def _in_transaction(self) -> bool:
        if self._connection is None:
            return False
        status = self._connection.info.transaction_status
        return status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def lock(self, users: Sequence[User]) -> list[int]:
        # All workers lock in the same order, which prevents deadlocks.
        keys = sorted({_lock_key(user) for user in users})
        self._do("SELECT pg_advisory_xact_lock(key) FROM unnest(?::bigint[]) AS key", (keys,))
        return self.versions(users)

    def versions(self, users: Sequence[User]) -> list[int]:
        rows = self._all(
            "SELECT coalesce(version, 0) FROM unnest(?::text[], ?::text[]) WITH ORDINALITY"
            " AS asked (tenant, user_id, number) LEFT JOIN users USING (tenant, user_id)"
            " ORDER BY number",
            ([tenant for tenant, _ in users], [user_id for _, user_id in users]),
        )
        return [version for (version,) in rows]

    def add(self, events: Sequence[tuple[str, Event]]) -> list[int]:
        bodies = [
            (
                tenant, event.event_id, event.user_id, event.item_id, float(event.timestamp),
                event.kind,
            )
            for tenant, event in events
        ]  # fmt: skip
        columns = [[body[number] for body in bodies] for number in range(6)]
        # All workers insert in the order of ids, which prevents deadlocks.
        added = {
            (tenant, event_id): version
            for tenant, event_id, version in self._all(
                "WITH added AS (INSERT INTO events"
                " (tenant, event_id, user_id, item_id, timestamp, kind)"
                " SELECT tenant, event_id, user_id, item_id, timestamp, kind"
                " FROM unnest(?::text[], ?::text[], ?::text[], ?::text[], ?::float8[], ?::text[])"
                " WITH ORDINALITY AS sent"
                " (tenant, event_id, user_id, item_id, timestamp, kind, number)"
                ' ORDER BY tenant COLLATE "C", event_id COLLATE "C", number'
                " ON CONFLICT DO NOTHING RETURNING tenant, event_id, user_id, version),"
                " touched AS (INSERT INTO users SELECT tenant, user_id, max(version) FROM added"
                " GROUP BY tenant, user_id ON CONFLICT (tenant, user_id)"
                " DO UPDATE SET version = excluded.version)"
                " SELECT tenant, event_id, version FROM added",
                columns,
            )
        }
        existing: set[tuple[Any, ...]] = set()
        if len(added) < len(events):
            existing = set(self._all(
                "SELECT tenant, event_id, user_id, item_id, timestamp, kind FROM events"
                " JOIN unnest(?::text[], ?::text[]) AS sent (tenant, event_id)"
                " USING (tenant, event_id)",
                columns[:2],
            ))  # fmt: skip
        # If an id was sent twice, the first event was added.
        return [added.pop(body[:2], 0 if body in existing else -1) for body in bodies]

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.close()


def _create_tables(connection: "psycopg.Connection[Any]") -> None:
    """Create the tables if they do not exist."""
    connection.execute("SET client_encoding = 'UTF8'")
    if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
        raise InputError(
            "--store: this database is not encoded in UTF8; create one with ENCODING 'UTF8'"
        )
    if connection.execute("SHOW fsync").fetchone() != ("on",):
        raise InputError(
            "--store: this PostgreSQL has fsync = off and would lose events; turn it on"
        )
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if connection.execute("SELECT to_regnamespace('recblr')").fetchone() == (None,):
        connection.execute(TABLES)
    else:
        found = None
        if connection.execute("SELECT to_regclass('recblr.format')").fetchone() != (None,):
            found = connection.execute("SELECT format FROM recblr.format").fetchone()
        if found is not None and found[0] in UPGRADABLE:
            if found[0] in OLD_SNAPSHOTS:
                connection.execute(f"DROP TABLE recblr.snapshots; {SNAPSHOTS}")
            connection.execute(ADD_KINDS)
        elif found != (FORMAT,):
            raise InputError(
                "--store: the schema recblr of this database is of another version of recblr or of "
                "another program; upgrade recblr, or choose another database"
            )
    connection.commit()


def _lock_key(user: User) -> int:
    """The key of a user's advisory lock. Users that share a lock wait for each other."""
    return int.from_bytes(user_digest(user)) % USER_LOCKS
