"""Backup, restore, export and retention of an event log, also while a server uses it; its formats."""

import json
import sqlite3
import time
from pathlib import Path

import pytest

from cli.fixtures import Run
from recblr.data.log import read_log
from recblr.errors import InputError
from recblr.serving.engine import Engine
from recblr.serving.maintenance import backup, compact, export, restore
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.replay import verify
from recblr.serving.sqlite import SQLiteLog
from recblr.serving.storage import Event
from serving.fixtures import ALL_ITEMS, Store, assert_scores, items_of, make_events, send

# An event log of version 0.1.0, as that version created it.
VERSION_0_1_0 = """
CREATE TABLE events (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, event_id TEXT NOT NULL,
    user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_by_id ON events (tenant, event_id);
CREATE INDEX events_by_user ON events (tenant, user_id, timestamp, event_id, item_id);
CREATE TABLE users (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (tenant, user_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, count INTEGER NOT NULL,
    timestamp REAL NOT NULL, event_id TEXT NOT NULL, model TEXT NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (tenant, user_id, count)
) STRICT;
CREATE INDEX snapshots_by_model ON snapshots (model);
CREATE TABLE served (
    one INTEGER PRIMARY KEY, folder TEXT NOT NULL, model TEXT NOT NULL, started TEXT NOT NULL
) STRICT;
CREATE TABLE erased (events INTEGER NOT NULL) STRICT;
"""


def fill(engine: Engine, a: ServedModel, tenant: str = "default") -> dict[str, list[Event]]:
    histories = {user: make_events(a, user, 100, seed=ord(user)) for user in "uvw"}
    for events in histories.values():
        send(engine, events, tenant)
    return histories


def test_backup_of_a_running_server_and_restore(
    models: Path, a: ServedModel, store: Store, tmp_path: Path
) -> None:
    engine, copy = store.engine(a), tmp_path / "backup.sqlite"
    histories = fill(engine, a)
    assert backup(store.name, copy) == {"events": 300, "users": 3}
    assert copy.stat().st_mode & 0o077 == 0
    send(engine, make_events(a, "later", 5), "default")
    engine.close()
    with pytest.raises(InputError, match="exists already"):
        backup(store.name, copy)
    restored = str(tmp_path / "restored.sqlite")
    assert restore(copy, restored) == {"events": 300, "users": 3}
    with pytest.raises(InputError, match="has events; restore into a new"):
        restore(copy, restored)
    result = verify(models / "a", restored)
    assert (result["equal"], result["users"], result["events"]) == (True, 3, 300)
    engine = Engine(*open_storage(restored, None), a)
    for user, events in histories.items():
        ranked = engine.recommend(("default", user), ALL_ITEMS).result(60)
        assert_scores(ranked, items_of(events), a)
    engine.close()


def test_a_damaged_backup_is_refused(a: ServedModel, file: Store, tmp_path: Path) -> None:
    engine = file.engine(a)
    fill(engine, a)
    engine.close()
    copy = tmp_path / "copy.sqlite"
    backup(file.name, copy)
    content = bytearray(copy.read_bytes())
    content[5000:9000] = bytes(4000)
    copy.write_bytes(content)
    with pytest.raises(InputError, match=r"copy.sqlite (is damaged|cannot be used)"):
        restore(copy, str(tmp_path / "restored.sqlite"))
    with pytest.raises(InputError, match="no such backup"):
        restore(tmp_path / "none", str(tmp_path / "restored.sqlite"))


def test_an_export_is_a_log(a: ServedModel, store: Store, tmp_path: Path) -> None:
    engine, out = store.engine(a), tmp_path / "log.parquet"
    histories = fill(engine, a)
    send(engine, [Event("e", "7", "007", 1.0)], "other")
    send(engine, [Event("f", "-8", "9", 1.5)], "other")
    with pytest.raises(InputError, match=r"several tenants; pass one of \['default', 'other'\]"):
        export(store.name, out)
    with pytest.raises(InputError, match="no events of tenant 'x'"):
        export(store.name, out, "x")
    assert export(store.name, out, "default") == {"events": 300, "users": 3}
    log = read_log(out)
    users, items = log.user_ids.to_pylist(), log.item_ids.to_pylist()
    rows = [(users[u], items[i]) for u, i in zip(log.users, log.items, strict=True)]
    assert rows == [(user, event.item_id) for user in "uvw" for event in histories[user]]
    assert log.timestamps is not None
    export(store.name, out, "other")
    log = read_log(out)
    assert sorted(log.user_ids.to_pylist()) == [-8, 7]  # whole numbers, as all of them are
    assert sorted(log.item_ids.to_pylist()) == ["007", "9"]
    engine.close()


