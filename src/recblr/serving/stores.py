"""Which log and which cache a command line names."""

from pathlib import Path

from recblr.errors import InputError, from_extra
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import Cache, Log

POSTGRESQL = ("postgresql://", "postgres://")


def open_log(store: str) -> Log:
    """The event log in a file or at a URL of PostgreSQL.

    Raises:
        InputError: it cannot be opened.
    """
    if not store.startswith(POSTGRESQL):
        return SQLiteLog(Path(store))
    with from_extra("shared"):
        from recblr.serving.postgresql import PostgreSQLLog
    return PostgreSQLLog(store)


def open_cache(url: str, store: str) -> Cache:
    """States at a URL of Redis.

    Raises:
        InputError: it does not answer, or the log is a file.
    """
    if not store.startswith(POSTGRESQL):
        # A file gives the version of a transaction that was killed to the next one: the state of
        # the first, if it outlives the process, would be believed.
        raise InputError("--cache is for a log that is shared; name one by --store postgresql://…")
    with from_extra("shared"):
        from recblr.serving.redis import RedisCache
    return RedisCache(url)
