"""A cache of user states in Redis or Valkey, shared by the workers of one PostgreSQL log.

A worker uses a state only if it has the version that the log has for the user. A state that Redis
loses, evicts or receives late therefore costs a replay and has no other effect.
"""

import logging
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from recblr.errors import InputError
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import State, StorageError, User, user_digest

log = logging.getLogger("recblr.storage")

STATE_SECONDS = 7 * 24 * 3600  # a state expires so long after its last event
ERASED_SECONDS = 3600  # the mark of an erased user expires then; no worker is delayed longer
RETRY_SECONDS = 1.0  # pause after Redis has failed
# A delayed worker must not replace a later state by an earlier one. The value begins with the version.
PUT = """
for number, key in ipairs(KEYS) do
  local value = ARGV[number + 1]
  local there = redis.call('GETRANGE', key, 0, 7)
  if #there < 8 or struct.unpack('>l', there) <= struct.unpack('>l', value) then
    redis.call('SET', key, value, 'EX', ARGV[1])
  end
end
"""


class _Body(msgspec.Struct, array_like=True):
    model: str
    count: int
    last: tuple[float, str]
    vector: bytes
    seen: bytes


class RedisCache:
    """A StateCache in Redis. While Redis does not answer, states are computed from the log.

    Args:
        url: the URL of Redis.
        log: the id of the log, because versions of different logs are unrelated.
        seconds: the time for Redis to answer.

    Raises:
        InputError: Redis does not answer.
    """

    def __init__(self, url: str, log: str, seconds: float = ServerSettings.redis_seconds) -> None:
        self._log = log
        try:
            self._redis = Redis.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds,
                retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
            self._redis.ping()
        except (RedisError, ValueError) as error:
            raise InputError(f"--cache: {error}") from None
        self._put = self._redis.register_script(PUT)
        self._retry_at = 0.0
        self._available = True

    def get(self, users: Sequence[User]) -> list[State | None]:
        values: list[Any] = [None] * len(users)
        if users and time.monotonic() >= self._retry_at:
            try:
                values = self._redis.mget([self._key(user) for user in users])
                self._note(None)
            except RedisError as error:
                self._note(error)
        return [_decoded(value) if value else None for value in values]

    def __contains__(self, user: object) -> bool:
        return False  # in the memory of another process

    def put(self, states: Sequence[tuple[User, State]]) -> None:
        if states and time.monotonic() >= self._retry_at:
            keys = [self._key(user) for user, _ in states]
            try:
                self._put(keys, [STATE_SECONDS, *(_encoded(state) for _, state in states)])
                self._note(None)
            except RedisError as error:
                self._note(error)

    def discard(self, users: Iterable[User]) -> None:
        pass  # get returns copies

    def check(self) -> None:
        if time.monotonic() < self._retry_at:
            raise StorageError("the cache of states does not answer")
        try:
            self._redis.ping()
            self._note(None)
        except RedisError as error:
            self._note(error)
            raise StorageError(f"the cache of states failed: {error}") from error

    def close(self) -> None:
        self._redis.close()

    def erase(self, user: User, version: int) -> None:
        try:  # store the next version without a state
            self._redis.set(self._key(user), (version + 1).to_bytes(8), ex=ERASED_SECONDS)
        except RedisError as error:
            raise StorageError(f"the cache of states failed: {error}") from error

    def _key(self, user: User) -> str:
        return f"recblr:{user_digest(user, self._log).hex()}"

    def _note(self, error: RedisError | None) -> None:
        """Note whether Redis answered, and log a line when that changes."""
        if (error is None) != self._available:
            change = (
                "answers again" if error is None else f"fails, states come from the log: {error}"
            )
            log.warning("--cache %s", change)
        self._available = error is None
        self._retry_at = 0.0 if error is None else time.monotonic() + RETRY_SECONDS


def _encoded(state: State) -> bytes:
    body = _Body(state.model, state.count, state.last, state.vector.tobytes(), state.seen.tobytes())
    return state.version.to_bytes(8) + msgspec.msgpack.encode(body)


def _decoded(value: bytes) -> State | None:
    try:
        body = msgspec.msgpack.decode(memoryview(value)[8:], type=_Body)
    except msgspec.DecodeError:
        return None
    vector, seen = np.frombuffer(body.vector, np.float32), array("i", body.seen)
    return State(body.model, int.from_bytes(value[:8]), body.count, body.last, vector, seen)
