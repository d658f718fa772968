"""Downloads of the named data sets, from a server on this machine."""

import hashlib
import http.server
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data.fixtures import EXPECTED, ORIGINALS, packed, rows
from recblr.data import datasets
from recblr.data.datasets import cache_folder, dataset, load_dataset
from recblr.errors import InputError


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the first part of the path says."""

    def do_GET(self) -> None:
        _, answer, file = self.path.split("/")
        name = next(name for name in ORIGINALS if file in dataset(name).files)
        body = packed(name, ORIGINALS[name][0])
        if answer == "missing":
            self.send_error(404)
            return
        if answer == "silent":
            self.server.release.wait(5)  # type: ignore[attr-defined]
            return
        if answer == "html":
            body = b"<html>log in to this network first</html>"
        self.send_response(200)
        if answer == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if answer != "unsized":
            more = 7 if answer in ("short", "stalled") else 0
            self.send_header("Content-Length", str(len(body) + more))
        self.end_headers()
        self.wfile.write(body)
        if answer == "stalled":
            self.server.release.wait(5)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.release = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.release.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def serve_from(
    monkeypatch: pytest.MonkeyPatch, home: str, md5: str | None = None, name: str = "ml-100k"
) -> None:
    record = replace(dataset(name), home=f"{home}/{dataset(name).files[0]}", md5=md5)
    monkeypatch.setitem(datasets.DATASETS, name, record)


@pytest.mark.parametrize("answer", ["good", "unsized"])
def test_downloads_once(
    data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch, answer: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    body = packed("ml-100k", ORIGINALS["ml-100k"][0])
    seen: list[tuple[str, float | None, list[int]]] = []

    @contextmanager
    def recorder(description: str, total: float | None) -> Iterator[object]:
        amounts: list[int] = []
        seen.append((description, total, amounts))
        yield amounts.append

    monkeypatch.setattr(datasets, "progress", recorder)
    serve_from(monkeypatch, f"{server}/{answer}", hashlib.md5(body).hexdigest())
    assert rows(load_dataset("ml-100k")) == EXPECTED["ml-100k"]
    (file,) = cache_folder().iterdir()
    assert file.name == "ml-100k.zip"
    assert file.stat().st_mode & 0o777 == 0o644
    description, total, amounts = seen[0]
    assert description == "downloading ml-100k"
    assert total == (None if answer == "unsized" else len(body))
    assert sum(amounts) == len(body)
    assert capfd.readouterr() == ("", "")

    serve_from(monkeypatch, f"{server}/missing")  # not asked again
    monkeypatch.setitem(sys.modules, "pooch", None)  # not imported without a download
    assert rows(load_dataset("ml-100k")) == EXPECTED["ml-100k"]


@pytest.mark.parametrize(
    ("answer", "md5", "reason"),
    [
        ("short", None, r"\(IncompleteRead\(\d+ bytes read, 7 more expected\)\)"),
        ("good", "0" * 32, r"\(MD5 hash .* expected md5:0{32} but got [0-9a-f]{32}\..*\)"),
        ("missing", None, r"\(404 .*Not Found.*\)"),
        ("silent", None, r"\(timed out\)"),
        ("stalled", None, r"\(timed out\)"),
        ("html", None, r"\(File is not a zip file\)"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    data_folder: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    md5: str | None,
    reason: str,
) -> None:
    monkeypatch.setattr(datasets, "TIMEOUT", 0.3)
    serve_from(monkeypatch, f"{server}/{answer}", md5)
    with pytest.raises(InputError, match=rf"^ml-100k: no download from \S+ {reason}; try") as error:
        load_dataset("ml-100k")
    assert "put ml-100k.zip in a folder and set RECBLR_DATA" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(cache_folder().iterdir()) == []


def test_a_download_that_is_no_gzip(
    data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_from(monkeypatch, f"{server}/html", name="gowalla")
    with pytest.raises(InputError, match=r"gowalla: no download .*Not a gzipped file"):
        load_dataset("gowalla")
    assert list(cache_folder().iterdir()) == []


def test_a_gzip_file_that_the_server_declares_as_encoded(
    data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_from(monkeypatch, f"{server}/encoded", name="gowalla")
    assert rows(load_dataset("gowalla")) == EXPECTED["gowalla"]


def test_no_server(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    serve_from(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(
        InputError, match=r"ml-100k: no download from \S+ \(\[Errno \d+\] .*refused\)"
    ):
        load_dataset("ml-100k")
    assert list(cache_folder().iterdir()) == []


def test_an_unknown_host(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    serve_from(monkeypatch, "http://data.invalid")
    message = r"no download from \S+ \(\[Errno -2\] Name or service not known\); try again"
    with pytest.raises(InputError, match=message):
        load_dataset("ml-100k")
    assert list(cache_folder().iterdir()) == []


def test_a_full_disk(data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files makes the writing fail, as a full disk does."""
    serve_from(monkeypatch, f"{server}/good")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InputError, match=r"ml-100k: no download from \S+ \(\[Errno \d+\] .*\)"):
            load_dataset("ml-100k")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache_folder().iterdir()) == []


def test_a_cache_that_cannot_be_written(
    data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_folder / "file").write_text("in the way")
    monkeypatch.setenv("RECBLR_CACHE", str(data_folder / "file"))
    serve_from(monkeypatch, f"{server}/good")
    with pytest.raises(InputError, match="ml-100k: no download"):
        load_dataset("ml-100k")


def test_ctrl_c_leaves_nothing(
    data_folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted(description: str, total: float | None) -> Iterator[object]:
        def advance(amount: int) -> None:
            (file,) = cache_folder().iterdir()
            assert file.name != "ml-100k.zip"
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(datasets, "progress", interrupted)
    serve_from(monkeypatch, f"{server}/good")
    with pytest.raises(KeyboardInterrupt):
        load_dataset("ml-100k")
    assert list(cache_folder().iterdir()) == []
