"""The commands serve, replay, verify and key."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import Tiny
from recblr.cli.main import app
from recblr.errors import InputError
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.server import listen
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import StorageError
from serving.fixtures import Store


def call(*arguments: object) -> int:
    """Call a command; its errors are raised. Returns the exit code."""
    code: int = app([str(argument) for argument in arguments], standalone_mode=False) or 0
    return code


def test_add_a_log_replay_and_verify(
    models: Path,
    tiny: Tiny,
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RECBLR_STORE", store.name)  # a URL with a password is refused as an option
    monkeypatch.setenv("RECBLR_STATE_CACHE", store.cache_url or "")
    total = len(tiny.frame)
    for added in (total, 0):  # the second time, the log has all events
        call("replay", models / "a", "--log", tiny.log, "--json")
        result = json.loads(capsys.readouterr().out)
        assert (result["events"], result["added"], result["present"]) == (
            total,
            added,
            total - added,
        )
        assert result["users"] == tiny.frame["user_id"].n_unique()
    call("replay", models / "a", "--log", tiny.log)
    order, line = capsys.readouterr().out.splitlines()
    assert order.startswith(f"{tiny.log}: ordered by 'timestamp' (seconds, 2024-01-")
    assert f" events (0 added, {total:,} already there), " in line
    call("verify", models / "a")
    users, events = f"{result['users']} users", f"{result['events']:,} events"
    assert capsys.readouterr().out.startswith(f"equal: {users}, {events}, scores differ")
    call("replay", models / "b")
    assert f"{users}, {events}" in capsys.readouterr().out
    call("verify", models / "b", "--json")
    assert json.loads(capsys.readouterr().out)["equal"]


def test_verify_detects_a_wrong_state(
    models: Path, a: ServedModel, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "events.sqlite"
    call("replay", models / "a", "--store", store, "--log", tiny.log)
    log = SQLiteLog(store)
    user = next(iter(log.users()))
    events = log.events(user)
    with log.transaction():  # a snapshot after all events, with the vector of another history
        vector = a.fold(a.start[None], [np.array([0])])[0].tobytes()
        values = (*user, len(events), len(events), *events[-1][:2], a.hash, vector)
        log._do("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    log.close()
    capsys.readouterr()
    assert call("verify", models / "a", "--store", store) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT: ")


def test_verify_detects_a_missing_memory(
    models: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "events.sqlite"
    call("replay", models / "a", "--store", store, "--log", tiny.log)
    assert call("verify", models / "a", "--store", store) == 0
    monkeypatch.setattr(ServedModel, "memory_scores", lambda *_, **options: None)
    assert call("verify", models / "a", "--store", store) == 1


def test_a_damaged_event_log_is_one_line(
    models: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "events.sqlite"
    call("replay", models / "a", "--store", store, "--log", tiny.log)

    def fail(self: SQLiteLog) -> None:
        raise StorageError("the event log failed: disk I/O error")

    monkeypatch.setattr(SQLiteLog, "users", fail)
    for command in ("replay", "verify"):
        with pytest.raises(InputError, match=r"^the event log failed: disk I/O error; restore it"):
            call(command, models / "a", "--store", store)


def test_the_folder_of_downloads_is_not_the_cache_of_states(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECBLR_CACHE", "redis://127.0.0.1")
    for command in ("serve", "replay", "verify"):
        with pytest.raises(InputError, match="put the URL of Redis into RECBLR_STATE_CACHE"):
            call(command, models / "a", "--store", tmp_path / "events.sqlite")
    monkeypatch.setenv("RECBLR_CACHE", str(tmp_path))
    monkeypatch.setenv("RECBLR_STATE_CACHE", "redis://127.0.0.1")
    with pytest.raises(InputError, match="--cache needs a shared event log"):
        call("replay", models / "a", "--store", tmp_path / "events.sqlite")


def test_a_key_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("key", "shop", tmp_path / "keys")
    key = capsys.readouterr().out.strip()
    assert Keys(tmp_path / "keys").tenant(key) == "shop"
    with pytest.raises(InputError, match="tenant '': give 1 to 64 letters"):
        call("key", "", tmp_path / "keys")


def test_a_model_without_a_state_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sasrec has no state to update by an event"):
        call("verify", models / "sasrec", "--store", tmp_path / "events.sqlite")


def test_a_mistake_in_replay_and_verify_leaves_no_file(models: Path, tmp_path: Path) -> None:
    store, log = tmp_path / "events.sqlite", tmp_path / "log.csv"
    log.write_text("who,item_id\nann,1\n")
    for command, message in (
        (("verify",), "no such event log; pass another with --store"),
        (("replay", "--log", log), "no column user_id"),
        (("replay", "--columns", "user_id=who"), "pass it with --log"),
    ):
        with pytest.raises(InputError, match=message):
            call(command[0], models / "a", "--store", store, *command[1:])
        assert not store.exists()


def test_dates_of_a_log_become_seconds(models: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.sqlite"
    for name, when in (("dates", "2024-05-01T00:00:00.5Z"), ("numbers", "1714521601")):
        log = tmp_path / f"{name}.csv"
        log.write_text(f"who,item_id,timestamp\nann,c001-i0002,{when}\n")
        call("replay", models / "a", "--store", store, "--log", log, "--columns", "user_id=who")
    events = SQLiteLog(store)
    (user,) = events.users()
    assert [time for time, *_ in events.events(user)] == [1714521600.5, 1714521601.0]
    events.close()


def test_a_log_of_another_format(models: Path, tmp_path: Path) -> None:
    store, log = tmp_path / "events.sqlite", tmp_path / "clicks.log"
    log.write_text("user_id;item_id;timestamp\nann;c001-i0002;1714521601000\n")
    options = ["--format", "csv", "--separator", ";"]
    call("replay", models / "a", "--store", store, "--log", log, *options)
    events = SQLiteLog(store)
    assert [time for time, *_ in events.events(("default", "ann"))] == [1714521601.0]
    events.close()
    with pytest.raises(InputError, match="--format and --separator describe a log"):
        call("replay", models / "a", "--store", store, *options)


def test_a_server_that_cannot_start_leaves_no_file(models: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.sqlite"
    for model, message in (
        (tmp_path, "is not a whole recblr artifact"),
        (models / "sasrec", "no state"),
    ):
        with pytest.raises(InputError, match=message):
            call("serve", model, "--store", store, "--port", 0)
        assert not store.exists()
    for command in ("serve", "replay", "verify"):
        with pytest.raises(InputError, match="--cache needs a shared event log"):
            call(command, models / "a", "--store", store, "--cache", "redis://127.0.0.1")
        assert not store.exists()
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(InputError, match="Address already in use"):
            call("serve", models / "a", "--store", store, "--port", bound.getsockname()[1])
    assert not store.exists()

    log = SQLiteLog(store)
    log.record_start(str(models / "a"), str(models / "a"), "1")
    log.record_swap(str(models / "b"), "2")
    log.close()
    with pytest.raises(InputError, match="is not a whole recblr artifact"):
        call("serve", tmp_path, "--store", store, "--port", 0)
    log = SQLiteLog(store)
    assert log.served_model() == (str(models / "b"), "2", str(models / "a"))
    log.close()
