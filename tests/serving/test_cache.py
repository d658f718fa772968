"""The cache of states, whichever it is: it loses what it likes and makes nothing up."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recblr.errors import InputError
from recblr.serving.cache import LocalCache
from recblr.serving.store import State, StoreError
from recblr.serving.stores import open_stores
from serving.fixtures import Store

U, V = ("t", "u"), ("t", "v")


def state(version: int, model: str = "m") -> State:
    draw = np.random.default_rng(version)
    vector = draw.normal(size=7).astype(np.float32)
    return State(model, version, 3, (1.5, "é"), vector, array("i", [5, version % 97, 2**31 - 1]))


def same(found: State | None, wanted: State) -> None:
    assert found is not None
    assert found.vector.tobytes() == wanted.vector.tobytes()
    assert (found.model, found.version, found.count, found.last, found.seen) == (
        wanted.model, wanted.version, wanted.count, wanted.last, wanted.seen
    )  # fmt: skip


def test_what_is_put_is_found(store: Store) -> None:
    cache = store.cache()
    assert cache.get([U, V]) == [None, None]
    assert cache.get([]) == []
    cache.put([])
    cache.put([(U, state(1)), (V, state(2**40))])
    of_u, of_v = cache.get([U, V])
    same(of_u, state(1))
    same(of_v, state(2**40))
    cache.put([(U, state(2, "n"))])
    same(cache.get([U])[0], state(2, "n"))
    cache.put([(U, state(2, "m"))])  # another model, made from the same events
    same(cache.get([U])[0], state(2, "m"))
    cache.undo([])
    cache.erase(U, 2)
    cache.erase(("t", "nobody"), 0)
    assert cache.get([U, ("t", "nobody")]) == [None, None]
    same(cache.get([V])[0], state(2**40))
    cache.put([(U, state(3))])  # one that came after all
    same(cache.get([U])[0], state(3))


def test_what_was_given_out_and_changed_is_forgotten(store: Store) -> None:
    cache = store.cache()
    cache.put([(U, state(1))])
    (found,) = cache.get([U])
    assert found is not None
    found.seen.append(7)
    cache.undo([U, V])
    assert cache.get([U]) == [None] or cache.get([U])[0].seen == state(1).seen


def test_tenants_and_users_are_apart(store: Store) -> None:
    cache = store.cache()
    users = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("1:a", "b")]
    cache.put([(user, state(number)) for number, user in enumerate(users)])
    for number, found in enumerate(cache.get(users)):
        same(found, state(number))


def test_those_used_longest_ago_are_forgotten() -> None:
    cache = LocalCache(2)
    cache.put([(U, state(1)), (V, state(2))])
    cache.get([U])
    cache.put([(("t", "w"), state(3))])
    assert [it is None for it in cache.get([U, V, ("t", "w")])] == [False, True, False]


def test_a_state_is_not_put_over_a_later_one(shared: Store) -> None:
    """By a worker that was held up; versions are beyond what fits into 32 bits."""
    for number, (before, after) in enumerate([(5, 4), (2**33, 7), (2**33 + 1, 2**33), (300, 299)]):
        user = ("t", f"u{number}")
        one, other = shared.cache(), shared.cache()
        one.put([(user, state(before))])
        other.put([(V, state(1)), (user, state(after))])
        same(one.get([user])[0], state(before))
        same(one.get([V])[0], state(1))
        one.erase(user, before)
        other.put([(user, state(before))])  # late
        assert one.get([user]) == [None]
        other.put([(user, state(before + 1))])
        same(one.get([user])[0], state(before + 1))


def test_a_user_is_not_named_in_the_cache(shared: Store) -> None:
    cache: Any = shared.cache()
    cache.put([(("t", "nobody-knows-me"), state(1))])
    cache.erase(("t", "nobody-knows-me"), 1)
    assert not [key for key in cache._redis.keys("*") if b"nobody" in key]
    assert not [it for it in cache._redis.keys("*") if len(cache._redis.get(it)) != 8]


def test_logs_do_not_share_states(shared: Store) -> None:
    from recblr.serving.redis import RedisCache

    one, other = (RedisCache(shared.url or "", log) for log in ("one", "other"))
    one.put([(U, state(1))])
    assert other.get([U]) == [None]


def test_what_is_not_a_state_is_passed_over(shared: Store) -> None:
    cache: Any = shared.cache()
    for number, value in enumerate(
        (b"", b"short", b"\0" * 8, b"\0" * 8 + b"\x95\xa1m", b"\0" * 40)
    ):
        user = ("t", f"u{number}")
        cache._redis.set(cache._key(user), value)
        assert cache.get([user]) == [None]
        cache.put([(user, state(1))])
        same(cache.get([user])[0], state(1))


def test_a_cache_that_fails_costs_nothing_but_time(
    shared: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis import Redis

    from recblr.serving import redis

    monkeypatch.setattr(redis, "PAUSE", 0.0)
    cache: Any = shared.cache()
    cache.put([(U, state(1))])
    works, cache._redis = cache._redis, Redis(port=1)
    assert cache.get([U]) == [None]
    assert cache.get([U]) == [None]
    with pytest.raises(StoreError, match="the cache of states failed"):  # it could not forget
        cache.erase(U, 1)
    cache._redis = works
    same(cache.get([U])[0], state(1))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("--cache fails, states come from the log: ")
    assert said[1] == "--cache answers again"


def test_a_cache_that_is_not_there_is_refused(shared: Store, file: Store) -> None:
    with pytest.raises(InputError, match=r"^--cache: .*refused"):
        open_stores(shared.name, "redis://127.0.0.1:1")
    with pytest.raises(InputError, match=r"^--cache: "):
        open_stores(shared.name, "nonsense")
    with pytest.raises(InputError, match="--cache is for a log that is shared"):
        open_stores(file.name, "redis://127.0.0.1")
    assert not Path(file.name).exists()
