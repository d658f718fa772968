"""One more event of each user by the whole model in one C function, for serving on a CPU."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from recblr.models.recblr import BehaviorLayer, GatedRecurrentLayer, RecBLR
from recblr.ops import cpu


class FusedStep:
    """:meth:`RecBLR.step` of a trained model in evaluation mode; one user takes 2% of its time.

    It holds its own copy of the weights: later changes of the model do not reach it. A model that is
    not in float32 on a CPU, that lacks a part (Table 3), or for which there are no compiled kernels, is
    copied and stepped as it is.
    """

    def __init__(self, model: RecBLR) -> None:
        config, table = model.config, model.item_embeddings
        self._sizes = (
            len(table), config.dim, config.channels, config.state_rows, config.layers
        )  # fmt: skip
        self._plain: RecBLR | None = None
        whole = config.gated and config.convolution and config.feed_forward
        if whole and cpu.supports(table) and table.dtype == torch.float32:
            with torch.no_grad():
                self._weights = torch.cat([weight.reshape(-1) for weight in _weights(model)])
        else:
            self._plain = copy.deepcopy(model).eval()

    def step(self, items: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One more event for each user: items (B,), state (B, L, W, C) → hidden (B, D), state.

        The state given is not changed; there is no gradient.

        Raises:
            ValueError: a tensor does not fit, or an item is not in 0 .. V-1. Items on a GPU are not
                looked at.
        """
        if self._plain is None:
            return cpu.recblr_step(self._weights, self._sizes, items, state)
        known, _, channels, width, layers = self._sizes
        if items.dim() != 1 or state.shape != (len(items), layers, width, channels):
            raise ValueError(f"no step of items {tuple(items.shape)}, state {tuple(state.shape)}")
        if not items.is_cuda and ((items < 0) | (items >= known)).any():
            raise ValueError(f"items must be 0 .. {known - 1}, found {items.tolist()}")
        with torch.no_grad():
            return self._plain.step(items, state)


def _weights(model: RecBLR) -> Iterator[Tensor]:
    """In the order in which ``recblr_step`` of kernels.c reads them.

    Matrices are transposed, so that the C loops run over outputs; two that have one input lie side by
    side.
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
