"""SASRec: "Self-Attentive Sequential Recommendation" (ICDM 2018, arXiv 1808.09781).

Axes: N events of all histories laid end to end, B histories, D the width of the model, H heads, T the
most events of a history that the model uses, V items.

The layers are those of RecBole, whose results are in Table 1 of arXiv 2406.12580: two heads, a norm
after each residual and after the embeddings, GELU, a feed-forward network of 4·D. The authors' code has
one head, normalises the queries and the input of the feed-forward network but not the keys and values,
ends in a norm, and has ReLU in a feed-forward network of D. It also multiplies item embeddings by √D
and counts positions from the end of the history; RecBole and this file count from its start.

Padding does not affect causal attention: pads follow the end of a history, a position attends only to
earlier positions, and the outputs at pads are dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.data.batches import PackedBatch, rectangles
from recblr.errors import InputError
from recblr.models.losses import binary_cross_entropy
from recblr.models.model import Model
from recblr.ops.norm import dropout_add_norm

EPS = 1e-12  # of the layer norms, as in RecBole


@dataclass(frozen=True)
class SASRecConfig:
    """The shape of the model; the defaults are RecBole's."""

    dim: int = 64  # D
    layers: int = 2
    heads: int = 2  # H
    inner: int = 256  # width of the feed-forward network
    dropout: float = 0.5
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "layers": (1, 2, 3),
        "heads": (1, 2, 4),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "heads", "inner")
        expect_sizes(self, "model", "layers", at_most=1000)
        if self.dim % self.heads:
            raise InputError(f"model.heads = {self.heads}: must divide model.dim = {self.dim}")
        expect_dropouts(self, "model", "dropout")


class SASRec(Model):
    """Item and position embeddings, causal Transformer layers, prediction by the tied embedding."""

    needs = ("max_length",)
    embeds_events = True

    def __init__(self, items: int, config: SASRecConfig, max_length: int) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.encoder = Transformer(config, max_length, causal=True)
        self.apply(initialise)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        h: Tensor = self.encoder(self.embed(batch.items, batch.features), batch.offsets)
        return h[batch.positions]

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Binary cross entropy, as in the paper (section III-E)."""
        return binary_cross_entropy(hidden, items, targets, weights)


class Transformer(nn.Module):
    """Position embeddings and Transformer layers, on packed histories of at most ``length`` events.

    If ``causal``, a position attends to itself and earlier positions, which are counted from the start
    of the history; else to all positions, which are counted from its end.
    """

    def __init__(self, config: SASRecConfig, length: int, causal: bool) -> None:
        super().__init__()
        self.dropout, self.causal = config.dropout, causal
        self.positions = nn.Embedding(length, config.dim)
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.layers = nn.ModuleList(Layer(config, causal) for _ in range(config.layers))

    def forward(self, h: Tensor, offsets: Tensor) -> Tensor:
        """Embedded items (N, D) → (N, D)."""
        first = offsets[:-1] if self.causal else offsets[1:] - 1
        first = torch.repeat_interleave(first, offsets.diff(), output_size=len(h))
        h = self.norm(h + self.positions((torch.arange(len(h), device=h.device) - first).abs()))
        h = ops.dropout(h, self.dropout, self.training)
        rows, positions = rectangles(offsets)
        for layer in self.layers:
            h = layer(h, rows, positions)
        return h


class Layer(nn.Module):
    """Attention and a feed-forward network."""

    def __init__(self, config: SASRecConfig, causal: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config, causal)
        self.feed_forward = FeedForward(config.dim, config.inner, config.dropout)

    def forward(self, h: Tensor, rows: Sequence[Tensor], positions: Tensor) -> Tensor:
        """(N, D) → (N, D); ``rows`` and ``positions`` from :func:`rectangles`."""
        out: Tensor = self.feed_forward(self.attention(h, rows, positions))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention within each history, with dropout, residual and norm."""

    def __init__(self, config: SASRecConfig, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = config.heads, config.dropout, causal
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, EPS)

    def forward(self, h: Tensor, rows: Sequence[Tensor], positions: Tensor) -> Tensor:
        """(N, D) → (N, D); ``rows`` and ``positions`` from :func:`rectangles`."""
        qkv = self.qkv(h)
        outputs = [qkv.new_empty(0, h.shape[1])]
        for rectangle in rows:  # (B, T), N for a pad
            padded = qkv.index_select(0, rectangle.flatten().clamp(max=len(h) - 1))
            padded = padded.view(*rectangle.shape, 3, self.heads, h.shape[1] // self.heads)
            q, k, v = padded.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
            y = self.attend(q, k, v, rectangle < len(h))
            outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        y = torch.cat(outputs).index_select(0, positions)
        return dropout_add_norm(self.out(y), h, self.norm, self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, is_event: Tensor) -> Tensor:
        """Scaled dot product attention with dropout of the weights, (B, H, T, D / H).

        ``is_event`` (B, T) is False for pads.
        """
        events = is_event[:, None, None]
        p = self.dropout if self.training else 0.0
        if p == 0 or q.is_cuda:
            mask = None if self.causal else events
            return F.scaled_dot_product_attention(q, k, v, mask, p, self.causal)
        # Written out, as on a CPU PyTorch's dropout takes most of the time of its attention.
        length = q.shape[2]
        mask = events.new_ones(length, length).tril() if self.causal else events
        scores = q / math.sqrt(q.shape[3]) @ k.transpose(2, 3)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(3)
        return ops.dropout(weights, p, self.training) @ v


class FeedForward(nn.Module):
    """Position-wise, with dropout, residual and norm."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = nn.Linear(dim, inner)
        self.outer = nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, h: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        y = self.outer(F.gelu(self.inner(h)))
        return dropout_add_norm(y, h, self.norm, self.dropout, self.training)


def initialise(module: nn.Module) -> None:
    """Draw weights with standard deviation 0.02, set biases to zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
