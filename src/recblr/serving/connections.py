"""The HTTP connections of a server, with limits on what a client can make it keep or wait for."""

import asyncio
import heapq
import http
import logging
import resource
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from recblr.serving.settings import ServerSettings

SPARE = 64  # connections beyond the limit, so that health is answered while all others are busy
PIECE_OF_BODY = 64 * 1024  # bytes that the parser gets at a time
LINGER_SECONDS = 1.0  # until a connection is closed after a refusal
MAX_DISCARDED = 8_000_000  # bytes of a body after its answer
OTHER_FILES = 128  # descriptors for all but connections

log = logging.getLogger("recblr.http")


class _OneWrite:
    """A transport that writes the head of an answer together with the body, in one packet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""
        self.close = transport.close

    def write(self, data: bytes) -> None:
        if self._head:
            self._transport.write(self._head + data)
        self._head = b"" if self._head else data


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits. A client that exceeds one gets an error status, if it can still
    be answered, and is disconnected."""

    settings = ServerSettings()
    limit = settings.max_connections
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _in_head = False  # whether a part of a request's head has arrived
    _head_bytes = 0
    _discarded = 0
    _refusal: tuple[int, str] | None = None
    idle_since: float | None = None

    # ---- the connection -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.idle_since = self.loop.time()
        self._head_timer = self.loop.call_later(self.settings.head_seconds, self._close_slow)
        if len(self.connections) > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connections that have been idle longest; several, because it takes time."""
        idle = [
            other for other in self.connections
            if isinstance(other, Connection) and other.idle_since is not None and other is not self
        ]  # fmt: skip
        oldest = heapq.nsmallest(
            self.limit // 16 + 1, idle, key=lambda other: other.idle_since or 0
        )
        log.warning(
            "limit of %d connections reached: closing %d of %d idle ones",
            self.limit, len(oldest), len(idle),
        )  # fmt: skip
        for other in oldest:
            other.transport.abort()
            self.connections.discard(other)
        if not oldest and len(self.connections) > self.limit + SPARE:
            self.connections.discard(self)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()

    def _close_slow(self) -> None:
        self._head_timer = None
        if self._is_busy():  # with an earlier request
            self._head_timer = self.loop.call_later(self.settings.head_seconds, self._close_slow)
            return
        if self._in_head and not self.transport.is_closing():
            self._refusal = (
                408,
                f"the headers did not arrive in {self.settings.head_seconds:.0f} seconds",
            )
            self._refuse(*self._refusal)
        else:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # close() would wait until a client has read all answers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(self.settings.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    # ---- requests -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        # In pieces, because the parser joins the parts of a header.
        start = 0
        while start < len(data):
            if self._refusal is not None or self.transport.is_closing():
                return
            body = not self._in_head and self._is_busy()
            piece = data[start : start + (PIECE_OF_BODY if body else self.settings.max_url_bytes)]
            start += len(piece)
            if self._in_head:
                self._head_bytes += len(piece)
            try:
                if self._head_bytes > self.settings.max_head_bytes:
                    self._limit_head()
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                pass  # answered as if no other protocol was asked for
            except httptools.HttpParserError:
                self._refusal = self._refusal or (400, "invalid HTTP request")
            if self._refusal is not None:
                if self._head_timer is not None:
                    self._head_timer.cancel()
                    self._head_timer = None
                if not (self.pipeline or self._is_busy()):
                    self._refuse(*self._refusal)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit_head(self) -> None:
        """Raise an error that ends the parsing."""
        self._refusal = 431, f"the headers have more than {self.settings.max_head_bytes:,} bytes"
        raise httptools.HttpParserError

    def _refuse(self, status: int, reason: str) -> None:
        body = msgspec.json.encode({"error": reason})
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # What the client still sends is dropped, because a reset could overtake the answer.
        self._unset_keepalive_if_required()
        self._head_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.head_seconds, self._close_slow)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.settings.max_url_bytes:
            self._refusal = 414, f"the URL has more than {self.settings.max_url_bytes:,} bytes"
            raise httptools.HttpParserError

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if not self._in_head:  # a trailer of a chunked body
            self.headers.pop()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_head_bytes:
            self._limit_head()
        if (
            len(self.pipeline) >= self.settings.max_pipelined
        ):  # the answers to the requests before it are sent
            self._refusal = (
                400,
                f"more than {self.settings.max_pipelined} requests wait on one connection",
            )
            raise httptools.HttpParserError
        self._in_head, self._head_bytes, self._discarded = False, 0, 0
        self.idle_since = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if self.scope["method"] != "HEAD" and not self.expect_100_continue:
            self.cycle.transport = _OneWrite(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline or self._is_busy():
            return
        self.idle_since = self.loop.time()
        if self._refusal is not None and not self.transport.is_closing():
            self._refuse(*self._refusal)


def connection_limit(wanted: int) -> int:
    """How many connections the limit of open files allows; it is raised as far as it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE + OTHER_FILES
    if soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limit = min(wanted, max(16, soft - SPARE - OTHER_FILES))
    if limit < wanted:
        log.warning(
            "the limit of %d open files allows %d connections instead of %d; raise it with ulimit -n "
            "or LimitNOFILE=", soft, limit, wanted,
        )  # fmt: skip
    return limit


def connections(settings: ServerSettings) -> Any:
    """The class of the connections of a server."""
    limit = connection_limit(settings.max_connections)
    return type("Connection", (Connection,), {"settings": settings, "limit": limit})
