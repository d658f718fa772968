"""Record the matrix products of a computation, to repeat them alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recblr.training.cuda_graph import Graphed

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}  # the operators of linear layers


class Operand(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def buffer(self, device: torch.device) -> Tensor:
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.randn(max(span, 0), device=device).to(self.dtype)
        return numbers.as_strided(self.shape, self.stride)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every matrix product inside the block, also of backward passes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Callable[..., Tensor], list[Operand]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _PRODUCTS:
            operands = [Operand(a.shape, a.stride(), a.dtype) for a in args]
            self.calls.append((func.overloadpacket, operands))
        return func(*args, **(kwargs or {}))

    def repeat(self, device: torch.device) -> Callable[[], None]:
        """A function that repeats the products on buffers of the same sizes, strides and dtypes.

        Equal operands share a buffer, so the products are somewhat faster than in the computation. A
        GPU replays them as a CUDA graph, from the third call on.
        """
        keys = {key for _, operands in self.calls for key in enumerate(operands)}
        buffers = {(index, operand): operand.buffer(device) for index, operand in keys}
        calls = [
            (operator, [buffers[key] for key in enumerate(operands)])
            for operator, operands in self.calls
        ]

        def work(_: Tensor) -> None:
            for operator, operands in calls:
                operator(*operands)

        graphed, unused = (
            Graphed(work),
            torch.zeros(1, device=device),
        )  # its device is that of a graph
        return lambda: graphed(unused)
