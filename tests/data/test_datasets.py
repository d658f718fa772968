"""The named data sets: their formats, where they are looked up, and downloads that go wrong."""

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recblr.data import datasets, open_log
from recblr.data.datasets import cache_folder, dataset, dataset_names, load_dataset
from recblr.data.log import Interactions
from recblr.data.sequences import prepare
from recblr.errors import InputError

REAL = os.environ.get("RECBLR_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="RECBLR_DATA is unset: no real data here")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty RECBLR_DATA folder; the cache is the empty folder beside it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("RECBLR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RECBLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "data"


def pairs(log: Interactions) -> list[tuple[str, str]]:
    users, items = log.user_ids.to_pylist(), log.item_ids.to_pylist()
    return [(users[u], items[i]) for u, i in zip(log.users, log.items, strict=True)]


def rows(log: Interactions) -> list[tuple[str, str, int]]:
    assert log.timestamps is not None
    times = log.timestamps.tolist()
    return [(*pair, time) for pair, time in zip(pairs(log), times, strict=True)]


def zipped(member: str, text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


def packed(name: str, text: str) -> bytes:
    """The text as the publisher of the data set would pack it."""
    record = dataset(name)
    if record.member:
        return zipped(record.member, text)
    return gzip.compress(text.encode()) if record.home.endswith(".gz") else text.encode()


def put(folder: Path, name: str, text: str) -> None:
    (folder / dataset(name).files[0]).write_bytes(packed(name, text))


REVIEWS = [
    {"reviewerID": "A2", "asin": "0007", "overall": 5.0, "unixReviewTime": 1400000000},
    {"reviewerID": "NA", "asin": "B1", "reviewText": "a\tb\n::", "unixReviewTime": 1300000000},
]
AMAZON = "".join(json.dumps(review) + "\n" for review in REVIEWS)
AMAZON_ROWS = [("A2", "0007", 1400000000), ("NA", "B1", 1300000000)]
ORIGINALS = {
    "ml-100k": ("196\t242\t3\t881250949\n7\t007\t1\t881250950\n", "196\t242\t3\n"),
    "ml-1m": ("1::1193::5::978300760\n1::661::3::978302109\n", "1::2::3::x\n"),
    "ml-1m-recbole": ("1::1193::5::978300760\n1::661::3::978302109\n", "1::2::3::x\n"),
    "ml-latest-small": (
        "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n2,1029,3.0,1260759179\n",
        "1,31,2.5\n",
    ),
    "beauty": (AMAZON, '{"reviewerID": "A2", "asin": "B1"}\n'),
    "sports": (AMAZON, "{'reviewerID': 'A2'}\n"),
    "steam": (
        "{u'username': u'Ann \\u2665', u'text': u\"don't\", u'product_id': u'725280', "
        "u'date': u'2017-12-17', u'early_access': False}\n"
        "{u'username': u'bob', u'user_id': u'765', u'product_id': u'10', u'date': u'1970-01-02'}\n",
        "{u'username': u'bob', u'product_id': u'10', u'date': u'yesterday'}\n",
    ),
    "gowalla": (
        "0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847\n"
        "0\t2010-10-18T22:17:43Z\t30.26\t-97.76\t420315\n",
        "0\t2010-10-19\t22847\n",
    ),
    "xlong": ("7\tu1\t3,1,2\t9\t5\t0,0\t0,0\n7\tu2\t4\t3\t8\t0\t0\n", "7\tu3\t1,2,3\n"),
}
EXPECTED = {
    "ml-100k": [("196", "242", 881250949), ("7", "007", 881250950)],
    "ml-1m": [("1", "1193", 978300760), ("1", "661", 978302109)],
    "ml-1m-recbole": [("1", "1193", 978300736), ("1", "661", 978302080)],
    "ml-latest-small": [("1", "31", 1260759144), ("2", "1029", 1260759179)],
    "beauty": AMAZON_ROWS,
    "sports": AMAZON_ROWS,
    "steam": [("Ann ♥", "725280", 1513468800), ("bob", "10", 86400)],
    "gowalla": [("0", "420315", 1287440263), ("0", "22847", 1287532527)],
    # The history, then its next item; the sampled negative (5, 8) is no event.
    "xlong": [
        *[("u1", "3", 0), ("u1", "1", 1), ("u1", "2", 2), ("u1", "9", 3)],
        *[("u2", "4", 0), ("u2", "3", 1)],
    ],
}


def put_original(folder: Path, name: str, text: str) -> None:
    put(folder, name, text)
    for other in dataset(name).files[1:]:
        (folder / other).write_text("")


@pytest.mark.parametrize("name", ORIGINALS)
def test_reads_the_original_format(data: Path, name: str) -> None:
    put_original(data, name, ORIGINALS[name][0])
    log = load_dataset(name)
    assert sorted(rows(log)) == sorted(EXPECTED[name])
    assert str(data) in log.source


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("broken", ["format", "empty line", "not text"])
def test_a_broken_line_is_named(data: Path, name: str, broken: str) -> None:
    good, bad = ORIGINALS[name]
    wrong = {"format": bad, "empty line": "\n", "not text": "\0\n"}[broken]
    put_original(data, name, good + wrong + good)
    number = len(good.splitlines()) + 1
    with pytest.raises(InputError, match=rf"{dataset(name).files[0]}, line {number}: ") as error:
        load_dataset(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["\t242\t3\t881250949\n", "196\t\t3\t881250949\n"])
def test_an_empty_id_is_no_id(data: Path, line: str) -> None:
    put(data, "ml-100k", line)
    with pytest.raises(InputError, match="line 1: "):
        load_dataset("ml-100k")


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_file_without_lines(data: Path, name: str) -> None:
    put_original(data, name, "")
    with pytest.raises(InputError, match=rf"{dataset(name).files[-1]}, line 0: '' is no line"):
        load_dataset(name)


def test_bytes_that_are_no_text(data: Path) -> None:
    with gzip.open(data / "loc-gowalla_totalCheckins.txt.gz", "wb") as file:
        file.write(
            b"0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t1\n\xff\t2010-10-19T23:55:27Z\t0\t0\t2\n"
        )
    with pytest.raises(InputError, match="line 2: "):
        load_dataset("gowalla")


def test_the_header_of_the_csv_is_checked(data: Path) -> None:
    put(data, "ml-latest-small", "1,31,2.5,1260759144\n2,1029,3.0,1260759179\n")
    with pytest.raises(InputError, match="line 1: '1,31"):
        load_dataset("ml-latest-small")


def test_gowalla_keeps_the_latest_check_in_at_a_place(data: Path) -> None:
    visits = [("a", 5, "x"), ("a", 4, "y"), ("a", 3, "x"), ("b", 1, "x"), ("b", 2, "x")]
    text = "".join(f"{u}\t2010-01-01T00:00:0{t}Z\t0\t0\t{p}\n" for u, t, p in visits)
    put(data, "gowalla", text)
    start = 1262304000
    expected = [("b", "x", start + 2), ("a", "y", start + 4), ("a", "x", start + 5)]
    assert rows(load_dataset("gowalla")) == expected


def test_gowallas_file_runs_backwards_within_a_second_too(data: Path) -> None:
    def events(visits: str) -> str:
        return "".join(f"{u}\t2010-01-01T00:00:0{t}Z\t0\t0\t{p}\n" for u, t, p in visits.split())

    put(data, "gowalla", events("a5x a5y a4z"))
    assert [item for _, item, _ in rows(load_dataset("gowalla"))] == ["z", "y", "x"]
    put(data, "gowalla", events("a5x a5y a5x a5z a5y"))  # the first line of a place is its latest
    assert [item for _, item, _ in rows(load_dataset("gowalla"))] == ["z", "y", "x"]


# User 2 comes first. For float32, times from 978300705 to 978300767 are 978300736.
TIED = [
    ("2", "b", 978300900),
    ("1", "a", 978300750),
    ("2", "c", 978300760),
    ("2", "a", 978300760),
    ("2", "d", 978300710),
    ("1", "e", 978300749),
]


def put_tied(folder: Path, kind: str) -> None:
    if kind == "original":
        put(folder, "ml-1m", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in TIED))
    elif kind == "times":
        frame = pl.DataFrame(TIED, ["user_id", "item_id", "timestamp"], orient="row")
        frame.write_csv(folder / "ml-1m-times.tsv", separator="\t")
    else:
        order = [
            ("2", "d", 0),
            ("2", "c", 1),
            ("2", "a", 2),
            ("2", "b", 3),
            ("1", "e", 0),
            ("1", "a", 1),
        ]
        frame = pl.DataFrame(order, ["user_id", "item_id", "order"], orient="row")
        frame.write_csv(folder / "ml-1m.tsv", separator="\t")


@pytest.mark.parametrize("kind", ["original", "times", "order"])
def test_ml_1m_is_in_order_of_user_and_time(data: Path, kind: str) -> None:
    put_tied(data, kind)
    log = load_dataset("ml-1m")
    expected = [("2", "d"), ("2", "c"), ("2", "a"), ("2", "b"), ("1", "e"), ("1", "a")]
    assert pairs(log) == expected
    if kind != "order":
        assert sorted(rows(log)) == sorted(TIED)
    assert log.user_ids.to_pylist() == ["2", "1"]
    assert log.item_ids.to_pylist() == ["d", "c", "a", "b", "e"]  # as they now appear
    assert str(data) in log.source


@pytest.mark.parametrize("kind", ["original", "times"])
def test_ml_1m_recbole_is_in_order_of_user_and_float32_time(data: Path, kind: str) -> None:
    put_tied(data, kind)
    log = load_dataset("ml-1m-recbole")
    assert rows(log) == [
        ("2", "c", 978300736),
        ("2", "a", 978300736),
        ("2", "d", 978300736),
        ("2", "b", 978300928),
        ("1", "a", 978300736),
        ("1", "e", 978300736),
    ]
    assert log.item_ids.to_pylist() == ["c", "a", "d", "b", "e"]


def test_ml_1m_prefers_times_and_its_recbole_order_needs_them(data: Path) -> None:
    put(data, "ml-1m", "zip::x::4::978300760\n")
    put_tied(data, "order")
    assert Path(load_dataset("ml-1m").source).name == "ml-1m.tsv"
    assert rows(load_dataset("ml-1m-recbole")) == [("zip", "x", 978300736)]
    put_tied(data, "times")
    for name in ("ml-1m", "ml-1m-recbole"):
        assert Path(load_dataset(name).source).name == "ml-1m-times.tsv"


def test_a_log_without_times_is_in_order_as_it_is(data: Path) -> None:
    (data / "ml-1m.tsv").write_text("user_id\titem_id\n1\tb\n2\ta\n1\ta\n")
    log = load_dataset("ml-1m")
    assert log.timestamps is None
    assert log.items.tolist() == [0, 1, 1]


def test_xlong_takes_the_last_line_of_a_user(data: Path) -> None:
    (data / "train_corpus_total_dual.txt").write_text("1\tu\t1,2\t3\t0\n1\tv\t7\t8\t0\n")
    (data / "test_corpus_total_dual.txt").write_text("2\tu\t2,3\t4\t0\n")
    log = load_dataset("xlong")
    assert rows(log) == [
        *[("v", "7", 0), ("v", "8", 1)],
        *[("u", "2", 0), ("u", "3", 1), ("u", "4", 2)],
    ]


def test_xlong_samples_users_the_same_every_time(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "XLONG_USERS", 10)
    lines = [f"1\tu{number}\t1\t2\t0\n" for number in range(100)]

    def sample(lines: list[str]) -> set[str]:
        put_original(data, "xlong", "".join(lines))
        return set(load_dataset("xlong").user_ids.to_pylist())

    first = sample(lines)
    assert len(first) == 10
    assert sample(lines[::-1]) == first
    monkeypatch.setattr(datasets, "XLONG_SEED", 1)
    assert sample(lines) != first


@pytest.mark.parametrize("damage", ["cut off", "wrong member", "no archive"])
@pytest.mark.parametrize("name", ["ml-100k", "gowalla"])
def test_a_damaged_archive(data: Path, name: str, damage: str) -> None:
    record = dataset(name)
    good = packed(name, ORIGINALS[name][0] * 1000)
    other = zipped("readme", "") if record.member else good[:-4] + b"oops"  # gzip: its checksum
    bad = {"cut off": good[:-20], "wrong member": other, "no archive": b"<html>"}[damage]
    (data / record.files[0]).write_bytes(bad)
    with pytest.raises(InputError, match=rf"{record.files[0]} is damaged \(.+\); delete it"):
        load_dataset(name)


# Looking up


def write_converted(path: Path, user: str) -> None:
    frame = pl.DataFrame({"user_id": [user, user], "item_id": ["b", "a"], "order": [0, 1]})
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".inter":
        path.write_text(
            f"user_id:token\titem_id:token\ttimestamp:float\n{user}\tb\t0\n{user}\ta\t1\n"
        )
    else:
        text = frame.write_csv(separator="\t").encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def test_looks_in_the_folder_then_in_the_cache(data: Path) -> None:
    name = "ml-100k"
    put(cache_folder(), name, "cache\t1\t1\t1\n")
    assert rows(load_dataset(name)) == [("cache", "1", 1)]
    put(data, name, "data\t1\t1\t1\n")
    assert rows(load_dataset(name)) == [("data", "1", 1)]
    for suffix in reversed(datasets.CONVERTED):  # the first of them wins
        write_converted(data / (name + suffix), user=suffix)
        assert pairs(load_dataset(name)) == [(suffix, "b"), (suffix, "a")]


def test_a_place_in_the_history_is_no_time(data: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["c", "a", "b"], "order": [2, 0, 1]})
    frame.write_csv(data / "ml-100k.csv")
    log = load_dataset("ml-100k")
    assert pairs(log) == [("u", "a"), ("u", "b"), ("u", "c")]
    assert log.timestamps is None
    for split in ("time", "time-last"):
        with pytest.raises(InputError, match="needs a timestamp column"):
            prepare(log, split=split)


