"""The operators of the models: fused kernels, each with a plain form in :mod:`reference`.

Axes: N events of all sequences laid end to end, B sequences, C channels, W width of the convolution.
``offsets`` (B + 1,) int64 rises from 0 to N; sequence b has the rows offsets[b] .. offsets[b+1]-1.
The recurrences take the state before each sequence and return the state after it, so a sequence can be
processed in pieces.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from recblr.ops import cpu, reference, registry, tree
from recblr.ops.reference import last_inputs

__all__ = [
    "Implementation", "bd_lru", "conv_silu", "dropout", "last_inputs", "linear_scan", "rows_before"
]  # fmt: skip

_rows_before: ContextVar[int] = ContextVar("rows_before", default=0)

Implementation = Literal["auto", "serial", "tree"]
"""How a recurrence is computed; the gradient is computed in the same way.

- ``auto``: the fused kernels of :mod:`cpu` or :mod:`gpu` for float32 and bfloat16. For other dtypes
  ``tree``, or ``serial`` if padding to the longest sequence would more than quadruple the rows.
- ``serial``: one event after another, :mod:`reference`.
- ``tree``: the paper's two trees, :mod:`tree`.
"""


def linear_scan(
    alpha: Tensor,
    u: Tensor,
    offsets: Tensor,
    start: Tensor,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """h_t = α_t ⊙ h_{t-1} + u_t within each sequence (arXiv 2406.12580, eq. 5 with u = β ⊙ x).

    Args:
        alpha, u: (N, C); alpha in [0, 1].
        offsets: (B + 1,) the rows of each sequence.
        start: (B, C) state before the first event of each sequence.
        implementation: see :data:`Implementation`.

    Returns:
        h (N, C) and the last state of each sequence (B, C); for an empty sequence its start.
    """
    if implementation == "auto" and registry.fused_kernels(u):
        return registry.linear_scan(alpha, u, offsets, start)
    return _plain_scan(implementation, offsets)(alpha, u, offsets, start)


def bd_lru(
    x: Tensor, r: Tensor, i: Tensor, z: Tensor, decay: Tensor, offsets: Tensor, start: Tensor,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The behaviour-dependent linear recurrent unit and its output gate (arXiv 2406.12580, eq. 5-8).

    α = exp(-decay ⊙ σ(r)), h_t = α_t ⊙ h_{t-1} + √(1 - α_t²) ⊙ σ(i_t) ⊙ x_t, y_t = h_t ⊙ SiLU(z_t).

    Args:
        x: (N, C) input of the recurrence.
        r, i, z: (N, C) recurrence gate, input gate and output gate, before their nonlinearities.
        decay: (C,) softplus(Λ), positive.
        offsets, start, implementation: as in :func:`linear_scan`.

    Returns:
        y (N, C) and the last state of each sequence (B, C); for an empty sequence its start.
    """
    if implementation == "auto" and registry.fused_kernels(x):
        y, _, last = registry.bd_lru(x, r, i, z, decay, offsets, start)
        return y, last
    scan = _plain_scan(implementation, offsets)
    return reference.bd_lru(x, r, i, z, decay, offsets, start, scan)


def _plain_scan(implementation: Implementation, offsets: Tensor) -> reference.Scan:
    """The scan of :mod:`tree` or :mod:`reference`; ``auto`` chooses by the amount of padding."""
    if implementation == "auto":
        sequences, longest = len(offsets) - 1, int(offsets.diff().amax()) if len(offsets) > 1 else 0
        implementation = "tree" if sequences * longest <= 4 * int(offsets[-1]) else "serial"
    return tree.linear_scan if implementation == "tree" else reference.linear_scan


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, before: Tensor) -> Tensor:
    """SiLU(bias + Σ_k weight_k ⊙ x_{t-W+1+k}) (N, C): depthwise, causal, within each sequence.

    ``weight`` is (C, W); ``before`` (B, W-1, C) holds the inputs before each sequence, oldest first.
    """
    if not registry.fused_kernels(x):
        return reference.conv_silu(x, weight, bias, offsets, before)
    return registry.conv_silu(x, weight, bias, offsets, before.to(x.dtype))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p), while training."""
    if p == 0 or not training:
        return x
    if not cpu.supports(x):
        return torch.nn.functional.dropout(x, p)
    # A step that is compiled is that of one process; the compiler does not read context variables.
    rows = 0 if torch.compiler.is_compiling() else _rows_before.get()
    before = rows * (x.numel() // max(1, len(x)))
    return registry.dropout(x, torch.randint(2**32, ()), 1 - p, before)


@contextmanager
def rows_before(count: int) -> Iterator[None]:
    """Let :func:`dropout` on a CPU draw for rows that follow ``count`` rows of other processes."""
    token = _rows_before.set(count)
    try:
        yield
    finally:
        _rows_before.reset(token)
