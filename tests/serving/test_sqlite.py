"""The event log, whichever it is: it keeps what it says, and no more."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.errors import InputError
from recblr.serving.events import Event
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.store import BEGINNING, ConflictError, Log, Snapshot, StoreError, kept

U, V = ("t", "u"), ("t", "v")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = SQLiteLog(tmp_path / "events.sqlite")
    yield log
    log.close()


def event(number: int, user: str = "u", timestamp: float | None = None) -> Event:
    return Event(f"e{number}", user, f"i{number}", number if timestamp is None else timestamp)


def snapshot(count: int) -> Snapshot:
    return Snapshot((float(count), f"e{count}"), count, np.full(3, count, np.float32))


def test_events_come_back_in_order(log: Log) -> None:
    events = [event(number, timestamp=number // 3) for number in range(30)]
    random.Random(0).shuffle(events)
    with log.transaction():
        versions = [log.add("t", it) for it in events]
    assert versions == sorted(set(versions))
    assert min(versions) > 0
    in_order = sorted((it.timestamp, it.event_id, it.item_id) for it in events)
    assert log.events(U) == in_order
    assert log.versions([U, V]) == [versions[-1], 0]
    assert log.events(V) == []
    assert list(log.users()) == [U]


def test_an_event_counts_once(log: Log) -> None:
    with log.transaction():
        version = log.add("t", event(1))
        assert log.add("t", event(1)) == 0
        for other in (event(1, "v"), event(1, timestamp=2.0), event(1)._replace(item_id="x")):
            with pytest.raises(ConflictError, match="event_id 'e1' is another event's already"):
                log.add("t", other)
    assert log.versions([U, V]) == [version, 0]
    assert log.events(U) == [(1.0, "e1", "i1")]


def test_tenants_are_apart(log: Log) -> None:
    with log.transaction():
        assert log.add("t", event(1)) > 0
        assert log.add("s", event(1, timestamp=5.0)) > 0
    assert log.events(U) == [(1.0, "e1", "i1")]
    assert log.events(("s", "u")) == [(5.0, "e1", "i1")]
    with log.transaction():
        assert log.erase(U) == 1
    assert log.events(("s", "u")) == [(5.0, "e1", "i1")]


def test_a_transaction_happens_wholly_or_not(log: Log) -> None:
    with log.transaction():
        log.add("t", event(1))
    before = log.versions([U])

    def half() -> None:
        with log.transaction():
            log.add("t", event(2))
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
    with log.transaction():
        assert log.start("/a") == "/a"
        log.swap("/b")
    with log.transaction():
        assert log.start("/a") == "/b"
        assert log.start("/c") == "/c"
        assert log.start("/a") == "/a"


def test_a_log_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    for number in (1, 2):
        log = SQLiteLog(path)
        with log.transaction():
            log.add("t", event(number))
        log.close()
    log = SQLiteLog(path)
    assert [it[1] for it in log.events(U)] == ["e1", "e2"]
    log.close()


def test_what_is_erased_leaves_no_trace(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "events.sqlite")
    secret = b"7d1c09-very-secret"
    with log.transaction():
        for number in range(200):
            body = Event(f"{secret.decode()}{number}", "nobody", f"{secret.decode()}", number)
            log.add("t", body)
            log.add("t", event(number))
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


def test_one_process_has_it(log: Log, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events.sqlite is open in another process; stop"):
        SQLiteLog(tmp_path / "events.sqlite")


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
