"""Copy, restore, export and shorten an event log, also while servers use it."""

import os
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recblr.data.times import FIRST, UNITS
from recblr.data.vocabulary import whole_number
from recblr.errors import InputError
from recblr.files import check_writable, new_file, write_errors
from recblr.progress import progress
from recblr.serving.open_storage import open_storage
from recblr.serving.sql import SQLLog
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event, batches

BATCH = 10_000  # events in one transaction or row group
DAY = 86_400.0


def backup(store: str, out: Path) -> dict[str, int]:
    """Copy the events of a log, as they are at one moment, into a new SQLite file.

    Returns:
        The number of ``events`` and ``users``.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another file")
    check_writable(out)
    with closing(_open(store)) as log, write_errors(out), new_file(out) as new:
        new.unlink(missing_ok=True)  # of a killed process
        if isinstance(log, SQLiteLog):
            log.copy_to(new)
        else:
            with closing(SQLiteLog(new)) as copy:
                _copy(log, copy)
        with closing(SQLiteLog(new)) as copy:
            counts = copy.counts()
        new.with_name(f"{new.name}.lock").unlink(missing_ok=True)
        with new.open("rb") as file:
            os.fsync(file.fileno())
    return counts


def restore(source: Path, store: str) -> dict[str, int]:
    """Add the events of a backup to a log that is empty or does not exist.

    Returns:
        The number of ``events`` and ``users``.
    """
    if not source.exists():
        raise InputError(f"{source}: no such backup")
    with closing(SQLiteLog(source, shared=True)) as copy:
        if copy.damage():
            raise InputError(f"{source} is damaged: {copy.damage()}; use another backup")
        log = open_storage(store, None)[0]
        with closing(log):
            assert isinstance(log, SQLLog)
            if log.counts()["users"]:
                raise InputError(f"{log.name} has events; restore into a new --store")
            _copy(copy, log)
            return log.counts()


def export(store: str, out: Path, tenant: str | None = None) -> dict[str, int]:
    """Write the events of a tenant to a Parquet file with user_id, item_id, timestamp and, if an event
    has one, kind.

    ``recblr train`` reads it. Ids are whole numbers if all ids of a column are. The events of a user
    are in order.

    Returns:
        The number of ``events`` and ``users``.
    """
    check_writable(out)
    counts = {"events": 0, "users": 0}
    with closing(_open(store)) as log, log.view():
        tenants = log.tenants()
        if tenant is None and len(tenants) > 1:
            raise InputError(f"{log.name} has several tenants; pass one of {tenants} with --tenant")
        tenant = tenants[0] if tenant is None and tenants else tenant
        if tenant not in tenants:
            raise InputError(f"{log.name} has no events of tenant {tenant!r}; it has {tenants}")
        schema = pa.schema({
            "user_id": _type(log.distinct(tenant, "user_id")),
            "item_id": _type(log.distinct(tenant, "item_id")),
            "timestamp": pa.float64(),
            **({"kind": pa.string()} if log.distinct(tenant, "kind") != [""] else {}),
        })  # fmt: skip
        users = [user for user in log.users() if user[0] == tenant]
        with (
            write_errors(out),
            new_file(out) as new,
            pq.ParquetWriter(new, schema) as writer,
            progress("exporting", len(users)) as advance,
        ):
            rows: list[tuple[Any, ...]] = []
            for user in users:
                events = log.events(user)
                rows += [
                    (user[1], item_id, timestamp, kind or None)[: len(schema)]
                    for timestamp, _, item_id, kind in events
                ]
                advance(1)
                if len(rows) >= BATCH or user is users[-1]:
                    writer.write_table(_table(rows, schema))
                    counts["events"] += len(rows)
                    rows = []
    return {**counts, "users": len(users)}


def compact(store: str, keep_days: float | None = None) -> dict[str, int]:
    """Remove the events that are older than ``keep_days``, and give back the space of removed events.

    Users are then as if the removed events had never been sent. Numbers that are no dates have no age.

    Returns:
        How many events were ``removed``, and how many ``events`` and ``users`` are left.
    """
    removed = 0
    with closing(_open(store)) as log:
        if keep_days is not None:
            for tenant in log.tenants():
                scale = UNITS["seconds"] / UNITS[log.unit(tenant)]
                first, end = FIRST * scale, (time.time() - keep_days * DAY) * scale
                users = log.users_with_events(tenant, first, end)
                with progress("removing old events", len(users)) as advance:
                    for user_id in users:
                        with log.transaction():
                            log.lock([(tenant, user_id)])
                            removed += log.remove_between((tenant, user_id), first, end)
                        advance(1)
        log.compact()
        return {"removed": removed, **log.counts()}


def _open(store: str) -> SQLLog:
    """An existing log, which servers may use at the same time."""
    log = open_storage(store, None, create=False, shared=True)[0]
    assert isinstance(log, SQLLog)
    return log


def _copy(source: SQLLog, target: SQLLog) -> None:
    """Add all events of one log to another, which is empty."""
    with source.view():
        users = list(source.users())
        events = (
            (tenant, Event(event_id, user_id, item_id, timestamp, kind))
            for tenant, user_id in users
            for timestamp, event_id, item_id, kind in source.events((tenant, user_id))
        )
        with progress("copying", source.counts()["events"]) as advance:
            for batch in batches(events, BATCH):
                with target.transaction():
                    target.add(batch)
                advance(len(batch))


def _type(ids: Iterable[str]) -> pa.DataType:
    """int64 if all ids are whole numbers as Python writes them, otherwise text."""
    whole = all(whole_number(name) is not None for name in ids)
    return pa.int64() if whole else pa.string()


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns: list[Any] = []
    for values, field in zip(zip(*rows, strict=True), schema, strict=True):
        whole = pa.types.is_integer(field.type)
        columns.append(pa.array([int(v) for v in values] if whole else list(values), field.type))
    return pa.Table.from_arrays(columns, schema=schema)
