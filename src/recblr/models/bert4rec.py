"""BERT4Rec: "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer" (CIKM 2019, arXiv 1904.06690).

Axes: N events of all histories laid end to end, B histories, M positions with a target, D the width of
the model, T the most events of a history that the model uses, V items.

Training replaces some items of a history by [mask] and predicts them from the items on both sides;
prediction appends a [mask] for the next item. In half of the training histories only the last item is
masked, as in prediction; in the other half a random share of the items. The paper has both kinds; one
half is as in RecBole 1.2, whose results are in Table 1 of arXiv 2406.12580, while the authors' code has
one in eleven. RecBole draws the kind per batch, this file per history.

A training example is a whole history (cloze), as in the authors' code, or a prefix (prefixes), as in
RecBole, which leaves out the item after the prefix. On short histories prefixes are much better
(docs/experiments.md).

Positions are counted from the end of a history; the authors' code and RecBole count from its start.
The [mask] of the next item then has the same position in every history, whatever its length.

With T events and a [mask], the oldest event is dropped. RecBole drops the first event of every history,
short ones included, when it appends the [mask]; this file does not.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.config import Range, Search
from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.model import ITEM_VECTORS, Model
from recblr.models.sasrec import EPS, SASRecConfig, Transformer, initialise


@dataclass(frozen=True)
class BERT4RecConfig(SASRecConfig):
    """The shape of the model; the defaults are RecBole's."""

    dropout: float = 0.2
    hidden_share: float = 0.2  # of the items of a history, if not only the last one is masked
    search: ClassVar[Search] = {**SASRecConfig.search, "hidden_share": Range(0.1, 0.6)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hidden_share <= 1:
            raise InputError(f"model.hidden_share = {self.hidden_share}: must be in [0, 1]")


class BERT4Rec(Model):
    """Item and position embeddings, bidirectional Transformer layers, a dense layer, prediction by the
    tied embedding and an item bias."""

    examples = ("cloze", "prefixes")
    needs = ("max_length",)
    item_tables = MappingProxyType({ITEM_VECTORS: 0, "bias": 0})

    def __init__(self, items: int, config: BERT4RecConfig, max_length: int) -> None:
        super().__init__(items, config)
        self.mask, self.length = items, max_length
        self.embedding = nn.Embedding(items + 1, config.dim)  # [mask] last
        self.bias = nn.Parameter(torch.zeros(items))
        self.encoder = Transformer(config, max_length, causal=False)
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.apply(initialise)

    @property
    def item_embeddings(self) -> Tensor:
        """(V, D + 1), with the bias as last column."""
        return torch.cat([self.embedding.weight[:-1], self.bias.unsqueeze(1)], 1)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Each position ends a history of its own, so no vector depends on later events."""
        mask = torch.full_like(batch.positions, self.mask)
        items, offsets = self.append(batch, batch.positions, mask)
        return self.vectors(items, offsets, offsets[1:] - 1)

    def training_pairs(self, batch: PackedBatch, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors at the masked items, and these items; a history ends with its last target."""
        ends = batch.offsets[1:] - 1
        last = batch.targets[torch.searchsorted(batch.positions, ends)]
        items, offsets = self.append(batch, ends, last)
        masked = self.draw_masked(offsets)
        rows = masked.nonzero().squeeze(1)
        vectors = self.vectors(items.masked_fill(masked, self.mask), offsets, rows)
        return vectors, items[rows], state

    def append(
        self, batch: PackedBatch, positions: Tensor, next_items: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Items and offsets of the histories up to each position, followed by ``next_items`` (M,); the
        last T items of each."""
        owner = torch.searchsorted(batch.offsets, positions, right=True) - 1
        lengths = (positions - batch.offsets[owner] + 2).clamp(max=self.length)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        shift = positions + 2 - offsets[1:]
        rows = torch.arange(int(offsets[-1]), device=offsets.device)
        rows += torch.repeat_interleave(shift, lengths)
        items = batch.items[rows.clamp(max=len(batch.items) - 1)]
        return items.index_copy(0, offsets[1:] - 1, next_items), offsets

    def draw_masked(self, offsets: Tensor) -> Tensor:
        """Whether each item (N,) is masked; at least one item of each history is."""
        lengths = offsets.diff()
        only_last = torch.rand(len(lengths), device=offsets.device) < 0.5
        history = torch.repeat_interleave(lengths)
        masked = torch.rand(len(history), device=offsets.device) < self.config.hidden_share
        masked &= ~only_last[history]
        has_masked = torch.zeros_like(lengths).index_add_(0, history, masked.long()) > 0
        masked[offsets[1:] - 1] |= ~has_masked
        return masked

    def vectors(self, items: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
        """The vectors (M, D + 1) at ``rows`` (M,) of the items (N,)."""
        h = self.encoder(self.embedding(items), offsets)[rows]
        return F.pad(self.norm(F.gelu(self.dense(h))), (0, 1), value=1.0)
