"""FPMC: "Factorizing Personalized Markov Chains for Next-Basket Recommendation" (Rendle et al., WWW
2010).

Axes: M positions with a target, D the width of a factor, U users, V items.

A basket is one item, as in RecBole. Of the tensor (user, last item, item) two pairs of factors are
left: the third, user and last item, is the same for all items and orders nothing. The paper also
shrinks the factors (L2); we do not. Nobody of the log is the vector 0, which leaves the Markov chain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recblr.config import expect_sizes
from recblr.data.batches import PackedBatch
from recblr.models.model import Model
from recblr.training.losses import bpr


@dataclass(frozen=True)
class FPMCConfig:
    """The shape of the model; the default is RecBole's."""

    dim: int = 64  # D

    def __post_init__(self) -> None:
        expect_sizes(self, "model", "dim")


class FPMC(Model):
    """x̂ = ⟨user, item⟩ + ⟨last item, item⟩, each with vectors of its own (the paper's v^UI, v^IU,
    v^LI, v^IL)."""

    personal = True

    def __init__(self, items: int, config: FPMCConfig, users: int = 0, max_length: int = 0) -> None:
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
        """(V, 2 D), the factors of an item with a user and with a last item side by side."""
        return torch.cat([self.user_item.weight, self.last_item.weight], 1)

    def hidden(self, batch: PackedBatch) -> Tensor:
        last = self.last(batch.items[batch.positions])
        return torch.cat([self.user(user_rows(batch)), last], 1)

    def own_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return bpr(hidden, self.item_embeddings, targets)


def user_rows(batch: PackedBatch) -> Tensor:
    """(M,) 1 + the user of each position, 0 for nobody of the log."""
    if batch.users is None:
        return torch.zeros_like(batch.positions)
    return batch.users[batch.owners] + 1
