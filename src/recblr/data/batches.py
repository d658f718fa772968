"""PackedBatch: the histories of a batch end to end, without padding."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Targets = Literal["all", "last", "none"]
Spans = tuple[np.ndarray, np.ndarray]
"""(starts, stops) of the histories of a batch: history b has the rows starts[b] .. stops[b]-1."""


@dataclass(frozen=True)
class PackedBatch:
    """B histories with N events in total and M targets.

    Attributes:
        items: (N,) item indices.
        offsets: (B + 1,) history b has the rows offsets[b] .. offsets[b+1]-1.
        positions: (M,) rows whose next item is to be predicted, ascending.
        targets: (M,) the next item of each position; or (M, K) its next K items.
        seen: (2, P) pairs of a target, numbered 0 .. M-1, and an item of its history up to there; if
            histories have at most one target, of a history 0 .. B-1 and an item. None if not needed.
        users: (B,) the user of each history, -1 for an unknown one. None if not needed.
        weights: float32, the factor of each target in the loss, of the shape of ``targets``; None if
            all are 1.
        features: (N, F) the features of each event, rows of their table; None if not known.
        asked: (M,) the code of the kind that is asked for, 0 for any kind; if M is 0, (B,). None for
            any kind.
    """

    items: Tensor
    offsets: Tensor
    positions: Tensor
    targets: Tensor
    seen: Tensor | None = None
    users: Tensor | None = None
    weights: Tensor | None = None
    features: Tensor | None = None
    asked: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"PackedBatch({len(self.offsets) - 1:,} histories, {len(self.items):,} events, "
            f"{len(self.targets):,} targets, {self.items.device})"
        )

    @property
    def owners(self) -> Tensor:
        """(M,) the history, 0 .. B-1, of each position."""
        return torch.searchsorted(self.offsets, self.positions, right=True) - 1

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on ``device``."""
        if self.items.device == device:
            return self
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return PackedBatch(**moved)


class Horizon(NamedTuple):
    """The next K items that each position predicts.

    Attributes:
        starts, stops: (H,) the rows of histories, ascending. A position predicts no item after the end
            of its history.
        shares: (K,) the factor of each item in the loss. If fewer items are left, their factors are
            scaled to the same sum.
    """

    starts: np.ndarray
    stops: np.ndarray
    shares: Tensor

    def ends(self, starts: np.ndarray) -> np.ndarray:
        """The row after the history that has each row of ``starts`` (B,)."""
        return self.stops[np.searchsorted(self.starts, starts, side="right") - 1]


class Beside(NamedTuple):
    """What is known of the events of a log beside their items, arrays or tensors, as the items are; and
    what is to be predicted. Each may be None.

    Attributes:
        weights: (N,) the factor of each event in the loss.
        features: (N, F) as in :class:`PackedBatch`.
        asked: (N,) the kind to ask for when an event is predicted.
        horizon: the next items that a position predicts; None for one.
    """

    weights: Any = None
    features: Any = None
    asked: Any = None
    horizon: Horizon | None = None


