"""One small log in every format that read_log reads."""

from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa

HEAD = "user_id,item_id,timestamp\n"
EVENTS = [
    ("u2", "007", 5),
    ("u1", "NA", 3),
    ("u2", "null", 4),
    ("ü🎬", "007", 9),
    ("u1", "x" * 200, 1),
]


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def table(delimiter: str, names: str, end: str = "\n") -> bytes:
    return (end.join([names, *(delimiter.join(map(str, row)) for row in EVENTS)]) + end).encode()


CSV = table(",", "user_id,item_id,timestamp")
TSV = table("\t", "user_id\titem_id\ttimestamp")
INTER = table("\t", "user_id:token\titem_id:token\ttimestamp:float")
DAT = "".join(f"{user}::{item}::4::{time}\n" for user, item, time in EVENTS).encode()
TABLE = pa.table(
    dict(
        zip(("user_id", "item_id", "timestamp"), map(list, zip(*EVENTS, strict=True)), strict=True)
    )
)
FRAME = pl.DataFrame(EVENTS, schema=["user_id", "item_id", "timestamp"], orient="row")
PANDAS = pd.DataFrame(EVENTS, columns=["user_id", "item_id", "timestamp"], index=[9, 9, 1, 2, 3])
