"""The paper's parallel scan: two perfect binary trees, equations (9)-(15) and Figure 3.

To read beside the paper, and a reference that takes log2(T) steps where the loop takes T. Any floating
dtype, any device, gradients by autograd. Axes as in :mod:`reference`; T leaves, a power of two.

The paper draws the leaves as c_T ... c_1. Here time increases along the axis: the right child of node
v (the earlier events) is node 2v of the level below, and the left child is node 2v + 1.

The paper starts with c_1 = β'_1, a state instead of a pair, and with 1 at the root of Tree2. Here c_1
is a pair like the others, and the root of Tree2 is the state h_0, which is zero in the paper. Each node
of Tree2 is then the state before the first event under it.
"""

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""c = (α, β'), equation (11): one event, or the product of consecutive events."""


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = α_t ⊙ h_{t-1} + u_t within each sequence; see :func:`reference.linear_scan`.

    Embedding padding: sequences shorter than T are padded on the left with (1, 0), and the outputs of
    the pads are dropped. The paper pads with zeros before the gates; α = 1 leaves the state unchanged,
    so ``start`` passes through the pads, and an empty sequence keeps its start.

    Args:
        alpha, u: (N, C).
        offsets: (B + 1,) int64; sequence b has the rows offsets[b] .. offsets[b+1]-1.
        start: (B, C), the state before the first event.

    Returns:
        h (N, C) and the last state of each sequence (B, C).
    """
    lengths, (sequences, channels) = offsets.diff(), start.shape
    longest = int(lengths.max()) if sequences else 0
    leaves = 1 << max(longest - 1, 0).bit_length()
    ends = torch.arange(1, sequences + 1, device=offsets.device) * leaves
    leaf = torch.arange(len(u), device=offsets.device)
    leaf = leaf + torch.repeat_interleave(ends - offsets[1:], lengths)

    def padded(rows: Tensor, value: float) -> Tensor:
        pads = rows.new_full((sequences * leaves, channels), value)
        return pads.index_copy(0, leaf, rows).view(sequences, leaves, channels)

    c = padded(alpha, 1), padded(u, 0)
    h = after(c, down_sweep(up_sweep(c), start)[-1])  # (14)
    return h.flatten(0, 1).index_select(0, leaf), h[:, -1]


def after(c: Pair, h: Tensor) -> Tensor:
    """c • h, equation (12), first line: the state after c from the state h."""
    alpha, beta = c
    return alpha * h + beta


def product(later: Pair, earlier: Pair) -> Pair:
    """c_{t+1} • c_t, equation (12), second line."""
    return later[0] * earlier[0], after(later, earlier[1])


def up_sweep(c: Pair) -> list[Pair]:
    """Tree1 over the leaves ``c`` (B, T, C): its levels, from the root (B, 1, C) to the leaves."""
    tree1 = [c]
    while tree1[0][0].shape[1] > 1:
        tree1.insert(0, product(_left(tree1[0]), _right(tree1[0])))  # (15)
    return tree1


def down_sweep(tree1: list[Pair], start: Tensor) -> list[Tensor]:
    """The levels of Tree2, from the root ``start`` to the leaves, the state before each event."""
    tree2 = [start.unsqueeze(1)]
    for below in tree1[1:]:
        right, left = tree2[-1], after(_right(below), tree2[-1])  # (15)
        tree2.append(torch.stack([right, left], 2).flatten(1, 2))
    return tree2


def _right(level: Pair) -> Pair:
    return level[0][:, ::2], level[1][:, ::2]


def _left(level: Pair) -> Pair:
    return level[0][:, 1::2], level[1][:, 1::2]
