"""Small files in the formats of the public data sets, and the folders to put them in."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from recblr.data.datasets import dataset
from recblr.data.log import Interactions


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
        archive.writestr(zipfile.ZipInfo(member), text)  # of no time: two calls give equal bytes
    return buffer.getvalue()


def packed(name: str, text: str) -> bytes:
    """The text as the publisher of the data set would pack it."""
    record = dataset(name)
    if record.member:
        return zipped(record.member, text)
    return gzip.compress(text.encode()) if record.home.endswith(".gz") else text.encode()


def put(folder: Path, name: str, text: str) -> None:
    (folder / dataset(name).files[0]).write_bytes(packed(name, text))


def put_original(folder: Path, name: str, text: str) -> None:
    put(folder, name, text)
    for other in dataset(name).files[1:]:
        (folder / other).write_text("")


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
