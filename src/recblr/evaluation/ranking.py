"""Full ranking of held-out events under two protocols.

**unmasked** keeps the items of a user's history as candidates, as the paper and RecBole do. **masked**
removes them, as a shop does. Figures of one protocol do not compare with those of the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from recblr.data.batches import PackedBatch, pack_latest
from recblr.data.sequences import Part, Sequences
from recblr.errors import DivergedError, InputError
from recblr.progress import progress
from recblr.ranks import ALONE, Ranks

Scorer = Callable[[PackedBatch], Tensor]
"""Scores (B, V) of every item as the next one of each history of a batch, on any device."""

PROTOCOLS = ("unmasked", "masked")
MISSED = 2**31 - 1  # the rank of a target that cannot be recommended, behind every cutoff
# Numbers in memory at a time: on a CPU they stay in the cache, on a GPU they keep it busy.
_BLOCK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 27}
CPU = torch.device("cpu")
_EVENT_NUMBERS = 256  # in memory for each event inside a model
_MIN_USERS = 16  # in a block, as each block reads the whole table of items


def rank_targets(
    scorer: Scorer, data: Sequences, part: Part, max_length: int, title: str = "",
    observe: Callable[[str, Tensor], None] | None = None, sample: int = 0,
    processes: Ranks = ALONE, device: torch.device = CPU,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Rank each user's held-out event among all items.

    rank = 1 + items with a greater score + other items with an equal score, so that a constant scorer
    earns nothing. A target that cannot be recommended has rank :data:`MISSED`: one that is not in the
    catalogue, that of a user without an event before it, and, under "masked", one that was seen before.

    ``observe`` is called with "unmasked" or "masked" and the scores (B, V) of each block of users. With
    a ``sample``, at most so many users are ranked, which depend only on the log. The users are divided
    over ``processes``. ``device`` is that of the scorer; it decides how many users are a block.

    Returns:
        ``{"unmasked": (U,), "masked": (U,), "users": (U,)}``, ranks and users.

    Raises:
        DivergedError: a score is not finite.
        InputError: no user has a target.
    """
    catalogue = len(data.item_ids)
    users = predicted_users(data, part)
    if 0 < sample < len(users):
        users = np.sort(np.random.default_rng(0).choice(users, sample, replace=False))
    own_users = np.array_split(users, processes.count)[processes.number]
    ranks = {name: torch.empty(0, dtype=torch.int64) for name in PROTOCOLS}
    finite = torch.ones((), dtype=torch.bool)
    first = 0
    with progress(title or f"ranking ({part})", len(own_users)) as advance:
        for batch in history_batches(data, part, own_users, max_length, device):
            scores = scorer(batch)
            if not first:
                # Written in place: small results that stay between large blocks fragment the heap.
                empty = torch.empty(2, len(own_users), dtype=torch.int64, device=scores.device)
                ranks = dict(zip(PROTOCOLS, empty, strict=True))
                finite = finite.to(scores.device)
            finite &= scores.isfinite().all()
            rows = slice(first, first + len(scores))
            target = batch.targets.to(scores.device).unsqueeze(1)
            # A target that is not in the catalogue has no score.
            missing = target.squeeze(1) >= catalogue
            target = target.clamp(max=catalogue - 1)
            ranks["unmasked"][rows] = _rank(scores, target, missing)
            if observe is not None:
                observe("unmasked", scores)
            mask_seen(scores, batch)
            seen = scores.gather(1, target).squeeze(1) == -torch.inf
            ranks["masked"][rows] = _rank(scores, target, missing | seen)
            if observe is not None:
                observe("masked", scores)
            first = rows.stop
            advance(len(scores))
    expect_finite(finite)  # once, as the host waits for a GPU here
    bounds = processes.bounds(len(own_users))
    arrays = {name: processes.gather(own.cpu(), bounds).numpy() for name, own in ranks.items()}
    return _with_missed({"users": users, **arrays}, _without_history(data, part))


def predicted_users(data: Sequences, part: Part) -> np.ndarray:
    """(U,) the users with an event to predict in ``part`` and an event before it.

    Raises:
        InputError: there are none, or the part is unknown.
    """
    if part not in (parts := get_args(Part)):
        raise InputError(f"part = {part!r}: choose one of {', '.join(parts)}")
    rows = getattr(data.split, part)
    users = np.flatnonzero((rows >= 0) & (rows > data.offsets[:-1]))
    if not len(users):
        known = ""
        if np.any(rows >= 0):  # unknown items were removed from another log
            known = " after an item that the model knows"
        raise InputError(
            f"no user has an event to predict in the {part} part{known}; give a longer log"
        )
    return users


def _without_history(data: Sequences, part: Part) -> np.ndarray:
    """The users with an event to predict and none before it. Only other logs have such users, from
    which items that the model does not know are removed."""
    rows = getattr(data.split, part)
    return np.flatnonzero((rows >= 0) & (rows == data.offsets[:-1]))


def _with_missed(ranks: dict[str, np.ndarray], users: np.ndarray) -> dict[str, np.ndarray]:
    """The ranks of :func:`rank_targets` with further users, whose targets are missed."""
    order = np.argsort(np.concatenate([ranks["users"], users]))
    further = {name: users if name == "users" else np.full(len(users), MISSED) for name in ranks}
    return {name: np.concatenate([ranks[name], further[name]])[order] for name in ranks}


def history_batches(
    data: Sequences, part: Part, users: np.ndarray, max_length: int, device: torch.device = CPU
) -> Iterator[PackedBatch]:
    """Blocks of users: the events before the held-out event of each user, and that event as target."""
    size = block_size(len(data.item_ids), max_length, device)
    targets = getattr(data.split, part)
    for first in range(0, len(users), size):
        block = users[first : first + size]
        batch = pack_latest(
            data.items, data.offsets[block], targets[block], max_length, "last", data.features
        )
        yield replace(batch, users=torch.from_numpy(block))


def mask_seen(scores: Tensor, batch: PackedBatch) -> None:
    """Set the scores (B, V) of the items of each history, ``batch.seen``, to -∞, in place."""
    assert batch.seen is not None
    row, item = batch.seen.to(scores.device)
    scores[row, item] = -torch.inf


def expect_finite(finite: Tensor) -> None:
    """DivergedError unless all of ``finite`` is true; a score of NaN would otherwise get rank 1."""
    if not finite.all():
        raise DivergedError(
            "a score is not finite: the model has diverged; train it again with a lower train.lr"
        )


def block_size(catalogue: int, max_length: int, device: torch.device = CPU) -> int:
    """The number of users to score at a time on a device."""
    numbers = _BLOCK_NUMBERS[device.type]
    by_items = max(_MIN_USERS, numbers // catalogue)
    return max(1, min(by_items, numbers // (_EVENT_NUMBERS * max_length)))


def _rank(scores: Tensor, target: Tensor, missing: Tensor) -> Tensor:
    ranks = (scores >= scores.gather(1, target)).sum(1)
    return torch.where(missing, MISSED, ranks)
