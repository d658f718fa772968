"""Vectors of items and users, whose dot products are the scores of the model without the memory.

Axes: B histories, V items, D the width of a vector.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from recblr.artifact import Artifact
from recblr.audience import Audience
from recblr.config import check_value
from recblr.evaluation.ranking import block_size
from recblr.files import new_folder
from recblr.progress import progress

if TYPE_CHECKING:
    import polars as pl

Format = Literal["parquet", "numpy"]
MARKER = "vectors.json"


def item_vectors(contents: Artifact) -> "pl.DataFrame":
    """The vectors of all items: a frame of V rows, ``item_id`` and ``vector``, D float32."""
    vectors = contents.network.item_embeddings.detach().float().cpu().numpy()
    return _frame("item_id", contents.data.item_ids, vectors)


def user_vectors(contents: Artifact, users: Any = None, histories: Any = None) -> "pl.DataFrame":
    """The vectors of histories: a frame of B rows, ``user_id`` and ``vector``, D float32.

    Args:
        contents: a fitted model.
        users: the ids of users of the log; without ``users`` and ``histories``, all of them.
        histories: lists of item ids, oldest first. ``user_id`` is then the number of the history.

    Raises:
        InputError: a user is unknown, or a history has no known item.
    """
    data, network, length = contents.data, contents.network, contents.training.max_length
    if histories is not None:
        audience = Audience.of_histories(data, histories, "error")
    else:
        audience = Audience.of_users(data, data.user_ids if users is None else users, "error")
    count, block = len(audience.ids), block_size(1, length)
    vectors = np.empty((count, network.item_embeddings.shape[1]), np.float32)
    with progress("computing vectors", count) as advance:
        for first in range(0, count, block):
            rows = np.arange(first, min(first + block, count))
            of_histories = network.history_vectors(audience.batch(rows, length))
            vectors[rows] = of_histories.float().cpu().numpy()
            advance(len(rows))
    return _frame("user_id", audience.ids, vectors)


def write(contents: Artifact, folder: Path, format: Format, overwrite: bool) -> dict[str, Any]:
    """Write the vectors of all items and users of the log to a new folder.

    "parquet" writes items.parquet and users.parquet, with an id and a vector in each row. "numpy"
    writes items.npy and users.npy, (V, D) and (B, D) float32, and the ids of their rows, item_ids.npy
    and user_ids.npy. vectors.json describes them, and is returned.

    Raises:
        InputError: the folder exists, unless it holds vectors and ``overwrite`` is true.
    """
    check_value(format, Format, "format")
    with new_folder(folder, overwrite, MARKER) as new:
        about: dict[str, Any] = {"model": contents.model, "data": contents.data.fingerprint}
        for name, frame in (("item", item_vectors(contents)), ("user", user_vectors(contents))):
            ids, vectors = frame.get_columns()
            if format == "parquet":
                frame.write_parquet(new / f"{name}s.parquet")
            else:
                np.save(new / f"{name}s.npy", vectors.to_numpy())
                np.save(new / f"{name}_ids.npy", np.array(ids.to_list()))
            about[f"{name}s"] = list(vectors.to_numpy().shape)
        (new / MARKER).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _frame(name: str, ids: pa.Array, vectors: np.ndarray) -> "pl.DataFrame":
    import polars as pl

    width = vectors.shape[1]
    column = pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, width))
    return pl.DataFrame([pl.Series(name, ids), column])
