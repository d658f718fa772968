"""LRURec: "Linear Recurrent Units for Sequential Recommendation" (WSDM 2024, arXiv 2310.02367).

Axes: N events of all histories laid end to end, B histories, D the width of the model, C = 2·D
complex channels of the recurrence, L layers, V items.

State: (B, L, C, 2) float32, real and imaginary parts of the recurrence, zero before the first event.

Equation numbers are in brackets. Where the paper and the authors' code differ, the layers follow the
code: both projections of (5) have a bias, γ also scales the bias of the input and the first event, and
the feed-forward network has one GELU where (8) has two. All weights except norms, λ and γ are
initialised with a truncated normal.

Only the real part of the output is needed, so both complex projections are real here: from the input to
real and imaginary parts, and from these to the output, with the sign of the imaginary parts changed.
The authors' code pads histories on the left to a power of two and masks the pads; this file packs
histories and computes the recurrence in real numbers.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.models.model import ITEM_VECTORS, LinearRecurrence, RecurrentModel
from recblr.ops.norm import dropout_add_norm

_SMALLEST, _LARGEST = 0.8, 0.99  # initial |λ|


@dataclass(frozen=True)
class LRURecConfig:
    """The shape of the model; the defaults are the authors'."""

    dim: int = 64  # D
    layers: int = 2  # L
    dropout: float = 0.2
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "layers": (1, 2, 3),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim")
        expect_sizes(self, "model", "layers", at_most=1000)
        expect_dropouts(self, "model", "dropout")


class LRURec(RecurrentModel):
    """Embedding (7), recurrent layers, prediction by the tied embedding and a bias (10)."""

    item_tables = MappingProxyType({ITEM_VECTORS: 0, "bias": 0})

    def __init__(self, items: int, config: LRURecConfig) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.bias = nn.Parameter(torch.empty(items))
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for name, parameter in self.named_parameters():
            if "norm" not in name and "_log" not in name:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D + 1), with the bias as last column."""
        return torch.cat([self.embedding.weight, self.bias.unsqueeze(1)], 1)

    def initial_state(self, n: int) -> Tensor:
        """The state of ``n`` users without events, (n, L, C, 2)."""
        shape = (n, self.config.layers, 2 * self.config.dim, 2)
        return torch.zeros(shape, device=self.bias.device)

    def forward(
        self, items: Tensor, offsets: Tensor, state: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if state is None:
            state = self.initial_state(len(offsets) - 1)
        e, dropout = self.embed(items, features), self.config.dropout
        h = dropout_add_norm(e, None, self.norm, dropout, self.training)
        states = []
        for layer, before in zip(self.layers, state.unbind(1), strict=True):
            h, after = layer(h, offsets, before)
            states.append(after)
        return F.pad(h, (0, 1), value=1.0), torch.stack(states, 1)


class Layer(nn.Module):
    """A linear recurrent unit and a feed-forward network."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.recurrent = LRU(config)
        self.feed_forward = FeedForward(config)

    def forward(self, h: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        h, after = self.recurrent(h, offsets, before)
        return self.feed_forward(h), after


class LRU(LinearRecurrence):
    """h_t = λ ⊙ h_{t-1} + γ ⊙ (B x_t + b), Re(C h_t) + c + x_t (5), with dropout and norm."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        channels = 2 * config.dim
        radius_squared = torch.empty(channels, device="cpu").uniform_(_SMALLEST**2, _LARGEST**2)
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(radius_squared)))
        self.theta_log = nn.Parameter(torch.log(2 * math.pi * torch.rand(channels, device="cpu")))
        self.gamma_log = nn.Parameter(0.5 * torch.log(1 - radius_squared))
        self.input = nn.Linear(config.dim, 2 * channels)
        self.output = nn.Linear(2 * channels, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D), before (B, C, 2) → output (N, D), after (B, C, 2)."""
        h, after = self.recurrence(self.input(x).to(before.dtype), offsets, before)
        y = dropout_add_norm(self.output(h), x, self.norm, self.dropout, self.training)
        return y, after

    def recurrence(self, x: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 2·C), before (B, C, 2) → h (N, 2·C), after (B, C, 2); x and h interleave real and
        imaginary parts.

        With λ = ρ e^{iθ} and t counted from ``before``, g_t = e^{-iθt} h_t is a recurrence with the
        real factor ρ: g_t = ρ ⊙ g_{t-1} + e^{-iθt} ⊙ γ ⊙ x_t.
        """
        lengths = offsets.diff()
        starts = torch.repeat_interleave(offsets[:-1], lengths, output_size=len(x))
        rotation = self.rotation(torch.arange(1, len(x) + 1, device=x.device) - starts)
        u = _complex(x) * self.gamma_log.exp() * rotation.conj()
        rho = torch.exp(-self.nu_log.exp()).repeat_interleave(2).expand_as(x)
        start = before.flatten(1)
        g, last = ops.linear_scan(rho, _real(u), offsets, start, self.implementation)
        after = _real(_complex(last) * self.rotation(lengths)).view_as(before)
        return _real(_complex(g) * rotation), after

    def rotation(self, t: Tensor) -> Tensor:
        """e^{iθt} (…, C) for t (…,). The angle is reduced in float64, as float32 is too coarse."""
        angle = t.unsqueeze(-1) * self.theta_log.double().exp() % (2 * math.pi)
        angle = angle.to(self.theta_log.dtype)
        return torch.complex(angle.cos(), angle.sin())


class FeedForward(nn.Module):
    """Position-wise (8), with dropout, residual and norm (9)."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.inner = nn.Linear(config.dim, 4 * config.dim)
        self.outer = nn.Linear(4 * config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, h: Tensor) -> Tensor:
        y = ops.dropout(F.gelu(self.inner(h)), self.dropout, self.training)
        return dropout_add_norm(self.outer(y), h, self.norm, self.dropout, self.training)


def _complex(x: Tensor) -> Tensor:
    """(N, 2·C), interleaved real and imaginary parts → (N, C) complex."""
    return torch.view_as_complex(x.view(len(x), x.shape[1] // 2, 2))


def _real(x: Tensor) -> Tensor:
    """The inverse of :func:`_complex`."""
    return torch.view_as_real(x).flatten(1)
