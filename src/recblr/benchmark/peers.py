"""Other implementations of the recurrence, to compare the fused kernels with.

All use the plain gates of :mod:`recblr.ops.reference` and differ in the scan. As in training, they
start from state zero. Axes: B sequences of T events each, C channels.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recblr.ops import reference

COMPILED = ", compiled"  # ends the name of a peer that torch.compile compiles
WARP = "accelerated-scan warp"  # compiled by nvcc, which takes more than a minute

BdLru = Callable[..., tuple[Tensor, Tensor]]
"""Arguments and results of :func:`recblr.ops.bd_lru`."""

Scan = Callable[[Tensor, Tensor], Tensor]
"""alpha and u (B, T, C) -> h (B, T, C) with h_t = α_t ⊙ h_{t-1} + u_t and h_0 = 0."""


def peers(device: str) -> dict[str, BdLru]:
    """The implementations by name; one that is not installed raises ImportError when called.

    On a GPU the fastest come first, and the one that nvcc compiles comes last.
    """
    scans: dict[str, Scan] = {
        "loop": loop,
        "loop, gradient by hand": loop_by_hand,
        "doubling": doubling,
        "log-space": log_space,
        "torch scan": torch_scan,
        "torch associative_scan": torch_associative_scan,
        "accelerated-scan reference": time_last("accelerated_scan.ref"),
    }
    if device == "cuda":
        kernels: dict[str, Scan] = {
            "fla HGRN recurrent": fla_hgrn("fused_recurrent_hgrn"),
            "fla HGRN chunk": fla_hgrn("chunk_hgrn"),
            "the authors'": time_last("parallel_scan", "parallel_scan", power_of_two=True),
            "accelerated-scan scalar": time_last("accelerated_scan.scalar"),
        }
        warp: dict[str, Scan] = {WARP: time_last("accelerated_scan.warp", power_of_two=True)}
        scans = kernels | scans | warp
    return {name: partial(reference.bd_lru, scan=_packed(scan)) for name, scan in scans.items()}


def slow_to_build(name: str) -> bool:
    """Whether torch.compile or nvcc compiles a peer, which takes up to minutes."""
    return name.endswith(COMPILED) or name == WARP


def compiled(eager: Mapping[str, BdLru]) -> dict[str, BdLru]:
    """The peers that are faster with torch.compile, compiled."""
    faster = (
        "fla HGRN recurrent", "fla HGRN chunk", "accelerated-scan scalar", "torch associative_scan",
        "doubling", "loop, gradient by hand", WARP,
    )  # fmt: skip
    return {
        f"{name}{COMPILED}": partial(_call_compiled, eager[name])
        for name in faster
        if name in eager
    }


@cache
def _compile(bd_lru: BdLru) -> BdLru:
    return torch.compile(bd_lru, dynamic=False)


def _call_compiled(bd_lru: BdLru, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    """Compile at the first call: to import the compiler takes seconds."""
    return _compile(bd_lru)(*arguments)


def _packed(scan: Scan) -> reference.Scan:
    """``scan`` for packed sequences of equal length."""

    def packed(alpha: Tensor, u: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(start), -1, alpha.shape[1])
        h = scan(alpha.view(shape), u.view(shape))
        return h.flatten(0, 1), h[:, -1]

    return packed


def loop(alpha: Tensor, u: Tensor) -> Tensor:
    """A loop over events."""
    state, states = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        state = alpha[:, t] * state + u[:, t]
        states.append(state)
    return torch.stack(states, 1)


class _LoopByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, u: Tensor) -> Tensor:
        h = torch.empty_like(u)
        state = torch.zeros_like(u[:, 0])
        for a, b, out in zip(alpha.unbind(1), u.unbind(1), h.unbind(1), strict=True):
            state = torch.addcmul(b, a, state, out=out)
        ctx.save_for_backward(alpha, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        alpha, h = ctx.saved_tensors
        du = dh.clone()
        alphas, gradients = alpha.unbind(1), du.unbind(1)
        for t in range(len(gradients) - 2, -1, -1):
            gradients[t].addcmul_(alphas[t + 1], gradients[t + 1])
        return F.pad(du[:, 1:] * h[:, :-1], (0, 0, 1, 0)), du


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiling T steps takes minutes
def loop_by_hand(alpha: Tensor, u: Tensor) -> Tensor:
    """A loop of one in-place operation per event, and a gradient in the same way."""
    h: Tensor = _LoopByHand.apply(alpha, u)  # type: ignore[no-untyped-call]
    return h


def doubling(alpha: Tensor, u: Tensor) -> Tensor:
    """log2(T) steps over all events, as in LRURec (Hillis and Steele)."""
    lag = 1
    while lag < u.shape[1]:
        u = torch.cat([u[:, :lag], torch.addcmul(u[:, lag:], alpha[:, lag:], u[:, :-lag])], 1)
        alpha = torch.cat([alpha[:, :lag], alpha[:, lag:] * alpha[:, :-lag]], 1)
        lag *= 2
    return u


def log_space(alpha: Tensor, u: Tensor) -> Tensor:
    """Two cumulative sums of logarithms (Heinsen, arXiv 2311.06281), complex as u has both signs."""
    decayed = alpha.log().cumsum(1)
    return (
        (torch.logcumsumexp(torch.complex(u, torch.zeros_like(u)).log() - decayed, 1) + decayed)
        .exp()
        .real
    )


def torch_scan(alpha: Tensor, u: Tensor) -> Tensor:
    def step(state: Tensor, c: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        state = c[0] * state + c[1]
        return state, state.clone()

    scan = import_module("torch._higher_order_ops.scan").scan
    h: Tensor = scan(step, torch.zeros_like(u[:, 0]), (alpha.transpose(0, 1), u.transpose(0, 1)))[1]
    return h.transpose(0, 1)


def torch_associative_scan(alpha: Tensor, u: Tensor) -> Tensor:
    def combine(
        earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    scan = import_module("torch._higher_order_ops.associative_scan").associative_scan
    h: Tensor = scan(combine, (alpha, u), 1, combine_mode="generic")[1]
    return h


def time_last(module: str, name: str = "scan", power_of_two: bool = False) -> Scan:
    """A scan over (B, C, T), of accelerated-scan or of the paper's authors, some only for powers of
    two. The authors' ``parallel_scan.py`` must be on PYTHONPATH."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def scan(alpha: Tensor, u: Tensor) -> Tensor:
        kernel = getattr(import_module(module), name)
        length = u.shape[1]
        pads = (1 << (length - 1).bit_length()) - length if power_of_two else 0
        alpha, u = (F.pad(t.mT, (0, pads)).contiguous() for t in (alpha, u))
        h: Tensor = kernel(alpha, u)[..., :length].mT
        return h

    return scan


def fla_hgrn(name: str) -> Scan:
    """The scan of flash-linear-attention, which takes log α."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def scan(alpha: Tensor, u: Tensor) -> Tensor:
        h: Tensor = getattr(import_module("fla.ops.hgrn"), name)(u, alpha.log())[0]
        return h

    return scan
