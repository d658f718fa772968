"""HTTP connections: limits on heads, URLs, idle and pipelining clients, over raw sockets."""

import logging
import resource
import socket
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from recblr.serving import connections
from recblr.serving.settings import ServerSettings
from serving.fixtures import OpenSite, Site
from serving.server_process import wait_until

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


def receive_all(connection: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    content = b""
    try:
        while chunk := connection.recv(65536):
            content += chunk
    except ConnectionResetError:
        pass
    return content


def send(site: Site, content: bytes) -> bytes:
    """Send bytes; all that comes back."""
    with socket.create_connection(site.address, timeout=60) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # the server may not want all of it
            connection.sendall(content)
        return receive_all(connection)


LIMITS = ServerSettings()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, open_site: OpenSite) -> Site:
    """A server with short deadlines."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    return open_site(settings=ServerSettings(head_seconds=0.3, read_seconds=0.3, idle_seconds=1))


@pytest.mark.parametrize("size", [LIMITS.max_head_bytes + 1, 200_000, 5_000_000])
@pytest.mark.parametrize("header", [b"X: %s\r\n", b"X%s: 1\r\n"])
def test_long_headers_are_refused(site: Site, header: bytes, size: int) -> None:
    answer = send(site, GET + header % (b"a" * size) + b"\r\n")
    assert answer[9:12] in (b"431", b"")
    if size < 100_000:
        assert answer.endswith(b'{"error":"the headers have more than 32,768 bytes"}')
    assert site.client.get("/health/live").status_code == 200


def test_many_headers_are_refused(site: Site) -> None:
    answer = send(site, GET + b"A: b\r\n" * 10_000 + b"\r\n")
    assert answer[9:12] == b"431"


def test_heads_within_the_limits_are_answered(site: Site) -> None:
    headers = {f"x-{number}": "a" * 1000 for number in range(30)}
    for _ in range(3):
        assert site.client.get("/health/live", headers=headers).status_code == 200
    url = "/v1/users/u?history=" + "0" * 8000
    assert site.client.get(url).status_code == 422
    long = site.client.get("/v1/users/u?history=" + "0" * 9000)
    assert (long.status_code, long.json()) == (414, {"error": "the URL has more than 8,192 bytes"})


def test_an_unfinished_head_is_refused_after_a_while(site: Site) -> None:
    assert send(site, GET)[9:12] == b"408"
    assert send(site, b"GET / HT")[9:12] == b"408"
    assert send(site, b"") == b""
    assert send(site, b"\r\n\r\n") == b""  # no request at all


def test_an_idle_connection_is_closed(site: Site) -> None:
    with socket.create_connection(site.address, timeout=60) as connection:
        connection.sendall(GET + b"\r\n")
        assert receive_all(connection).count(b"HTTP/1.1 200") == 1


@pytest.fixture
def few(open_site: OpenSite) -> Site:
    """A server of at most ten connections."""
    return open_site(settings=ServerSettings(max_connections=10))


def test_idle_connections_make_room_for_new_ones(few: Site) -> None:
    with ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(few.address, timeout=60))
            for _ in range(50)
        ]
        for connection in idle[::2]:
            with suppress(OSError):  # it may be closed already
                connection.sendall(GET)  # unfinished
        for _ in range(5):
            with httpx.Client(base_url=few.client.base_url, timeout=60) as client:
                assert client.get("/health/live").status_code == 200


def test_a_connection_limit_below_the_usual_one_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits: list[Any] = [(512, 512)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    with caplog.at_level(logging.WARNING):
        assert (
            connections.connection_limit(2048) == 512 - connections.SPARE - connections.OTHER_FILES
        )
    assert "the limit of 512 open files allows 320 connections instead of 2048" in caplog.text
    limits[:] = [(1024, 100_000)]
    assert connections.connection_limit(2048) == 2048
    assert limits[-1][0] > 2048


def test_requests_that_wait_on_one_connection_are_bounded(site: Site) -> None:
    few = (GET + b"\r\n") * LIMITS.max_pipelined
    with socket.create_connection(site.address, timeout=60) as connection:
        connection.sendall(few)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < LIMITS.max_pipelined:
            answers += connection.recv(65536)
    answers = send(site, (GET + b"\r\n") * 5_000)
    assert 1 <= answers.count(b"HTTP/1.1 200") <= 5_000
    assert answers.count(b"HTTP/1.1") < 100
    wait_until(lambda: site.client.get("/health/live").status_code == 200)


def test_what_follows_a_refused_body_is_dropped(site: Site) -> None:
    head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = b"Content-Length: 50000000\r\n\r\n" + b" " * 50_000_000
    assert send(site, head + body)[9:12] in (b"413", b"")
    assert site.client.get("/health/live").status_code == 200
