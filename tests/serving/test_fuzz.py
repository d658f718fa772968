"""No input makes the server fail: 50,000 of them in `make soak`."""

import json
import os
import random
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recblr.serving import api

SOAK = bool(os.environ.get("RECBLR_SOAK"))
EACH = 12_000 if SOAK else 150
SETTINGS = settings(
    max_examples=EACH, deadline=None, database=None, derandomize=not SOAK,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
TEXT = st.text(max_size=20) | st.sampled_from(["u", "", "\0", "\ud800", "a" * 300, "../x", "💡"])
NUMBER = st.integers() | st.floats() | st.sampled_from([1e308, 10**400, -0.0, 2**63])
ANY = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda it: st.lists(it, max_size=4) | st.dictionaries(TEXT, it, max_size=4),
    max_leaves=8,
)
EVENT = st.fixed_dictionaries(
    {}, optional={"event_id": TEXT | ANY, "user_id": TEXT | ANY, "item_id": TEXT | ANY,
                  "timestamp": NUMBER | ANY, "more": ANY},
)  # fmt: skip
WISH = st.fixed_dictionaries({}, optional={"k": NUMBER | ANY, "hide_seen": st.booleans() | ANY})
BODIES = {
    "record": EVENT
    | st.fixed_dictionaries(
        {"events": st.lists(EVENT | ANY, max_size=4) | ANY}, optional={"recommend": WISH | ANY}
    ),
    "recommend_for": st.fixed_dictionaries(
        {}, optional={"user_id": TEXT | ANY, "history": st.lists(TEXT | ANY, max_size=4) | ANY,
                      "k": NUMBER | ANY, "hide_seen": ANY, "allow": st.lists(TEXT) | ANY,
                      "deny": st.lists(TEXT) | ANY},
    ),
    "swap": st.fixed_dictionaries({"name": TEXT | ANY}),
}  # fmt: skip


def healthy(site: Any) -> None:
    assert site.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("name", BODIES)
def test_bodies(site: Any, name: str, keep: Callable[..., None]) -> None:
    @SETTINGS
    @given(body=BODIES[name] | ANY)
    def test(body: Any) -> None:
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        found = site.client.post(api.OPERATIONS[name].path, content=content, headers=headers)
        assert found.status_code < 500, (body, found.text)
        assert found.json()

    test()
    healthy(site)
    keep(f"fuzz of {name}", cases=EACH, failures=0)


def test_paths_and_queries(site: Any) -> None:
    reads = [it.path for it in api.OPERATIONS.values() if it.method != "POST"]

    @SETTINGS
    @given(
        path=st.sampled_from(reads), method=st.sampled_from(["GET", "DELETE", "POST", "HEAD", "X"]),
        user=st.binary(max_size=12) | st.sampled_from([b"u", b"..", b"a/b"]),
        query=st.dictionaries(
            st.sampled_from(["k", "hide_seen", "item_id", "history", "limit"]) | st.text(max_size=5),
            st.sampled_from(["0", "1", "-1", "1e3", "true", "x", "9" * 400]) | st.text(max_size=9),
            max_size=3,
        ),
    )  # fmt: skip
    def test(path: str, method: str, user: bytes, query: dict[str, str]) -> None:
        asked = path.replace("{user_id}", quote(user, safe=""))
        pairs = "&".join(
            f"{quote(name, errors='replace')}={quote(value, errors='replace')}"
            for name, value in query.items()
        )
        found = site.client.request(method, f"{asked}?{pairs}")
        assert found.status_code < 500, (asked, pairs, found.text)

    test()
    healthy(site)


def test_raw_bytes(site: Any) -> None:
    """Requests with bytes changed, cut off, repeated."""
    draw = random.Random(0)
    event = b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp": 1}'
    request = (
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(event), event)
    )
    for _ in range(EACH // 4):
        text = bytearray(request)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(text))
            match draw.randrange(4):
                case 0:
                    text[at] = draw.randrange(256)
                case 1:
                    del text[at : at + draw.randint(1, 20)]
                case 2:
                    text[at:at] = draw.randbytes(draw.randint(1, 10))
                case _:
                    text[at:at] = text[draw.randrange(at + 1) : at]
        with socket.create_connection(site.address, timeout=10) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while some := connection.recv(10_000):
                answer += some
        assert not answer.startswith(b"HTTP/1.1 5"), (bytes(text), answer)
    healthy(site)
