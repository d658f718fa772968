"""The examples of an epoch: the parts of the histories in each batch.

Axes: U users, H histories to train on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recblr.data import batches
from recblr.data.batches import (
    NOTHING,
    Beside,
    Horizon,
    PackedBatch,
    Spans,
    Targets,
    append_empty,
    pack_each,
    seen_pairs,
)
from recblr.data.sequences import Sequences
from recblr.ranks import ALONE, Ranks
from recblr.training.config import TrainConfig
from recblr.training.cuda_graph import fill_bucket, power_of_two

_CLOZE_PASSES = 5  # over the log per epoch: each pass masks about a fifth of the items, or fewer
_ROWS_AT_ONCE = 1 << 18  # events that are packed at a time, for several batches


# Each takes the histories, their first rows (H,) and the rows after their last (H,).
def all_positions(histories: Spans, config: TrainConfig, epoch: int) -> list[Spans]:
    """Predict every event except the first of each history once, from all earlier events."""
    rng = np.random.default_rng([config.seed, epoch])
    return _windows(histories, config, epoch, rng)


def prefixes(histories: Spans, config: TrainConfig, epoch: int) -> list[Spans]:
    """Every prefix of a history is a sample that predicts the next event."""
    rng = np.random.default_rng([config.seed, epoch])
    return batches.prefixes(*histories, config.max_length, config.batch_size, rng)


def cloze(histories: Spans, config: TrainConfig, epoch: int) -> list[Spans]:
    """Whole histories, several times per epoch; the model masks some items and predicts them."""
    rng = np.random.default_rng([config.seed, epoch])
    passes = range(epoch * _CLOZE_PASSES, (epoch + 1) * _CLOZE_PASSES)
    return [spans for number in passes for spans in _windows(histories, config, number, rng)]


def _windows(
    histories: Spans, config: TrainConfig, epoch: int, rng: np.random.Generator
) -> list[Spans]:
    return batches.all_positions(*histories, config.window, config.batch_size, epoch, rng)


EXAMPLES: dict[str, Callable[[Spans, TrainConfig, int], list[Spans]]] = {
    "all-positions": all_positions,
    "prefixes": prefixes,
    "cloze": cloze,
}


def training_histories(data: Sequences) -> Spans:
    """The training part of every history."""
    return data.offsets[:-1], data.split.train_end


def new_and_old_histories(
    data: Sequences, max_length: int, replay: float, seed: int, epoch: int
) -> Spans:  # fmt: skip
    """The histories that have events after their training part, and a sample of the others.

    A history with new events begins ``max_length`` events before them. These older events are trained
    on again, too. Others are added at random, until there are ``replay`` older events for each new one.
    """
    begins, old_ends, ends = data.offsets[:-1], data.split.train_end, data.offsets[1:]
    fresh = np.flatnonzero(old_ends < ends)
    others = np.flatnonzero((old_ends == ends) & (ends - begins > 1))
    starts = np.maximum(begins, old_ends - max_length)
    older = (old_ends - starts)[fresh].sum()
    wanted = replay * (ends - old_ends).sum() - older
    others = np.random.default_rng([seed, epoch]).permutation(others)
    sizes = (ends - begins)[others]
    others = others[: np.searchsorted(np.cumsum(sizes) - sizes, wanted)]
    return (
        np.concatenate([starts[fresh], begins[others]]),
        np.concatenate([ends[fresh], ends[others]]),
    )  # fmt: skip


def asked_kinds(data: Sequences, seed: int, epoch: int) -> np.ndarray | None:
    """(N,) the kind to ask for when each event is predicted in an epoch: its own, or for a random half
    any, 0. None if the log has no kinds."""
    if data.kinds is None:
        return None
    any_kind = np.random.default_rng([seed, epoch, 1]).random(len(data.items)) < 0.5
    return np.where(any_kind, 0, data.kinds.codes)


def horizon_of(histories: Spans, config: TrainConfig, device: torch.device) -> Horizon | None:
    """The next items that each position of the histories predicts; None for one."""
    if config.horizon == 1:
        return None
    order = np.argsort(histories[0], kind="stable")
    shares = torch.arange(1, config.horizon + 1, device=device) ** -config.horizon_power
    return Horizon(histories[0][order], histories[1][order], shares / shares.sum())


def part_of(batch: Spans, ranks: Ranks) -> Spans:
    """The histories of a batch that a process trains on: whole ones, of about equally many events.

    The last process always has the last history. If there are fewer histories than processes, the first
    processes have none.
    """
    if ranks.alone:
        return batch
    starts, stops = batch
    ends = np.cumsum(stops - starts)
    processes = np.arange(1, ranks.count)
    middles = ends - (stops - starts) / 2
    cuts = np.searchsorted(middles, ends[-1] * processes / ranks.count)
    most = len(starts) - ranks.count + processes  # each later process has a history
    cuts = np.maximum(np.minimum(np.maximum(cuts, processes), most), 0)
    first, last = np.concatenate([[0], cuts, [len(starts)]])[ranks.number : ranks.number + 2]
    return starts[first:last], stops[first:last]


def training_batches(
    items: np.ndarray | Tensor, epoch: Sequence[Spans], config: TrainConfig,
    users: np.ndarray | None = None, fixed_shapes: bool = False,
    beside: Beside = NOTHING, ranks: Ranks = ALONE,
) -> Iterator[tuple[PackedBatch, bool]]:  # fmt: skip
    """The batches of an epoch, each with whether its first history continues the last history of the
    previous batch.

    Args:
        items: the items of the log; an array, or a tensor on the device of the batches.
        epoch: the spans of the batches, from :data:`EXAMPLES`.
        config: the training settings.
        users: (U + 1,) the offsets of the users in the log, to set ``PackedBatch.users``.
        fixed_shapes: pad the batches to few shapes, for CUDA graphs: with empty histories at the end,
            and for prefix samples with histories without a target.
        beside: what is known of the events of the log beside their items, arrays or tensors as they.
        ranks: the processes that train the model; a batch gets the histories of this one.
    """
    by_prefix = config.examples == "prefixes"
    targets: Targets = "last" if by_prefix else "all"
    own, histories = [part_of(batch, ranks) for batch in epoch], 0
    # A process without a history gets an event without a target.
    spans = [part if len(part[0]) else (np.array([0]), np.array([1])) for part in own]
    if fixed_shapes:
        if by_prefix:
            longest = min(config.max_length, len(items) - 1)
            spans = [fill_bucket(*batch, longest) for batch in spans]
        histories = power_of_two(max(len(starts) for starts, _ in spans))
    previous_stop, at_once = -1, 1 if by_prefix else max(1, _ROWS_AT_ONCE // config.batch_size)
    for first in range(0, len(spans), at_once):
        group = slice(first, first + at_once)
        packed = pack_each(items, spans[group], targets, beside)
        for batch, (starts, stops), whole in zip(packed, own[group], epoch[group], strict=True):
            count = len(starts) if by_prefix else int((stops - starts).sum())
            if count < len(batch.targets):  # histories that fill the batch have no target
                batch = replace(
                    batch, positions=batch.positions[:count], targets=batch.targets[:count],
                    weights=None if batch.weights is None else batch.weights[:count],
                    asked=None if batch.asked is None else batch.asked[:count],
                )  # fmt: skip
            if config.mask_seen_in_loss:
                lengths = stops - starts
                pairs = lengths if by_prefix else lengths * (lengths + 1) // 2
                batch = replace(batch, seen=seen_pairs(batch, int(pairs.sum())))
            if users is not None:
                user_of = torch.from_numpy(np.searchsorted(users, starts, side="right") - 1)
                batch = replace(batch, users=user_of.to(batch.items.device))
            continues = bool(whole[0][0] == previous_stop)
            yield append_empty(batch, histories) if fixed_shapes else batch, continues
            previous_stop = -1 if by_prefix else whole[1][-1]
