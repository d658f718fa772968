"""The HTTP API: responses, refusals and keys, over a real port."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from recblr.cli.serve import serve
from recblr.errors import InputError
from recblr.serving import api
from recblr.serving.api import MAX_EVENTS
from recblr.serving.keys import Keys, add_key
from recblr.serving.model import ServedModel
from recblr.serving.settings import ServerSettings
from serving.fixtures import OpenSite, Site

JSON = {"content-type": "application/json"}


def event(number: int, user: str = "u", **change: Any) -> dict[str, Any]:
    body = {
        "event_id": f"{user}{number}",
        "user_id": user,
        "item_id": str(number),
        "timestamp": number,
    }
    return {**body, **change}


# ---- operations ----------------------------------------------------------------------------------


def test_events_and_recommendations(site: Site, a: ServedModel) -> None:
    ids = a.item_ids
    first = site.client.post("/v1/events", json=event(1, item_id=ids[0]))
    assert (first.status_code, first.headers["x-model"]) == (200, a.hash)
    assert first.json() == {"model": a.hash, "results": [{"status": "accepted", "event_id": "u1"}]}
    again = site.client.post("/v1/events", json=event(1, item_id=ids[0]))
    assert again.json()["results"][0]["status"] == "duplicate"
    conflict = site.client.post("/v1/events", json=event(1, item_id=ids[1]))
    assert conflict.status_code == 409
    assert conflict.json() == {"error": "event_id 'u1' is already used by another event"}

    answer = site.client.get("/v1/users/u/recommendations", params={"k": 3}).json()
    assert (answer["model"], answer["basis"], len(answer["items"])) == (a.hash, "history", 3)
    assert ids[0] not in [item["item_id"] for item in answer["items"]]
    query = {"k": 1000, "hide_seen": "false"}
    all_items = site.client.get("/v1/users/u/recommendations", params=query).json()["items"]
    assert {item["item_id"] for item in all_items} == set(ids)
    assert [item for item in all_items if item["item_id"] != ids[0]][:3] == answer["items"]

    body = {"history": [ids[0]], "k": 3}
    assert site.client.post("/v1/recommend", json=body).json() == answer
    body = {"user_id": "u", "k": 3, "deny": [answer["items"][0]["item_id"]]}
    items = site.client.post("/v1/recommend", json=body).json()["items"]
    assert items[:2] == answer["items"][1:]


def test_ids_that_the_model_does_not_know_are_named(site: Site, a: ServedModel) -> None:
    known = str(a.item_ids[0])
    hint = f"not in the log of the model (its ids are text, such as {known!r}); ignored"
    body = {"history": [known, "x"], "deny": ["y", "z"], "allow": [*a.item_ids, 7], "k": 3}
    answer = site.client.post("/v1/recommend", json=body)
    assert answer.status_code == 200
    assert answer.json()["warnings"] == [
        f"history: item 'x' is {hint}",
        f"allow: item '7' is {hint}",
        "deny: 2 items are not in the log of the model: 'y', 'z' "
        f"(its ids are text, such as {known!r}); ignored",
    ]
    body = {"history": [known], "allow": a.item_ids, "k": 3}
    expected = site.client.post("/v1/recommend", json=body).json()
    assert expected.keys() == {"model", "basis", "items"}
    assert answer.json()["items"] == expected["items"]
    body = {"user_id": "u", "deny": [known.upper()]}
    (warning,) = site.client.post("/v1/recommend", json=body).json()["warnings"]
    assert warning.endswith(f"is not in the log of the model (did you mean {known!r}?); ignored")
    influence = site.client.get("/v1/users/u/influence", params={"item_id": known.upper()})
    assert influence.status_code == 404


def test_an_answer_without_the_user_says_why(site: Site, a: ServedModel) -> None:
    known = str(a.item_ids[0])
    answer = site.client.get("/v1/users/u/recommendations").json()
    assert (answer["basis"], answer["reason"]) == (
        "popularity", "user 'u' has no item that the model knows",
    )  # fmt: skip
    sent = {"events": [event(1, item_id="never seen")], "recommend": {}}
    answer = site.client.post("/v1/events", json=sent).json()["recommendations"]
    assert answer["reason"] == "user 'u' has no item that the model knows"
    answer = site.client.post("/v1/recommend", json={"history": ["x"]}).json()
    assert answer["reason"] == "the history has no item that the model knows"
    answer = site.client.post("/v1/recommend", json={"history": [known], "allow": [known]}).json()
    assert (answer["items"], answer["reason"]) == ([], "allow, deny and hide_seen leave none")


def test_each_event_of_a_batch_has_a_result(site: Site, a: ServedModel) -> None:
    ids = a.item_ids
    events = [event(1, item_id=ids[0]), event(1, item_id=ids[1]), event(1, item_id=ids[0]),
              {"event_id": "x"}, event(2, item_id=ids[2])]  # fmt: skip
    answer = site.client.post("/v1/events", json={"events": events, "recommend": {"k": 2}})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [
        "accepted", "rejected", "duplicate", "rejected", "accepted",
    ]  # fmt: skip
    assert "missing required field" in results[3]["reason"]
    after = site.client.get("/v1/users/u/recommendations", params={"k": 2}).json()
    assert answer.json()["recommendations"] == after


def test_describe_a_user(site: Site, a: ServedModel) -> None:
    assert site.client.get("/v1/users/u").status_code == 404
    site.client.post("/v1/events", json={"events": [event(n) for n in range(70)]})
    site.client.post("/v1/events", json=event(200, item_id="never seen"))
    user = site.client.get("/v1/users/u").json()
    known = sum(str(n) in map(str, a.item_ids) for n in range(70))
    assert (user["events"], user["known_events"]) == (71, known)
    assert (user["last_event_id"], user["last_timestamp"]) == ("u200", 200.0)
    assert user["age"] > 1e9
    assert user["state_bytes"] == a.start.nbytes
    assert user["history"] == []
    history = site.client.get("/v1/users/u?history=2").json()["history"]
    assert [past["event_id"] for past in history] == ["u200", "u69"]


def test_influence_of_each_event(site: Site, a: ServedModel) -> None:
    assert site.client.get("/v1/users/u/influence").status_code == 404
    ids = a.item_ids[:5]
    events = [event(n, item_id=item) for n, item in enumerate(ids)]
    site.client.post("/v1/events", json={"events": [*events, event(9, item_id="never seen")]})
    answer = site.client.get("/v1/users/u/influence").json()
    best = site.client.get("/v1/users/u/recommendations").json()["items"][0]["item_id"]
    assert answer["item_id"] == best
    assert [past["item_id"] for past in answer["events"]] == ids[::-1]
    assert sum(past["state"] for past in answer["events"]) == pytest.approx(1)
    assert answer["repeat"] == 0
    answer = site.client.get("/v1/users/u/influence", params={"item_id": ids[1]}).json()
    assert answer["item_id"] == ids[1]
    assert a.memory is not None
    parts = a.memory.contributions(a.rows(ids), int(a.rows([ids[1]])[0]))
    assert [past["memory"] for past in answer["events"]] == pytest.approx(parts[::-1].tolist())
    assert parts.max() > 0
    assert answer["repeat"] == a.memory.repeat == -0.7
    body = {"user_id": "u", "k": 1, "hide_seen": False, "allow": [ids[1]]}
    score = site.client.post("/v1/recommend", json=body).json()["items"][0]["score"]
    total = sum(past["score"] + past["memory"] for past in answer["events"]) + answer["repeat"]
    assert total == pytest.approx(score, abs=0.02)  # the network's part is approximate
    answer = site.client.get("/v1/users/u/influence", params={"item_id": "never seen"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "name", ["é", "a/b", "a b", "a%2Fb", "recommendations", "..", "💡", "?x=1"]
)
def test_any_id_can_be_in_a_path(site: Site, a: ServedModel, name: str) -> None:
    assert site.client.post("/v1/events", json=event(1, name)).status_code == 200
    path = "/v1/users/" + "".join(f"%{byte:02X}" for byte in name.encode())
    assert site.client.get(path).json()["user_id"] == name
    assert site.client.get(f"{path}/recommendations").json()["model"] == a.hash
    assert site.client.delete(path).json()["events"] == 1
    assert site.client.get(path).status_code == 404


def test_erase_a_user(site: Site) -> None:
    site.client.post("/v1/events", json={"events": [event(n) for n in range(70)]})
    assert site.client.delete("/v1/users/u").json()["events"] == 70
    assert site.client.get("/v1/users/u").status_code == 404
    assert site.client.delete("/v1/users/u").json()["events"] == 0


def test_swap_models(site: Site, a: ServedModel, b: ServedModel) -> None:
    site.client.post("/v1/events", json=event(1, item_id=a.item_ids[0]))
    answer = site.client.post("/v1/models/swap", json={"name": "b"}).json()
    assert answer == {"model": b.hash, "before": a.hash}
    assert site.client.get("/v1/users/u/recommendations").json()["model"] == b.hash
    refused = site.client.post("/v1/models/swap", json={"name": "sasrec"})
    assert refused.status_code == 422
    assert "sasrec has no state to update" in refused.json()["error"]
    assert site.client.get("/health/live").json()["model"] == b.hash


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc", "a/../a", "a\0", "%2e%2e", "..", ".", "", "a/", "A", "link", "\\a", "é"],
)
def test_a_swap_loads_only_models_of_the_folder(site: Site, models: Path, name: str) -> None:
    link = models / "link"
    if not link.exists():
        link.symlink_to(models / "b")
    answer = site.client.post("/v1/models/swap", json={"name": name})
    assert answer.status_code in (404, 422)
    assert site.client.get("/health/live").json()["model"] == site.engine.model.hash


def test_health_metrics_and_openapi(site: Site, a: ServedModel) -> None:
    assert site.client.get("/health/live").json() == {"model": a.hash, "status": "ok"}
    assert site.client.get("/health/ready").json() == {"model": a.hash, "status": "ok"}
    site.client.post("/v1/events", json=event(1))
    text = site.client.get("/metrics").text
    assert 'recblr_events_total{outcome="accepted"} 1.0' in text
    assert 'recblr_request_seconds_count{operation="record",status="200"} 1.0' in text
    assert "recblr_requests_waiting 0.0" in text
    document = site.client.get("/openapi.json").json()
    operations = {(path, method) for path, item in document["paths"].items() for method in item}
    assert operations == {
        (operation.path, operation.method.lower()) for operation in api.OPERATIONS.values()
    }
    assert document == json.loads(msgspec.json.encode(document))
    references = json.dumps(document).split("#/components/schemas/")[1:]
    for name in {reference.split('"')[0] for reference in references}:
        assert name in document["components"]["schemas"]


# ---- refusals ------------------------------------------------------------------------------------


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
def test_bad_bodies_are_refused(site: Site, body: bytes, status: int, message: str) -> None:
    answer = site.client.post("/v1/events", content=body, headers=JSON)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_limits(site: Site) -> None:
    many = {"events": [event(n) for n in range(MAX_EVENTS + 1)]}
    assert site.client.post("/v1/events", json=many).status_code == 422
    site.client.post("/v1/events", json=event(1))
    get = site.client.get
    for query, message in (
        ("k=0", "k: "), ("k=1001", "k: "), ("k=x", "k: "), ("k=", "k: "), ("k=1&k=0", "k: "),
        ("hide_seen=2", "hide_seen: "), ("more=1", "no parameter 'more'"),
    ):  # fmt: skip
        answer = get(f"/v1/users/u/recommendations?{query}")
        assert (answer.status_code, message in answer.json()["error"]) == (422, True), answer.text
    assert get(f"/v1/users/{'u' * 257}").status_code == 422
    assert get("/v1/users/%00").status_code == 422
    assert get("/v1/users/%FF").status_code == 422
    both = {"user_id": "u", "history": ["1"]}
    assert site.client.post("/v1/recommend", json=both).status_code == 422
    assert site.client.post("/v1/recommend", json={}).status_code == 422
    assert site.client.post("/v1/recommend", json={"history": [""]}).status_code == 422


def test_other_paths_methods_hosts_and_content_types_are_refused(site: Site) -> None:
    assert site.client.get("/v2").status_code == 404
    assert site.client.get("/v1/users/").status_code == 404
    for method, path, allowed in (
        ("PUT", "/v1/events", "POST"), ("POST", "/v1/users/u", "DELETE, GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"), ("PATCH", "/v1/events/e", "DELETE"),
    ):  # fmt: skip
        answer = site.client.request(method, path, json={})
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    packed = site.client.post(
        "/v1/events", content=b"{}", headers={**JSON, "content-encoding": "gzip"}
    )
    assert (packed.status_code, "Content-Encoding" in packed.json()["error"]) == (415, True)
    for path in ("/", "/openapi.json", "/health/live", "/v2"):
        headers = site.client.get(path).headers
        assert (headers["x-content-type-options"], headers["cache-control"]) == (
            "nosniff",
            "no-store",
        )
    head = site.client.head("/health/live")
    assert (head.status_code, head.content) == (200, b"")
    assert site.client.post("/v1/events", content=b"{}").status_code == 415
    assert site.client.post("/v1/events", data={"a": "b"}).status_code == 415
    foreign = site.client.get("/health/live", headers={"host": "example.org"})
    assert foreign.status_code == 400


def test_a_path_prefix(open_site: OpenSite) -> None:
    site = open_site(settings=ServerSettings(path_prefix="/shop"))
    assert site.client.get("/health/live").status_code == 404
    assert site.client.get("/shop").status_code == 404
    assert site.client.post("/shop/v1/events", json=event(1, "a/b")).status_code == 200
    assert site.client.get("/shop/v1/users/a%2Fb").json()["user_id"] == "a/b"
    document = site.client.get("/shop/openapi.json").json()
    assert document["servers"] == [{"url": "/shop"}]
    page = site.client.get("/shop/").text
    assert '"/v1/' not in page
    assert "`/v1/" not in page


def test_invalid_http_is_answered_or_disconnected(site: Site) -> None:
    post = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for text in (
        b"\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000,
        b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", post + b"Content-Length: -5\r\n\r\n",
    ):  # fmt: skip
        with socket.create_connection(site.address, timeout=60) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert b" 500 " not in answer
    assert site.client.get("/health/live").status_code == 200


def test_too_many_requests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("recblr.serving.engine.MAX_WAITING", 0)
        refused = site.client.post("/v1/events", json=event(1))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    answer = site.client.post("/v1/events", json=event(1)).json()
    assert answer["results"][0]["status"] == "accepted"


def test_a_storage_failure(site: Site) -> None:
    site.engine._log._connection.close()  # type: ignore[attr-defined]
    answer = site.client.post("/v1/events", json=event(1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "the event log failed" in answer.json()["error"]
    assert site.client.get("/health/ready").status_code == 503
    assert site.client.get("/health/live").status_code == 200


def test_scores_are_finite(site: Site, a: ServedModel) -> None:
    body = {"history": [str(a.item_ids[0])], "k": 5}
    items = site.client.post("/v1/recommend", json=body).json()["items"]
    assert np.isfinite([item["score"] for item in items]).all()


# ---- keys ----------------------------------------------------------------------------------------


def test_tenants_are_separate(open_site: OpenSite, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = {name: add_key(file, name) for name in ("one", "two", "admin")}
    assert not any(key in file.read_text() for key in keys.values())
    assert file.stat().st_mode & 0o077 == 0
    site = open_site(file)

    def ask(key: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return site.client.request(method, path, headers=headers, **more)

    recorded = ask(keys["one"], "POST", "/v1/events", json=event(1, item_id="secret"))
    assert recorded.status_code == 200
    for name, operation in api.OPERATIONS.items():
        method, path = operation.method, operation.path.replace("{user_id}", "u")
        for key in (None, "wrong", keys["one"][:-1], "x y"):
            if operation.access != "everyone":
                assert (name, ask(key, method, path, json={}).status_code) == (name, 401)
        if operation.access == "tenant":
            assert ask(keys["admin"], method, path, json={}).status_code == 403
            assert "secret" not in ask(keys["two"], method, path, json={"user_id": "u"}).text
        if operation.access == "admin":
            assert ask(keys["one"], method, path, json={}).status_code == 403
    assert ask(keys["two"], "GET", "/v1/users/u").status_code == 404
    assert ask(keys["two"], "POST", "/v1/events", json=event(1)).json()["results"][0] == {
        "status": "accepted", "event_id": "u1",
    }  # fmt: skip
    assert ask(keys["one"], "GET", "/v1/users/u").json()["events"] == 1
    assert ask(keys["admin"], "GET", "/metrics").status_code == 200
    basic = {"authorization": f"Basic {keys['one']}"}
    assert site.client.get("/v1/users/u", headers=basic).status_code == 401


def test_other_machines_need_keys(models: Path) -> None:
    with pytest.raises(InputError, match=r"serve.host = 0\.0\.0\.0 accepts connections from other"):
        serve(str(models / "a"), host="0.0.0.0")


def test_a_file_that_is_not_a_key_file_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}x", '{"a": ["short"]}', '{"a": 1}'):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(InputError, match="is not a key file"):
            Keys(tmp_path / "keys")
    for path in (tmp_path / "absent", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a key file"):
            Keys(path)
