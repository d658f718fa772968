"""The event log in PostgreSQL, for several processes on several machines.

Whoever changes a user's events holds an advisory lock of that user until the transaction ends, so that
they follow one another whichever worker they come to. A commit waits for the disk; a server that was
told not to (``fsync = off``) is refused. A worker that hangs loses its lock after ten seconds, and its
transaction with it.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from recblr.errors import InputError
from recblr.serving.events import Event, User, digest
from recblr.serving.sql import FORMAT, SQLLog

SETTINGS = """
SET search_path = recblr;
SET synchronous_commit = on;
SET client_encoding = 'UTF8';
SET lock_timeout = '15s';
SET idle_in_transaction_session_timeout = '10s';
"""
# Text is ordered by its bytes, as in SQLite and in Python, whatever the database's own rules.
TABLES = f"""
CREATE SCHEMA recblr;
CREATE TABLE recblr.format AS SELECT {FORMAT} AS format, gen_random_uuid()::text AS log;
CREATE TABLE recblr.events (
    version BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL, event_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL, item_id TEXT COLLATE "C" NOT NULL,
    timestamp DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX events_by_id ON recblr.events (tenant, event_id);
CREATE INDEX events_by_user ON recblr.events (tenant, user_id, timestamp, event_id, item_id);
CREATE TABLE recblr.users (
    tenant TEXT COLLATE "C" NOT NULL, user_id TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
CREATE TABLE recblr.snapshots (
    tenant TEXT COLLATE "C" NOT NULL, user_id TEXT COLLATE "C" NOT NULL, count BIGINT NOT NULL,
    timestamp DOUBLE PRECISION NOT NULL, event_id TEXT COLLATE "C" NOT NULL,
    model TEXT NOT NULL, vector BYTEA NOT NULL,
    PRIMARY KEY (tenant, user_id, count)
);
CREATE INDEX snapshots_by_model ON recblr.snapshots (model);
CREATE TABLE recblr.served (
    one INTEGER PRIMARY KEY, folder TEXT NOT NULL, model TEXT NOT NULL, started TEXT NOT NULL
);
"""
SCHEMA = 7_164_226  # the advisory lock of whoever makes the tables
LOCKS = 4096  # for all users: PostgreSQL has room for some 10,000 in all


class PostgreSQLLog(SQLLog):
    """A Log in the schema ``recblr`` of a database, made if it is not there.

    A lost connection fails what is being done, and is made anew for what comes next. ``id`` is the
    log's own, wherever it is moved.

    Raises:
        InputError: there is no such database, or it is not to be trusted with events.
    """

    BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # what was waited for is seen
    ERRORS = psycopg.Error

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            with closing(psycopg.connect(url, connect_timeout=5)) as connection:
                _prepare(connection)
            self._connection = self._connect()
            info = self._connection.info
            self.name = f"PostgreSQL {info.host}:{info.port}/{info.dbname}"
            ((self.id,),) = self._run("SELECT log FROM format")
        except psycopg.Error as error:
            raise InputError(f"--store: PostgreSQL: {str(error).strip().splitlines()[0]}") from None

    def _connect(self) -> "psycopg.Connection[Any]":
        connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=5, keepalives_idle=5,
            keepalives_interval=2, keepalives_count=3, tcp_user_timeout=10_000,
        )  # fmt: skip
        connection.execute(SETTINGS)
        return connection

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        if self._connection.closed and not self.inside:
            self._connection = self._connect()
        cursor = self._connection.execute(sql.replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []

    def _in_transaction(self) -> bool:
        status = self._connection.info.transaction_status
        return status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def lock(self, users: Sequence[User]) -> list[int]:
        # In one order, or two workers would wait for each other.
        keys = sorted({_key(user) for user in users})
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
            (tenant, it.event_id, it.user_id, it.item_id, float(it.timestamp))
            for tenant, it in events
        ]
        columns = [[body[number] for body in bodies] for number in range(5)]
        # In the order of their ids, so that two workers with the same ids do not wait for each other.
        added = {
            (tenant, event_id): version
            for tenant, event_id, version in self._all(
                "WITH added AS (INSERT INTO events (tenant, event_id, user_id, item_id, timestamp)"
                " SELECT tenant, event_id, user_id, item_id, timestamp"
                " FROM unnest(?::text[], ?::text[], ?::text[], ?::text[], ?::float8[])"
                " WITH ORDINALITY AS sent (tenant, event_id, user_id, item_id, timestamp, number)"
                ' ORDER BY tenant COLLATE "C", event_id COLLATE "C", number'
                " ON CONFLICT DO NOTHING RETURNING tenant, event_id, user_id, version),"
                " touched AS (INSERT INTO users SELECT tenant, user_id, max(version) FROM added"
                " GROUP BY tenant, user_id ON CONFLICT (tenant, user_id)"
                " DO UPDATE SET version = excluded.version)"
                " SELECT tenant, event_id, version FROM added",
                columns,
            )
        }
        there: set[tuple[Any, ...]] = set()
        if len(added) < len(events):
            there = set(self._all(
                "SELECT tenant, event_id, user_id, item_id, timestamp FROM events"
                " JOIN unnest(?::text[], ?::text[]) AS sent (tenant, event_id)"
                " USING (tenant, event_id)",
                columns[:2],
            ))  # fmt: skip
        # Of an id that is sent twice the first is the one that was added.
        return [added.pop(body[:2], 0 if body in there else -1) for body in bodies]

    def close(self) -> None:
        self._connection.close()


def _prepare(connection: "psycopg.Connection[Any]") -> None:
    """Make the tables if they are not there."""
    connection.execute("SET client_encoding = 'UTF8'")
    if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
        raise InputError("--store: ids are Unicode and this database is not; make one in UTF8")
    if connection.execute("SHOW fsync").fetchone() != ("on",):
        raise InputError(
            "--store: this PostgreSQL has fsync = off and would lose events; turn it on"
        )
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA,))
    if connection.execute("SELECT to_regnamespace('recblr')").fetchone() == (None,):
        connection.execute(TABLES)
    elif connection.execute("SELECT to_regclass('recblr.format')").fetchone() == (None,) or (
        connection.execute("SELECT format FROM recblr.format").fetchone() != (FORMAT,)
    ):
        raise InputError(
            "--store: the schema recblr of this database is of another version of recblr, or of "
            "something else; name another database"
        )
    connection.commit()


def _key(user: User) -> int:
    """Of the advisory lock; two users that share one wait for each other, no more."""
    return int.from_bytes(digest(user)) % LOCKS
