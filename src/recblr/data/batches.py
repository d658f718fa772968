"""PackedBatch: the histories of a batch laid end to end, without padding."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Targets = Literal["all", "last", "none"]
Spans = tuple[np.ndarray, np.ndarray]
"""The histories of a batch, (starts, stops): history b is the rows starts[b] .. stops[b]-1 of a log."""


@dataclass(frozen=True)
class PackedBatch:
    """B histories with N events in all, of which M positions have a target.

    ``items`` (N,) item indices; ``offsets`` (B + 1,), history b has the rows offsets[b] ..
    offsets[b+1]-1; ``positions`` (M,) rows whose next item is to be predicted, rising; ``targets``
    (M,) it; ``seen`` (2, P) numbers of targets, or of histories where each has one target or none, and
    for each an item of the history up to it, where somebody asks for them, else None;
    ``users`` (B,) whose the histories are, -1 for anybody's, where a model asks for it, else None.
    """

    items: Tensor
    offsets: Tensor
    positions: Tensor
    targets: Tensor
    seen: Tensor | None = None
    users: Tensor | None = None

    @property
    def owners(self) -> Tensor:
        """(M,) the history of each position."""
        return torch.searchsorted(self.offsets, self.positions, right=True) - 1

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on ``device``."""
        if self.items.device == device:
            return self
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return PackedBatch(**moved)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+1, … lengths[0] of them, then those of starts[1], … (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def pack(
    items: np.ndarray | Tensor, starts: np.ndarray, stops: np.ndarray, targets: Targets
) -> PackedBatch:
    """Histories items[starts[b]:stops[b]] of at least one event each, end to end.

    Args:
        items: the log. From a tensor the batch is assembled on its device, which is told where the
            histories lie and never waited for; from an array, quicker for a small one, by NumPy.
        starts, stops: (B,) where the histories lie.
        targets: predict at every position, at the last one of each history, or at none (M = 0). The
            target of a position is the item after it in ``items``.
    """
    lengths = stops - starts
    ends = np.concatenate([[0], np.cumsum(lengths)])
    n = int(ends[-1])
    offsets: Any  # arrays or tensors, like the log
    every: Any
    if isinstance(items, Tensor):
        offsets, shift, length = _send(items.device, ends, starts - ends[:-1], lengths)
        every = torch.arange(n, device=items.device)
        rows = every + torch.repeat_interleave(shift, length, output_size=n)
    else:
        offsets, every, rows = ends, np.arange(n), ranges(starts, lengths)
    positions = {"all": every, "last": offsets[1:] - 1, "none": every[:0]}[targets]
    batch = (items[rows], offsets, positions, items[rows[positions] + 1])
    return PackedBatch(*map(_int64, batch))


def latest(
    items: np.ndarray, begins: np.ndarray, stops: np.ndarray, max_length: int, targets: Targets
) -> PackedBatch:
    """The last ``max_length`` events of the histories items[begins[b]:stops[b]], end to end.

    ``seen`` names the items of the whole histories. ``targets``: "last" or "none", as in :func:`pack`.
    """
    batch = pack(items, np.maximum(begins, stops - max_length), stops, targets)
    lengths = stops - begins
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return replace(batch, seen=_int64(np.stack([owner, items[ranges(begins, lengths)]])))


def _int64(values: np.ndarray | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.long()
    return torch.from_numpy(values.astype(np.int64, copy=False))


def _send(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Whole numbers on ``device``, in one transfer that the host does not wait for."""
    together = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        together = together.pin_memory()
    return torch.split(together.to(device, non_blocking=True), [len(array) for array in arrays])


def pack_each(
    items: np.ndarray | Tensor, several: Sequence[Spans], targets: Targets
) -> list[PackedBatch]:
    """:func:`pack` of each of several batches, with as many operations as for one of them."""
    starts, stops = (np.concatenate(parts) for parts in zip(*several, strict=True))
    whole = pack(items, starts, stops, targets)
    batches, b, n, m = [], 0, 0, 0
    for starts, stops in several:
        histories, events = len(starts), int((stops - starts).sum())
        predicted = {"all": events, "last": histories, "none": 0}[targets]
        batches.append(
            PackedBatch(
                whole.items[n : n + events],
                whole.offsets[b : b + histories + 1] - n,
                whole.positions[m : m + predicted] - n,
                whole.targets[m : m + predicted],
            )
        )
        b, n, m = b + histories, n + events, m + predicted
    return batches


def with_empty(batch: PackedBatch, histories: int) -> PackedBatch:
    """The batch with histories of no event behind its own, so that there are ``histories`` in all."""
    more = histories + 1 - len(batch.offsets)
    return replace(batch, offsets=F.pad(batch.offsets, (0, more), value=len(batch.items)))


def rectangles(offsets: Tensor) -> tuple[list[Tensor], Tensor]:
    """Histories of like length side by side, for what needs rectangles.

    The lengths of a rectangle lie within a factor of two, so that fewer than half of its places are
    pads; but all of at most 4 events share one. Histories of no event are left out.

    Returns:
        The event (B', T) at each place of each rectangle, N for the pads behind a history; and (N,)
        at which of all places, end to end, each event is.
    """
    lengths, order = offsets.diff().sort(stable=True)
    begins, known, events = offsets[:-1][order], lengths.tolist(), offsets[-1]
    found: list[Tensor] = []
    first = bisect_right(known, 0)
    while first < len(known):
        stop = bisect_right(known, max(4, 1 << (known[first] - 1).bit_length()))
        t = torch.arange(known[stop - 1], device=offsets.device)
        inside = t < lengths[first:stop, None]
        found.append(torch.where(inside, begins[first:stop, None] + t, events))
        first = stop
    places = torch.cat([offsets[:0], *(rows.flatten() for rows in found)])
    return found, places.argsort()[: sum(known)]  # the pads come last


def sequence_padding(batch: PackedBatch) -> PackedBatch:
    """Every history as long as the power of two at or above the longest (Table 5 of 2406.12580).

    The pads, item 0 without a target, follow the events, so that a causal model gives each event the
    vector it had. The state after a history is now that after its pads.
    """
    lengths = batch.offsets.diff()
    if not len(lengths):
        return batch
    longest = 1 << max(0, int(lengths.max()) - 1).bit_length()
    offsets = longest * torch.arange(len(batch.offsets), device=lengths.device)
    shift = (offsets - batch.offsets)[:-1]
    rows = torch.arange(len(batch.items), device=lengths.device)
    rows += torch.repeat_interleave(shift, lengths, output_size=len(rows))
    items = batch.items.new_zeros(longest * len(lengths)).index_copy(0, rows, batch.items)
    return replace(batch, items=items, offsets=offsets, positions=rows[batch.positions])


def windows(begins: np.ndarray, ends: np.ndarray, max_length: int, shift: int) -> Spans:
    """Cut each history into windows of at most ``max_length`` inputs, the last ending at its end.

    Args:
        begins, ends: (U,) history u has the rows begins[u] .. ends[u]-1; its last row is only a
            target, so it has ends - begins - 1 inputs.
        shift: move the cuts of histories longer than a window this many inputs towards the past (at
            most ``max_length``), so that the events after a cut are seen with their past as well.

    Returns:
        The first row and one past the last input row of each window.
    """
    inputs = ends - begins - 1
    begins, ends, inputs = begins[inputs > 0], ends[inputs > 0], inputs[inputs > 0]
    head = np.where(inputs > max_length, shift, 0)  # the last window, cut short
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
    """An epoch in which every position of every history is predicted once, in random batches.

    Windows of random users are laid end to end and cut into batches of equal size, about
    ``targets`` positions. The last history of a batch that a cut severs goes on as the first of the
    next one, which then starts where the other stops. Equal sizes let the matrix library reuse its
    kernels. Every other epoch the windows are cut half a window earlier.

    Returns the histories of each batch, those between the first and the last longest first: a GPU
    begins them in this order.
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
    found = []
    for part in parts:
        between = part[1:-1][np.argsort(-lengths[part[1:-1]], kind="stable")]
        order = np.concatenate([part[:1], between, part[1:][-1:]])
        found.append((starts[order], stops[order]))
    return [spans for spans in found if len(spans[0])]


def prefixes(
    begins: np.ndarray, ends: np.ndarray, max_length: int, samples: int, rng: np.random.Generator
) -> list[Spans]:
    """An epoch in which every prefix of every history is one sample (the paper's way).

    Returns the prefixes of each batch of ``samples``, longest first.
    """
    inputs = np.maximum(ends - begins - 1, 0)
    stops = ranges(begins + 1, inputs)
    starts = np.maximum(np.repeat(begins, inputs), stops - max_length)
    order = rng.permutation(len(stops))
    parts = [order[first : first + samples] for first in range(0, len(order), samples)]
    parts = [part[np.argsort((starts - stops)[part], kind="stable")] for part in parts]
    return [(starts[part], stops[part]) for part in parts]


def seen_pairs(batch: PackedBatch, count: int | None = None) -> Tensor:
    """(2, P): numbers 0 .. M-1 of targets, rising, and for each an item of the history up to it.

    Of a history that a cut severed only the piece in this batch is known. ``count`` is P where the
    caller knows it, so that a GPU need not be asked.
    """
    history = batch.owners
    begins = batch.offsets[history]
    lengths = batch.positions - begins + 1
    owner = torch.repeat_interleave(lengths, output_size=count)
    shift = begins - (lengths.cumsum(0) - lengths)
    rows = torch.arange(len(owner), device=owner.device).add_(shift.index_select(0, owner))
    return torch.stack([owner, batch.items.index_select(0, rows)])
