"""RecBLR in the order of section 3 of the paper (arXiv 2406.12580), with its equation numbers.

Axes: N events of all histories laid end to end, B histories, D the width of the model, C = E·D the
channels of the recurrence, W the width of the convolution, L layers, V items.

State: (B, L, W, C) float32, zero before the first event. For each layer, row 0 is the hidden state of
the recurrence and rows 1 .. W-1 are the last inputs of the convolution, oldest first. In the default
configuration the state of a user has 2 · 4 · 128 floats = 4,096 bytes for a history of any length.

The configuration can disable each part that the ablations of section 4.4 remove.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import Range, Search, changed_settings, check, expect_dropouts, expect_sizes
from recblr.models.model import LinearRecurrence, RecurrentModel
from recblr.ops.norm import dropout_add_norm

_EPS = 1e-12  # of the layer norms, as in the authors' code


@dataclass(frozen=True)
class RecBLRConfig:
    """The shape of the model; the defaults are the paper's."""

    __repr__ = changed_settings

    dim: int = 64  # D
    layers: int = 2  # L
    expansion: int = 2  # E
    conv_width: int = 4  # W
    dropout: float = 0.2  # the paper: 0.2 ML-1M, 0.4 Gowalla and Steam, 0.5 Beauty and Sports
    # For the ablations of Table 3. If not gated, a layer is only a BD-LRU of D channels, without
    # projections, convolution and output gate.
    gated: bool = True
    convolution: bool = True
    feed_forward: bool = True
    custom_init: bool = True  # else Λ is initialised like the other weights
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "layers": (1, 2, 3),
        "dropout": Range(0.0, 0.7),
    }

    @property
    def channels(self) -> int:
        """C."""
        return self.expansion * self.dim if self.gated else self.dim

    @property
    def state_rows(self) -> int:
        """W, or 1 without a convolution."""
        return self.conv_width if self.gated and self.convolution else 1

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "expansion", "conv_width")
        expect_sizes(self, "model", "layers", at_most=1000)
        expect_dropouts(self, "model", "dropout")


