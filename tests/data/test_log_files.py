"""Logs at URIs are read as logs at paths: ``file://`` takes the way of an object store."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from pyarrow import fs

from data.log_examples import write
from recblr.data import open_log
from recblr.data.large import prepare_large
from recblr.data.log import read_log
from recblr.data.log_files import find_files, name_of
from recblr.data.sequences import Sequences
from recblr.errors import InputError

HEAD = "user_id,item_id,timestamp\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of two days of clicks, and of other files."""
    files = {
        "clicks/day=1/part-10.csv": "".join(f"u{n % 3},i{n % 5},{n}\n" for n in range(10, 20)),
        "clicks/day=1/part-2.csv": "".join(f"u{n % 3},i{n % 5},{n}\n" for n in range(10)),
        "clicks/day=2/part-1.csv": "".join(f"u{n % 3},i{n % 7},{n}\n" for n in range(20, 40)),
        "clicks/_SUCCESS": None,
        "bad/a b[1].csv": "u,i,1\nu,,2\n",
        "mixed/1.csv": "u,i,1\n",
        "mixed/2.tsv": "u,i,1\n",
        "prepared/prepared.json": None,
    }
    for name, rows in files.items():
        path = tmp_path / "shop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, "{}" if rows is None else HEAD + rows)
    pl.read_csv(tmp_path / "shop/clicks/day=2/part-1.csv").write_parquet(
        tmp_path / "shop/2.parquet"
    )
    return tmp_path / "shop"


@pytest.mark.parametrize(
    "path",
    [
        "clicks", "clicks/", "clicks/*/part-1.csv", "clicks/day=[12]", "c*", "2.parquet",
        "clicks/day=1/part-2.csv",
    ],
)  # fmt: skip
def test_a_uri_gives_the_log_of_the_path(shop: Path, path: str) -> None:
    local, remote = read_log(f"{shop}/{path}"), read_log(f"file://{shop}/{path}")
    assert remote.to_polars().rows() == local.to_polars().rows()
    assert remote.source == f"file://{shop}/{path}"


def test_folders_named_key_value_are_columns(shop: Path) -> None:
    columns = {"timestamp": "day"}
    log = read_log(f"file://{shop}/clicks", columns=columns)
    assert log.to_polars().rows() == read_log(shop / "clicks", columns=columns).to_polars().rows()


def test_a_uri_is_prepared_on_disk(shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    prepare_large(f"file://{shop}/clicks", tmp_path / "out")
    assert Sequences.load(tmp_path / "out").fingerprint == open_log(shop / "clicks").fingerprint


def test_errors_name_the_uri(shop: Path) -> None:
    for path, expected in {
        "bad": "shop/bad/a b[1].csv: line 3, column 'item_id': the id is empty",
        "bad/a%20b%5B1%5D.csv": "shop/bad/a b[1].csv: line 3, column 'item_id': the id is empty",
        "mixed": "shop/mixed: holds files of several formats, such as 1.csv and 2.tsv",
        "prepared": "shop/prepared: is a prepared folder, not a log",
        "none.csv": "shop/none.csv: no such file; check the address",
        "clicks/*.csv": "shop/clicks/*.csv: holds no files; check the path",
    }.items():
        with pytest.raises(InputError) as caught:
            read_log(f"file://{shop}/{path}")
        assert str(caught.value).startswith(f"file://{shop.parent}/{expected}")
    with pytest.raises(
        InputError, match=r"ftp://host/a.csv: cannot be reached .*check the address"
    ):
        read_log("ftp://host/a.csv")


def test_messages_show_neither_user_nor_options() -> None:
    name = name_of("s3://key:secret@bucket/a/b.csv?region=x&endpoint_override=y")
    assert name == "s3://bucket/a/b.csv"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The options of a URI that leads to a simulated S3; it is skipped without ``moto_server``."""
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("needs moto[server]")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait()


def test_s3(shop: Path, s3: str) -> None:
    store, _ = fs.FileSystem.from_uri(f"s3://shop/{s3}&allow_bucket_creation=true")
    store.create_dir("shop")
    fs.copy_files(str(shop), "shop", fs.LocalFileSystem(), store)
    for path in ("clicks/", "clicks/*/part-1.csv", "2.parquet"):
        remote = read_log(f"s3://shop/{path}{s3}")
        assert remote.to_polars().rows() == read_log(f"{shop}/{path}").to_polars().rows()
        assert remote.source == f"s3://shop/{path}"
    with pytest.raises(InputError, match=r"^s3://shop/none: no such file; check the address$"):
        read_log(f"s3://shop/none{s3}")
    os.environ.pop("AWS_ACCESS_KEY_ID")
    assert [file.name for file in find_files(f"s3://a:b@shop/2.parquet{s3}")] == [
        "s3://shop/2.parquet"
    ]


def test_a_link_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "clicks.csv"
    link.symlink_to("nowhere.csv")
    with pytest.raises(InputError, match=r"clicks\.csv: no such file; check the path"):
        read_log(link)
    with pytest.raises(InputError, match=r"clicks\.csv: cannot be read to its end"):
        read_log(f"{tmp_path}/*.csv")


def test_an_error_of_arrow_shows_no_keys() -> None:
    with pytest.raises(InputError) as caught:
        read_log("ftp://key:secret@host/a.csv?token=hidden")
    assert str(caught.value).startswith("ftp://host/a.csv: cannot be reached")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
