"""Data: read logs, load data sets by name, filter and split them, build batches."""

import glob
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recblr.config import did_you_mean
from recblr.data.columns import Columns
from recblr.data.datasets import DATASETS, load_dataset
from recblr.data.kinds import Kinds
from recblr.data.log import Interactions, read_log
from recblr.data.log_files import STDIN
from recblr.data.merge import count_trained
from recblr.data.preparing import prepare
from recblr.data.sequences import MARKER, Part, Sequences, index_in
from recblr.data.values import shorten
from recblr.errors import InputError
from recblr.progress import report


def open_log(
    source: Any,
    core: int | None = None,
    split: str | None = None,
    columns: Columns | None = None,
) -> Sequences:
    """Read, filter and split a log, and report what orders its events.

    Args:
        source: Sequences, Interactions, the path of a prepared folder, the name of a data set, or a
            log as for :func:`read_log`.
        core: the k of the k-core filter; by default that of the data set, otherwise 1 (no filter).
        split: "leave-one-out" (default), "time" or "time-last".
        columns: our column names to those of the file.

    Raises:
        InputError: the log cannot be read or split, or prepared data has another core or split.
    """
    if isinstance(source, str | Path) and (Path(source) / MARKER).exists():
        source = Sequences.load(Path(source))
    if isinstance(source, Sequences):
        requested = (source.core if core is None else core, split or source.split.name)
        if requested != (source.core, source.split.name) or columns is not None:
            raise InputError(
                f"this data was prepared with core {source.core} and split {source.split.name}; "
                "to change that, or to map columns, prepare the log again"
            )
        return report_order(source)
    if isinstance(source, str) and not (Path(source).exists() or source == STDIN):
        if source in DATASETS:
            core = DATASETS[source].core if core is None else core
            source = load_dataset(source)
        elif source == Path(source).stem and not glob.has_magic(source):  # a name, not a path
            hint = did_you_mean(source.lower(), DATASETS)
            raise InputError(f"{source}: no such file and no such data set{hint}")
    if isinstance(source, Interactions) and columns is not None:
        raise InputError(f"{source.source} has no columns to choose; leave out columns=")
    log = source if isinstance(source, Interactions) else read_log(source, columns=columns)
    return report_order(prepare(log, 1 if core is None else core, split or "leave-one-out"))


def report_order(data: Sequences) -> Sequences:
    """Log what orders the events of some data, their weights and kinds, and return the data."""
    if "order" in data.summary:
        report(f"{data.summary['source']}: {data.summary['order']}")
    if data.weights is not None and len(data.weights):
        least, most = data.weights.min(), data.weights.max()
        report(f"the events have weights from {least:g} to {most:g} (to leave them out: weight=)")
    if (kinds := data.kinds) is not None:
        counts = np.bincount(kinds.codes, minlength=len(kinds.names) + 1).tolist()
        named = [f"{name} {count:,}" for name, count in zip(kinds.names, counts[1:], strict=True)]
        none = f", {counts[0]:,} have none" * (counts[0] > 0)
        listed = shorten(", ".join(named), 200)
        report(f"the events have kinds: {listed}{none} (to leave them out: kind=)")
    return data


def open_with_items(
    log: Any, data: Sequences, part: Part, columns: Columns | None = None
) -> Sequences:
    """Open another log with the core, the split and the items of ``data``.

    Events of other items are removed, except for targets of ``part``. Such targets count as missed, and
    so do the targets of users without a known item before.

    Raises:
        InputError: the logs have no item in common.
    """
    other = open_log(log, data.core, data.split.name, columns)
    known = index_in(other.item_ids, data.item_ids) >= 0
    if not known.any():
        raise InputError(
            f"the model knows none of the {len(known):,} items of that log; give a log with the item "
            "ids that the model was trained on"
        )
    if not known.all():
        warnings.warn(
            f"the model does not know {(~known).sum():,} of the {len(known):,} items of that log; they "
            "are removed from the histories, and targets among them count as missed, as do users with "
            "no other item before the target",
            stacklevel=3,
        )
    other = _with_features(other, data).with_items(data.item_ids, part)
    if trained := count_trained(data, other, part):
        warnings.warn(
            f"the model was trained on {trained:,} of the events of that log that it is to predict, so "
            "its metrics are too high; give a log of later events",
            stacklevel=3,
        )
    return other


def _with_features(other: Sequences, data: Sequences) -> Sequences:
    """Another log with what a model of ``data`` reads of an event beside its item."""
    if data.kinds is None:
        return replace(other, kinds=None).with_gaps(data.gaps)
    names, found = data.kinds.names, other.kinds
    if found is None:
        unknown = "that log has no kinds"
    else:
        unknown = ", ".join(name for name in found.names if name not in names)
        unknown = f"the model does not know the kinds {shorten(unknown, 100)}" * bool(unknown)
    if unknown:
        warnings.warn(f"{unknown}; it reads these events as events without a kind", stacklevel=4)
    codes = np.zeros(len(other.items), np.uint8)
    kinds = Kinds(codes, names) if found is None else found.in_terms_of(names)
    return replace(other, kinds=kinds).with_gaps(data.gaps)
