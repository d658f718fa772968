"""The event log in a SQLite file: what stays in it, and files that are refused."""

from pathlib import Path

import pytest

from recblr.errors import InputError
from recblr.serving.open_storage import open_storage
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event, StorageError
from serving.fixtures import Store
from serving.test_event_log import U, add, event, snapshot


def test_erased_events_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "events.sqlite")
    secret = b"7d1c09-very-secret"
    with log.transaction():
        for number in range(200):
            erased = Event(f"{secret.decode()}{number}", "nobody", secret.decode(), number)
            log.add([("t", erased), ("t", event(number))])
        log.add_snapshots(("t", "nobody"), "m", [snapshot(64)])
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


def test_one_process_opens_a_file(file: Store) -> None:
    log = file.log()
    with pytest.raises(InputError, match=r"events.sqlite is open in another process; stop"):
        file.log()
    log.close()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"PAR1" * 1000)
    with pytest.raises(InputError, match="is not a SQLite file; choose another"):
        SQLiteLog(path)
    assert path.read_bytes() == b"PAR1" * 1000
    with pytest.raises(InputError, match="cannot be opened; does its folder exist"):
        SQLiteLog(tmp_path / "no" / "file")
    import apsw

    connection = apsw.Connection(str(tmp_path / "foreign"))
    connection.execute("CREATE TABLE users (x)")
    connection.close()
    with pytest.raises(
        InputError, match="is not an event log that this version of recblr can read"
    ):
        SQLiteLog(tmp_path / "foreign")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    log = SQLiteLog(path)
    add(log, *(event(number) for number in range(3000)))
    log.close()
    content = path.read_bytes()
    for damaged in (content[:5000], content[:4096] + bytes(len(content) - 4096)):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"events.sqlite cannot be used as an event log \(.*\); "
        ):
            SQLiteLog(path)


@pytest.mark.parametrize("name", ["", ":memory:", "file::memory:", "a?mode=memory"])
def test_no_name_means_a_file_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not name:
        with pytest.raises(InputError, match=r"--store '' is a folder; give a file"):
            open_storage(name, None)
        return
    open_storage(name, None)[0].close()
    assert (tmp_path / name).exists()


def test_a_store_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give a file"):
        open_storage(str(tmp_path), None)
    with pytest.raises(InputError, match="--store mysql://host/db: give a file, or postgresql://"):
        open_storage("mysql://host/db", None)


def test_an_error_of_sqlite_is_a_storage_error(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "events.sqlite")
    log.close()
    with pytest.raises(StorageError, match="the event log failed"):
        log.versions([U])
