"""The event log, in a file and in PostgreSQL."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.errors import InputError
from recblr.serving.open_storage import open_storage
from recblr.serving.storage import (
    BEFORE_ALL_EVENTS,
    Event,
    EventLog,
    Snapshot,
    StorageError,
    snapshot_counts,
)
from serving.fixtures import Store

U, V = ("t", "u"), ("t", "v")


@pytest.fixture
def log(store: Store) -> Iterator[EventLog]:
    log = store.log()
    yield log
    log.close()


def add(log: EventLog, *events: Event, tenant: str = "t") -> list[int]:
    with log.transaction():
        return log.add([(tenant, event) for event in events])


def event(number: int, user: str = "u", timestamp: float | None = None) -> Event:
    return Event(f"e{number}", user, f"i{number}", number if timestamp is None else timestamp)


def snapshot(count: int) -> Snapshot:
    return Snapshot((float(count), f"e{count}"), count, count, np.full(3, count, np.float32))


def test_events_come_back_in_order(log: EventLog) -> None:
    events = [event(number, timestamp=number // 3) for number in range(30)]
    random.Random(0).shuffle(events)
    versions = add(log, *events[:10]) + add(log, *events[10:])
    assert len(set(versions)) == 30
    assert 0 < max(versions[:10]) < min(versions[10:])
    expected = sorted((*event.key, event.item_id, event.kind) for event in events)
    assert log.events(U) == expected
    assert log.versions([U, V, U]) == [max(versions), 0, max(versions)]
    assert log.versions([]) == []
    assert log.events(V) == []
    assert list(log.users()) == [U]


def test_ids_are_sorted_by_their_bytes(log: EventLog) -> None:
    """As in Python, whatever the collation of the database is."""
    ids = ["a", "B", "é", "_", "É", "z", "aa", "a b", "10", "9", "💡", "ﬀ", "-a"]
    add(
        log,
        *(Event(name, name, "i", 1.0) for name in ids),
        *(Event(f"u{name}", "u", name, 1.0) for name in ids),
    )
    assert [item for _, _, item, _ in log.events(U)] == sorted(ids)
    assert log.users_of("t", 100) == sorted([*ids, "u"])


def test_an_event_counts_once(log: EventLog) -> None:
    others = event(1, "v"), event(1, timestamp=2.0), event(1)._replace(item_id="x")
    (version,) = add(log, event(1))
    assert add(log, event(1), *others, event(1)) == [0, -1, -1, -1, 0]
    assert log.versions([U, V]) == [version, 0]
    assert log.events(U) == [(1.0, "e1", "i1", "")]
    assert add(log) == []


def test_of_events_with_one_id_in_a_batch_the_first_counts(log: EventLog) -> None:
    first, *others = event(1), event(1, "v"), event(1), event(0), event(0, "v")
    versions = add(log, first, *others)
    assert [version > 0 for version in versions] == [True, False, False, True, False]
    assert versions[1:3] == [-1, 0]
    assert versions[4] == -1
    assert log.versions([U, V]) == [max(versions), 0]
    assert log.events(U) == [(0.0, "e0", "i0", ""), (1.0, "e1", "i1", "")]


def test_tenants_are_separate(log: EventLog) -> None:
    assert add(log, event(1)) > [0]
    assert add(log, event(1, timestamp=5.0), tenant="s") > [0]
    assert log.events(U) == [(1.0, "e1", "i1", "")]
    assert log.events(("s", "u")) == [(5.0, "e1", "i1", "")]
    with log.transaction():
        assert log.erase(U) == 1
    assert log.events(("s", "u")) == [(5.0, "e1", "i1", "")]


def test_a_transaction_that_fails_has_no_effect(log: EventLog) -> None:
    add(log, event(1))
    before = log.versions([U])

    def fail() -> None:
        with log.transaction():
            log.add([("t", event(2))])
            log.add_snapshots(U, "m", [snapshot(64)])
            log.erase(V)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert log.events(U) == [(1.0, "e1", "i1", "")]
    assert log.versions([U]) == before
    assert log.snapshot(U, "m") is None


def test_snapshots_are_of_one_model_and_old_ones_are_removed(log: EventLog) -> None:
    assert log.snapshot(U, "m") is None
    with log.transaction():
        log.add_snapshots(U, "m", [snapshot(64), snapshot(128)])
        log.add_snapshots(V, "m", [snapshot(64)])
        log.add_snapshots(U, "m", [snapshot(192)])
    latest = log.snapshot(U, "m")
    assert latest is not None
    assert (latest.key, latest.count, latest.vector.tolist()) == ((192.0, "e192"), 192, [192.0] * 3)
    with log.transaction():
        log.drop_snapshots(U, (150.0, ""))
    latest = log.snapshot(U, "m")
    assert latest is not None
    assert latest.count == 128
    with log.transaction():
        log.drop_snapshots(U, (128.0, "e128"))  # the snapshot at this event stays
    assert log.snapshot(U, "m") is not None
    with log.transaction():
        log.drop_snapshots(U, (127.0, "e127"))
    assert log.snapshot(U, "m") is None  # 64 was removed when 192 was added
    with log.transaction():
        log.add_snapshots(U, "m", [snapshot(count) for count in range(128, 64 * 21, 64)])
    counts = []
    while latest := log.snapshot(U, "m"):
        counts.append(latest.count // 64)
        with log.transaction():
            log.drop_snapshots(U, (latest.count - 1.0, ""))
    assert counts == [20, 19, 18, 16, 8]

    assert log.outdated_users("m", 9) == []
    assert log.outdated_users("n", 9) == [V]
    with log.transaction():
        log.add_snapshots(V, "n", [snapshot(64)])
    assert log.outdated_users("n", 9) == []
    assert log.snapshot(V, "m") is None
    with log.transaction():
        log.drop_snapshots(V, BEFORE_ALL_EVENTS)
    assert log.snapshot(V, "n") is None


@given(count=st.integers(0, 100_000), late=st.integers(0, 100_000))
def test_a_snapshot_is_close_to_every_late_event(count: int, late: int) -> None:
    late = min(late, count)
    before = max([0, *(kept for kept in snapshot_counts(count) if kept <= count - late)])
    assert count - before <= 4 * late + 128
    assert len(snapshot_counts(count)) <= 2 + max(1, count // 64).bit_length()


@given(count=st.integers(0, 10_000), more=st.integers(0, 1000))
def test_snapshots_are_not_needed_again_after_they_are_removed(count: int, more: int) -> None:
    later = {kept for kept in snapshot_counts(count + more) if kept <= count}
    assert later <= set(snapshot_counts(count))


def test_the_served_model_is_the_last_one_swapped_in(log: EventLog) -> None:
    assert log.served_model() is None
    log.record_start("/a", "/a", "1")
    assert log.served_model() == ("/a", "1", "/a")
    log.record_start("/a", "/a", "2")  # another model in the same folder
    assert log.served_model() == ("/a", "2", "/a")
    log.record_swap("/b", "3")
    log.record_start("/a", "/a", "2")  # by a server that does not know of the swap
    assert log.served_model() == ("/b", "3", "/a")
    log.record_start("/a", "/b", "4")
    assert log.served_model() == ("/b", "4", "/a")
    log.record_start("/c", "/c", "5")
    assert log.served_model() == ("/c", "5", "/c")


def test_a_log_can_be_opened_again(store: Store) -> None:
    for number in (1, 2):
        log = store.log()
        add(log, event(number))
        log.close()
    log = store.log()
    assert [event_id for _, event_id, *_ in log.events(U)] == ["e1", "e2"]
    log.close()


# ---- in PostgreSQL -------------------------------------------------------------------------------


@pytest.fixture
def two_logs(shared: Store) -> Iterator[tuple[Any, Any]]:
    logs = shared.log(), shared.log()
    yield logs
    for log in logs:
        log.close()


def test_transactions_of_one_user_follow_one_another(two_logs: tuple[EventLog, EventLog]) -> None:
    """The second worker waits, and then sees what the first has done."""
    one, other = two_logs
    versions: list[list[int]] = []

    def second() -> None:
        with other.transaction():
            versions.append(other.lock([V, U]))

    with one.transaction():
        one.lock([U, V])
        (version,) = one.add([("t", event(1))])
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert versions == []
    thread.join()
    assert versions == [[0, version]]


def test_a_worker_that_hangs_loses_its_locks(two_logs: tuple[Any, Any]) -> None:
    one, other = two_logs
    one._do("SET idle_in_transaction_session_timeout = '200ms'")  # instead of 10 s

    def hang() -> None:
        with one.transaction():
            one.lock([U])
            one.add([("t", event(1))])
            assert add(other, event(2)) > [0]  # without a lock
            with other.transaction():
                assert other.lock([U]) != [0]

    with pytest.raises(StorageError, match="the event log failed"):
        hang()
    assert [event_id for _, event_id, *_ in one.events(U)] == ["e2"]


def test_workers_with_the_same_event_ids_do_not_deadlock(
    two_logs: tuple[EventLog, EventLog],
) -> None:
    """They add the same ids in different orders, for different users: each id counts once."""
    added: list[list[int]] = [[], []]

    def work(which: int) -> None:
        draw = random.Random(which)
        for start in range(0, 300, 10):
            numbers = list(range(start, start + 10))
            draw.shuffle(numbers)
            events = [event(number, f"w{which}") for number in numbers]
            added[which] += [version > 0 for version in add(two_logs[which], *events)]

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(sum, added)) == 300
    assert sum(len(two_logs[0].events(("t", f"w{which}"))) for which in (0, 1)) == 300


def test_after_a_lost_connection_the_log_connects_again(two_logs: tuple[Any, Any]) -> None:
    log, other = two_logs
    add(log, event(1))

    def cut_connection() -> None:
        (pid,) = log._one("SELECT pg_backend_pid()")
        other._do("SELECT pg_terminate_backend(?, 5000)", (pid,))

    def add_and_cut() -> None:
        with log.transaction():
            log.add([("t", event(2))])
            cut_connection()

    with pytest.raises(StorageError, match="the event log failed"):
        add_and_cut()
    assert log.events(U) == [(1.0, "e1", "i1", "")]
    cut_connection()
    with pytest.raises(StorageError):
        log.versions([U])
    assert add(log, event(2)) > [1]


def test_an_unsuitable_database_is_refused(shared: Store) -> None:
    class DatabaseWithoutFsync:
        statement = ""

        def execute(self, sql: str) -> "DatabaseWithoutFsync":
            self.statement = sql
            return self

        def fetchone(self) -> tuple[str]:
            return ("off" if self.statement == "SHOW fsync" else "UTF8",)

    from recblr.serving import postgresql

    database: Any = DatabaseWithoutFsync()
    with pytest.raises(InputError, match="fsync = off and would lose events"):
        postgresql._create_tables(database)
    with pytest.raises(InputError, match=r"^--store: PostgreSQL: .*[Cc]onnection"):
        open_storage("postgresql://127.0.0.1:1/none", None)
    log: Any = shared.log()
    log._do("UPDATE format SET format = 999")
    with pytest.raises(InputError, match="schema recblr of this database is of another version"):
        shared.log()
    log._do("DROP TABLE format")
    with pytest.raises(InputError, match="schema recblr of this database is of another version"):
        shared.log()
    log.close()
