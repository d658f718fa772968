"""Users divided over two groups of servers behind nginx, as the example does."""

from pathlib import Path

import httpx
import pytest

from recblr.serving.model import ServedModel
from serving.fixtures import ALL_ITEMS, Store, make_events, send
from serving.server_process import ServerProcess, free_port, needs_nginx, running_nginx

EXAMPLE = Path(__file__).parents[2] / "examples" / "nginx-groups.conf"


@needs_nginx
def test_two_groups_answer_as_one_server(a: ServedModel, models: Path, tmp_path: Path) -> None:
    """Each user is in one group, and a group that is down does not affect the users of the other."""
    stores = [Store(str(tmp_path / f"{number}.sqlite"), None) for number in (1, 2)]
    port, groups = free_port(), [ServerProcess(models / "a", store) for store in stores]
    text = EXAMPLE.read_text()
    for old, new in (
        ("127.0.0.1:8001", f"127.0.0.1:{groups[0].port}"),
        ("127.0.0.1:8002", f"127.0.0.1:{groups[1].port}"),
        ("listen 8000", f"listen 127.0.0.1:{port}"),
    ):
        assert old in text
        text = text.replace(old, new)
    one = Store(str(tmp_path / "one.sqlite"), None).engine(a)
    histories = {f"u/{n}": make_events(a, f"u/{n}", 6, seed=n) for n in range(20)}
    with (
        running_nginx(text, tmp_path, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        for user, events in histories.items():
            send(one, events)
            body = [
                {"event_id": each.event_id, "user_id": user, "item_id": each.item_id,
                 "timestamp": each.timestamp}
                for each in events
            ]  # fmt: skip
            answer = client.post("/v1/events", json={"events": body}, headers={"X-User": user})
            assert {each["status"] for each in answer.json()["results"]} == {"accepted"}

        homes = {}
        for user in histories:
            path = f"/v1/users/{user.replace('/', '%2F')}"
            found = [group.client.get(path).status_code for group in groups]
            assert sorted(found) == [200, 404]
            homes[user] = found.index(200)
            answer = client.get(
                f"{path}/recommendations?k=1000&hide_seen=false", headers={"X-User": user}
            )
            ranked = {each["item_id"]: each["score"] for each in answer.json()["items"]}
            expected = one.recommend(("t", user), ALL_ITEMS).result(60)
            ids = [a.item_ids[row] for row in expected.rows]
            assert ranked == pytest.approx(dict(zip(ids, expected.scores, strict=True)), abs=1e-5)
        assert set(homes.values()) == {0, 1}

        assert client.get("/v1/users/u").status_code == 400  # without the header
        groups[0].kill()
        for user, home in homes.items():
            path = f"/v1/users/{user.replace('/', '%2F')}"
            status = client.get(path, headers={"X-User": user}).status_code
            assert status == (502 if home == 0 else 200)
    groups[1].stop()
    one.close()