def test_old_events_are_removed_and_the_states_follow(a: ServedModel, store: Store) -> None:
    engine, now = store.engine(a), time.time()
    events = [
        event._replace(timestamp=now - 86_400 * (100 - number))
        for number, event in enumerate(make_events(a, "u", 100))
    ]
    places = make_events(a, "v", 5)  # places in a history have no age
    gone = [Event("g", "gone", str(a.item_ids[0]), now - 86_400 * 90)]
    for sent in (events, places, gone):
        send(engine, sent)
    engine.recommend(("t", "u"), ALL_ITEMS).result(60)
    assert compact(store.name, keep_days=30.5) == {"removed": 71, "events": 35, "users": 2}
    for user, kept in (("u", events[70:]), ("v", places)):
        assert_scores(engine.recommend(("t", user), ALL_ITEMS).result(60), items_of(kept), a)
    assert engine.describe(("t", "gone")).result(60).last is None
    assert compact(store.name) == {"removed": 0, "events": 35, "users": 2}
    assert send(engine, events[:1]) == ["accepted"]
    engine.close()


@pytest.mark.parametrize("version", [3, 4])
def test_a_log_of_an_older_format_is_upgraded(
    version: int, models: Path, a: ServedModel, tmp_path: Path
) -> None:
    path, events = tmp_path / "events.sqlite", make_events(a, "u", 100)
    old = sqlite3.connect(path)
    old.executescript(VERSION_0_1_0)
    for number, event in enumerate(events, 1):
        old.execute("INSERT INTO events VALUES (?, 'default', ?, ?, ?, ?)", (number, *event[:4]))
    old.execute("INSERT INTO users VALUES ('default', 'u', 100)")
    rows = a.rows(items_of(events[:64]))
    vector = a.start if version == 3 else a.fold(a.start[None], [rows])[0]  # of 3, a wrong one
    old.execute(
        "INSERT INTO snapshots VALUES ('default', 'u', 64, 31.0, 'u-63', ?, ?)",
        (a.hash, vector.tobytes()),
    )
    if version == 4:
        old.execute("ALTER TABLE snapshots ADD COLUMN known INTEGER NOT NULL DEFAULT 64")
    old.execute(f"PRAGMA user_version = {version}")
    old.commit()
    old.close()
    path.chmod(0o644)
    log = SQLiteLog(path)
    assert (log.snapshot(("default", "u"), a.hash) is not None) == (version == 4)
    assert log.events(("default", "u"))[:1] == [(*events[0].key, events[0].item_id, "")]
    (added,) = log.add([("default", Event("later", "u", events[0].item_id, 99.0, "purchase"))])
    assert added == 101
    assert log.latest_events(("default", "u"), 1)[0][3] == "purchase"
    log.close()
    assert verify(models / "a", str(path))["equal"]
    assert path.stat().st_mode & 0o077 == 0
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(InputError, match="that this version of recblr can read; upgrade recblr"):
        SQLiteLog(path)


@pytest.mark.parametrize("version", [3, 4])
def test_a_schema_of_an_older_format_is_upgraded(
    version: int, a: ServedModel, shared: Store
) -> None:
    import psycopg

    engine = shared.engine(a)
    histories = fill(engine, a)
    engine.close()
    with psycopg.connect(shared.name) as connection:
        if version == 3:
            connection.execute("ALTER TABLE recblr.snapshots DROP COLUMN known")
        connection.execute("ALTER TABLE recblr.events DROP COLUMN kind")
        connection.execute(
            "CREATE INDEX events_by_user ON recblr.events"
            " (tenant, user_id, timestamp, event_id, item_id)"
        )
        connection.execute(f"UPDATE recblr.format SET format = {version}")
    log = open_storage(shared.name, None)[0]
    assert (log.snapshot(("default", "u"), a.hash) is not None) == (version == 4)
    log.close()
    engine = Engine(*open_storage(shared.name, None), a)
    for user, events in histories.items():
        ranked = engine.recommend(("default", user), ALL_ITEMS).result(60)
        assert_scores(ranked, items_of(events), a)
    engine.close()


def test_no_command_creates_a_store_by_mistake(run: Run, models: Path, tmp_path: Path) -> None:
    typo, out = tmp_path / "evnts.sqlite", tmp_path / "out"
    for command in (
        ("replay", models / "a"), ("verify", models / "a"), ("events", "backup", out),
        ("events", "export", out), ("events", "compact"),
    ):  # fmt: skip
        result = run(*command, "--store", typo)
        assert result.code == 2
        assert "no such event log" in result.err
        assert list(tmp_path.iterdir()) == []
    SQLiteLog(typo).close()
    result = run("verify", models / "a", "--store", typo)
    assert (result.code, "has no events to compare" in result.err) == (2, True)


def test_the_commands(run: Run, a: ServedModel, file: Store, tmp_path: Path) -> None:
    engine = file.engine(a)
    fill(engine, a)
    copy = tmp_path / "copy.sqlite"
    result = run("events", "backup", copy, "--store", file.name)
    assert result.out == f"300 events of 3 users in {copy}\n"
    result = run("events", "restore", copy, "--store", tmp_path / "new.sqlite", "--json")
    assert json.loads(result.out) == {"events": 300, "users": 3}
    result = run("events", "compact", "--store", file.name)
    assert result.out == "300 events of 3 users left, 0 removed\n"
    engine.close()
