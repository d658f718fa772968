"""A step of the whole model in one C function, for serving on a CPU."""

import copy
from collections.abc import Iterator
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F

from recblr.models.recblr import BehaviorLayer, GatedRecurrentLayer, RecBLR
from recblr.ops import cpu

_USERS = 64  # for whom the vectors of events with features are in memory at a time
_ROWS = torch.arange(_USERS)


class FusedStep:
    """:meth:`RecBLR.step` in evaluation mode; for one user it takes 2% of the time of the original.

    It copies the weights, so later changes of the model do not affect it. If the model is not float32
    on a CPU or lacks a part (Table 3), or if the kernels are not compiled, it runs a copy of the model.

    The C function takes the vector of an event from a table of the items. If the model reads features
    of events, the table has a row for each user of a call instead, with the vector of the event.
    """

    def __init__(self, model: RecBLR) -> None:
        config, table = model.config, model.item_embeddings
        self._sizes = (
            len(table), config.dim, config.channels, config.state_rows, config.layers
        )  # fmt: skip
        self._model: RecBLR | None = None
        self._events: RecBLR | None = None  # computes the vectors of events with features
        self._writing = Lock()
        complete = config.gated and config.convolution and config.feed_forward
        if complete and cpu.supports(table) and table.dtype == torch.float32:
            with torch.no_grad():
                weights = list(_weights(model))
            if model.feature_set:
                self._events = copy.deepcopy(model).eval()
                weights[0] = torch.zeros(_USERS, config.dim)
            self._weights = torch.cat([weight.reshape(-1) for weight in weights])
        else:
            self._model = copy.deepcopy(model).eval()

    def step(
        self, items: Tensor, state: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One more event for each user: items (B,), state (B, L, W, C), features (B, F) → hidden
        (B, D), state.

        Does not change the given state and computes no gradient.

        Raises:
            ValueError: a tensor has another shape, or an item is not in 0 .. V-1 (not checked for
                items on a GPU).
        """
        if self._events is not None:
            return self._step_with_features(self._events, items, state, features)
        if self._model is None:
            return cpu.recblr_step(self._weights, self._sizes, items, state)
        catalogue, _, channels, width, layers = self._sizes
        if items.dim() != 1 or state.shape != (len(items), layers, width, channels):
            shapes = f"items {tuple(items.shape)} and state {tuple(state.shape)}"
            expected = f"(B,) and (B, {layers}, {width}, {channels})"
            raise ValueError(f"{shapes} must be {expected}")
        if not items.is_cuda and ((items < 0) | (items >= catalogue)).any():
            raise ValueError(f"items must be 0 .. {catalogue - 1}, found {items.tolist()}")
        with torch.no_grad():
            return self._model.step(items, state, features)

    @torch.no_grad()
    def _step_with_features(
        self, model: RecBLR, items: Tensor, state: Tensor, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        vectors = model.norm(model.embed(items, features))  # (1)
        results, sizes = [], (_USERS, *self._sizes[1:])
        parts = torch.split(vectors, _USERS), torch.split(state, _USERS)
        for part, before in zip(*parts, strict=True):
            with self._writing:  # the table is shared by the threads
                self._weights[: part.numel()] = part.view(-1)
                results.append(cpu.recblr_step(self._weights, sizes, _ROWS[: len(part)], before))
        if len(results) == 1:
            return results[0]
        hidden, after = (torch.cat(each) for each in zip(*results, strict=True))
        return hidden, after


def _weights(model: RecBLR) -> Iterator[Tensor]:
    """The weights in the order in which ``recblr_step`` in kernels.c reads them.

    Matrices are transposed, so the C loops run over outputs; two with the same input are joined.
    """
    yield model.norm(model.item_embeddings)  # (1)
    for layer in model.layers:
        assert isinstance(layer, BehaviorLayer)
        recurrent, pffn, pffn_norm = layer.recurrent, layer.pffn, layer.pffn_norm
        assert isinstance(recurrent, GatedRecurrentLayer)
        assert pffn is not None
        assert recurrent.conv is not None
        assert recurrent.conv.bias is not None
        assert pffn_norm is not None
        lru = recurrent.lru
        yield torch.cat([recurrent.to_x.weight, recurrent.to_z.weight]).t()
        yield recurrent.conv.weight.squeeze(1).t()
        yield recurrent.conv.bias
        yield torch.cat([lru.recurrence_gate.weight, lru.input_gate.weight]).t()
        yield torch.cat([lru.recurrence_gate.bias, lru.input_gate.bias])
        yield F.softplus(lru.lam)
        yield recurrent.out.weight.t()
        yield layer.recurrent_norm.weight
        yield layer.recurrent_norm.bias
        yield pffn.inner.weight.t()
        yield pffn.inner.bias
        yield pffn.outer.weight.t()
        yield pffn.outer.bias
        yield pffn_norm.weight
        yield pffn_norm.bias
