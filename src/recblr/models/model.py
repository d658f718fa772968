"""What training, evaluation and serving ask of a model.

Axes: N events of all histories laid end to end, B histories, M positions with a target, D the width
of a vector, V items, U users, T events of a history that a model looks at.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recblr import ops
from recblr.data.batches import PackedBatch
from recblr.ops.cross_entropy import cross_entropy

Examples = Literal["all-positions", "prefixes", "cloze"]


class Model(nn.Module):
    """Histories to vectors; the score of an item is the dot product with its vector.

    Args:
        items: V.
        config: the shape of the model.
        users: U, for a model that has a vector of each user.
        max_length: T, for a model that numbers the positions of a history.
    """

    # What it can be trained on, the first unless the settings say otherwise. All positions ask that
    # no vector depends on a later event.
    examples: ClassVar[tuple[Examples, ...]] = ("all-positions", "prefixes")
    personal: ClassVar[bool] = False  # whether it has a vector of each user
    # How its paper trains it, where that is not the default of TrainConfig.
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, items: int, config: Any, users: int = 0, max_length: int = 0) -> None:
        super().__init__()
        self.config = config

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        raise NotImplementedError

    def hidden(self, batch: PackedBatch) -> Tensor:
        """The vectors (M, D) of ``batch.positions``, each of its history up to and with it."""
        raise NotImplementedError

    def examined(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """What a training step compares: vectors (M, D) and the items (M,) they should find."""
        return self.hidden(batch), batch.targets

    def own_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The loss of the model's own paper; full softmax where that is it."""
        return cross_entropy(hidden, self.item_embeddings, targets)

    def initial_state(self, n: int) -> Tensor:
        """What is remembered of ``n`` users without history, (n, …); nothing, if not recurrent."""
        return torch.zeros(n, 0, device=self.item_embeddings.device)

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> Tensor:
        """Scores (B, V) of every item as the next one of each history of a batch.

        The batch may lie on another device; the scores lie on the model's.
        """
        batch = batch.to(self.item_embeddings.device)
        last = replace(batch, positions=batch.offsets[1:] - 1)
        return self.hidden(last) @ self.item_embeddings.t()


class LinearRecurrence(nn.Module):
    """A layer that calls :func:`ops.bd_lru` or :func:`ops.linear_scan` with its ``implementation``."""

    implementation: ops.Implementation = "auto"


class RecurrentModel(Model):
    """A model whose memory of a history is a state of fixed size; one more event is one step."""

    # Whether no shape in a pass depends on the items, so that a GPU can replay a step; histories of
    # no event are then among those of a batch.
    static: ClassVar[bool] = True

    def forward(
        self, items: Tensor, offsets: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All positions of packed histories in one causal pass.

        Args:
            items: (N,) item indices in 0 .. V-1.
            offsets: (B + 1,); history b has the positions offsets[b] .. offsets[b+1]-1.
            state: (B, …) what came before, or None for nothing.

        Returns:
            Vectors (N, D), each of the history up to and with its position, and the state after
            each history.
        """
        raise NotImplementedError

    def hidden(self, batch: PackedBatch) -> Tensor:
        vectors: Tensor = self(batch.items, batch.offsets)[0]
        return vectors if len(batch.positions) == len(vectors) else vectors[batch.positions]

    def step(self, items: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One more event for each user: items (B,), state (B, …) → hidden (B, D), state."""
        offsets = torch.arange(len(items) + 1, device=items.device)
        return self(items, offsets, state)

    @contextmanager
    def recurrence_by(self, implementation: ops.Implementation) -> Iterator[None]:
        """Inside the block the linear recurrences of this model are computed by ``implementation``."""
        layers = [layer for layer in self.modules() if isinstance(layer, LinearRecurrence)]
        try:
            for layer in layers:
                layer.implementation = implementation
            yield
        finally:
            for layer in layers:
                layer.implementation = "auto"
