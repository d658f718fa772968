"""Open the event log and the cache that a command line names."""

from pathlib import Path

from recblr.errors import InputError, from_extra
from recblr.serving.local_cache import LocalCache
from recblr.serving.settings import POSTGRESQL, ServerSettings
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import EventLog, StateCache


def open_storage(
    store: str,
    cache: str | None,
    cached_users: int = ServerSettings.cached_users,
    create: bool = True,
    shared: bool = False,
    postgresql_seconds: float = ServerSettings.postgresql_seconds,
    redis_seconds: float = ServerSettings.redis_seconds,
) -> tuple[EventLog, StateCache]:
    """Open an event log and a cache of states.

    Args:
        store: a SQLite file or a URL of PostgreSQL.
        cache: a URL of Redis; None for a cache in this process.
        cached_users: the size of a cache in this process.
        create: whether to create a file that does not exist.
        shared: whether a server may use the file at the same time.
        postgresql_seconds: the time for PostgreSQL to answer.
        redis_seconds: … for Redis.

    Raises:
        InputError: one of them cannot be opened, or the log is a file and the cache is not local.
    """
    if not store.startswith(POSTGRESQL):
        if cache is not None:
            # If a process is killed during a transaction, SQLite gives the same version to the next
            # transaction. A shared cache could then hold a state that matches the version but not the
            # events.
            raise InputError("--cache needs a shared event log; pass --store postgresql://…")
        if "://" in store:
            raise InputError(f"--store {store}: give a file, or postgresql://… for a database")
        if Path(store).is_dir():
            raise InputError(f"--store {store!r} is a folder; give a file")
        if not create and not Path(store).exists():
            raise InputError(f"{store}: no such event log; pass another with --store")
        return SQLiteLog(Path(store), shared), LocalCache(cached_users)
    with from_extra("shared"):
        from recblr.serving.postgresql import PostgreSQLLog
        from recblr.serving.redis import RedisCache
    log = PostgreSQLLog(store, postgresql_seconds)
    try:
        if cache is None:
            return log, LocalCache(cached_users)
        return log, RedisCache(cache, log.id, redis_seconds)
    except InputError:
        log.close()
        raise
