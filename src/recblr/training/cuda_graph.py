"""Replay a function of tensors as a CUDA graph, and provide the fixed shapes that a graph needs.

A step of a small model runs hundreds of kernels, which a GPU finishes faster than the host launches
them. A graph launches all of them at once.
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
from recblr.ranks import Ranks
from recblr.training.config import TrainConfig

_BUCKET = 1 << 14  # batches of prefix samples are filled to a multiple of this many rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Captured(Generic[T]):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # the tensors that the graph reads
    outputs: T  # the results that it writes


class Graphed(Generic[T]):
    """``function``, replayed as a CUDA graph for inputs whose shapes and dtypes recur.

    For each signature of shapes and dtypes, the first call runs the function, the second captures it,
    and later calls copy their inputs into those of the graph and replay it. On another device every
    call runs the function.

    The function must do the same work for the same shapes and read no value on the host; all other
    tensors that it reads or writes (weights, sums) must keep their memory. A call has no gradient. Its
    results belong to the graph and are valid until the next call.

    Args:
        function: takes tensors on one device.
        graphs: the most signatures to capture; calls of others run the function. The graphs share
            their memory.
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
            for target, source in zip(captured.inputs, inputs, strict=True):
                target.copy_(source, non_blocking=True)
            captured.graph.replay()
            return captured.outputs

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @cached_property
    def _memory(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _run(self, inputs: tuple[Tensor, ...]) -> T:
        """Run the function on the stream of the captures, as libraries initialise for each stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured[T]:
        """Capture the function without running it."""
        graph, copies = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in inputs]
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            outputs = self._function(*copies)
        return _Captured(graph, copies, outputs)


def has_fixed_shapes(model: Model, config: TrainConfig, ranks: Ranks) -> bool:
    """Whether a training step can be a CUDA graph: no shape in it depends on the items.

    Several processes tell each other the shapes of their parts, for which the host waits.
    """
    capturable = model.graph_capturable and config.scan == "packed"
    return ranks.alone and capturable and not config.mask_seen_in_loss


def fill_bucket(starts: np.ndarray, stops: np.ndarray, longest: int) -> Spans:
    """Add histories of the first events of the log, up to a multiple of the bucket size.

    Args:
        starts, stops: (B,) the histories of a batch.
        longest: the most events of an added history.
    """
    missing = -int((stops - starts).sum()) % _BUCKET
    lengths = np.minimum(longest, missing - np.arange(0, missing, longest))
    return np.append(starts, np.zeros_like(lengths)), np.append(stops, lengths)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``, so that few shapes occur."""
    return 1 << (count - 1).bit_length()