NOTHING = Beside()


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ranges starts[i] .. starts[i]+lengths[i]-1, end to end, (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def pack(
    items: np.ndarray | Tensor, starts: np.ndarray, stops: np.ndarray, targets: Targets,
    beside: Beside = NOTHING,
) -> PackedBatch:  # fmt: skip
    """Pack the histories items[starts[b]:stops[b]], each of at least one event.

    Args:
        items: the items of the log. A tensor is packed on its device, without waiting for a GPU; an
            array is packed by NumPy, which is faster for a small batch.
        starts, stops: (B,) the rows of each history.
        targets: the positions to predict at: all, the last of each history, or none (M = 0). The
            target of a position is the item after it in ``items``; with a horizon, the next items.
        beside: what is known of the events beside their items.
    """
    lengths = stops - starts
    ends = np.concatenate([[0], np.cumsum(lengths)])
    n = int(ends[-1])
    offsets: Any  # array or tensor, like items
    every: Any
    weights, features, asked, horizon = beside
    last: Any = starts[:0] if horizon is None else horizon.ends(starts)
    if isinstance(items, Tensor):
        offsets, shift, length, last = _copy_to(
            items.device, ends, starts - ends[:-1], lengths, last
        )
        every = torch.arange(n, device=items.device)
        rows = every + torch.repeat_interleave(shift, length, output_size=n)
    else:
        offsets, every, rows = ends, np.arange(n), ranges(starts, lengths)
    positions = {"all": every, "last": offsets[1:] - 1, "none": every[:0]}[targets]
    after = rows[positions] + 1
    batch = PackedBatch(*map(_int64, (items[rows], offsets, positions, items[after])))
    batch = replace(
        batch,
        weights=None if weights is None else torch.as_tensor(weights[after]),
        features=None if features is None else _int64(features[rows]),
        asked=None if asked is None else _int64(asked[after]),
    )
    if horizon is None:
        return batch
    following, factors = _next_rows(_int64(after), _int64(last)[batch.owners], horizon.shares)
    if batch.weights is not None:
        factors *= batch.weights.unsqueeze(1)
    predicted = items[following if isinstance(items, Tensor) else following.numpy()]
    return replace(batch, targets=_int64(predicted), weights=factors)


def _next_rows(after: Tensor, ends: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The K rows (M, K) from ``after`` (M,) on, and their factors. Those that are not before ``ends``
    (M,) have the factor 0, and repeat the last row."""
    steps = torch.arange(len(shares), device=shares.device)
    left = (ends - after).clamp(min=1).unsqueeze(1)  # a history that fills a batch may have none
    factors = shares * (steps < left)
    factors *= shares.sum() / factors.sum(1, keepdim=True)
    return after.unsqueeze(1) + torch.minimum(steps, left - 1), factors


def pack_latest(
    items: np.ndarray, begins: np.ndarray, stops: np.ndarray, max_length: int, targets: Targets,
    features: np.ndarray | None = None,
) -> PackedBatch:  # fmt: skip
    """Pack the last ``max_length`` events of the histories items[begins[b]:stops[b]].

    ``seen`` has the items of the whole histories. ``targets`` is "last" or "none", as in :func:`pack`.
    ``features`` (N, F) are those of the events.
    """
    starts = np.maximum(begins, stops - max_length)
    batch = pack(items, starts, stops, targets, Beside(features=features))
    lengths = stops - begins
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return replace(batch, seen=_int64(np.stack([owner, items[ranges(begins, lengths)]])))


def _int64(values: np.ndarray | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.long()
    return torch.from_numpy(values.astype(np.int64, copy=False))


def _copy_to(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Copy arrays of integers to ``device`` in one asynchronous transfer."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return torch.split(joined.to(device, non_blocking=True), [len(array) for array in arrays])


def pack_each(
    items: np.ndarray | Tensor, spans: Sequence[Spans], targets: Targets,
    beside: Beside = NOTHING,
) -> list[PackedBatch]:  # fmt: skip
    """:func:`pack` several batches with as many operations as one batch takes."""
    starts, stops = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    whole = pack(items, starts, stops, targets, beside)
    batches, b, n, m = [], 0, 0, 0
    for starts, stops in spans:
        histories, events = len(starts), int((stops - starts).sum())
        predicted = {"all": events, "last": histories, "none": 0}[targets]
        rows, places = slice(n, n + events), slice(m, m + predicted)
        batches.append(
            PackedBatch(
                whole.items[rows],
                whole.offsets[b : b + histories + 1] - n,
                whole.positions[places] - n,
                whole.targets[places],
                weights=_part(whole.weights, places),
                features=_part(whole.features, rows),
                asked=_part(whole.asked, places),
            )
        )
        b, n, m = b + histories, n + events, m + predicted
    return batches


def _part(values: Tensor | None, rows: slice) -> Tensor | None:
    return None if values is None else values[rows]


def append_empty(batch: PackedBatch, histories: int) -> PackedBatch:
    """Append empty histories, so that the batch has ``histories`` in total."""
    more = histories + 1 - len(batch.offsets)
    return replace(batch, offsets=F.pad(batch.offsets, (0, more), value=len(batch.items)))


def rectangles(offsets: Tensor) -> tuple[list[Tensor], Tensor]:
    """Group histories of similar length into padded rectangles, for models that need them.

    The lengths in a rectangle are within a factor of two, so that less than half of it is padding;
    histories of up to 4 events share one rectangle. Empty histories are left out.

    Args:
        offsets: (B + 1,) of a batch with N events.

    Returns:
        The row (B', T) of the batch at each cell of each rectangle, N for padding after a history;
        and (N,) the cell of each row, counted through all rectangles.
    """
    lengths, order = offsets.diff().sort(stable=True)
    begins, sizes, events = offsets[:-1][order], lengths.tolist(), offsets[-1]
    shapes: list[Tensor] = []
    first = bisect_right(sizes, 0)
    while first < len(sizes):
        stop = bisect_right(sizes, max(4, 1 << (sizes[first] - 1).bit_length()))
        t = torch.arange(sizes[stop - 1], device=offsets.device)
        inside = t < lengths[first:stop, None]
        shapes.append(torch.where(inside, begins[first:stop, None] + t, events))
        first = stop
    cells = torch.cat([offsets[:0], *(rows.flatten() for rows in shapes)])
    return shapes, cells.argsort()[: sum(sizes)]  # the padding comes last


def sequence_padding(batch: PackedBatch) -> PackedBatch:
    """Pad every history to the next power of two of the longest (arXiv 2406.12580, Table 5).

    Padding, item 0 without a target, follows the events, so the outputs of a causal model at the events
    do not change. The state after a history becomes the state after its padding.
    """
    lengths = batch.offsets.diff()
    if not len(lengths):
        return batch
    longest = 1 << max(0, int(lengths.max()) - 1).bit_length()
    offsets = longest * torch.arange(len(batch.offsets), device=lengths.device)
    shift = (offsets - batch.offsets)[:-1]
    rows = torch.arange(len(batch.items), device=lengths.device)
    rows += torch.repeat_interleave(shift, lengths, output_size=len(rows))

    def padded(values: Tensor) -> Tensor:
        zeros = values.new_zeros(longest * len(lengths), *values.shape[1:])
        return zeros.index_copy(0, rows, values)

    features = None if batch.features is None else padded(batch.features)
    positions = rows[batch.positions]
    return replace(
        batch, items=padded(batch.items), offsets=offsets, positions=positions, features=features
    )


def windows(begins: np.ndarray, ends: np.ndarray, max_length: int, shift: int) -> Spans:
    """Cut each history into windows of at most ``max_length`` inputs, counted from its end.

    Args:
        begins, ends: (U,) history u has the rows begins[u] .. ends[u]-1; its last row is only a
            target, so it has ends - begins - 1 inputs.
        shift: in histories longer than a window, move the cuts this many inputs to the past (at most
            ``max_length``). With another shift, the events after a cut are trained with their past.

    Returns:
        The first row and the row after the last input of each window.
    """
    inputs = ends - begins - 1
    begins, ends, inputs = begins[inputs > 0], ends[inputs > 0], inputs[inputs > 0]
    head = np.where(inputs > max_length, shift, 0)  # inputs of the last window, if it is shortened
    count = (head > 0) + -(-(inputs - head) // max_length)
    user = np.repeat(np.arange(len(count)), count)
    nth = ranges(np.zeros_like(count), count)  # from the end of the history
    nth = nth - (head > 0)[user]
    stops = ends[user] - 1 - head[user] - nth * max_length
    stops = np.where(nth < 0, ends[user] - 1, stops)
    starts = np.where(nth < 0, stops - head[user], stops - max_length)
    return np.maximum(starts, begins[user]), stops


def all_positions(
    begins: np.ndarray, ends: np.ndarray, max_length: int, targets: int, epoch: int,
    rng: np.random.Generator,
) -> list[Spans]:  # fmt: skip
    """The batches of an epoch that predicts every position of every history once.

    Windows in random order are laid end to end and cut into batches of equal size, about ``targets``
    positions, as equal sizes let the matrix library reuse its kernels. If a cut divides a window, the
    batch ends with its first piece and the next batch starts with the rest. In every other epoch the
    windows are cut half a window earlier.

    Returns:
        The histories of each batch. Between the first and the last they are in descending order of
        length, as a GPU starts them in this order.
    """
    starts, stops = windows(begins, ends, max_length, shift=max_length // 2 * (epoch % 2))
    order = rng.permutation(len(starts))
    starts, stops = starts[order], stops[order]
    window_ends = np.cumsum(stops - starts)
    total = int(window_ends[-1]) if len(window_ends) else 0
    size = -(-total // max(1, round(total / targets)))
    batch_ends = np.arange(size, total, size) if size else window_ends
    piece_ends = np.union1d(window_ends, batch_ends)
    piece_begins = np.concatenate([[0], piece_ends])[:-1]
    window = np.searchsorted(window_ends, piece_begins, side="right")
    stops = stops[window] - (window_ends[window] - piece_ends)
    starts = stops - (piece_ends - piece_begins)
    firsts = np.searchsorted(piece_begins, batch_ends)
    parts = np.split(np.arange(len(starts)), firsts)
    lengths = stops - starts
    batches = []
    for part in parts:
        between = part[1:-1][np.argsort(-lengths[part[1:-1]], kind="stable")]
        order = np.concatenate([part[:1], between, part[1:][-1:]])
        batches.append((starts[order], stops[order]))
    return [spans for spans in batches if len(spans[0])]


def prefixes(
    begins: np.ndarray, ends: np.ndarray, max_length: int, samples: int, rng: np.random.Generator
) -> list[Spans]:
    """The batches of an epoch in which every prefix of every history is a sample, as in the paper.

    Returns:
        The prefixes of each batch of ``samples``, in descending order of length.
    """
    inputs = np.maximum(ends - begins - 1, 0)
    stops = ranges(begins + 1, inputs)
    starts = np.maximum(np.repeat(begins, inputs), stops - max_length)
    order = rng.permutation(len(stops))
    parts = [order[first : first + samples] for first in range(0, len(order), samples)]
    parts = [part[np.argsort((starts - stops)[part], kind="stable")] for part in parts]
    return [(starts[part], stops[part]) for part in parts]


def seen_pairs(batch: PackedBatch, count: int | None = None) -> Tensor:
    """(2, P) pairs of a target, numbered 0 .. M-1, ascending, and an item of its history up to there.

    Only events in this batch count. ``count`` is P, if the caller knows it; without it the host waits
    for a GPU.
    """
    history = batch.owners
    begins = batch.offsets[history]
    lengths = batch.positions - begins + 1
    owner = torch.repeat_interleave(lengths, output_size=count)
    shift = begins - (lengths.cumsum(0) - lengths)
    rows = torch.arange(len(owner), device=owner.device).add_(shift.index_select(0, owner))
    return torch.stack([owner, batch.items.index_select(0, rows)])
