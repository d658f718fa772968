"""GRU4Rec: "Session-based Recommendations with Recurrent Neural Networks" (arXiv 1511.06939).

Axes: N events of all histories laid end to end, B histories, D the width of a vector, H that of the
state, L layers, V items.

State: (B, L, H), the hidden vector of each layer, zero before the first event.

As in RecBole: the inputs are item embeddings with dropout, the gated recurrent units have no biases,
the reset gate acts after the product with the state (PyTorch's form), and a linear layer projects to
the width of the item embeddings, which also score. The paper has one-hot inputs, resets before the
product, and has separate output weights. The paper trains on parallel sessions; here the trainer makes
the batches, and a history may continue in the next batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.models.losses import top1
from recblr.models.model import RecurrentModel


@dataclass(frozen=True)
class GRU4RecConfig:
    """The shape of the model; the defaults are RecBole's."""

    dim: int = 64  # D
    hidden: int = 128  # H
    layers: int = 1  # L
    dropout: float = 0.3
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "hidden": (64, 128, 256),
        "layers": (1, 2),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "hidden")
        expect_sizes(self, "model", "layers", at_most=1000)
        expect_dropouts(self, "model", "dropout")


class GRU4Rec(RecurrentModel):
    """Embedding, gated recurrent units, a linear layer, prediction by the tied embedding."""

    graph_capturable = False  # the host reads the lengths of the histories

    def __init__(self, items: int, config: GRU4RecConfig) -> None:
        super().__init__(items, config)
        dim, hidden = config.dim, config.hidden
        self.embedding = nn.Embedding(items, dim)
        self.layers = nn.ModuleList(
            nn.GRU(hidden if layer else dim, hidden, bias=False, batch_first=True)
            for layer in range(config.layers)
        )
        self.out = nn.Linear(hidden, dim)
        nn.init.xavier_normal_(self.embedding.weight)
        for weight in self.layers.parameters():
            nn.init.xavier_uniform_(weight)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight

    def initial_state(self, n: int) -> Tensor:
        """The state of ``n`` users without events, (n, L, H)."""
        shape = (n, self.config.layers, self.config.hidden)
        return torch.zeros(shape, device=self.embedding.weight.device)

    def forward(
        self, items: Tensor, offsets: Tensor, state: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if state is None:
            state = self.initial_state(len(offsets) - 1)
        h = ops.dropout(self.embed(items, features), self.config.dropout, self.training)
        states = []
        for gru, before in zip(self.layers, state.unbind(1), strict=True):
            h, after = packed_gru(gru, h, offsets, before)
            states.append(after)
        return self.out(h), torch.stack(states, 1)

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return top1(hidden, items, targets, weights)


def packed_gru(gru: nn.Module, x: Tensor, offsets: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """One layer of gated recurrent units over packed histories.

    It processes rectangles of the events 0-3, 4-7, 8-15, 16-31, … of the histories that have them, each
    from the states of the previous one; less than half of a rectangle is padding. PyTorch's gradient of
    a PackedSequence takes time quadratic in the length of the longest history.

    Args:
        gru: nn.GRU of one layer, batch_first.
        x: (N, D).
        offsets: (B + 1,).
        start: (B, H) the state before each history.

    Returns:
        h (N, H) and the last state of each history (B, H), for an empty history its start.
    """
    lengths, order = offsets.diff().sort(descending=True, stable=True)
    begins, state = offsets[:-1][order], start[order]
    outputs, positions = [start[:0]], [offsets[:0]]
    first, stop = 0, 4
    # In float32: on a CPU many small products take longer in bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        while active := int((lengths > first).sum()):
            t = torch.arange(first, min(stop, int(lengths[0])), device=x.device)
            rows = begins[:active, None] + t
            position = torch.where(t < lengths[:active, None], rows, len(x)).flatten()
            inputs = x.index_select(0, position.clamp(max=len(x) - 1)).view(*rows.shape, -1)
            h, _ = gru(inputs, state[:active].unsqueeze(0))
            outputs.append(h.flatten(0, 1))
            positions.append(position)
            state = h[:, -1].contiguous()
            first, stop = stop, 2 * stop
    in_order = torch.cat(positions).argsort()[: len(x)]  # padding sorts last
    h = torch.cat(outputs).index_select(0, in_order)
    empty = offsets.diff() == 0
    last = torch.where(empty, len(x) + torch.arange(len(start), device=x.device), offsets[1:] - 1)
    return h, torch.cat([h, start]).index_select(0, last)
