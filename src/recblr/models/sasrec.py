"""SASRec: "Self-Attentive Sequential Recommendation" (ICDM 2018, arXiv 1808.09781).

Axes: N events of all histories laid end to end, B histories, D the width of the model, H heads, T
events of a history that the model looks at, V items.

The layers are RecBole's, of which Table 1 of arXiv 2406.12580 reports: two heads, a norm behind each
residual, one behind the embeddings, GELU, a feed-forward part of 4·D. The authors' code has one head,
normalises the queries and the input of the feed-forward part but not the keys and values, ends in
a norm, and has ReLU within a feed-forward part of D. It also multiplies item embeddings by √D and
numbers positions from the end of the history; RecBole and this file number them from its start.

There is no padding here that attention could see: a position looks only at earlier ones of its
history, and what follows the end of a history is thrown away.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import expect_dropouts, expect_sizes
from recblr.data.batches import PackedBatch, rectangles
from recblr.errors import InputError
from recblr.models.model import Model
from recblr.training.losses import binary_cross_entropy

EPS = 1e-12  # of the layer norms, as in RecBole


@dataclass(frozen=True)
class SASRecConfig:
    """The shape of the model; the defaults are RecBole's."""

    dim: int = 64  # D
    layers: int = 2
    heads: int = 2  # H
    inner: int = 256  # width within the feed-forward part
    dropout: float = 0.5

    def __post_init__(self) -> None:
        expect_sizes(self, "model", "dim", "layers", "heads", "inner")
        if self.dim % self.heads:
            raise InputError(f"model.heads = {self.heads}: must divide model.dim = {self.dim}")
        expect_dropouts(self, "model", "dropout")


class SASRec(Model):
    """Items and positions, causal Transformer layers, prediction by the tied embedding."""

    def __init__(
        self, items: int, config: SASRecConfig, users: int = 0, max_length: int = 0
    ) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.encoder = Transformer(config, max_length, causal=True)
        self.apply(initialise)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        h: Tensor = self.encoder(self.embedding(batch.items), batch.offsets)
        return h[batch.positions]

    def own_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, as in the paper (section III-E)."""
        return binary_cross_entropy(hidden, self.item_embeddings, targets)


class Transformer(nn.Module):
    """Position embeddings and the layers, on packed histories of at most ``length`` events.

    ``causal``: each looks at earlier ones alone, and positions are counted from the start of the
    history; else at all of it, and they are counted from its end.
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
        shapes, places = rectangles(offsets)
        for layer in self.layers:
            h = layer(h, shapes, places)
        return h


class Layer(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self, config: SASRecConfig, causal: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config, causal)
        self.feed_forward = FeedForward(config.dim, config.inner, config.dropout)

    def forward(self, h: Tensor, shapes: Sequence[Tensor], places: Tensor) -> Tensor:
        """(N, D) → (N, D); the others as :func:`rectangles` gives them."""
        out: Tensor = self.feed_forward(self.attention(h, shapes, places))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention within each history, with dropout, residual and norm."""

    def __init__(self, config: SASRecConfig, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = config.heads, config.dropout, causal
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, EPS)

    def forward(self, h: Tensor, shapes: Sequence[Tensor], places: Tensor) -> Tensor:
        """(N, D) → (N, D); the others as :func:`rectangles` gives them."""
        qkv = self.qkv(h)
        found = [qkv.new_empty(0, h.shape[1])]
        for rows in shapes:  # (B, T), N for a pad
            some = qkv.index_select(0, rows.flatten().clamp(max=len(h) - 1))
            some = some.view(*rows.shape, 3, self.heads, h.shape[1] // self.heads)
            q, k, v = some.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
            y = self.attend(q, k, v, rows < len(h))
            found.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        y = torch.cat(found).index_select(0, places)
        return self.norm(h + ops.dropout(self.out(y), self.dropout, self.training))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inside: Tensor) -> Tensor:
        """Scaled dot products with dropout of the weights, (B, H, T, D / H)."""
        keys = inside[:, None, None]
        p = self.dropout if self.training else 0.0
        if p == 0 or q.is_cuda:
            seen = None if self.causal else keys
            return F.scaled_dot_product_attention(q, k, v, seen, p, self.causal)
        # The same by hand: on a CPU PyTorch's dropout takes most of the time of an attention.
        length = q.shape[2]
        seen = keys.new_ones(length, length).tril() if self.causal else keys
        scores = q / math.sqrt(q.shape[3]) @ k.transpose(2, 3)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(3)
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
        return self.norm(h + ops.dropout(y, self.dropout, self.training))


def initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
