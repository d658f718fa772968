"""States in Redis or Valkey, for the workers of one PostgreSQL log to share.

A state is believed only with the version that the log has for its user, so that whatever is lost, late
or evicted here costs a replay and nothing else.
"""

import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from redis import Redis, RedisError

from recblr.errors import InputError
from recblr.serving.events import User, digest
from recblr.serving.store import State, StoreError

KEPT = 7 * 24 * 3600  # seconds that a state is kept after its last event
ERASED = 3600  # and that it is remembered that one was erased: no worker is held up for longer
PAUSE = 1.0  # seconds without asking again after Redis has failed
TIMEOUT = 1.0  # seconds to wait for it
# A worker that was held up must not put its state over a later one. The value begins with the version.
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
    """A Cache at a URL. While Redis does not answer, states are made from the log.

    Args:
        url: of Redis.
        log: the identity of the log: another one has versions of its own.

    Raises:
        InputError: it does not answer at the start.
    """

    def __init__(self, url: str, log: str) -> None:
        self._log = log
        try:
            self._redis = Redis.from_url(
                url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
            )
            self._redis.ping()
        except (RedisError, ValueError) as error:
            raise InputError(f"--cache: {error}") from None
        self._put = self._redis.register_script(PUT)
        self._again = 0.0  # when it may be asked again
        self._works = True

    def get(self, users: Sequence[User]) -> list[State | None]:
        found: list[Any] = [None] * len(users)
        if users and time.monotonic() >= self._again:
            try:
                found = self._redis.mget([self._key(user) for user in users])
                self._answered(None)
            except RedisError as error:
                self._answered(error)
        return [_decoded(value) if value else None for value in found]

    def put(self, states: Sequence[tuple[User, State]]) -> None:
        if states and time.monotonic() >= self._again:
            keys = [self._key(user) for user, _ in states]
            try:
                self._put(keys, [KEPT, *(_encoded(state) for _, state in states)])
                self._answered(None)
            except RedisError as error:
                self._answered(error)

    def undo(self, users: Iterable[User]) -> None:
        pass  # what was given out was a copy

    def erase(self, user: User, version: int) -> None:
        try:  # a version without a state
            self._redis.set(self._key(user), (version + 1).to_bytes(8), ex=ERASED)
        except RedisError as error:
            raise StoreError(f"the cache of states failed: {error}") from error

    def _key(self, user: User) -> str:
        return f"recblr:{digest(user, self._log).hex()}"

    def _answered(self, error: RedisError | None) -> None:
        if (error is None) != self._works:
            said = "answers again" if error is None else f"fails, states come from the log: {error}"
            print(f"--cache {said}", file=sys.stderr, flush=True)
        self._works = error is None
        self._again = 0.0 if error is None else time.monotonic() + PAUSE


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
