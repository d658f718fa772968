"""Replaying a function of tensors as a CUDA graph, and the fixed shapes that a graph needs.

A step of a small model is hundreds of kernels that a GPU finishes faster than the host can launch
them. A graph launches them all at once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from recblr.data.batches import Spans
from recblr.models.model import Model
from recblr.training.config import TrainConfig

_BUCKET = 1 << 14  # prefix samples are filled up to a multiple of this many rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Captured(Generic[T]):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # what the graph reads
    outputs: T  # what it writes


class Graphed(Generic[T]):
    """``function``, replayed as a CUDA graph where its inputs have shapes and dtypes seen before.

    The first call of a signature runs the function, the second records it, later ones copy their
    inputs into the graph's own and replay it. On another device every call simply runs the function.

    The function must do the same work for the same shapes, look at no value on the host, and take
    whatever else it reads or writes (weights, sums) from tensors that stay where they are. Gradients do
    not flow through a call. What it returns belongs to the graph: it is valid until the next call.

    Args:
        function: takes tensors that lie on one device.
        graphs: as many signatures are recorded; further ones run as they are. The graphs share their
            memory.
    """

    def __init__(self, function: Callable[..., T], graphs: int = 8) -> None:
        self._function = function
        self._graphs = graphs
        self._captured: dict[tuple[object, ...], _Captured[T]] = {}
        self._seen: deque[tuple[object, ...]] = deque(maxlen=8 * graphs)

    def __call__(self, *inputs: Tensor) -> T:
        device = inputs[0].device
        if device.type != "cuda":
            return self._function(*inputs)
        signature = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        with torch.cuda.device(device):
            if signature not in self._captured:
                if signature not in self._seen or len(self._captured) == self._graphs:
                    self._seen.append(signature)
                    return self._run(inputs)
                self._captured[signature] = self._capture(inputs)
            captured = self._captured[signature]
            for ours, theirs in zip(captured.inputs, inputs, strict=True):
                ours.copy_(theirs, non_blocking=True)
            captured.graph.replay()
            return captured.outputs

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @cached_property
    def _memory(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _run(self, inputs: tuple[Tensor, ...]) -> T:
        """On the stream that records, as its libraries set themselves up for each stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured[T]:
        """Recorded, but not run yet."""
        graph, ours = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in inputs]
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            outputs = self._function(*ours)
        return _Captured(graph, ours, outputs)


def has_fixed_shapes(model: Model, config: TrainConfig) -> bool:
    """Whether a training step can be a CUDA graph: no shape in it depends on the items."""
    return model.graph_capturable and config.scan == "packed" and not config.mask_seen_in_loss


def fill_bucket(starts: np.ndarray, stops: np.ndarray, longest: int) -> Spans:
    """Add histories made of the first events of the log, up to a multiple of the bucket's rows.

    Args:
        starts, stops: (B,) the histories of a batch.
        longest: the most events of an added history.
    """
    missing = -int((stops - starts).sum()) % _BUCKET
    more = np.minimum(longest, missing - np.arange(0, missing, longest))
    return np.append(starts, np.zeros_like(more)), np.append(stops, more)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``: it recurs where a maximum varies."""
    return 1 << (count - 1).bit_length()
