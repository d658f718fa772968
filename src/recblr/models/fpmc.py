"""FPMC: "Factorizing Personalized Markov Chains for Next-Basket Recommendation" (Rendle et al., WWW
2010).

Axes: M positions with a target, D the width of a factor, U users, V items.

A basket is one item, as in RecBole. The pair of factors of user and last item is left out, as it adds
the same value to all items. The paper also has weight decay (L2); this file has not. A user outside the
log has the vector 0, and only the Markov chain remains.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from recblr.config import Search, check, expect_sizes
from recblr.data.batches import PackedBatch
from recblr.models.losses import bpr
from recblr.models.model import Model


@dataclass(frozen=True)
class FPMCConfig:
    """The shape of the model; the default is RecBole's."""

    dim: int = 64  # D
    search: ClassVar[Search] = {"dim": (32, 64, 128, 256)}

    def __post_init__(self) -> None:
        check(self, "model")
        expect_sizes(self, "model", "dim")


class FPMC(Model):
    """x̂ = ⟨user, item⟩ + ⟨last item, item⟩, with four embeddings (the paper's v^UI, v^IU, v^LI,
    v^IL)."""

    needs = ("users",)
    item_tables = MappingProxyType({"user_item.weight": 0, "last.weight": 0, "last_item.weight": 0})
    user_tables = MappingProxyType({"user.weight": 1})

    def __init__(self, items: int, config: FPMCConfig, users: int) -> None:
        super().__init__(items, config)
        self.user = nn.Embedding(users + 1, config.dim, padding_idx=0)
        self.user_item = nn.Embedding(items, config.dim)
        self.last = nn.Embedding(items, config.dim)
        self.last_item = nn.Embedding(items, config.dim)
        for weight in self.parameters():
            nn.init.xavier_normal_(weight)
        nn.init.zeros_(self.user.weight[0])

    @property
    def item_embeddings(self) -> Tensor:
        """(V, 2 D): the factors of an item for the user, then those for the last item."""
        return torch.cat([self.user_item.weight, self.last_item.weight], 1)

    def hidden(self, batch: PackedBatch) -> Tensor:
        last = self.last(batch.items[batch.positions])
        return torch.cat([self.user(user_rows(batch)), last], 1)

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return bpr(hidden, items, targets, weights)


def user_rows(batch: PackedBatch) -> Tensor:
    """(M,) 1 + the user of each position, 0 for a user outside the log."""
    if batch.users is None:
        return torch.zeros_like(batch.positions)
    return batch.users[batch.owners] + 1
