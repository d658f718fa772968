"""Which log and which cache a command line names."""

from pathlib import Path

from recblr.errors import InputError, from_extra
from recblr.serving.cache import LocalCache
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import Cache, Log

POSTGRESQL = ("postgresql://", "postgres://")


def open_stores(
    store: str, cache: str | None, users: int = 100_000, make: bool = True
) -> tuple[Log, Cache]:
    """The event log in a file or at a URL of PostgreSQL, and states at one of Redis, or of so many
    users in this process. ``make`` a file that is not there.

    Raises:
        InputError: one of them cannot be opened, or states are to be shared and the log is a file.
    """
    if not store.startswith(POSTGRESQL):
        if cache is not None:
            # A file gives the version of a transaction that was killed to the next one: the state of
            # the first, if it outlived the process, would be believed.
            raise InputError(
                "--cache is for a log that is shared; name one by --store postgresql://…"
            )
        if not make and not Path(store).exists():
            raise InputError(f"{store}: there is no such event log; name one by --store")
        return SQLiteLog(Path(store)), LocalCache(users)
    with from_extra("shared"):
        from recblr.serving.postgresql import PostgreSQLLog
        from recblr.serving.redis import RedisCache
    log = PostgreSQLLog(store)
    try:
        return log, LocalCache(users) if cache is None else RedisCache(cache, log.id)
    except InputError:
        log.close()
        raise
