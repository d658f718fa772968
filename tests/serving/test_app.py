"""The HTTP side, over a real port."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from recblr.cli.serve import serve
from recblr.errors import InputError
from recblr.serving import api
from recblr.serving.app import EVENTS
from recblr.serving.keys import Keys, add_key
from recblr.serving.model import ServedModel

JSON = {"content-type": "application/json"}


def event(number: int, user: str = "u", **change: Any) -> dict[str, Any]:
    found = {
        "event_id": f"{user}{number}",
        "user_id": user,
        "item_id": str(number),
        "timestamp": number,
    }
    return {**found, **change}


# ---- each operation ------------------------------------------------------------------------------


def test_events_in_recommendations_out(site: Any, a: ServedModel) -> None:
    ids = a.item_ids
    first = site.client.post("/v1/events", json=event(1, item_id=ids[0]))
    assert (first.status_code, first.headers["x-model"]) == (200, a.hash)
    assert first.json() == {"model": a.hash, "results": [{"status": "accepted", "event_id": "u1"}]}
    again = site.client.post("/v1/events", json=event(1, item_id=ids[0]))
    assert again.json()["results"][0]["status"] == "duplicate"
    other = site.client.post("/v1/events", json=event(1, item_id=ids[1]))
    assert other.status_code == 409
    assert other.json() == {"error": "event_id 'u1' is another event's already"}

    found = site.client.get("/v1/users/u/recommendations", params={"k": 3}).json()
    assert (found["model"], found["basis"], len(found["items"])) == (a.hash, "history", 3)
    assert ids[0] not in [it["item_id"] for it in found["items"]]
    seen = {"k": 1000, "hide_seen": "false"}
    every = site.client.get("/v1/users/u/recommendations", params=seen).json()["items"]
    assert {it["item_id"] for it in every} == set(ids)
    assert [it for it in every if it["item_id"] != ids[0]][:3] == found["items"]

    body = {"history": [ids[0]], "k": 3}
    assert site.client.post("/v1/recommend", json=body).json() == found
    body = {"user_id": "u", "k": 3, "deny": [found["items"][0]["item_id"]]}
    rest = site.client.post("/v1/recommend", json=body).json()["items"]
    assert rest[:2] == found["items"][1:]


def test_a_batch_is_answered_event_by_event(site: Any, a: ServedModel) -> None:
    ids = a.item_ids
    events = [event(1, item_id=ids[0]), event(1, item_id=ids[1]), event(1, item_id=ids[0]),
              {"event_id": "x"}, event(2, item_id=ids[2])]  # fmt: skip
    found = site.client.post("/v1/events", json={"events": events, "recommend": {"k": 2}})
    assert found.status_code == 200
    results = found.json()["results"]
    assert [it["status"] for it in results] == [
        "accepted", "rejected", "duplicate", "rejected", "accepted",
    ]  # fmt: skip
    assert "missing required field" in results[3]["reason"]
    after = site.client.get("/v1/users/u/recommendations", params={"k": 2}).json()
    assert found.json()["recommendations"] == after


def test_a_user_is_described(site: Any, a: ServedModel) -> None:
    assert site.client.get("/v1/users/u").status_code == 404
    site.client.post("/v1/events", json={"events": [event(n) for n in range(70)]})
    site.client.post("/v1/events", json=event(200, item_id="never seen"))
    found = site.client.get("/v1/users/u").json()
    known = sum(str(n) in map(str, a.item_ids) for n in range(70))
    assert (found["events"], found["known_events"]) == (71, known)
    assert (found["last_event_id"], found["last_timestamp"]) == ("u200", 200.0)
    assert found["age"] > 1e9
    assert found["state_bytes"] == a.start.nbytes


def test_influence_is_of_each_event(site: Any, a: ServedModel) -> None:
    assert site.client.get("/v1/users/u/influence").status_code == 404
    ids = a.item_ids[:5]
    events = [event(n, item_id=item) for n, item in enumerate(ids)]
    site.client.post("/v1/events", json={"events": [*events, event(9, item_id="never seen")]})
    found = site.client.get("/v1/users/u/influence").json()
    best = site.client.get("/v1/users/u/recommendations").json()["items"][0]["item_id"]
    assert found["item_id"] == best
    assert [it["item_id"] for it in found["events"]] == ids[::-1]
    assert sum(it["state"] for it in found["events"]) == pytest.approx(1)
    assert found["repeat"] == 0
    found = site.client.get("/v1/users/u/influence", params={"item_id": ids[1]}).json()
    assert found["item_id"] == ids[1]
    parts = a.memory.parts(a.rows(ids), int(a.rows([ids[1]])[0]))
    assert [it["memory"] for it in found["events"]] == pytest.approx(parts[::-1].tolist())
    assert parts.max() > 0
    assert found["repeat"] == a.memory.repeat == -0.7
    whole = site.client.post("/v1/recommend", json={"user_id": "u", "k": 1, "hide_seen": False,
                                                    "allow": [ids[1]]}).json()["items"][0]  # fmt: skip
    sums = sum(it["score"] + it["memory"] for it in found["events"]) + found["repeat"]
    assert sums == pytest.approx(whole["score"], abs=0.02)  # but for the rest
    found = site.client.get("/v1/users/u/influence", params={"item_id": "never seen"})
    assert found.status_code == 404


@pytest.mark.parametrize(
    "name", ["é", "a/b", "a b", "a%2Fb", "recommendations", "..", "💡", "?x=1"]
)
def test_any_id_is_found_again(site: Any, a: ServedModel, name: str) -> None:
    assert site.client.post("/v1/events", json=event(1, name)).status_code == 200
    path = "/v1/users/" + "".join(f"%{byte:02X}" for byte in name.encode())
    assert site.client.get(path).json()["user_id"] == name
    assert site.client.get(f"{path}/recommendations").json()["model"] == a.hash
    assert site.client.delete(path).json()["events"] == 1
    assert site.client.get(path).status_code == 404


def test_a_user_is_erased(site: Any) -> None:
    site.client.post("/v1/events", json={"events": [event(n) for n in range(70)]})
    assert site.client.delete("/v1/users/u").json()["events"] == 70
    assert site.client.get("/v1/users/u").status_code == 404
    assert site.client.delete("/v1/users/u").json()["events"] == 0


def test_models_are_swapped(site: Any, a: ServedModel, b: ServedModel, models: Path) -> None:
    site.client.post("/v1/events", json=event(1, item_id=a.item_ids[0]))
    found = site.client.post("/v1/models/swap", json={"name": "b"}).json()
    assert found == {"model": b.hash, "before": a.hash}
    assert site.client.get("/v1/users/u/recommendations").json()["model"] == b.hash
    wrong = site.client.post("/v1/models/swap", json={"name": "sasrec"})
    assert wrong.status_code == 422
    assert "sasrec has no state to update" in wrong.json()["error"]
    assert site.client.get("/health/live").json()["model"] == b.hash


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc", "a/../a", "a\0", "%2e%2e", "..", ".", "", "a/", "A", "link", "\\a", "é"],
)
def test_paths_stay_inside(site: Any, models: Path, name: str) -> None:
    link = models / "link"
    if not link.exists():
        link.symlink_to(models / "b")
    found = site.client.post("/v1/models/swap", json={"name": name})
    assert found.status_code in (404, 422)
    assert site.client.get("/health/live").json()["model"] == site.engine.model.hash


def test_health_metrics_and_the_document(site: Any, a: ServedModel) -> None:
    assert site.client.get("/health/live").json() == {"model": a.hash, "status": "ok"}
    assert site.client.get("/health/ready").json() == {"model": a.hash, "status": "ok"}
    site.client.post("/v1/events", json=event(1))
    text = site.client.get("/metrics").text
    assert 'recblr_events_total{outcome="accepted"} 1.0' in text
    assert 'recblr_request_seconds_count{operation="record",status="200"} 1.0' in text
    document = site.client.get("/openapi.json").json()
    paths = {(it.path, it.method.lower()) for it in api.OPERATIONS.values()}
    assert {(path, method) for path, it in document["paths"].items() for method in it} == paths
    assert document == json.loads(msgspec.json.encode(document))
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b'{"event_id": "a", "event_id": "b"}', 400, "'event_id' twice"),
        (b'{"timestamp": NaN}', 400, "NaN"),
        (b"[" * 50_000, 422, "32 levels"),
        (b"null", 422, "Expected `object`"),
        (b"[]", 422, "Expected `object`"),
        (b"{}", 422, "missing required field"),
        (b'{"events": []}', 422, "list of 1 to 1,000"),
        (b'{"events": {}}', 422, "list of 1 to 1,000"),
        (b'{"events": [1], "more": 1}', 422, "unknown field `more`"),
        (b'{"events": [1], "recommend": {"k": 0}}', 422, ">= 1"),
        (b" " * 1_000_001, 413, "more than 1,000,000 bytes"),
    ],
)
def test_bad_bodies_are_refused(site: Any, body: bytes, status: int, message: str) -> None:
    found = site.client.post("/v1/events", content=body, headers=JSON)
    assert (found.status_code, message in found.json()["error"]) == (status, True), found.text


def test_limits_hold(site: Any, a: ServedModel) -> None:
    many = {"events": [event(n) for n in range(EVENTS + 1)]}
    assert site.client.post("/v1/events", json=many).status_code == 422
    site.client.post("/v1/events", json=event(1))
    get = site.client.get
    for query, message in (
        ("k=0", "k: "), ("k=1001", "k: "), ("k=x", "k: "), ("k=", "k: "), ("k=1&k=0", "k: "),
        ("hide_seen=2", "hide_seen: "), ("more=1", "no parameter 'more'"),
    ):  # fmt: skip
        found = get(f"/v1/users/u/recommendations?{query}")
        assert (found.status_code, message in found.json()["error"]) == (422, True), found.text
    assert get(f"/v1/users/{'u' * 257}").status_code == 422
    assert get("/v1/users/%00").status_code == 422
    assert get("/v1/users/%FF").status_code == 422
    both = {"user_id": "u", "history": ["1"]}
    assert site.client.post("/v1/recommend", json=both).status_code == 422
    assert site.client.post("/v1/recommend", json={}).status_code == 422
    assert site.client.post("/v1/recommend", json={"history": [""]}).status_code == 422


def test_other_paths_methods_hosts_and_kinds_are_refused(site: Any) -> None:
    assert site.client.get("/v2").status_code == 404
    assert site.client.get("/v1/users/").status_code == 404
    assert site.client.put("/v1/events", json={}).status_code == 405
    assert site.client.post("/v1/events", content=b"{}").status_code == 415
    assert site.client.post("/v1/events", data={"a": "b"}).status_code == 415
    foreign = site.client.get("/health/live", headers={"host": "example.org"})
    assert foreign.status_code == 400


def test_raw_rubbish_is_answered_or_hung_up_on(site: Any) -> None:
    post = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for text in (
        b"\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000,
        b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", post + b"Content-Length: -5\r\n\r\n",
    ):  # fmt: skip
        with socket.create_connection(site.address, timeout=5) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert b" 500 " not in answer
    assert site.client.get("/health/live").status_code == 200


# ---- keys ----------------------------------------------------------------------------------------


def test_tenants_are_apart(
    open_site: Callable[[Path], Any], a: ServedModel, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    keys = {name: add_key(file, name) for name in ("one", "two", "admin")}
    assert not any(key in file.read_text() for key in keys.values())
    assert file.stat().st_mode & 0o077 == 0
    site = open_site(file)

    def ask(key: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return site.client.request(method, path, headers=headers, **more)

    mine = ask(keys["one"], "POST", "/v1/events", json=event(1, item_id="secret"))
    assert mine.status_code == 200
    for name, it in api.OPERATIONS.items():
        path = it.path.replace("{user_id}", "u")
        for key in (None, "wrong", keys["one"][:-1], "x y"):
            if it.key != "nobody":
                found = ask(key, it.method, path, json={})
                assert (name, found.status_code) == (name, 401)
        if it.key == "tenant":
            assert ask(keys["admin"], it.method, path, json={}).status_code == 403
            found = ask(keys["two"], it.method, path, json={"user_id": "u"})
            assert "secret" not in found.text
        if it.key == "admin":
            assert ask(keys["one"], it.method, path, json={}).status_code == 403
    assert ask(keys["two"], "GET", "/v1/users/u").status_code == 404
    assert ask(keys["two"], "POST", "/v1/events", json=event(1)).json()["results"][0] == {
        "status": "accepted", "event_id": "u1",
    }  # fmt: skip
    assert ask(keys["one"], "GET", "/v1/users/u").json()["events"] == 1
    assert ask(keys["admin"], "GET", "/metrics").status_code == 200
    basic = {"authorization": f"Basic {keys['one']}"}
    assert site.client.get("/v1/users/u", headers=basic).status_code == 401


def test_without_keys_it_listens_to_this_machine_alone(models: Path) -> None:
    with pytest.raises(InputError, match=r"--host 0\.0\.0\.0 is open to others; make keys with"):
        serve(models / "a", host="0.0.0.0")


def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}x", '{"a": ["short"]}', '{"a": 1}'):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(InputError, match="is no file of keys"):
            Keys(tmp_path / "keys")
    with pytest.raises(InputError, match="is no file of keys"):
        Keys(tmp_path / "absent")


# ---- when it is too much -------------------------------------------------------------------------


def test_overload_is_told(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recblr.serving.engine.WAITING", 0)
    found = site.client.post("/v1/events", json=event(1))
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    assert (
        site.client.post("/v1/events", json=event(1)).json()["results"][0]["status"] == "accepted"
    )


def test_a_store_that_fails_is_told(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.engine._log._connection.close()  # type: ignore[attr-defined]
    found = site.client.post("/v1/events", json=event(1))
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert "the event log failed" in found.json()["error"]
    assert site.client.get("/health/ready").status_code == 503
    assert site.client.get("/health/live").status_code == 200


def test_scores_are_numbers_that_json_has(site: Any, a: ServedModel) -> None:
    found = site.client.post("/v1/recommend", json={"history": [str(a.item_ids[0])], "k": 5}).json()
    assert np.isfinite([it["score"] for it in found["items"]]).all()
