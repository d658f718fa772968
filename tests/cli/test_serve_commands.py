"""replay, verify and key, as on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recblr.cli.main import app
from recblr.errors import InputError
from recblr.serving.keys import Keys
from recblr.serving.model import ServedModel
from recblr.serving.server import listen
from recblr.serving.sqlite import SQLiteLog
from serving.fixtures import Store


def run(*arguments: object) -> int:
    code: int = app([str(it) for it in arguments], standalone_mode=False) or 0
    return code


def test_a_log_is_put_in_replayed_and_verified(
    models: Path, tiny: Any, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", store.name, *([] if store.url is None else ["--cache", store.url])]
    for added in (len(tiny.frame), 0):  # the second time it is all there
        run("replay", models / "a", *where, "--log", tiny.log, "--json")
        found = json.loads(capsys.readouterr().out)
        assert (found["events"], found["added"]) == (len(tiny.frame), added)
        assert found["users"] == tiny.frame["user_id"].n_unique()
    run("verify", models / "a", *where)
    said = capsys.readouterr().out
    assert said.startswith(
        f"equal: {found['users']} users, {found['events']:,} events, scores differ"
    )
    run("replay", models / "b", *where)
    assert f"{found['users']} users, {found['events']:,} events" in capsys.readouterr().out
    run("verify", models / "b", *where, "--json")
    assert json.loads(capsys.readouterr().out)["equal"]


def test_a_state_that_is_wrong_is_found(
    models: Path, a: Any, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "events.sqlite"
    run("replay", models / "a", "--store", store, "--log", tiny.log)
    log = SQLiteLog(store)
    user = next(iter(log.users()))
    events = log.events(user)
    with log.transaction():  # the end of the history, as another history would have left it
        vector = a.fold(a.start[None], [np.array([0])])[0].tobytes()
        values = (*user, len(events), *events[-1][:2], a.hash, vector)
        log._do("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    log.close()
    capsys.readouterr()
    assert run("verify", models / "a", "--store", store) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT: ")


def test_a_memory_that_is_left_out_is_found(
    models: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "events.sqlite"
    run("replay", models / "a", "--store", store, "--log", tiny.log)
    assert run("verify", models / "a", "--store", store) == 0
    monkeypatch.setattr(ServedModel, "added", lambda *given, **named: None)
    assert run("verify", models / "a", "--store", store) == 1


def test_a_key_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("key", "shop", tmp_path / "keys")
    key = capsys.readouterr().out.strip()
    assert Keys(tmp_path / "keys").tenant(key) == "shop"
    with pytest.raises(InputError, match="tenant '': give a name"):
        run("key", "", tmp_path / "keys")


def test_a_model_without_a_state_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sasrec has no state to update by an event"):
        run("verify", models / "sasrec", "--store", tmp_path / "events.sqlite")


def test_a_mistake_of_replay_and_verify_leaves_nothing(models: Path, tmp_path: Path) -> None:
    store, log = tmp_path / "events.sqlite", tmp_path / "log.csv"
    log.write_text("who,item_id\nann,1\n")
    for command, message in (
        (("verify",), "there is no such event log; name one by --store"),
        (("replay", "--log", log), "no column user_id"),
        (("replay", "--columns", "user_id=who"), "name it by --log"),
    ):
        with pytest.raises(InputError, match=message):
            run(command[0], models / "a", "--store", store, *command[1:])
        assert not store.exists()


def test_dates_of_a_log_become_seconds(models: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.sqlite"
    for name, when in (("dates", "2024-05-01T00:00:00.5Z"), ("numbers", "1714521601")):
        log = tmp_path / f"{name}.csv"
        log.write_text(f"who,item_id,timestamp\nann,1,{when}\n")
        run("replay", models / "a", "--store", store, "--log", log, "--columns", "user_id=who")
    events = SQLiteLog(store)
    (user,) = events.users()
    assert [time for time, _, _ in events.events(user)] == [1714521600.5, 1714521601.0]
    events.close()


def test_a_server_that_cannot_start_leaves_nothing(models: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.sqlite"
    for model, message in (
        (tmp_path, "is not a whole recblr artifact"),
        (models / "sasrec", "no state"),
    ):
        with pytest.raises(InputError, match=message):
            run("serve", model, "--store", store, "--port", 0)
        assert not store.exists()
    for command in ("serve", "replay", "verify"):
        with pytest.raises(InputError, match="--cache is for a log that is shared"):
            run(command, models / "a", "--store", store, "--cache", "redis://127.0.0.1")
        assert not store.exists()
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(InputError, match="Address already in use"):
            run("serve", models / "a", "--store", store, "--port", bound.getsockname()[1])
    assert not store.exists()

    log = SQLiteLog(store)
    log.start(str(models / "a"), str(models / "a"), "1")
    log.swap(str(models / "b"), "2")
    log.close()
    with pytest.raises(InputError, match="is not a whole recblr artifact"):
        run("serve", tmp_path, "--store", store, "--port", 0)
    log = SQLiteLog(store)
    assert log.served() == (str(models / "b"), "2", str(models / "a"))  # still
    log.close()
