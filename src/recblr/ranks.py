"""The processes that train one model together, as ``torchrun`` starts them.

The histories of a batch are divided over the processes. The tables of items are divided, too: each
process keeps a range of their rows, with the gradients and the state of the optimiser. All other
weights are the same in every process.

Axes: R processes with the ranks 0 .. R-1, N rows of all of them end to end, V items, D the width of a
vector.
"""

import atexit
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from recblr.errors import InputError

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # a variable that torchrun sets

Bounds = Sequence[int]
"""(R + 1,) rank r has the rows bounds[r] .. bounds[r+1]-1 of N."""

_Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ranks:
    """This process among the others. All of them must call each method, in the same order.

    Attributes:
        number: the rank of this process.
        count: R.
    """

    number: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.number == 0

    def bounds(self, size: int) -> Bounds:
        """The bounds of rows that are in order of rank, ``size`` of them in this process."""
        if self.alone:
            return 0, size
        sizes = torch.zeros(self.count + 1, dtype=torch.int64)
        sizes[self.number + 1] = size
        bounds: list[int] = self.sum(sizes).cumsum(0).tolist()
        return bounds

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes, in place; the same in each."""
        return self._reduce(x, distributed.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The maximum of ``x`` over the processes, in place."""
        return self._reduce(x, distributed.ReduceOp.MAX)

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        if self.alone:
            return x
        distributed.all_reduce(x, operation)
        return x

    def gather(self, x: Tensor, bounds: Bounds) -> Tensor:
        """The rows (N, …) of all processes, from those of this one.

        The gradient of this process's rows is the sum of what each process has for them.
        """
        if self.alone:
            return x
        place, own = (partial(move, self, bounds) for move in (_place, _own))
        gathered: Tensor = _Linear.apply(x, place, own)  # type: ignore[no-untyped-call]
        return gathered

    def sum_and_scatter(self, x: Tensor, bounds: Bounds) -> Tensor:
        """This process's rows of the sum of ``x`` (N, …) over the processes."""
        if self.alone:
            return x
        place, own = (partial(move, self, bounds) for move in (_place, _own))
        scattered: Tensor = _Linear.apply(x, own, place)  # type: ignore[no-untyped-call]
        return scattered

    def from_last(self, x: Tensor) -> Tensor:
        """``x`` of the last process."""
        return self.sum(x if self.number == self.count - 1 else torch.zeros_like(x))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of weights that every process has."""
        if self.alone:
            return
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        joined = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(joined, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def rows(self, size: int) -> slice:
        """This process's rows of a table of ``size`` rows, as :func:`torch.chunk` divides it."""
        part = -(-size // self.count)
        return slice(min(size, part * self.number), min(size, part * (self.number + 1)))


ALONE = Ranks()


def launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarted() -> bool:
    """Whether ``torchrun`` started this process again after a failure."""
    return launched() and int(os.environ.get(_RESTARTS, "0")) > 0


def join(device: torch.device) -> Ranks:
    """Meet the processes that ``torchrun`` started with this one; :data:`ALONE` without it.

    Only rank 0 reports and warns from here on.
    """
    if not launched():
        return ALONE
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # After a restart torchrun's store still has the addresses of the processes before.
        store, number, count = next(rendezvous("env://"))
        store = PrefixStore(os.environ.get(_RESTARTS, "0"), store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=number, world_size=count)
        atexit.register(distributed.destroy_process_group)
        if distributed.get_rank():
            logging.getLogger("recblr").setLevel(logging.WARNING)
            warnings.simplefilter("ignore")
    return Ranks(distributed.get_rank(), distributed.get_world_size())


class _Linear(torch.autograd.Function):
    """Applies a linear function; the gradient goes through the adjoint function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: _Map, adjoint: _Map) -> Tensor:
        ctx.adjoint = adjoint
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.adjoint(grads[0]), None, None


def _place(ranks: Ranks, bounds: Bounds, x: Tensor) -> Tensor:
    """All rows (N, …): a sum with zeros, as it takes parts of any size on every backend."""
    whole = x.new_zeros(bounds[-1], *x.shape[1:])
    whole[bounds[ranks.number] : bounds[ranks.number + 1]] = x
    return ranks.sum(whole)


def _own(ranks: Ranks, bounds: Bounds, x: Tensor) -> Tensor:
    """The own rows of the sum of ``x`` over the processes."""
    return ranks.sum(x.clone())[bounds[ranks.number] : bounds[ranks.number + 1]]


class DividedEmbedding(nn.Module):
    """An embedding of V items, of which each process has a range of rows.

    Args:
        weight: (V, D), of which this process keeps its rows.
        ranks: the processes.
    """

    def __init__(self, weight: Tensor, ranks: Ranks) -> None:
        super().__init__()
        rows = ranks.rows(len(weight))
        self.weight = nn.Parameter(weight[rows].clone())
        self._first, self._ranks = rows.start, ranks

    def forward(self, items: Tensor) -> Tensor:
        """The vectors (N', D) of the items (N',) of the histories of this process."""
        bounds = self._ranks.bounds(len(items))
        rows = self._ranks.gather(items, bounds) - self._first
        absent = (rows < 0) | (rows >= len(self.weight))
        vectors = nn.functional.embedding(rows.masked_fill(absent, 0), self.weight)
        return self._ranks.sum_and_scatter(vectors.masked_fill(absent.unsqueeze(1), 0), bounds)


def divide(model: nn.Module, tables: Iterable[str], ranks: Ranks) -> None:
    """Keep only own rows of the tables of items: the embeddings and the parameters ``tables``.

    Raises:
        InputError: a process would have no row.
    """
    if ranks.alone:
        return
    for name in tables:
        table = model.get_parameter(name).detach()
        if len(table) <= -(-len(table) // ranks.count) * (ranks.count - 1):
            raise InputError(
                f"{len(table):,} items are too few for {ranks.count} processes; start fewer"
            )
        attribute, _, weight = name.partition(".")
        own = (
            DividedEmbedding(table, ranks)
            if weight
            else nn.Parameter(table[ranks.rows(len(table))])
        )
        setattr(model, attribute, own)


def undivide(model: nn.Module, tables: Iterable[str], ranks: Ranks) -> dict[str, Any]:
    """Let a divided model have whole tables in every process; return the attributes with own rows."""
    own = {}
    for name in () if ranks.alone else tables:
        rows = model.get_parameter(name).detach()
        table = ranks.gather(rows, ranks.bounds(len(rows)))
        attribute, _, weight = name.partition(".")
        own[attribute] = getattr(model, attribute)
        whole: nn.Module | nn.Parameter = nn.Parameter(table)
        if weight:
            whole = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        setattr(model, attribute, whole)
    return own


@contextmanager
def undivided(model: nn.Module, tables: Iterable[str], ranks: Ranks) -> Iterator[None]:
    """Let a divided model have whole tables inside the block, in every process."""
    own = undivide(model, tables, ranks)
    try:
        yield
    finally:
        for attribute, value in own.items():
            setattr(model, attribute, value)
