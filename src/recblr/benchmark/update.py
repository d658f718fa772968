"""Compare an update of a model with training it anew, on a log that is cut by time.

A log of P pieces of equal size is learned up to a piece and updated with the next one. All models then
predict events of the piece after that, each from all earlier events of its user.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from recblr.data.batches import ranges
from recblr.data.log import Interactions, read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.split import Split
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.recommender import Recommender

T = TypeVar("T")
TARGETS = 3000  # the most events to predict, a sample with seed 0


def time_updates(
    log: Interactions, settings: Mapping[str, Any], known: Sequence[int] = (8,),
    device: str = "auto", pieces: int = 10,
) -> dict[str, Any]:  # fmt: skip
    """Measure updates with one piece of a log.

    Args:
        log: a log with times.
        settings: settings as for :meth:`Recommender.configured`; others follow from the size of the
            log.
        known: the numbers of pieces before each update, at most P - 2.
        device: as for :class:`Recommender`.
        pieces: P.

    Returns:
        A row for each of ``known``: how many events, users and items were new; and for "before" (not
        updated), "memory only", "update" and "anew" (fit and refit on the same events) the masked
        NDCG@10 on the piece after, the share of its targets that the model knows, and the seconds
        of the processor.
    """
    if log.timestamps is None:
        raise InputError(
            f"{log.source}: has no times, by which it could be cut; give a log with times"
        )
    events = log.to_polars().sort("timestamp", maintain_order=True)
    cuts = np.linspace(0, len(events), pieces + 1).round().astype(int).tolist()
    rows = [
        _row(
            events[: cuts[number]], events[cuts[number] : cuts[number + 1]],
            _piece(events, cuts[number + 1], cuts[number + 2]),
            lambda: Recommender.configured("recblr", settings, device, by_size=True),
        )
        for number in known
    ]  # fmt: skip
    return {
        "log": Path(log.source).name, "settings": dict(settings), "pieces": pieces,
        "rows": [{"known": number, **row} for number, row in zip(known, rows, strict=True)],
    }  # fmt: skip


def _row(
    old: pl.DataFrame, new: pl.DataFrame, after: Sequences, create: Callable[[], Recommender]
) -> dict[str, Any]:
    """The events before the update, those of the update, and the targets."""
    before, cost = _trained(create(), old)
    row: dict[str, Any] = {"before": {**_accuracy(before, after), **cost}}
    for name, memory_only in (("memory only", True), ("update", False)):
        updated = copy.copy(before)
        added, seconds = _timed(partial(updated.update, new, memory_only=memory_only))
        row[name] = {**_accuracy(updated, after), "update_seconds": seconds}
    anew, cost = _trained(create(), pl.concat([old, new]))
    row["anew"] = {**_accuracy(anew, after), **cost}
    return {"new": {"events": added.events, "users": added.users, "items": added.items}, **row}


def _trained(recommender: Recommender, log: pl.DataFrame) -> tuple[Recommender, dict[str, float]]:
    """The recommender, fitted and refitted, and the seconds that these took."""
    _, fit = _timed(lambda: recommender.fit(log))
    _, refit = _timed(recommender.refit)
    return recommender, {"fit_seconds": fit, "refit_seconds": refit}


def _piece(events: pl.DataFrame, begin: int, end: int) -> Sequences:
    """A history for each of some events of a piece that have earlier ones of their user; it ends with
    the event, which is the one to predict."""
    data = prepare(read_log(events[:end]))
    assert data.times is not None
    users = np.repeat(np.arange(data.users), np.diff(data.offsets))
    starts = data.offsets[users]
    later = data.times > events["timestamp"][begin - 1]
    rows = np.flatnonzero(later & (np.arange(len(users)) > starts))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:TARGETS])
    lengths = rows + 1 - starts[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends, none = offsets[1:], np.full(len(rows), -1)
    return Sequences(
        data.items[ranges(starts[rows], lengths)], offsets, pa.array(rows), data.item_ids,
        Split("time", ends - 1, none, ends - 1), data.core,
    )  # fmt: skip


def _accuracy(recommender: Recommender, data: Sequences) -> dict[str, float]:
    data = data.with_items(recommender.data.item_ids, "test")
    ranks = rank_targets(
        lambda batch: recommender.score(replace(batch, users=None)), data, "test",
        recommender.training.max_length,
    )["masked"]  # fmt: skip
    known = data.items[data.split.test] < len(data.item_ids)
    return {
        "NDCG@10": metrics.means(ranks)["NDCG@10"], "targets": len(ranks),
        "known": round(float(known.mean()), 4),
    }  # fmt: skip


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the seconds of the processor that it takes."""
    begin = time.process_time()
    result = work()
    return result, round(time.process_time() - begin, 2)
