"""The interface between a model and training, evaluation and serving.

Axes: N events of all histories laid end to end, B histories, M positions with a target, D the width
of a vector, V items.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import ops
from recblr.data.batches import PackedBatch
from recblr.data.features import ITEM_ONLY, FeatureSet
from recblr.ops.cross_entropy import cross_entropy

Examples = Literal["all-positions", "prefixes", "cloze"]
ITEM_VECTORS = "embedding.weight"  # the table of the vectors that a model reads items by


@dataclass(frozen=True, eq=False)
class AttachedContent:
    """Content of items that is trained together with a model, see :mod:`recblr.models.content`.

    Attributes:
        digest: a hash of the content.
        candidates: the items that the training loss ranks, ascending.
        have_all_targets: whether all targets of training are candidates; others are left out.
    """

    digest: str
    candidates: Tensor
    have_all_targets: bool

    def rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of items (…,) among the candidates, and whether they are candidates."""
        rows = torch.searchsorted(self.candidates, items).clamp(max=len(self.candidates) - 1)
        return rows, self.candidates[rows] == items


class Model(nn.Module):
    """Maps histories to vectors; the score of an item is the dot product with the vector of the item.

    Args:
        items: V.
        config: the shape of the model.
    """

    # The supported training examples, the default first. "all-positions" requires that no vector
    # depends on a later event.
    examples: ClassVar[tuple[Examples, ...]] = ("all-positions", "prefixes")
    # Further keyword arguments of the constructor: the number of users, the most events of a history
    # that the model uses.
    needs: ClassVar[tuple[Literal["users", "max_length"], ...]] = ()
    # Settings of the model's paper that differ from the defaults of TrainConfig.
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Whether no shape in a training step depends on the items, so a CUDA graph can replay the step. Its
    # batches then contain empty histories.
    graph_capturable: ClassVar[bool] = False
    # The parameters with a row for each item, or each user, and the number of rows before the first.
    item_tables: ClassVar[Mapping[str, int]] = MappingProxyType({ITEM_VECTORS: 0})
    user_tables: ClassVar[Mapping[str, int]] = MappingProxyType({})
    # Whether the model reads events only by `embed`. Then events may have features, and several
    # processes can divide the tables of items.
    embeds_events: ClassVar[bool] = False
    content: AttachedContent | None = None
    embedding: nn.Embedding

    def __init__(self, items: int, config: Any) -> None:
        super().__init__()
        self.config = config
        self.feature_embedding: FeatureEmbedding | None = None  # create_model sets it

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D)."""
        raise NotImplementedError

    @property
    def feature_set(self) -> FeatureSet:
        """What the model reads of an event beside its item."""
        return ITEM_ONLY if self.feature_embedding is None else self.feature_embedding.read

    def embed(self, items: Tensor, features: Tensor | None) -> Tensor:
        """The vectors (N, D) of events: of their items (N,), plus those of their features (N, F)."""
        vectors: Tensor = self.embedding(items)
        if self.feature_embedding is None:
            return vectors
        return vectors + self.feature_embedding(features, len(items))

    def ask(self, vectors: Tensor, kinds: Tensor | None) -> Tensor:
        """The vectors (M, D) of histories, asked for kinds (M,): codes, 0 for any; None for any."""
        if kinds is None or self.feature_embedding is None:
            return vectors
        return self.feature_embedding.ask(vectors, kinds)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """The vectors (M, D) of the histories up to and including each of ``batch.positions``.

        They are asked for no kind, see :meth:`ask`.
        """
        raise NotImplementedError

    def training_pairs(self, batch: PackedBatch, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (M, D) and the target items (M,) of a training step, asked for no kind.

        ``state`` (1, …) is the state before the first history. The third result is the state after the
        last history that is not empty, detached; a model without a state returns ``state``.
        """
        return self.hidden(batch), batch.targets, state

    def paper_loss(
        self, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of the model's paper; by default the full softmax.

        Args:
            hidden: (M, D).
            items: (V, D), the item embeddings.
            targets: (M,) rows of ``items``.
            weights: (M,) the factor of each target; None if all are 1.
        """
        return cross_entropy(hidden, items, targets, weights=weights)

    def initial_state(self, n: int) -> Tensor:
        """The state of ``n`` users without events, (n, …); (n, 0) for a model without a state."""
        return torch.zeros(n, 0, device=self.device)

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> Tensor:
        """Scores (B, V) of every item as the next item of each history.

        The batch may be on another device; the scores are on the device of the model.
        """
        return self.history_vectors(batch) @ self.item_embeddings.t()

    @torch.no_grad()
    def history_vectors(self, batch: PackedBatch) -> Tensor:
        """The vectors (B, D) of whole histories, whose products with the item embeddings are scores.

        The batch may be on another device, and ask for a kind.
        """
        batch = batch.to(self.device)
        return self.ask(self.hidden(replace(batch, positions=batch.offsets[1:] - 1)), batch.asked)


class FeatureEmbedding(nn.Module):
    """Embeddings of the features of events, and the effect of the kind that is asked for.

    All start at 0, so that a model begins as it would without them. The vector of a history that is
    asked for kind k is h ⊙ (1 + scale_k) + shift_k; asked for any kind it stays h.

    Args:
        read: the features.
        width: of the vectors of events.
        width_out: of the vectors of histories.
    """

    def __init__(self, read: FeatureSet, width: int, width_out: int) -> None:
        super().__init__()
        self.read = read
        self.embedding = nn.Parameter(torch.zeros(read.rows, width))
        self.scale = self.shift = None
        if read.kinds:  # row 0, for any kind, stays 0
            shape = read.kinds + 1, width_out
            self.scale, self.shift = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
        unknown = torch.tensor(read.unknown.tolist(), dtype=torch.int64, device="cpu")
        self.register_buffer("unknown", unknown, persistent=False)

    def forward(self, features: Tensor | None, events: int) -> Tensor:
        """features (N, F), rows of the embedding → (N, D); None for events of which none are known."""
        if features is None:
            features = self.unknown.expand(events, -1)  # type: ignore[operator]
        return F.embedding(features, self.embedding).sum(1)

    def ask(self, vectors: Tensor, kinds: Tensor) -> Tensor:
        """(M, D), kinds (M,) → (M, D)."""
        if self.scale is None or self.shift is None:
            return vectors
        scale, shift = (F.embedding(kinds, table, 0) for table in (self.scale, self.shift))
        return vectors * (1 + scale) + shift


class LinearRecurrence(nn.Module):
    """A layer that calls :func:`ops.bd_lru` or :func:`ops.linear_scan` with its ``implementation``."""

    implementation: ops.Implementation = "auto"


@contextmanager
def recurrence_by(model: nn.Module, implementation: ops.Implementation) -> Iterator[None]:
    """Compute the linear recurrences of a model by ``implementation`` inside the block."""
    layers = [layer for layer in model.modules() if isinstance(layer, LinearRecurrence)]
    try:
        for layer in layers:
            layer.implementation = implementation
        yield
    finally:
        for layer in layers:
            layer.implementation = "auto"


class RecurrentModel(Model):
    """A model with a state of fixed size for each user; one more event takes one step."""

    graph_capturable = True
    embeds_events = True

    def forward(
        self, items: Tensor, offsets: Tensor, state: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """All positions of packed histories in one causal pass.

        Args:
            items: (N,) item indices in 0 .. V-1.
            offsets: (B + 1,); history b has the positions offsets[b] .. offsets[b+1]-1.
            state: (B, …) the state before each history; None for the initial state.
            features: (N, F) the features of the events; None if they are not known.

        Returns:
            Vectors (N, D) of the histories up to and including each event, and the state after each
            history.
        """
        raise NotImplementedError

    def hidden(self, batch: PackedBatch) -> Tensor:
        vectors, _ = self(batch.items, batch.offsets, None, batch.features)
        return _at_positions(vectors, batch)

    def training_pairs(self, batch: PackedBatch, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = self.initial_state(len(batch.offsets) - 1)
        states[:1] = state
        vectors, states = self(batch.items, batch.offsets, states, batch.features)
        last = (batch.offsets < len(batch.items)).sum(0, keepdim=True) - 1
        after = states.detach().index_select(0, last)
        return _at_positions(vectors, batch), batch.targets, after

    def step(
        self, items: Tensor, state: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One more event for each user: items (B,), state (B, …), features (B, F) → hidden (B, D),
        state."""
        offsets = torch.arange(len(items) + 1, device=items.device)
        return self(items, offsets, state, features)


def _at_positions(vectors: Tensor, batch: PackedBatch) -> Tensor:
    """The vectors (M, D) at ``batch.positions``, from the vectors of all events (N, D)."""
    return vectors if len(batch.positions) == len(vectors) else vectors[batch.positions]
