"""The part of an SQL event log that is the same for all databases."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from recblr.data.times import unit_of
from recblr.serving.storage import (
    BEFORE_ALL_EVENTS,
    Event,
    EventKey,
    History,
    ServedModelInfo,
    Snapshot,
    StorageError,
    User,
    snapshot_counts,
)

FORMAT = 5  # of the tables
# Older formats. In 2 and 3, of version 0.1.0, the snapshots, a cache, had other columns; up to 4,
# events had no kind.
UPGRADABLE = (2, 3, 4)
OLD_SNAPSHOTS = (2, 3)
BY_USER = "(tenant, user_id, timestamp, event_id, item_id, kind)"  # what is read of a history


class SQLLog:
    """An EventLog of the tables ``events``, ``users``, ``snapshots`` and ``served``.

    Subclasses add ``lock``, ``versions``, ``add``, ``check`` and ``close``.
    """

    name: str
    _units: dict[str, str]  # of tenants
    local = False
    inside = False  # whether a transaction is open
    BEGIN: ClassVar[str]
    VIEW: ClassVar[str]
    ERRORS: ClassVar[type[Exception]]

    def _run(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Execute a statement with ``?`` placeholders and return all rows."""
        raise NotImplementedError

    def _in_transaction(self) -> bool:
        raise NotImplementedError

    def lock(self, users: Sequence[User]) -> list[int]:
        raise NotImplementedError

    def add(self, events: Sequence[tuple[str, Event]]) -> list[int]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _next_version(self) -> int:
        """A version that no event and no user has had."""
        raise NotImplementedError

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._begin(self.BEGIN):
            yield
            self._do("COMMIT")

    def unit(self, tenant: str) -> str:
        if tenant not in self._units:
            row = self._one("SELECT timestamp FROM events WHERE tenant = ? LIMIT 1", (tenant,))
            self._units[tenant] = (row and unit_of(row[0])) or "seconds"
        return self._units[tenant]

    def events(
        self, user: User, after: EventKey = BEFORE_ALL_EVENTS, limit: int | None = None
    ) -> History:
        return self._all(
            "SELECT timestamp, event_id, item_id, kind FROM events"
            " WHERE tenant = ? AND user_id = ? AND (timestamp, event_id) > (?, ?)"
            " ORDER BY timestamp, event_id LIMIT ?",
            (*user, *after, 2**62 if limit is None else limit),
        )

    def latest_events(self, user: User, limit: int) -> History:
        return self._all(
            "SELECT timestamp, event_id, item_id, kind FROM events WHERE tenant = ? AND user_id = ?"
            " ORDER BY timestamp DESC, event_id DESC LIMIT ?",
            (*user, limit),
        )[::-1]

    def user_of(self, tenant: str, event_id: str) -> str | None:
        row = self._one(
            "SELECT user_id FROM events WHERE tenant = ? AND event_id = ?", (tenant, event_id)
        )
        return row and row[0]

    def remove(self, user: User, event_id: str) -> tuple[EventKey, int] | None:
        row = self._one(
            "DELETE FROM events WHERE tenant = ? AND user_id = ? AND event_id = ?"
            " RETURNING timestamp, event_id",
            (*user, event_id),
        )
        if row is None:
            return None
        return (row[0], row[1]), self._change_version(user)

    def snapshot(self, user: User, model: str, count: int | None = None) -> Snapshot | None:
        row = self._one(
            "SELECT timestamp, event_id, count, known, vector FROM snapshots WHERE tenant = ?"
            " AND user_id = ? AND model = ? AND count <= ? ORDER BY count DESC LIMIT 1",
            (*user, model, 2**62 if count is None else count),
        )
        if row is None:
            return None
        timestamp, event_id, events, known, vector = row
        return Snapshot((timestamp, event_id), events, known, np.frombuffer(vector, np.float32))

    def add_snapshots(self, user: User, model: str, snapshots: Sequence[Snapshot]) -> None:
        for snapshot in snapshots:
            self._do(
                "INSERT INTO snapshots"
                " (tenant, user_id, count, known, timestamp, event_id, model, vector)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, user_id, count)"
                " DO UPDATE SET known = excluded.known, timestamp = excluded.timestamp,"
                " event_id = excluded.event_id, model = excluded.model, vector = excluded.vector",
                (*user, snapshot.count, snapshot.known, *snapshot.key, model,
                 snapshot.vector.tobytes()),
            )  # fmt: skip
        counts = snapshot_counts(max(snapshot.count for snapshot in snapshots))
        self._do(
            "DELETE FROM snapshots WHERE tenant = ? AND user_id = ?"
            f" AND (model != ? OR count NOT IN ({', '.join(map(str, counts))}))",
            (*user, model),
        )

    def drop_outdated(self, user: User, model: str) -> None:
        self._do(
            "DELETE FROM snapshots WHERE tenant = ? AND user_id = ? AND model != ?", (*user, model)
        )

    def drop_snapshots(self, user: User, after: EventKey) -> None:
        self._do(
            "DELETE FROM snapshots WHERE tenant = ? AND user_id = ?"
            " AND (timestamp, event_id) > (?, ?)",
            (*user, *after),
        )

    def erase(self, user: User) -> int:
        for table in ("snapshots", "users"):
            self._do(f"DELETE FROM {table} WHERE tenant = ? AND user_id = ?", user)
        return len(self._all(
            "DELETE FROM events WHERE tenant = ? AND user_id = ? RETURNING version", user
        ))  # fmt: skip

    def outdated_users(self, model: str, limit: int) -> list[User]:
        return self._all(
            "SELECT DISTINCT tenant, user_id FROM snapshots WHERE model != ? LIMIT ?",
            (model, limit),
        )

    def users(self) -> Iterable[User]:
        return self._all("SELECT tenant, user_id FROM users ORDER BY tenant, user_id")

    # ---- maintenance -----------------------------------------------------------------------------

    @contextmanager
    def view(self) -> Iterator[None]:
        """All reads inside the block see the log as it is at one moment."""
        with self._begin(self.VIEW):
            yield

    def compact(self) -> None:
        """Give back the space of removed events."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """The number of ``events`` and ``users``."""
        ((events,),) = self._all("SELECT count(*) FROM events")
        ((users,),) = self._all("SELECT count(*) FROM users")
        return {"events": events, "users": users}

    def tenants(self) -> list[str]:
        """The tenants with events, sorted."""
        rows = self._all("SELECT DISTINCT tenant FROM users ORDER BY tenant")
        return [tenant for (tenant,) in rows]

    def distinct(self, tenant: str, column: str) -> list[str]:
        """The ids or kinds in a column of the events of a tenant."""
        rows = self._all(f"SELECT DISTINCT {column} FROM events WHERE tenant = ?", (tenant,))
        return [name for (name,) in rows]

    def users_with_events(self, tenant: str, first: float, end: float) -> list[str]:
        """The users of a tenant with events from ``first`` until before ``end``."""
        rows = self._all(
            "SELECT DISTINCT user_id FROM events"
            " WHERE tenant = ? AND timestamp >= ? AND timestamp < ?",
            (tenant, first, end),
        )
        return [user_id for (user_id,) in rows]

    def remove_between(self, user: User, first: float, end: float) -> int:
        """Remove the events of a user from ``first`` until before ``end``; returns how many."""
        removed = len(self._all(
            "DELETE FROM events WHERE tenant = ? AND user_id = ? AND timestamp >= ?"
            " AND timestamp < ? RETURNING version",
            (*user, first, end),
        ))  # fmt: skip
        if removed:
            self.drop_snapshots(user, BEFORE_ALL_EVENTS)
            self._change_version(user)
        return removed

    def _change_version(self, user: User) -> int:
        """Give a user, of whom events were removed, a new version; 0 without events."""
        if not self.latest_events(user, 1):
            self._do("DELETE FROM users WHERE tenant = ? AND user_id = ?", user)
            return 0
        version = self._next_version()
        self._do("UPDATE users SET version = ? WHERE tenant = ? AND user_id = ?", (version, *user))
        return version

    # ---- servers ---------------------------------------------------------------------------------

    def users_of(self, tenant: str, limit: int) -> list[str]:
        rows = self._all(
            "SELECT user_id FROM users WHERE tenant = ? ORDER BY user_id LIMIT ?", (tenant, limit)
        )
        return [user_id for (user_id,) in rows]

    def record_start(self, started: str, folder: str, model: str) -> None:
        # The model in the same folder may have changed.
        self._do(
            "INSERT INTO served (one, folder, model, started) VALUES (1, ?, ?, ?)"
            " ON CONFLICT (one) DO UPDATE SET folder = excluded.folder, model = excluded.model,"
            " started = excluded.started WHERE served.started != excluded.started"
            " OR served.folder = excluded.folder",
            (folder, model, started),
        )

    def record_swap(self, folder: str, model: str) -> None:
        self._do("UPDATE served SET folder = ?, model = ?", (folder, model))

    def served_model(self) -> ServedModelInfo | None:
        row = self._one("SELECT folder, model, started FROM served")
        return row and ServedModelInfo(*row)

    @contextmanager
    def _begin(self, statement: str) -> Iterator[None]:
        """A transaction, which is rolled back unless the block has ended it."""
        self._do(statement)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
            if self._in_transaction():
                self._do("ROLLBACK")

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._run(sql, values)
        except self.ERRORS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(f"the event log failed: {reason}") from error

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return next(iter(self._all(sql, values)), None)

    def _do(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._all(sql, values)
