"""Checks of an artifact that may come from anywhere, before anything is built from its files."""

import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recblr.data.kinds import MAX_KINDS, Kinds
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.inverted_file import Lists
from recblr.models.content import Content

MAX_JSON_BYTES = 16_000_000
MAX_WEIGHT = (
    1e5  # a trained weight has a size of about 1; larger ones overflow in a product of layers
)
MAX_ROWS_PER_BYTE = 8  # of a Parquet file, whose ids all differ
MAX_VALUES_PER_BYTE = 1000  # … of its lists, which may repeat one value


def check_files(folder: Path, names: Iterable[str]) -> None:
    """InputError unless each existing file is a regular one, not a link, a pipe or a device."""
    for name in names:
        path = folder / name
        if (path.exists() or path.is_symlink()) and not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is not a regular file; copy the model with all its files")


def read_json(path: Path) -> Any:
    """The content of a JSON file of limited size.

    Raises:
        InputError: the file is too large or nested too deeply.
        ValueError: it is not JSON.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} has more than {MAX_JSON_BYTES:,} bytes; it is not of a model")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; it is not of a model") from None


def check_format(folder: Path, manifest: Any, known: int) -> None:
    """InputError unless the manifest has the format ``known``."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is int and found > known:
        raise InputError(
            f"{folder} is in format {found} of a newer version of recblr; this one reads {known}; "
            "upgrade recblr"
        )
    if type(found) is not int or found != known:
        raise InputError(
            f"{folder} is not a whole recblr artifact: manifest.json has no format that recblr knows"
        )


def check_rows(path: Path) -> None:
    """InputError if a Parquet file would take far more memory than it has bytes."""
    metadata, size = pq.read_metadata(path), path.stat().st_size
    values = sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    if metadata.num_rows > MAX_ROWS_PER_BYTE * size or values > MAX_VALUES_PER_BYTE * size:
        raise InputError(f"{path} has {metadata.num_rows:,} rows in {size:,} bytes; it is damaged")


def check_data(folder: Path, data: Sequences) -> None:
    """InputError unless the histories and the split fit the vocabulary."""
    users, length = len(data.user_ids), len(data.items)
    offsets, split, weights, kinds = data.offsets, data.split, data.weights, data.kinds
    starts, stops = offsets[:-1], offsets[1:]
    held_out = [split.validation, split.test]
    fits = (
        data.user_ids.null_count == data.item_ids.null_count == 0
        and all(
            pa.types.is_integer(ids.type) or pa.types.is_string(ids.type)
            or pa.types.is_large_string(ids.type)
            for ids in (data.user_ids, data.item_ids)
        )
        and len(offsets) == users + 1
        and all(len(rows) == users for rows in (split.train_end, *held_out))
        and data.items.dtype.kind in "iu"
        and (length == 0 or 0 <= data.items.min() <= data.items.max() < len(data.item_ids))
        and offsets[0] == 0 and offsets[-1] == length and bool(np.all(starts <= stops))
        and (weights is None or (weights.dtype == np.float32 and len(weights) == length
                                 and bool(((weights > 0) & (weights < np.inf)).all())))
        and (kinds is None or _are_kinds(kinds, length))
        and bool(np.all((starts <= split.train_end) & (split.train_end <= stops)))
        and all(bool(np.all((rows == -1) | ((starts <= rows) & (rows < stops)))) for rows in held_out)
    )  # fmt: skip
    if not fits:
        raise InputError(
            f"{folder}: the histories do not fit the vocabulary; train the model again"
        )


def _are_kinds(kinds: Kinds, events: int) -> bool:
    codes, names = kinds.codes, kinds.names
    return (
        codes.dtype == np.uint8 and len(codes) == events
        and int(codes.max(initial=0)) <= len(names) == len(set(names)) <= MAX_KINDS
        and all(isinstance(name, str) and name for name in names)
    )  # fmt: skip


def check_config(folder: Path, config: object, weights: Mapping[str, Tensor]) -> None:
    """InputError if the settings ask for more layers than there are weights."""
    for name in ("layers", "order"):  # the settings that are a number of modules
        if getattr(config, name, 0) > len(weights):
            raise InputError(
                f"{folder}: config.json asks for {name} = {getattr(config, name):,}, but the weights "
                f"have {len(weights)} arrays; train the model again"
            )


def check_shapes(
    folder: Path, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    """InputError unless weights have the expected names, shapes and types, and sizes of weights."""
    if {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()} != {
        name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()
    }:
        raise InputError(f"{folder}: the weights do not have the shapes of config.json")
    for name, tensor in weights.items():
        least, most = map(float, tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
        largest = max(-least, most)
        if not math.isfinite(largest):  # if a weight is NaN, so are both
            raise InputError(f"{folder}: a weight is not finite; train the model again")
        if largest > MAX_WEIGHT:
            raise InputError(
                f"{folder}: a weight of {name} is beyond ±{MAX_WEIGHT:,.0f}; train the model again"
            )


def check_content(path: Path, content: Content, items: int, tables: Mapping[str, int]) -> None:
    """InputError unless the content is of so many items, and its projections of tables so wide."""
    part, weights = content.items, content.weights
    numbers, categories, offsets = len(part.mean), len(part.names), part.offsets
    fits = (
        part.vectors.shape == (items, numbers) and part.vectors.dtype == np.float32
        and all(array.shape == (numbers,) and array.dtype == np.float64 and np.isfinite(array).all()
                for array in (part.mean, part.scale))
        and bool((part.scale > 0).all()) and bool(np.isfinite(part.vectors).all())
        and all(isinstance(name, str) for name in part.names)
        and len(set(part.names)) == categories
        and part.codes.dtype == offsets.dtype == np.int64
        and part.codes.ndim == 1 and offsets.shape == (items + 1,)
        and offsets[0] == 0 and offsets[-1] == len(part.codes) and bool((np.diff(offsets) >= 0).all())
        and bool(((part.codes >= 0) & (part.codes < categories)).all())
        and {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
        == {name: ((numbers + categories, width), torch.float32) for name, width in tables.items()}
        and all(weight.numel() == 0 or float(weight.abs().max()) <= MAX_WEIGHT
                for weight in weights.values())
    )  # fmt: skip
    if not fits:
        raise InputError(f"{path}: the content does not fit the model; train the model again")


def check_lists(path: Path, lists: Lists, shape: tuple[int, ...]) -> None:
    """InputError unless the lists are of items with vectors (V, D) of this shape."""
    centres, list_of = lists.centres, lists.list_of
    fits = (
        centres.ndim == 2 and centres.dtype == np.float32 and bool(np.isfinite(centres).all())
        and centres.shape[1] == shape[1] and 0 < len(centres) <= shape[0]
        and list_of.shape == shape[:1] and list_of.dtype == np.int32
        and 0 <= int(list_of.min()) <= int(list_of.max()) < len(centres)
        and type(lists.probes) is int and lists.probes >= 1
        and type(lists.recall) is float and 0 <= lists.recall <= 1
    )  # fmt: skip
    if not fits:
        raise InputError(f"{path}: the lists of items do not fit the model; train the model again")
