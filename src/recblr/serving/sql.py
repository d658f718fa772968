"""The part of an SQL event log that is the same for all databases."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from recblr.data.times import unit_of
from recblr.serving.storage import (
    EventKey,
    History,
    ServedModelInfo,
    Snapshot,
    StorageError,
    User,
    snapshot_counts,
)

FORMAT = 3


class SQLLog:
    """An EventLog of the tables ``events``, ``users``, ``snapshots`` and ``served``.

    Subclasses add ``lock``, ``versions``, ``add`` and ``close``.
    """

    name: str
    _units: dict[str, str]  # of tenants
    inside = False  # whether a transaction is open
    BEGIN: ClassVar[str]
    ERRORS: ClassVar[type[Exception]]

    def _run(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Execute a statement with ``?`` placeholders and return all rows."""
        raise NotImplementedError

    def _in_transaction(self) -> bool:
        raise NotImplementedError

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._do(self.BEGIN)
        self.inside = True
        try:
            yield
            self._do("COMMIT")
        finally:
            self.inside = False
            if self._in_transaction():
                self._do("ROLLBACK")

    def unit(self, tenant: str) -> str:
        if tenant not in self._units:
            row = self._one("SELECT timestamp FROM events WHERE tenant = ? LIMIT 1", (tenant,))
            self._units[tenant] = (row and unit_of(row[0])) or "seconds"
        return self._units[tenant]

    def events(self, user: User) -> History:
        return self._all(
            "SELECT timestamp, event_id, item_id FROM events"
            " WHERE tenant = ? AND user_id = ? ORDER BY timestamp, event_id",
            user,
        )

    def snapshot(self, user: User, model: str) -> Snapshot | None:
        row = self._one(
            "SELECT timestamp, event_id, count, vector FROM snapshots"
            " WHERE tenant = ? AND user_id = ? AND model = ? ORDER BY count DESC LIMIT 1",
            (*user, model),
        )
        return row and Snapshot((row[0], row[1]), row[2], np.frombuffer(row[3], np.float32))

    def add_snapshots(self, user: User, model: str, snapshots: Sequence[Snapshot]) -> None:
        for snapshot in snapshots:
            self._do(
                "INSERT INTO snapshots (tenant, user_id, count, timestamp, event_id, model, vector)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, user_id, count)"
                " DO UPDATE SET timestamp = excluded.timestamp, event_id = excluded.event_id,"
                " model = excluded.model, vector = excluded.vector",
                (*user, snapshot.count, *snapshot.key, model, snapshot.vector.tobytes()),
            )
        counts = snapshot_counts(max(snapshot.count for snapshot in snapshots))
        self._do(
            "DELETE FROM snapshots WHERE tenant = ? AND user_id = ?"
            f" AND (model != ? OR count NOT IN ({', '.join(map(str, counts))}))",
            (*user, model),
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
