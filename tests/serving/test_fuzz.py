"""No input makes the server fail: about 50,000 inputs in `make soak`."""

import json
import random
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SOAK
from recblr.serving import api
from serving.fixtures import Site

EACH = 12_000 if SOAK else 150
SETTINGS = settings(
    max_examples=EACH, deadline=None, database=None, derandomize=not SOAK,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
TEXT = st.text(max_size=20) | st.sampled_from(["u", "", "\0", "\ud800", "a" * 300, "../x", "💡"])
NUMBER = st.integers() | st.floats() | st.sampled_from([1e308, 10**400, -0.0, 2**63])
ANY = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=8,
)
EVENT = st.fixed_dictionaries(
    {}, optional={"event_id": TEXT | ANY, "user_id": TEXT | ANY, "item_id": TEXT | ANY,
                  "timestamp": NUMBER | ANY, "more": ANY},
)  # fmt: skip
OPTIONS = st.fixed_dictionaries({}, optional={"k": NUMBER | ANY, "hide_seen": st.booleans() | ANY})
BODIES = {
    "record": EVENT
    | st.fixed_dictionaries(
        {"events": st.lists(EVENT | ANY, max_size=4) | ANY}, optional={"recommend": OPTIONS | ANY}
    ),
    "recommend_for": st.fixed_dictionaries(
        {}, optional={"user_id": TEXT | ANY, "history": st.lists(TEXT | ANY, max_size=4) | ANY,
                      "k": NUMBER | ANY, "hide_seen": ANY, "allow": st.lists(TEXT) | ANY,
                      "deny": st.lists(TEXT) | ANY},
    ),
    "swap": st.fixed_dictionaries({"name": TEXT | ANY}),
}  # fmt: skip


def assert_ready(site: Site) -> None:
    assert site.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("name", BODIES)
def test_bodies(site: Site, name: str, keep: Callable[..., None]) -> None:
    @SETTINGS
    @given(body=BODIES[name] | ANY)
    def test(body: Any) -> None:
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        answer = site.client.post(api.OPERATIONS[name].path, content=content, headers=headers)
        assert answer.status_code < 500, (body, answer.text)
        assert answer.json()

    test()
    assert_ready(site)
    keep(f"fuzz of {name}", cases=EACH, failures=0)


def test_paths_and_queries(site: Site) -> None:
    paths = [operation.path for operation in api.OPERATIONS.values() if operation.method != "POST"]

    @SETTINGS
    @given(
        path=st.sampled_from(paths), method=st.sampled_from(["GET", "DELETE", "POST", "HEAD", "X"]),
        user=st.binary(max_size=12) | st.sampled_from([b"u", b"..", b"a/b"]),
        query=st.dictionaries(
            st.sampled_from(["k", "hide_seen", "item_id", "history", "limit", "by"])
            | st.text(max_size=5),
            st.sampled_from(["0", "1", "-1", "1e3", "true", "x", "9" * 400]) | st.text(max_size=9),
            max_size=3,
        ),
    )  # fmt: skip
    def test(path: str, method: str, user: bytes, query: dict[str, str]) -> None:
        name = quote(user, safe="")
        url = path.replace("{user_id}", name).replace("{item_id}", name)
        pairs = "&".join(
            f"{quote(name, errors='replace')}={quote(value, errors='replace')}"
            for name, value in query.items()
        )
        answer = site.client.request(method, f"{url}?{pairs}")
        assert answer.status_code < 500, (url, pairs, answer.text)

    test()
    assert_ready(site)


def test_raw_bytes(site: Site) -> None:
    """Requests in which bytes are changed, removed, inserted or repeated."""
    draw = random.Random(0)
    event = b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp": 1}'
    request = (
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(event), event)
    )
    for _ in range(EACH // 4):
        text = bytearray(request)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(text))
            match draw.randrange(4):
                case 0:
                    text[place] = draw.randrange(256)
                case 1:
                    del text[place : place + draw.randint(1, 20)]
                case 2:
                    text[place:place] = draw.randbytes(draw.randint(1, 10))
                case _:
                    text[place:place] = text[draw.randrange(place + 1) : place]
        with socket.create_connection(site.address, timeout=60) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while received := connection.recv(10_000):
                answer += received
        assert not answer.startswith(b"HTTP/1.1 5"), (bytes(text), answer)
    assert_ready(site)
