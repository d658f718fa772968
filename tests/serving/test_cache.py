"""The cache of states, local and shared: it may lose states, but never returns a wrong one."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recblr.errors import InputError
from recblr.serving.local_cache import LocalCache
from recblr.serving.open_storage import open_storage
from recblr.serving.storage import State, StorageError
from serving.fixtures import Store

U, V, W = ("t", "u"), ("t", "v"), ("t", "w")


def state(version: int, model: str = "m") -> State:
    draw = np.random.default_rng(version)
    vector = draw.normal(size=7).astype(np.float32)
    return State(model, version, 3, (1.5, "é"), vector, array("i", [5, version % 97, 2**31 - 1]))


def assert_same(cached: State | None, expected: State) -> None:
    assert cached is not None
    assert cached.vector.tobytes() == expected.vector.tobytes()
    assert (cached.model, cached.version, cached.count, cached.last, cached.seen) == (
        expected.model, expected.version, expected.count, expected.last, expected.seen
    )  # fmt: skip


def test_put_get_and_erase(store: Store) -> None:
    cache = store.cache()
    assert cache.get([U, V]) == [None, None]
    assert cache.get([]) == []
    cache.put([])
    cache.put([(U, state(1)), (V, state(2**40))])
    of_u, of_v = cache.get([U, V])
    assert_same(of_u, state(1))
    assert_same(of_v, state(2**40))
    cache.put([(U, state(2, "n"))])
    assert_same(cache.get([U])[0], state(2, "n"))
    cache.put([(U, state(2, "m"))])  # another model, from the same events
    assert_same(cache.get([U])[0], state(2, "m"))
    cache.discard([])
    cache.erase(U, 2)
    cache.erase(("t", "nobody"), 0)
    assert cache.get([U, ("t", "nobody")]) == [None, None]
    assert_same(cache.get([V])[0], state(2**40))
    cache.put([(U, state(3))])  # after new events of an erased user
    assert_same(cache.get([U])[0], state(3))


def test_changes_of_a_returned_state_can_be_discarded(store: Store) -> None:
    cache = store.cache()
    cache.put([(U, state(1))])
    (cached,) = cache.get([U])
    assert cached is not None
    cached.seen.append(7)
    cache.discard([U, V])
    (cached,) = cache.get([U])
    assert cached is None or cached.seen == state(1).seen


def test_tenants_and_users_are_separate(store: Store) -> None:
    cache = store.cache()
    users = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("1:a", "b")]
    cache.put([(user, state(number)) for number, user in enumerate(users)])
    for number, cached in enumerate(cache.get(users)):
        assert_same(cached, state(number))


def test_the_least_recently_used_state_is_evicted() -> None:
    cache = LocalCache(2)
    cache.put([(U, state(1)), (V, state(2))])
    cache.get([U])
    cache.put([(W, state(3))])
    assert [cached is None for cached in cache.get([U, V, W])] == [False, True, False]


# ---- in Redis ------------------------------------------------------------------------------------


def test_a_state_does_not_replace_a_later_one(shared: Store) -> None:
    """From a delayed worker. Versions can be larger than 32 bits."""
    for number, (later, earlier) in enumerate([(5, 4), (2**33, 7), (2**33 + 1, 2**33), (300, 299)]):
        user = ("t", f"u{number}")
        one, other = shared.cache(), shared.cache()
        one.put([(user, state(later))])
        other.put([(V, state(1)), (user, state(earlier))])
        assert_same(one.get([user])[0], state(later))
        assert_same(one.get([V])[0], state(1))
        one.erase(user, later)
        other.put([(user, state(later))])  # delayed
        assert one.get([user]) == [None]
        other.put([(user, state(later + 1))])
        assert_same(one.get([user])[0], state(later + 1))


def test_user_ids_are_not_stored(shared: Store) -> None:
    cache: Any = shared.cache()
    cache.put([(("t", "nobody-knows-me"), state(1))])
    cache.erase(("t", "nobody-knows-me"), 1)
    keys = cache._redis.keys("*")
    assert keys
    assert not [key for key in keys if b"nobody" in key]
    assert {len(cache._redis.get(key)) for key in keys} == {8}  # the version, and no state


def test_logs_do_not_share_states(shared: Store) -> None:
    from recblr.serving.redis import RedisCache

    one, other = (RedisCache(shared.cache_url or "", log) for log in ("one", "other"))
    one.put([(U, state(1))])
    assert other.get([U]) == [None]


def test_invalid_values_are_ignored(shared: Store) -> None:
    cache: Any = shared.cache()
    for number, value in enumerate(
        (b"", b"short", b"\0" * 8, b"\0" * 8 + b"\x95\xa1m", b"\0" * 40)
    ):
        user = ("t", f"u{number}")
        cache._redis.set(cache._key(user), value)
        assert cache.get([user]) == [None]
        cache.put([(user, state(1))])
        assert_same(cache.get([user])[0], state(1))


def test_while_redis_fails_there_are_no_states(
    shared: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis import Redis

    from recblr.serving import redis

    monkeypatch.setattr(redis, "RETRY_SECONDS", 0.0)
    cache: Any = shared.cache()
    cache.put([(U, state(1))])
    working, cache._redis = cache._redis, Redis.from_url("redis://127.0.0.1:1")
    assert cache.get([U]) == [None]
    assert cache.get([U]) == [None]
    with pytest.raises(StorageError, match="the cache of states failed"):
        cache.erase(U, 1)
    cache._redis = working
    assert_same(cache.get([U])[0], state(1))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("--cache fails, states come from the log: ")
    assert lines[1] == "--cache answers again"


def test_a_cache_that_cannot_be_opened_is_refused(shared: Store, file: Store) -> None:
    with pytest.raises(InputError, match=r"^--cache: .*refused"):
        open_storage(shared.name, "redis://127.0.0.1:1")
    with pytest.raises(InputError, match=r"^--cache: "):
        open_storage(shared.name, "nonsense")
    with pytest.raises(InputError, match="--cache needs a shared event log"):
        open_storage(file.name, "redis://127.0.0.1")
    assert not Path(file.name).exists()