def test_a_converted_file_with_timestamps(data: Path) -> None:
    text = "user_id\titem_id\ttimestamp\torder\n01\tx\t50\t0\n"
    (data / "beauty.tsv").write_text(text)
    assert rows(load_dataset("beauty")) == [("01", "x", 50)]


@pytest.mark.parametrize("suffix", datasets.CONVERTED)
def test_a_damaged_converted_file(data: Path, suffix: str) -> None:
    (data / f"beauty{suffix}").write_bytes(b"\xff\xfe damaged \0")
    with pytest.raises(InputError, match=f"beauty{re.escape(suffix)}"):
        load_dataset("beauty")


def test_a_folder_that_is_not_there(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBLR_DATA", str(data / "nowhere"))
    with pytest.raises(InputError, match=r"RECBLR_DATA: .*nowhere is no folder"):
        load_dataset("ml-100k")


def test_data_sets_one_has_to_fetch_oneself(data: Path) -> None:
    with pytest.raises(InputError, match=r"login: get it at https://tianchi.*/22482; put train_"):
        load_dataset("xlong")
    (data / "train_corpus_total_dual.txt").write_text(ORIGINALS["xlong"][0])
    with pytest.raises(InputError, match=r"and test_corpus_total_dual\.txt in a folder"):
        load_dataset("xlong")
    with pytest.raises(InputError, match=r"put gowalla-10core\.tsv\.gz in a folder"):
        load_dataset("gowalla-10core")


def test_names() -> None:
    assert set(dataset_names()) == {*ORIGINALS, "gowalla-10core"}
    assert dataset("ml-1m").files == dataset("ml-1m-recbole").files == ("ml-1m.zip",)
    assert all(dataset(name).core == 5 and dataset(name).credit for name in dataset_names())
    with pytest.raises(InputError, match=r"'ML1M'; did you mean ml-1m"):
        dataset("ML1M")
    with pytest.raises(InputError, match=r"'qqq'; did you mean ml-100k, .*, xlong\?"):
        load_dataset("qqq")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECBLR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "recblr"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "recblr"
    monkeypatch.setenv("RECBLR_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


# Downloads, from a server on this machine's loopback


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = self.path.split("/")[1]
        body = packed("ml-100k", ORIGINALS["ml-100k"][0])
        if answer == "missing":
            self.send_error(404)
            return
        if answer == "silent":
            self.server.release.wait(5)  # type: ignore[attr-defined]
            return
        if answer == "html":
            body = b"<html>log in to this network first</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 7 * (answer == "short")))
        self.end_headers()
        self.wfile.write(body)

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


def test_downloads_once(data: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = packed("ml-100k", ORIGINALS["ml-100k"][0])
    seen: list[tuple[str, float | None, list[int]]] = []

    @contextmanager
    def recorder(description: str, total: float | None) -> Iterator[object]:
        amounts: list[int] = []
        seen.append((description, total, amounts))
        yield amounts.append

    monkeypatch.setattr(datasets, "progress", recorder)
    serve_from(monkeypatch, f"{server}/good", hashlib.md5(body).hexdigest())
    assert rows(load_dataset("ml-100k")) == EXPECTED["ml-100k"]
    assert [path.name for path in cache_folder().iterdir()] == ["ml-100k.zip"]
    description, total, amounts = seen[0]
    assert description == "downloading ml-100k"
    assert total == sum(amounts) == len(body)

    serve_from(monkeypatch, f"{server}/missing")  # not asked again
    assert rows(load_dataset("ml-100k")) == EXPECTED["ml-100k"]


@pytest.mark.parametrize(
    ("answer", "md5", "reason"),
    [
        ("short", None, r"cut off after \d+ of \d+ bytes"),
        ("good", "0" * 32, r"its MD5 is [0-9a-f]{32}, not 0{32} as published"),
        ("missing", None, "404"),
        ("silent", None, "timed out"),
        ("html", None, "not a zip file"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    data: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    md5: str | None,
    reason: str,
) -> None:
    monkeypatch.setattr(datasets, "TIMEOUT", 0.3)
    serve_from(monkeypatch, f"{server}/{answer}", md5)
    with pytest.raises(InputError, match=rf"ml-100k: no download from {server}.*{reason}") as error:
        load_dataset("ml-100k")
    assert "put ml-100k.zip in a folder and set RECBLR_DATA" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(cache_folder().iterdir()) == []


def test_a_download_that_is_no_gzip(
    data: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_from(monkeypatch, f"{server}/html", name="gowalla")
    with pytest.raises(InputError, match=r"gowalla: no download .*Not a gzipped file"):
        load_dataset("gowalla")
    assert list(cache_folder().iterdir()) == []


def test_nobody_answers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    serve_from(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(
        InputError, match=r"ml-100k: no download from \S+ \(\[Errno \d+\] .*refused\)"
    ):
        load_dataset("ml-100k")
    assert list(cache_folder().iterdir()) == []


def test_a_cache_that_cannot_be_written(
    data: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "file").write_text("in the way")
    monkeypatch.setenv("RECBLR_CACHE", str(data / "file"))
    serve_from(monkeypatch, f"{server}/good")
    with pytest.raises(InputError, match="ml-100k: no download"):
        load_dataset("ml-100k")


def test_ctrl_c_leaves_nothing(data: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(description: str, total: float | None) -> Iterator[object]:
        def advance(amount: int) -> None:
            assert [path.suffix for path in cache_folder().iterdir()] == [".part"]
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(datasets, "progress", interrupted)
    serve_from(monkeypatch, f"{server}/good")
    with pytest.raises(KeyboardInterrupt):
        load_dataset("ml-100k")
    assert list(cache_folder().iterdir()) == []


# The real data, where there is some


@needs_data
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [
        ("ml-1m", 6_040, 3_416, 999_611),
        ("ml-1m-recbole", 6_040, 3_416, 999_611),
        ("beauty", 22_363, 12_101, 198_502),
        ("sports", 35_598, 18_357, 296_337),
    ],
)
def test_counts_are_those_of_table_2(name: str, users: int, items: int, events: int) -> None:
    data = open_log(name)
    assert (data.users, len(data.item_ids), len(data.items)) == (users, items, events)
    hashes = dict(line.split()[::-1] for line in Path(REAL, "SHA256SUMS").read_text().splitlines())
    source = Path(data.summary["source"])
    assert hashlib.sha256(source.read_bytes()).hexdigest() == hashes[source.name]


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "fingerprint"),
    [
        ("ml-1m", "ml-1m-times.tsv.gz", "bb5a95ec99447154"),
        ("ml-1m", "ml-1m.tsv.gz", "bb5a95ec99447154"),
        ("ml-1m-recbole", "ml-1m-times.tsv.gz", "e294f47a33a2feee"),
    ],
)
def test_ml_1m_is_the_log_the_figures_were_measured_on(
    data: Path, name: str, file: str, fingerprint: str
) -> None:
    (data / file).symlink_to(Path(REAL, file).resolve())
    assert open_log(name).fingerprint == fingerprint


@needs_data
def test_gowalla_10core_is_a_data_set_of_its_own() -> None:
    log = load_dataset("gowalla-10core")
    assert (len(log.user_ids), len(log.item_ids), len(log.users)) == (29_858, 40_981, 1_027_370)
