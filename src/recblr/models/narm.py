"""NARM: "Neural Attentive Session-based Recommendation" (Li et al., arXiv 1711.04725), section 3, in
its symbols.

Axes: N events of all histories laid end to end, B histories, M positions with a target, T events of
a history up to a position, D the width of a vector, H that of the hidden states, V items.

As in RecBole, the gated recurrent units have no biases. As in the paper and RecBole, the attention has
no softmax: its weights need not sum to 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.data.batches import PackedBatch
from recblr.models.gru4rec import packed_gru
from recblr.models.model import Model

_CHUNK = 1 << 20  # values of the attention's hidden layer in memory at a time


@dataclass(frozen=True)
class NARMConfig:
    """The shape of the model; the defaults are RecBole's."""

    dim: int = 64  # D
    hidden: int = 128  # H
    embedding_dropout: float = 0.25
    dropout: float = 0.5  # of the input of the decoder
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "hidden": (64, 128, 256),
        "embedding_dropout": Range(0.0, 0.7),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "hidden")
        expect_dropouts(self, "model", "embedding_dropout", "dropout")


class NARM(Model):
    """Global and local encoders over gated recurrent units, and a bilinear decoder."""

    embeds_events = True

    def __init__(self, items: int, config: NARMConfig) -> None:
        super().__init__(items, config)
        dim, hidden = config.dim, config.hidden
        self.embedding = nn.Embedding(items, dim)
        self.gru = nn.GRU(dim, hidden, bias=False, batch_first=True)
        self.a1 = nn.Linear(hidden, hidden, bias=False)
        self.a2 = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Parameter(torch.empty(hidden))
        self.decoder = nn.Linear(2 * hidden, dim, bias=False)
        for layer in (self.embedding, self.a1, self.a2, self.decoder):
            nn.init.xavier_normal_(layer.weight)
        nn.init.xavier_normal_(self.v.unsqueeze(0))

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        dropout, config = ops.dropout, self.config
        x = dropout(
            self.embed(batch.items, batch.features), config.embedding_dropout, self.training
        )
        start = x.new_zeros(len(batch.offsets) - 1, config.hidden)
        h, _ = packed_gru(self.gru, x, batch.offsets, start)
        c_global = h[batch.positions]
        c = torch.cat([c_global, self._local(h, batch)], 1)
        return self.decoder(dropout(c, config.dropout, self.training))  # c Bᵀ

    def _local(self, h: Tensor, batch: PackedBatch) -> Tensor:
        """c^l (M, H): Σ_j α_tj h_j, α_tj = v · σ(A1 h_t + A2 h_j), over the events j up to t.

        Works on chunks of positions of similar lengths and recomputes their hidden layers (chunk, T, H)
        for the gradient: those of a whole batch would not fit into memory.
        """
        history = batch.owners
        begins = batch.offsets[history]
        lengths, order = (batch.positions - begins + 1).sort(descending=True)
        parts, done = [h[:0]], 0
        with torch.autocast(h.device.type, enabled=False):  # these sum up to T terms
            query, keys = self.a1(h[batch.positions]), self.a2(h)
            while done < len(order):
                longest = int(lengths[done])
                chunk = order[done : done + max(1, _CHUNK // (longest * h.shape[1]))]
                rows = begins[chunk].unsqueeze(1) + torch.arange(longest, device=h.device)
                outside = rows > batch.positions[chunk].unsqueeze(1)
                rows = rows.clamp(max=len(h) - 1)
                inputs = (query[chunk], keys, h, rows, outside, self.v)
                parts.append(
                    checkpoint(_attend, *inputs, use_reentrant=False, preserve_rng_state=False)
                )
                done += len(chunk)
        return torch.cat(parts).index_select(0, order.argsort())


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, rows: Tensor, outside: Tensor, v: Tensor
) -> Tensor:
    """query (m, H), keys and values (N, H), rows and outside (m, T), v (H,) → (m, H)."""
    # F.embedding is indexing with a faster gradient.
    weights = torch.sigmoid(query.unsqueeze(1) + F.embedding(rows, keys)) @ v
    weights = weights.masked_fill(outside, 0)
    return F.embedding_bag(rows, values, per_sample_weights=weights, mode="sum")
