"""Caser: "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding" (Tang
and Wang, arXiv 1809.07426), section 3, in its symbols.

Axes: M positions with a target, L events of the history, D the width of a vector, U users, V items.

The vector of a position depends on the last L events; zero vectors stand for events before the history.
As for all models here, training predicts one item and samples one other; the paper has T = 3 targets
and three others for each. Weight decay (L2) keeps the user vectors from memorising their histories. A
user outside the log has the vector 0, which is not trained, so metrics are lower for new users
(docs/experiments.md).

User vectors and output vectors are initialised as in the authors' code, with standard deviation 1 /
their width. Input item vectors start larger, at 1 / √D, and the layer over the features as in RecBole
(Xavier normal, zero bias): otherwise the features of all histories are nearly equal at first, and the
user vectors memorise histories before the features differ (docs/experiments.md).

RecBole uses the whole padded history instead of L events, adds a layer over (z, user) and scores by
the input embedding; this file follows the paper and the authors' code.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.config import Range, Search, check, expect_dropouts, expect_sizes
from recblr.data.batches import PackedBatch
from recblr.models.fpmc import user_rows
from recblr.models.losses import binary_cross_entropy
from recblr.models.model import ITEM_VECTORS, Model


@dataclass(frozen=True)
class CaserConfig:
    """The shape of the model; the defaults are those of the authors' code, except D."""

    dim: int = 64  # D
    order: int = 5  # L
    horizontal: int = 16  # filters of each height 1 .. L
    vertical: int = 4  # filters
    dropout: float = 0.5
    search: ClassVar[Search] = {
        "dim": (32, 64, 128),
        "order": (3, 5, 8),
        "dropout": Range(0.0, 0.7),
    }

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim", "horizontal", "vertical")
        expect_sizes(self, "model", "order", at_most=1000)
        expect_dropouts(self, "model", "dropout")


class Caser(Model):
    """Convolutions over the last events, joined with the user's vector; an output layer W', b'."""

    needs = ("users",)
    recipe = MappingProxyType({"weight_decay": 1e-5})
    item_tables = MappingProxyType({ITEM_VECTORS: 1, "out.weight": 0, "bias": 0})
    user_tables = MappingProxyType({"user.weight": 1})

    def __init__(self, items: int, config: CaserConfig, users: int) -> None:
        super().__init__(items, config)
        dim, order = config.dim, config.order
        self.embedding = nn.Embedding(items + 1, dim, padding_idx=0)  # row 0: no event
        self.user = nn.Embedding(users + 1, dim, padding_idx=0)  # row 0: not in the log
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, config.horizontal, height) for height in range(1, order + 1)
        )
        self.vertical = nn.Linear(order, config.vertical)
        self.full = nn.Linear(order * config.horizontal + config.vertical * dim, dim)
        self.out = nn.Embedding(items, 2 * dim)
        self.bias = nn.Parameter(torch.zeros(items))
        nn.init.xavier_normal_(self.full.weight)
        nn.init.zeros_(self.full.bias)
        for table in (self.user, self.out):
            nn.init.normal_(table.weight, std=1 / table.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        nn.init.zeros_(self.embedding.weight[0])
        nn.init.zeros_(self.user.weight[0])

    @property
    def item_embeddings(self) -> Tensor:
        """(V, 2 D + 1): W', and b' as last column; the last column of the hidden vectors is 1."""
        return torch.cat([self.out.weight, self.bias.unsqueeze(1)], 1)

    def hidden(self, batch: PackedBatch) -> Tensor:
        e = self.embedding(self._last_items(batch)).transpose(1, 2)  # E, (M, D, L)
        o = [F.relu(filters(e)).amax(2) for filters in self.horizontal]  # max over time
        o_tilde = self.vertical(e).flatten(1)
        features = torch.cat([*o, o_tilde], 1)
        z = F.relu(self.full(ops.dropout(features, self.config.dropout, self.training)))
        return torch.cat([z, self.user(user_rows(batch)), torch.ones_like(z[:, :1])], 1)

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return binary_cross_entropy(hidden, items, targets, weights)

    def _last_items(self, batch: PackedBatch) -> Tensor:
        """Rows of the embedding (M, L) of the last events, oldest first."""
        history = batch.owners
        back = torch.arange(self.config.order - 1, -1, -1, device=batch.items.device)
        rows = batch.positions.unsqueeze(1) - back
        inside = rows >= batch.offsets[history].unsqueeze(1)
        return torch.where(inside, batch.items[rows.clamp(min=0)] + 1, 0)
