"""API keys: added, listed, rotated and revoked while a server runs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cli.fixtures import Run, answer
from recblr.errors import InputError
from recblr.serving import app
from recblr.serving.keys import Keys, add_key, read_keys, revoke_key
from serving.fixtures import OpenSite
from serving.server_process import wait_until


def test_keys_are_rotated_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, other = add_key(path, "shop"), add_key(path, "other")
    second = add_key(path, "shop", rotate=True, grace=60)
    keys = Keys(path)
    assert [keys.tenant(key) for key in (first, second, other, "x")] == [
        "shop",
        "shop",
        "other",
        None,
    ]
    third = add_key(path, "shop", rotate=True)
    time.sleep(0.01)
    assert [keys.tenant(key) for key in (first, second, third)] == ["shop", "shop", None]
    keys.reload()
    assert [keys.tenant(key) for key in (first, second, third)] == [None, None, "shop"]
    assert keys.tenant(other) == "other"
    name = next(key.name for key in read_keys(path) if key.tenant == "other")
    assert revoke_key(path, name).tenant == "other"
    keys.reload(only_if_changed=True)
    assert keys.tenant(other) is None
    for wrong in (name, "", "zz"):
        with pytest.raises(InputError, match="no key"):
            revoke_key(path, wrong)
    assert path.stat().st_mode & 0o077 == 0
    assert not any(key in path.read_text() for key in (first, second, third, other))


def test_keys_of_version_0_1_0_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "shop")
    (stored,) = read_keys(path)
    path.write_text(json.dumps({"shop": [stored.hash]}))
    assert Keys(path).tenant(key) == "shop"
    more = add_key(path, "shop")
    assert [Keys(path).tenant(text) for text in (key, more)] == ["shop", "shop"]


def test_a_damaged_file_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "shop")
    keys = Keys(path)
    for text in ("{", "[]", '{"shop": [{"hash": 3}]}', '{"shop": [{"x": 3}]}', "[" * 10**5):
        path.write_text(text)
        keys.reload()
        assert keys.tenant(key) == "shop"
    path.unlink()
    keys.reload()
    assert keys.tenant(key) == "shop"


def test_a_running_server_follows_the_file(
    open_site: OpenSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "WATCH_SECONDS", 0.05)
    path = tmp_path / "keys.json"
    site = open_site(path) if add_key(path, "other") else None
    assert site is not None
    key = add_key(path, "shop")

    def status() -> int:
        headers = {"authorization": f"Bearer {key}"}
        return site.client.get("/v1/users", headers=headers).status_code

    wait_until(lambda: status() == 200)
    revoke_key(path, next(stored.name for stored in read_keys(path) if stored.tenant == "shop"))
    wait_until(lambda: status() == 401)


def test_the_commands(run: Run, tmp_path: Path) -> None:
    path: Any = tmp_path / "keys.json"
    for command in (["key", "shop"], ["key", "add", "shop"], ["key", "rotate", "shop"]):
        key = run(*command, path).out.strip()
        assert Keys(path).tenant(key) == "shop"
    rows = answer(run("key", "list", path, "--json"))
    assert [row["tenant"] for row in rows] == ["shop"] * 3
    assert [row["expires"] is None for row in rows] == [False, False, True]
    assert run("key", "revoke", rows[0]["name"], path).out == f"key {rows[0]['name']} revoked\n"
    lines = run("key", "list", path).out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows[1:]]
    assert run("key", "revoke", "none", path).code == 2
