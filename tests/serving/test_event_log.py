"""The event log, whichever it is: it keeps what it says, and no more."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.errors import InputError
from recblr.serving.events import Event
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import BEGINNING, Log, Snapshot, StoreError, kept
from recblr.serving.stores import open_stores
from serving.fixtures import Store

U, V = ("t", "u"), ("t", "v")


@pytest.fixture
def log(store: Store) -> Iterator[Log]:
    log = store.log()
    yield log
    log.close()


def add(log: Log, *events: Event, tenant: str = "t") -> list[int]:
    with log.transaction():
        return log.add([(tenant, it) for it in events])


def event(number: int, user: str = "u", timestamp: float | None = None) -> Event:
    return Event(f"e{number}", user, f"i{number}", number if timestamp is None else timestamp)


def snapshot(count: int) -> Snapshot:
    return Snapshot((float(count), f"e{count}"), count, np.full(3, count, np.float32))


def test_events_come_back_in_order(log: Log) -> None:
    events = [event(number, timestamp=number // 3) for number in range(30)]
    random.Random(0).shuffle(events)
    versions = add(log, *events[:10]) + add(log, *events[10:])
    assert len(set(versions)) == 30
    assert 0 < max(versions[:10]) < min(versions[10:])
    in_order = sorted((it.timestamp, it.event_id, it.item_id) for it in events)
    assert log.events(U) == in_order
    assert log.versions([U, V, U]) == [max(versions), 0, max(versions)]
    assert log.versions([]) == []
    assert log.events(V) == []
    assert list(log.users()) == [U]


def test_ids_are_ordered_by_their_bytes(log: Log) -> None:
    """As Python orders text, whatever language the database speaks."""
    ids = ["a", "B", "é", "_", "É", "z", "aa", "a b", "10", "9", "💡", "ﬀ", "-a"]
    add(
        log,
        *(Event(it, it, "i", 1.0) for it in ids),
        *(Event(f"u{it}", "u", it, 1.0) for it in ids),
    )
    assert [it[2] for it in log.events(U)] == sorted(ids)
    assert log.users_of("t", 100) == sorted([*ids, "u"])


def test_an_event_counts_once(log: Log) -> None:
    others = event(1, "v"), event(1, timestamp=2.0), event(1)._replace(item_id="x")
    (version,) = add(log, event(1))
    assert add(log, event(1), *others, event(1)) == [0, -1, -1, -1, 0]
    assert log.versions([U, V]) == [version, 0]
    assert log.events(U) == [(1.0, "e1", "i1")]
    assert add(log) == []


def test_the_first_of_an_id_counts(log: Log) -> None:
    """Of those sent together."""
    first, *others = event(1), event(1, "v"), event(1), event(0), event(0, "v")
    versions = add(log, first, *others)
    assert [version > 0 for version in versions] == [True, False, False, True, False]
    assert versions[1:3] == [-1, 0]
    assert versions[4] == -1
    assert log.versions([U, V]) == [max(versions), 0]
    assert log.events(U) == [(0.0, "e0", "i0"), (1.0, "e1", "i1")]


def test_tenants_are_apart(log: Log) -> None:
    assert add(log, event(1)) > [0]
    assert add(log, event(1, timestamp=5.0), tenant="s") > [0]
    assert log.events(U) == [(1.0, "e1", "i1")]
    assert log.events(("s", "u")) == [(5.0, "e1", "i1")]
    with log.transaction():
        assert log.erase(U) == 1
    assert log.events(("s", "u")) == [(5.0, "e1", "i1")]


def test_a_transaction_happens_wholly_or_not(log: Log) -> None:
    add(log, event(1))
    before = log.versions([U])

    def half() -> None:
        with log.transaction():
            log.add([("t", event(2))])
            log.keep(U, "m", [snapshot(64)])
            log.erase(V)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert log.events(U) == [(1.0, "e1", "i1")]
    assert log.versions([U]) == before
    assert log.snapshot(U, "m") is None


def test_snapshots_are_of_one_model_and_fewer_the_older(log: Log) -> None:
    assert log.snapshot(U, "m") is None
    with log.transaction():
        log.keep(U, "m", [snapshot(64), snapshot(128)])
        log.keep(V, "m", [snapshot(64)])
        log.keep(U, "m", [snapshot(192)])
    found = log.snapshot(U, "m")
    assert found is not None
    assert (found.key, found.count, found.vector.tolist()) == ((192.0, "e192"), 192, [192.0] * 3)
    with log.transaction():
        log.drop(U, (150.0, ""))
    found = log.snapshot(U, "m")
    assert found is not None
    assert found.count == 128
    with log.transaction():
        log.drop(U, (128.0, "e128"))  # what is at the place itself stays
    assert log.snapshot(U, "m") is not None
    with log.transaction():
        log.drop(U, (127.0, "e127"))
    assert log.snapshot(U, "m") is None  # 64 went when 192 came
    with log.transaction():
        log.keep(U, "m", [snapshot(count) for count in range(128, 64 * 21, 64)])
    counts = []
    while found := log.snapshot(U, "m"):
        counts.append(found.count // 64)
        with log.transaction():
            log.drop(U, (found.count - 1.0, ""))
    assert counts == [20, 19, 18, 16, 8]

    assert log.outdated("m", 9) == []
    assert log.outdated("n", 9) == [V]
    with log.transaction():
        log.keep(V, "n", [snapshot(64)])
    assert log.outdated("n", 9) == []
    assert log.snapshot(V, "m") is None
    with log.transaction():
        log.drop(V, BEGINNING)
    assert log.snapshot(V, "n") is None


@given(count=st.integers(0, 100_000), late=st.integers(0, 100_000))
def test_a_snapshot_is_never_far_behind_a_late_event(count: int, late: int) -> None:
    late = min(late, count)
    before = max([0, *(it for it in kept(count) if it <= count - late)])
    assert count - before <= 4 * late + 128
    assert len(kept(count)) <= 2 + max(1, count // 64).bit_length()


@given(count=st.integers(0, 10_000), more=st.integers(0, 1000))
def test_what_is_kept_later_was_kept_before(count: int, more: int) -> None:
    assert {it for it in kept(count + more) if it <= count} <= set(kept(count))


def test_the_model_served_is_the_one_swapped_in(log: Log) -> None:
    assert log.served() is None
    log.start("/a", "/a", "1")
    assert log.served() == ("/a", "1", "/a")
    log.start("/a", "/a", "2")  # another model in the same folder
    assert log.served() == ("/a", "2", "/a")
    log.swap("/b", "3")
    log.start("/a", "/a", "2")  # by a server that did not know
    assert log.served() == ("/b", "3", "/a")
    log.start("/a", "/b", "4")
    assert log.served() == ("/b", "4", "/a")
    log.start("/c", "/c", "5")
    assert log.served() == ("/c", "5", "/c")


def test_a_log_is_found_again(store: Store) -> None:
    for number in (1, 2):
        log = store.log()
        add(log, event(number))
        log.close()
    log = store.log()
    assert [it[1] for it in log.events(U)] == ["e1", "e2"]
    log.close()


# ---- in a file -----------------------------------------------------------------------------------


def test_what_is_erased_leaves_no_trace(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "events.sqlite")
    secret = b"7d1c09-very-secret"
    with log.transaction():
        for number in range(200):
            body = Event(f"{secret.decode()}{number}", "nobody", f"{secret.decode()}", number)
            log.add([("t", body), ("t", event(number))])
        log.keep(("t", "nobody"), "m", [snapshot(64)])
    assert any(secret in path.read_bytes() for path in tmp_path.iterdir())
    with log.transaction():
        assert log.erase(("t", "nobody")) == 200
    assert log.events(("t", "nobody")) == []
    assert log.snapshot(("t", "nobody"), "m") is None
    log.close()
    log = SQLiteLog(tmp_path / "events.sqlite")
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()
        assert b"nobody" not in path.read_bytes()
    assert len(log.events(U)) == 200
    log.close()


def test_one_process_has_it(file: Store) -> None:
    log = file.log()
    with pytest.raises(InputError, match=r"events.sqlite is open in another process; stop"):
        file.log()
    log.close()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"PAR1" * 1000)
    with pytest.raises(InputError, match="is no SQLite file; name another"):
        SQLiteLog(path)
    assert path.read_bytes() == b"PAR1" * 1000
    with pytest.raises(InputError, match="cannot be opened; does its folder exist"):
        SQLiteLog(tmp_path / "no" / "file")
    import apsw

    connection = apsw.Connection(str(tmp_path / "foreign"))
    connection.execute("CREATE TABLE users (x)")
    connection.close()
    with pytest.raises(InputError, match="is no store of this version of recblr"):
        SQLiteLog(tmp_path / "foreign")


def test_what_sqlite_cannot_do_is_a_store_error(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "events.sqlite")
    log.close()
    with pytest.raises(StoreError, match="the event log failed"):
        log.versions([U])


# ---- in PostgreSQL -------------------------------------------------------------------------------


@pytest.fixture
def two(shared: Store) -> Iterator[tuple[Any, Any]]:
    """Logs of two workers."""
    logs = shared.log(), shared.log()
    yield logs
    for log in logs:
        log.close()


def test_a_users_events_follow_one_another(two: tuple[Log, Log]) -> None:
    """Of two workers the second waits, and then sees what the first has done."""
    one, other = two
    took: list[list[int]] = []

    def second() -> None:
        with other.transaction():
            took.append(other.lock([V, U]))

    with one.transaction():
        one.lock([U, V])
        (version,) = one.add([("t", event(1))])
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert took == []
    thread.join()
    assert took == [[0, version]]


def test_a_worker_that_hangs_lets_go(two: tuple[Any, Any]) -> None:
    one, other = two
    one._do("SET idle_in_transaction_session_timeout = '200ms'")  # sooner than it would

    def hang() -> None:
        with one.transaction():
            one.lock([U])
            one.add([("t", event(1))])
            assert add(other, event(2)) > [0]  # which does not lock
            with other.transaction():
                assert other.lock([U]) != [0]

    with pytest.raises(StoreError, match="the event log failed"):
        hang()
    assert [it[1] for it in one.events(U)] == ["e2"]


def test_workers_with_the_same_ids_do_not_wait_for_each_other_for_ever(
    two: tuple[Log, Log],
) -> None:
    """The ids of one are another order of the other's, of other users: each counts once."""
    found: list[list[int]] = [[], []]

    def work(which: int) -> None:
        draw = random.Random(which)
        for start in range(0, 300, 10):
            numbers = list(range(start, start + 10))
            draw.shuffle(numbers)
            found[which] += [
                v > 0 for v in add(two[which], *(event(n, f"w{which}") for n in numbers))
            ]

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(sum, found)) == 300
    assert sum(len(two[0].events(("t", f"w{which}"))) for which in (0, 1)) == 300


