"""Give a trained model vectors of new users and items.

Axes: V items, V' items with the new ones.
"""

from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from recblr.data.features import ITEM_ONLY, FeatureSet
from recblr.models import create_model
from recblr.models.content import Content, Features
from recblr.models.model import Model


def grow(
    network: Model, name: str, neighbours: sparse.csr_array, *, users: int, max_length: int,
    content: Content | None = None, feature_set: FeatureSet = ITEM_ONLY,
) -> Model:  # fmt: skip
    """The same model with vectors of V' items and of ``users`` users, on the same device.

    A new item starts as the weighted mean of its neighbours, or of all items if it has none. If it has
    content, it starts as the projection of that, plus the mean of the learned parts of its neighbours.
    A new user starts as 0, and so does a new kind of events.

    Args:
        network: a model of V items.
        name: its name in :data:`recblr.models.MODELS`.
        neighbours: (V' - V, V) the weight of each known item for each new one, none below 0.
        users: the number of users, at least that of ``network``.
        max_length: as in :func:`create_model`.
        content: the content of V' items, if the model was trained with content.
        feature_set: the features of events, with the new kinds.
    """
    new, known = neighbours.shape
    shape: dict[str, Any] = {"items": known + new, "users": users, "max_length": max_length}
    grown = create_model(name, network.config, **shape, feature_set=feature_set)
    features = None if content is None else Features(content.items, network.device)
    state, empty = network.state_dict(), grown.state_dict()
    for key, table in state.items():
        if key in network.item_tables:
            end = network.item_tables[key] + known
            rows = table[end - known : end]
            vectors = _means(neighbours, rows)
            if features is not None and content is not None:
                own = features.project(content.weights[key].to(table)).view(-1, *table.shape[1:])
                learned = _means(neighbours, rows - own[:known])
                learned[torch.from_numpy(neighbours.sum(1) <= 0)] = 0
                given = features.given[known:].cpu()
                vectors[given] = (own[known:].cpu() + learned)[given]
            state[key] = torch.cat([table[:end], vectors.to(table), table[end:]])
        elif key in network.user_tables or key.startswith("feature_embedding."):
            more = len(empty[key]) - len(table)
            state[key] = torch.cat([table, table.new_zeros(more, *table.shape[1:])])
    grown.load_state_dict(state)
    return grown.to(network.device).train(network.training)


def _means(weights: sparse.csr_array, table: Tensor) -> Tensor:
    """The means of the rows of a table (V, …) by each row of ``weights``, of all if that has none."""
    rows = table.detach().flatten(1) if table.ndim > 1 else table.detach().unsqueeze(1)
    values = rows.double().cpu().numpy()
    sums = weights.sum(1)
    means = weights @ values
    means[sums > 0] /= sums[sums > 0, None]
    means[sums <= 0] = values.mean(0)
    return torch.from_numpy(means).reshape(len(sums), *table.shape[1:])
