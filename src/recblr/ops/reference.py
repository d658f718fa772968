"""The recurrence as in the paper, step by step: tests compare every fast implementation with it.

Any floating dtype, any device, gradients by autograd. Axes: N events of all sequences laid end to
end, B sequences, C channels, W width of the convolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(alpha, u, offsets, start) -> (h, last), see :func:`linear_scan`."""


def linear_scan(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = α_t ⊙ h_{t-1} + u_t within each sequence, equation (5) with u = β ⊙ x.

    Args:
        alpha, u: (N, C).
        offsets: (B + 1,) int64; sequence b has the rows offsets[b] .. offsets[b+1]-1.
        start: (B, C), the state before the first event.

    Returns:
        h (N, C) and the last state of each sequence (B, C).
    """
    state, lengths = start, offsets.diff()
    rows, states = [], []
    for t in range(int(lengths.max()) if len(lengths) else 0):
        active = (lengths > t).nonzero().squeeze(1)
        row = offsets[active] + t
        h = alpha[row] * state[active] + u[row]
        state = state.index_copy(0, active, h)
        rows.append(row)
        states.append(h)
    if not rows:
        return torch.zeros_like(u), state
    return torch.zeros_like(u).index_copy(0, torch.cat(rows), torch.cat(states)), state


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    scan: Scan = linear_scan,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Equations (5)-(8), then the output gate of Algorithm 1, line 6. See :func:`recblr.ops.bd_lru`."""
    log_alpha = -decay * torch.sigmoid(r)
    beta = torch.sqrt(-torch.expm1(2 * log_alpha)) * torch.sigmoid(i)
    h, last = scan(torch.exp(log_alpha), beta * x, offsets, start)
    return h * torch.nn.functional.silu(z), last


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """SiLU of the causal depthwise convolution, Algorithm 1, line 4; see :func:`ops.conv_silu`."""
    width = weight.shape[1]
    total = bias.expand_as(x)
    for lag in range(width):
        total = total + weight[:, width - 1 - lag] * lagged(x, offsets, before, lag)
    return torch.nn.functional.silu(total)


def lagged(x: Tensor, offsets: Tensor, before: Tensor, lag: int) -> Tensor:
    """(N, C) x_{t-lag} of the same sequence for each row t; from ``before`` before its first event."""
    sequence = torch.repeat_interleave(offsets.diff())
    source = torch.arange(len(x), device=x.device) - lag
    position = source - offsets[sequence]  # negative: an input that precedes the sequence
    inside = x[source.clamp(min=0)]
    outside = before[sequence, position.clamp(max=-1)] if lag else inside
    return torch.where((position < 0).unsqueeze(1), outside, inside)


def last_inputs(x: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """(B, W-1, C) the last inputs of each sequence, continuing ``before``: that of its next piece."""
    width = before.shape[1]
    lengths = offsets.diff().unsqueeze(1)
    position = lengths - width + torch.arange(width, device=x.device)
    if len(x) == 0:
        return before
    inside = x[(offsets[:-1, None] + position).clamp(0, len(x) - 1)].to(before.dtype)
    sequence = torch.arange(len(lengths), device=x.device).unsqueeze(1)
    outside = before[sequence, position.clamp(max=-1)]
    return torch.where((position < 0).unsqueeze(2), outside, inside)
