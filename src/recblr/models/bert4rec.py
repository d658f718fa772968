"""BERT4Rec: "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer" (CIKM 2019, arXiv 1904.06690).

Axes: N events of all histories laid end to end, B histories, M positions with a target, D the width of
the model, T events of a history that the model looks at, V items.

Some items of a history are hidden behind [mask] and found again from those on both sides; the next
item is found by a [mask] behind the history. For training half of the histories have their last
item hidden alone, as they will be asked, and half a random share of their items. The paper has both
kinds; one half is that of RecBole 1.2, of which Table 1 of arXiv 2406.12580 reports, while the
authors' code has one in eleven. RecBole draws the kind for a batch, this file for each history.

Histories are whole (cloze), as in the authors' code, or each prefix is one (prefixes), as in RecBole,
which leaves out the item that follows it. Where they are short prefixes are much the better
(docs/log.md).

Positions are counted from the end of a history, where the authors' code and RecBole count from its
start: the [mask] of the next item then always stands at one and the same place, instead of having to
learn for every length which place is the last item's.

Of T events and a [mask] the oldest event is dropped. RecBole drops the first event of every history
when it appends the [mask], of short ones as well; this file does not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.models.model import Model
from recblr.models.sasrec import EPS, SASRecConfig, Transformer, initialise


@dataclass(frozen=True)
class BERT4RecConfig(SASRecConfig):
    """The shape of the model; the defaults are RecBole's."""

    dropout: float = 0.2
    hidden_share: float = 0.2  # of the items of a history, where not the last one alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hidden_share <= 1:
            raise InputError(f"model.hidden_share = {self.hidden_share}: must be in [0, 1]")


class BERT4Rec(Model):
    """Items and positions, Transformer layers that see both sides, a dense layer, prediction by the
    tied embedding and a bias of each item."""

    examples = ("cloze", "prefixes")

    def __init__(
        self, items: int, config: BERT4RecConfig, users: int = 0, max_length: int = 0
    ) -> None:
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
        """(V, D + 1), the bias last."""
        return torch.cat([self.embedding.weight[:-1], self.bias.unsqueeze(1)], 1)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Each position is the end of a history of its own: no vector sees the events after it."""
        mask = torch.full_like(batch.positions, self.mask)
        items, offsets = self.followed(batch, batch.positions, mask)
        return self.found(items, offsets, offsets[1:] - 1)

    def examined(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The vectors of hidden items and these; the last item of a history is its last target."""
        ends = batch.offsets[1:] - 1
        last = batch.targets[torch.searchsorted(batch.positions, ends)]
        items, offsets = self.followed(batch, ends, last)
        hide = self.drawn(offsets)
        places = hide.nonzero().squeeze(1)
        return self.found(items.masked_fill(hide, self.mask), offsets, places), items[places]

    def followed(
        self, batch: PackedBatch, positions: Tensor, next_items: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Items and offsets of the histories up to each position with one more item (M,) behind each;
        the latest T of it."""
        owner = torch.searchsorted(batch.offsets, positions, right=True) - 1
        lengths = (positions - batch.offsets[owner] + 2).clamp(max=self.length)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        shift = positions + 2 - offsets[1:]
        rows = torch.arange(int(offsets[-1]), device=offsets.device)
        rows += torch.repeat_interleave(shift, lengths)
        items = batch.items[rows.clamp(max=len(batch.items) - 1)]
        return items.index_copy(0, offsets[1:] - 1, next_items), offsets

    def drawn(self, offsets: Tensor) -> Tensor:
        """Which items (N,) of each history to hide, at least one."""
        lengths = offsets.diff()
        alone = torch.rand(len(lengths), device=offsets.device) < 0.5
        history = torch.repeat_interleave(lengths)
        hide = torch.rand(len(history), device=offsets.device) < self.config.hidden_share
        hide &= ~alone[history]
        some = torch.zeros_like(lengths).index_add_(0, history, hide.long()) > 0
        hide[offsets[1:] - 1] |= ~some
        return hide

    def found(self, items: Tensor, offsets: Tensor, places: Tensor) -> Tensor:
        """The vectors (M, D + 1) of some of the items (N,)."""
        h = self.encoder(self.embedding(items), offsets)[places]
        return F.pad(self.norm(F.gelu(self.dense(h))), (0, 1), value=1.0)