def test_a_lost_connection_fails_once(two: tuple[Any, Any]) -> None:
    log, other = two
    add(log, event(1))

    def cut() -> None:
        (pid,) = log._one("SELECT pg_backend_pid()")
        other._do("SELECT pg_terminate_backend(?, 5000)", (pid,))

    def lost() -> None:
        with log.transaction():
            log.add([("t", event(2))])
            cut()

    with pytest.raises(StoreError, match="the event log failed"):
        lost()
    assert log.events(U) == [(1.0, "e1", "i1")]
    cut()
    with pytest.raises(StoreError):
        log.versions([U])
    assert add(log, event(2)) > [1]


def test_a_database_that_is_not_to_be_trusted_is_refused(shared: Store) -> None:
    class Careless:
        asked = ""

        def execute(self, sql: str) -> "Careless":
            self.asked = sql
            return self

        def fetchone(self) -> tuple[str]:
            return ("off" if self.asked == "SHOW fsync" else "UTF8",)

    from recblr.serving import postgresql

    careless: Any = Careless()
    with pytest.raises(InputError, match="fsync = off and would lose events"):
        postgresql._prepare(careless)
    with pytest.raises(InputError, match=r"^--store: PostgreSQL: .*[Cc]onnection"):
        open_stores("postgresql://127.0.0.1:1/none", None)
    log: Any = shared.log()
    log._do("UPDATE format SET format = 999")
    with pytest.raises(InputError, match="schema recblr of this database is of another version"):
        shared.log()
    log._do("DROP TABLE format")
    with pytest.raises(InputError, match="schema recblr of this database is of another version"):
        shared.log()
    log.close()