class RecBLR(RecurrentModel):
    """Embedding (1), behaviour modelling layers, prediction by the tied embedding (2)."""

    def __init__(self, items: int, config: RecBLRConfig) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.norm = nn.LayerNorm(config.dim, _EPS)
        self.layers = nn.ModuleList(BehaviorLayer(config) for _ in range(config.layers))
        self.apply(_initialise)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D); the dot products with the hidden vector are the scores, (2) before its softmax."""
        return self.embedding.weight

    def initial_state(self, n: int) -> Tensor:
        """The state of ``n`` users without events, (n, L, W, C)."""
        c = self.config
        shape = (n, c.layers, c.state_rows, c.channels)
        return torch.zeros(shape, device=self.embedding.weight.device)

    def forward(
        self, items: Tensor, offsets: Tensor, state: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if state is None:
            state = self.initial_state(len(offsets) - 1)
        e = self.embed(items, features)  # (1)
        h = dropout_add_norm(e, None, self.norm, self.config.dropout, self.training)
        states = []
        for layer, before in zip(self.layers, state.unbind(1), strict=True):
            h, after = layer(h, offsets, before)
            states.append(after)
        return h, torch.stack(states, 1)


class BehaviorLayer(nn.Module):
    """A gated recurrent layer and a feed-forward layer, each with dropout, residual and norm."""

    def __init__(self, config: RecBLRConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.recurrent = GatedRecurrentLayer(config) if config.gated else BDLRUOnly(config)
        self.recurrent_norm = nn.LayerNorm(config.dim, _EPS)
        self.pffn = PFFN(config) if config.feed_forward else None
        self.pffn_norm = nn.LayerNorm(config.dim, _EPS) if config.feed_forward else None

    def forward(self, h: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """h (N, D), before (B, W, C) → h (N, D), after (B, W, C)."""
        out, after = self.recurrent(h, offsets, before)
        h = dropout_add_norm(out, h, self.recurrent_norm, self.dropout, self.training)
        if self.pffn is None or self.pffn_norm is None:
            return h, after
        out = self.pffn(h)
        return dropout_add_norm(out, h, self.pffn_norm, self.dropout, self.training), after


class GatedRecurrentLayer(nn.Module):
    """Algorithm 1."""

    def __init__(self, config: RecBLRConfig) -> None:
        super().__init__()
        channels = config.channels
        self.to_x = nn.Linear(config.dim, channels, bias=False)
        self.to_z = nn.Linear(config.dim, channels, bias=False)
        self.conv = None
        if config.convolution:
            self.conv = nn.Conv1d(channels, channels, config.conv_width, groups=channels)
        self.lru = BDLRU(channels, config.custom_init)
        self.out = nn.Linear(channels, config.dim, bias=False)

    def forward(self, h: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """h (N, D), before (B, W, C) → output (N, D), after (B, W, C)."""
        start, inputs = before[:, 0], before[:, 1:]
        x, z = self.to_x(h), self.to_z(h)  # lines 1, 2
        if self.conv is None:
            convolved = F.silu(x)
        else:
            weight, bias = self.conv.weight.squeeze(1), self.conv.bias
            assert bias is not None
            convolved = ops.conv_silu(x, weight, bias, offsets, inputs)  # line 4
        y, last = self.lru(convolved, z, offsets, start)  # lines 5, 6
        after = torch.cat([last.unsqueeze(1), ops.last_inputs(x, offsets, inputs)], 1)
        return self.out(y), after  # line 7


class BDLRUOnly(nn.Module):
    """A BD-LRU in place of the gated recurrent layer, for the ablation of Table 3."""

    def __init__(self, config: RecBLRConfig) -> None:
        super().__init__()
        self.lru = BDLRU(config.dim, config.custom_init)

    def forward(self, h: Tensor, offsets: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """h (N, D), before (B, 1, D) → output (N, D), after (B, 1, D)."""
        out, last = self.lru(h, None, offsets, before[:, 0])
        return out, last.unsqueeze(1)


class BDLRU(LinearRecurrence):
    """Behaviour-dependent linear recurrent unit (5)-(8) and the output gate of Algorithm 1."""

    def __init__(self, channels: int, custom_init: bool) -> None:
        super().__init__()
        self.recurrence_gate = nn.Linear(channels, channels)  # (6)
        self.input_gate = nn.Linear(channels, channels)  # (7)
        self.lam = nn.Parameter(torch.empty(channels))  # Λ of (8)
        if custom_init:
            self.initialise()
        else:
            nn.init.normal_(self.lam, std=0.02)

    @torch.no_grad()
    def initialise(self) -> None:
        """exp(-softplus(Λ)) from 0.9 to 0.999, evenly spaced in Λ, as in the authors' code."""
        decays = torch.tensor([0.9, 0.999], dtype=torch.float64, device="cpu")
        first, last = torch.log(torch.expm1(-torch.log(decays))).tolist()
        self.lam.copy_(torch.linspace(first, last, len(self.lam), device="cpu"))

    def forward(
        self, x: Tensor, z: Tensor | None, offsets: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x, z (N, C), start (B, C) → y (N, C), last (B, C). Without z there is no output gate."""
        r, i, decay = self.recurrence_gate(x), self.input_gate(x), F.softplus(self.lam)
        x = x.to(r.dtype)  # under autocast x and z may still be float32
        if z is not None and self.implementation == "auto":
            # One kernel for the equations below.
            return ops.bd_lru(x, r, i, z.to(r.dtype), decay, offsets, start)
        r, i = torch.sigmoid(r), torch.sigmoid(i)  # (6), (7)
        log_alpha = -decay * r
        alpha = torch.exp(log_alpha)  # (8)
        beta = torch.sqrt(-torch.expm1(2 * log_alpha)) * i  # (8), √(1 - α²) ⊙ i
        h, last = ops.linear_scan(alpha, beta * x, offsets, start, self.implementation)  # (5)
        return h if z is None else h * F.silu(z), last  # line 6


class PFFN(nn.Module):
    """Position-wise feed-forward network (4)."""

    def __init__(self, config: RecBLRConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.inner = nn.Linear(config.dim, 4 * config.dim)
        self.outer = nn.Linear(4 * config.dim, config.dim)

    def forward(self, h: Tensor) -> Tensor:
        return self.outer(ops.dropout(F.silu(self.inner(h)), self.dropout, self.training))


def _initialise(module: nn.Module) -> None:
    """Draw weights with standard deviation 0.02, set biases to zero. The convolution keeps the defaults
    of PyTorch."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
