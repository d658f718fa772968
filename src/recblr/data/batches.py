"""PackedBatch: the histories of a batch laid end to end, without padding."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """B histories with N events in all, of which M positions have a target.

    ``items`` (N,) item indices; ``offsets`` (B + 1,), history b has the rows offsets[b] ..
    offsets[b+1]-1; ``positions`` (M,) rows whose next item is to be predicted; ``targets`` (M,) it.
    """

    items: Tensor
    offsets: Tensor
    positions: Tensor
    targets: Tensor


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+1, … lengths[0] of them, then those of starts[1], … (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def pack(
    items: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    targets: Literal["all", "last", "none"],
) -> PackedBatch:
    """Histories items[starts[b]:stops[b]] of at least one event each, end to end.

    ``targets``: predict at every position, at the last one of each history, or at none (M = 0). The
    target of a position is the item after it in ``items``.
    """
    lengths = stops - starts
    rows = ranges(starts, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = {"all": np.arange(len(rows)), "last": offsets[1:] - 1, "none": rows[:0]}[targets]
    return PackedBatch(
        items=torch.from_numpy(items[rows].astype(np.int64)),
        offsets=torch.from_numpy(offsets),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(items[rows[positions] + 1].astype(np.int64)),
    )


def windows(
    begins: np.ndarray, ends: np.ndarray, max_length: int, shift: int
) -> tuple[np.ndarray, np.ndarray]:
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
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """An epoch in which every position of every history is predicted once, in random batches.

    Windows of random users are laid end to end and cut into batches of equal size, about
    ``targets`` positions; what a cut severs goes on in the next batch. Equal sizes let the matrix
    library reuse its kernels. Every other epoch the windows are cut half a window earlier.

    Returns the windows (starts, stops) of each batch.
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
    parts = zip(np.split(starts, firsts), np.split(stops, firsts), strict=True)
    return [part for part in parts if len(part[0])]


def prefixes(
    begins: np.ndarray, ends: np.ndarray, max_length: int, samples: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """An epoch in which every prefix of every history is one sample (the paper's way).

    Returns the prefixes (starts, stops) of each batch of ``samples``.
    """
    inputs = np.maximum(ends - begins - 1, 0)
    stops = ranges(begins + 1, inputs)
    starts = np.maximum(np.repeat(begins, inputs), stops - max_length)
    order = rng.permutation(len(stops))
    parts = [order[first : first + samples] for first in range(0, len(order), samples)]
    return [(starts[part], stops[part]) for part in parts]


def seen_pairs(batch: PackedBatch) -> Tensor:
    """(P, 2) pairs of a target's number 0 .. M-1, rising, and an item of the history before it.

    The target itself is never among its own pairs.
    """
    positions = batch.positions.numpy()
    sequence = np.searchsorted(batch.offsets.numpy(), positions, side="right") - 1
    begins = batch.offsets.numpy()[sequence]
    lengths = positions - begins + 1
    owner = torch.from_numpy(np.repeat(np.arange(len(positions)), lengths))
    items = batch.items[torch.from_numpy(ranges(begins, lengths))]
    pairs = torch.stack([owner, items], 1)
    return pairs[items != batch.targets[owner]]
