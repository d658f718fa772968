"""FMLP-Rec: "Filter-enhanced MLP is All You Need for Sequential Recommendation" (WWW 2022,
arXiv 2202.13556).

Axes: N events of all histories laid end to end, M positions with a target, D the width of the model,
T the most events of a history that the model uses, F = T // 2 + 1 frequencies, V items.

A filter is a circular convolution, in which the first position depends on the last. So the model is
trained on prefixes only, and only the vector of their last position is used. As in the authors' code,
histories are padded on the left to T events, and the filters include the pads. In the authors' code a
pad has a random item embedding that is not trained; here it is zero. The authors' code has a binary
cross entropy loss; the paper and this file have a pairwise loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.data.batches import PackedBatch
from recblr.models.losses import bpr
from recblr.models.model import Model
from recblr.models.sasrec import EPS, FeedForward, initialise
from recblr.ops.norm import dropout_add_norm


@dataclass(frozen=True)
class FMLPRecConfig:
    """The shape of the model; the defaults are the authors'."""

    dim: int = 64  # D
    layers: int = 2
    inner: int = 256  # width of the feed-forward network
    dropout: float = 0.5
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "layers": (1, 2, 3),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "inner")
        expect_sizes(self, "model", "layers", at_most=1000)
        expect_dropouts(self, "model", "dropout")


class FMLPRec(Model):
    """Item and position embeddings, filters, feed-forward layers, prediction by the tied embedding."""

    examples = ("prefixes",)
    needs = ("max_length",)

    def __init__(self, items: int, config: FMLPRecConfig, max_length: int) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.positions = nn.Embedding(max_length, config.dim)
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.layers = nn.ModuleList(Layer(config, max_length) for _ in range(config.layers))
        self.apply(initialise)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Each position ends a history of its own, so no vector depends on later events."""
        length = self.positions.num_embeddings
        owner = batch.owners
        rows = batch.positions.unsqueeze(1) + torch.arange(1 - length, 1, device=owner.device)
        inside = rows >= batch.offsets[owner].unsqueeze(1)
        items = batch.items[rows.clamp(min=0)].masked_fill(~inside, len(self.embedding.weight))
        padded = F.pad(self.embedding.weight, (0, 0, 0, 1))  # the last row, of zeros, for pads
        h = self.norm(F.embedding(items, padded) + self.positions.weight)  # (M, T, D)
        h = ops.dropout(h, self.config.dropout, self.training)
        for number, layer in enumerate(self.layers, 1):
            h = layer(h, last=number == len(self.layers))
        return h

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The pairwise loss of the paper."""
        return bpr(hidden, items, targets, weights)


class Layer(nn.Module):
    """A filter and a feed-forward network."""

    def __init__(self, config: FMLPRecConfig, length: int) -> None:
        super().__init__()
        self.filter = Filter(config.dim, length, config.dropout)
        self.feed_forward = FeedForward(config.dim, config.inner, config.dropout)

    def forward(self, h: Tensor, last: bool) -> Tensor:
        """(M, T, D) → (M, T, D), or with ``last`` the last position only, (M, D)."""
        out: Tensor = self.feed_forward(self.filter(h, last))
        return out


class Filter(nn.Module):
    """Multiplies each frequency of each channel by a trained weight; dropout, residual and norm."""

    def __init__(self, dim: int, length: int, dropout: float) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.weight = nn.Parameter(torch.empty(length // 2 + 1, dim, 2))  # (F, D, 2)
        nn.init.normal_(self.weight, std=0.02)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, h: Tensor, last: bool) -> Tensor:
        """(M, T, D) → (M, T, D), or with ``last`` the last position only, (M, D)."""
        weight = torch.view_as_complex(self.weight)
        if last:  # as a circular convolution: one position needs no transform of h
            kernel = torch.fft.irfft(weight, self.length, dim=0)  # (T, D)
            h, y = h[:, -1], (h * kernel.flip(0)).sum(1)
        else:
            y = torch.fft.irfft(torch.fft.rfft(h, dim=1) * weight, self.length, dim=1)
        return dropout_add_norm(y, h, self.norm, self.dropout, self.training)
