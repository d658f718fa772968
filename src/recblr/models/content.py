"""Content of items in a model: the row of an item in a table is a learned one plus a linear projection
of its content, and during training both are learned.

After training the tables hold the sums, so that nothing else need know of content.

Axes: V items, F numbers of a vector, K categories, W the width of a table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from recblr.data.content import ItemContent, read_content
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.models.model import AttachedContent, Model


@dataclass(frozen=True, eq=False)
class Content:
    """What a model knows of its items beside the events.

    Attributes:
        items: the content of the items.
        weights: (F + K, W) the projection of each table, by the names of :attr:`Model.item_tables`:
            first of the numbers of a vector, then the embeddings of the categories. Empty before
            training.
    """

    items: ItemContent
    weights: dict[str, Tensor] = field(default_factory=dict)


def add_content(
    data: Sequences, vectors: Any, categories: Any, known: Content | None = None
) -> tuple[Sequences, Content | None]:
    """The log with the items that only tables of content have, and the content of all items.

    Args:
        data: the log.
        vectors, categories, known: as for :func:`recblr.data.content.read_content`.

    Raises:
        InputError: as in :func:`recblr.data.content.read_content`.
    """
    if vectors is None and categories is None and known is None:
        return data, None
    item_ids, items = read_content(
        vectors, categories, data.item_ids, None if known is None else known.items
    )
    weights = {}
    if known is not None:  # embeddings of new categories start as 0
        more = len(items.names) - len(known.items.names)
        weights = {name: F.pad(weight, (0, 0, 0, more)) for name, weight in known.weights.items()}
    return replace(data, item_ids=item_ids), Content(items, weights)


class Features:
    """Content as tensors on a device; it is shared by all tables and all copies of a model.

    Attributes:
        given: (V,) whether an item has content.
    """

    def __init__(self, items: ItemContent, device: torch.device) -> None:
        self._vectors = torch.from_numpy(items.vectors).to(device)
        self._codes = torch.from_numpy(items.codes).to(device)
        self._offsets = torch.from_numpy(items.offsets).to(device)
        self.given = torch.from_numpy(items.given).to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Features":
        return self

    def project(self, weight: Tensor) -> Tensor:
        """(F + K, W) → (V, W), in float32 also under autocast."""
        width = self._vectors.shape[1]
        with torch.autocast(weight.device.type, enabled=False):
            projected = self._vectors @ weight[:width]
            if len(self._codes):
                projected = projected + F.embedding_bag(
                    self._codes, weight[width:], self._offsets, mode="sum",
                    include_last_offset=True,
                )  # fmt: skip
        return projected


class _ContentTable(nn.Module):
    """Adds the projection of content to the learned rows of a table.

    Args:
        features: the content of the items.
        alone: (V,) the items without a learned row.
        weight: (F + K, W) the projection.
        first: the number of rows of the table before that of the first item.
        dropout: the share of the items with content whose learned row a training step leaves out.
            Without it the learned rows explain everything, and the projection little.
    """

    def __init__(
        self, features: Features, alone: Tensor, weight: Tensor, first: int, dropout: float
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._features, self._alone = features, alone
        self._first, self._dropout = first, dropout

    def forward(self, learned: Tensor) -> Tensor:
        """(rows, …) → (rows, …)."""
        features, first, dropped = self._features, self._first, self._alone
        projected = features.project(self.weight).view(-1, *learned.shape[1:])
        last = len(learned) - first - len(projected)
        if self.training and self._dropout:
            drawn = torch.rand(len(projected), device=learned.device) < self._dropout
            dropped = dropped | drawn & features.given
        dropped = F.pad(dropped, (first, last)).view(-1, *[1] * (learned.dim() - 1))
        learned = learned.masked_fill(dropped, 0)
        return learned + F.pad(projected, (0, 0) * (learned.dim() - 1) + (first, last))


@contextmanager
def attached(
    content: Content | None, network: Model, counts: np.ndarray, dropout: float, least_events: int
) -> Iterator[None]:
    """Train the projections of content together with the network inside the block.

    Afterwards the tables of the network hold the sums, and ``content.weights`` the projections. Items
    with content and with too few training events are no candidates of the training loss, which would
    push them down, and their learned rows are 0.

    Args:
        content: the content of the items; None if there is none.
        network: the network, whose tables hold sums if ``content`` has weights.
        counts: (V,) the number of training events of each item.
        dropout, least_events: ``content_dropout`` and ``content_events`` of ``TrainConfig``.

    Raises:
        InputError: every item has too few events.
    """
    if content is None:
        yield
        return
    features = Features(content.items, network.device)
    trained = torch.from_numpy(counts > 0).to(network.device)
    alone = features.given & torch.from_numpy(counts < max(1, least_events)).to(network.device)
    if alone.all():
        raise InputError(
            f"no item has {least_events} training events; lower train.content_events, or give a "
            "longer log"
        )
    for name, first in network.item_tables.items():
        rows = network.get_parameter(name).detach()[first : first + len(alone)]
        weight = content.weights.get(name)
        if weight is None:
            weight = _initial(rows[trained], content.items, trained)
        else:
            weight = weight.to(rows)
            rows -= features.project(weight).view_as(rows)
        rows[alone] = 0
        table = _ContentTable(features, alone, weight, first, dropout)
        parametrize.register_parametrization(*_place(network, name), table)
    network.content = AttachedContent(
        content.items.digest, (~alone).nonzero().squeeze(1), not bool((alone & trained).any())
    )
    yield
    network.eval()
    for name in network.item_tables:
        module, attribute = _place(network, name)
        content.weights[name] = getattr(module.parametrizations, attribute)[0].weight.detach().cpu()
        parametrize.remove_parametrizations(module, attribute)
    network.content = None


def _initial(rows: Tensor, items: ItemContent, trained: Tensor) -> Tensor:
    """A projection (F + K, W) whose results are about as large as ``rows`` (…, W).

    The embeddings of categories that no trained item has are 0, as they are not learned.
    """
    owners = np.repeat(np.arange(len(items.given)), np.diff(items.offsets))
    learned = np.bincount(
        items.codes[trained.cpu().numpy()[owners]], minlength=len(items.names)
    )  # fmt: skip
    kept = torch.from_numpy(np.append(np.ones(len(items.mean), bool), learned > 0)).to(rows.device)
    weight = torch.randn(len(kept), rows[0].numel(), device=rows.device)
    return weight * rows.std(correction=0) * kept.unsqueeze(1)


def _place(network: Model, name: str) -> tuple[nn.Module, str]:
    """The module and the attribute of a parameter."""
    path, _, attribute = name.rpartition(".")
    return network.get_submodule(path), attribute
