"""Several processes of one server: one port, signals reach all, dead ones are replaced."""

import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from conftest import SOAK
from recblr.errors import InputError
from recblr.serving.keys import add_key, read_keys, revoke_key
from recblr.serving.settings import ServerSettings
from serving.fixtures import Store
from serving.server_process import ServerProcess, wait_until


def children(pid: int | None) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    commands = {
        child: Path(f"/proc/{child}/cmdline").read_bytes() for child in map(int, text.split())
    }
    return {child for child, command in commands.items() if b"spawn_main" in command}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_two_workers(models: Path, shared: Store, tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys", name) for name in ("shop", "admin")}
    server = ServerProcess(models / "a", shared, tmp_path / "keys", workers=2)
    pid = server.process.pid
    wait_until(lambda: len(children(pid)) == 2)

    def status(path: str, tenant: str) -> int:
        """Of one request on a connection of its own, which any worker may accept."""
        headers = {"Authorization": f"Bearer {keys[tenant]}"}
        with httpx.Client(base_url=server.client.base_url, headers=headers, timeout=60) as client:
            return client.get(path).status_code

    def counted() -> int:
        headers = {"Authorization": f"Bearer {keys['admin']}"}
        text = server.client.get("/metrics", headers=headers).text
        found = re.search(
            r'recblr_request_seconds_count\{operation="users",status="200"\} (\d+)', text
        )
        return 0 if found is None else int(found[1])

    for _ in range(20):
        assert status("/v1/users", "shop") == 200
    assert counted() == 20  # of all workers together

    first, second = children(pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(children(pid) - {first}) == 2)
    for _ in range(20):
        assert status("/v1/users", "shop") == 200
    assert counted() == 40

    revoke_key(tmp_path / "keys", read_keys(tmp_path / "keys")[0].name)
    os.kill(pid or 0, signal.SIGHUP)
    wait_until(lambda: [status("/v1/users", "shop") for _ in range(20)] == [401] * 20)
    assert second in children(pid)  # it has read the keys again, not ended

    workers = children(pid)
    server.stop()
    assert all(map(is_gone, workers))
    if SOAK:  # workers end with the first process, too
        server = ServerProcess(models / "a", shared, workers=2)
        workers = children(server.process.pid)
        server.kill()
        wait_until(lambda: all(map(is_gone, workers)))


def test_workers_need_a_shared_store(file: Store) -> None:
    for store, cache in ((file.name, ""), ("postgresql://h/d", ""), (file.name, "redis://h")):
        with pytest.raises(InputError, match="several workers share an event log in PostgreSQL"):
            ServerSettings(model="m", store=store, cache=cache, workers=2)
