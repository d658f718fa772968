"""What each event of a history put into RecBLR's state, exactly, and into a score.

A score is the network's plus what the memory of transitions adds. The memory's part of each event is
exact, the network's is an approximation.

The recurrence (5) unrolls: h_T = Σ_t (Π_{s>t} α_s) ⊙ √(1 - α_t²) ⊙ σ(i_t) ⊙ x_t. The term of t is the
part of event t. That x_t has passed the convolution, so the W-1 events before t shaped the part too;
in a higher layer all of them did.

Axes as in models/recblr.py, for one history: T events, L layers, W rows of a state, C channels.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.errors import InputError
from recblr.memory import Memory
from recblr.models.recblr import BDLRU, RecBLR

_BLOCK = 256  # events, so that what is worked on stays in the cache
_POINTS = 32  # of the way from no state to the state


@dataclass(frozen=True)
class Influence:
    """What each of the T events of a history means to the score of one item; in float64.

    A value of ``score`` is not what the score would lose had its event not been: the parts of later
    events would then be others too.

    Attributes:
        first_layer: (T,) share of each event in the first layer's recurrent state after the history:
            its part's projection on the state, over the state's length. Exact, and shares add up: all
            of them to 1. A share below 0 is of a part that points away from the state.
        score: (T,) of all events but the last, gradient times contribution: what the event put into the
            state before the last event, in the recurrences and convolutions of all layers, times the
            gradient of the score there, averaged along the straight way from no state to that one
            (integrated gradients, arXiv 1703.01365; at its end alone the layer norms hide most).
            Of the last event, which reads that state: the network's score if it were the only event.
        rest: the network's score less the sum of ``score``: what the average over 32 points misses.
        memory: (T,) what the memory of transitions adds because the target often follows the item of
            the event: :meth:`Memory.parts`. Exact; zero without a memory and beyond its last events.
        repeat: what the memory adds because the target itself is in the history, as a whole.

    ``score``, ``rest``, ``memory`` and ``repeat`` sum to the score that ranks the item.
    """

    first_layer: Tensor
    score: Tensor
    rest: float
    memory: Tensor
    repeat: float


def influence(model: RecBLR, items: Tensor, target: int, memory: Memory | None = None) -> Influence:
    """What each event of the history ``items`` (T,) means to the score of ``target`` after it.

    Time and space grow in proportion to T.

    Args:
        model: the network.
        items: (T,) rows of the vocabulary, T at least 1.
        target: a row.
        memory: of transitions, where one adds to the network's scores.

    Raises:
        InputError: no event, an item or the target not in 0 .. V-1, a model that is in training.
    """
    table = model.item_embeddings.detach()
    size = len(table)
    if items.dim() != 1 or len(items) == 0 or items.min() < 0 or items.max() >= size:
        raise InputError(f"influence needs a history of items in 0 .. {size - 1}, one or more")
    if not 0 <= target < size:
        raise InputError(f"target = {target}: must be in 0 .. {size - 1}")
    if model.training:
        raise InputError("influence needs a model without dropout; call model.eval() first")
    items = items.to(table.device)
    state, _, parts = state_parts(model, items[:-1])
    _, kept, last = state_parts(model, items[-1:], state)
    ends = torch.cat([kept[0] * parts[0], last[0]])
    end = ends.sum(0)

    way = (torch.arange(_POINTS, device=state.device) + 0.5) / _POINTS
    shares = torch.cat([way, way.new_tensor([0.0, 1.0])]).to(state.dtype)
    with torch.enable_grad():
        states = (shares.view(-1, 1, 1, 1) * state).requires_grad_()
        hidden, _ = model.step(items[-1:].expand(len(states)), states)
        scores = hidden @ table[target]
        gradients = torch.autograd.grad(scores[:_POINTS].sum(), states)[0]
    gradient = gradients[:_POINTS].double().mean(0)
    alone, score = scores.detach().double()[_POINTS:]
    past = torch.einsum("ltc,lc->t", parts, gradient[:, 0])
    inputs = (gradient * state[0])[:, 1:].sum((0, 2))  # (W-1,), the first of them before any event
    count = min(len(inputs), len(past))
    past[len(past) - count :] += inputs[len(inputs) - count :]
    values = torch.cat([past, alone.reshape(1)])
    shares, rest = ends @ end / (end @ end), float(score - values.sum())
    if memory is None:
        return Influence(shares, values, rest, torch.zeros_like(values), 0.0)
    history = items.cpu().numpy()
    parts = torch.from_numpy(memory.parts(history, target)).to(values)
    repeat = memory.repeat if target in history else 0.0
    return Influence(shares, values, rest, parts, repeat)


@torch.no_grad()
def state_parts(
    model: RecBLR, items: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Unroll each layer's recurrence over ``items`` (T,), from ``state`` (1, L, W, C) or from nothing.

    Returns:
        The state after, (1, L, W, C), and in float64 kept (L, C) and parts (L, T, C). The recurrent
        row, row 0, of each layer is kept ⊙ that row before + Σ_t parts_t.
    """
    if state is None:
        state = model.initial_state(1).to(model.item_embeddings.dtype)
    unrolled: list[tuple[Tensor, Tensor]] = []
    thread = get_ident()

    def unroll(lru: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == thread:  # another may run the same model meanwhile
            assert isinstance(lru, BDLRU)
            unrolled.append(_unroll(lru, inputs[0]))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, BDLRU):
                hooks.enter_context(module.register_forward_pre_hook(unroll))
        offsets = torch.tensor([0, len(items)], device=items.device)
        _, after = model(items, offsets, state)
    kept, parts = (torch.stack(each) for each in zip(*unrolled, strict=True))
    return after, kept, parts


def _unroll(lru: BDLRU, x: Tensor) -> tuple[Tensor, Tensor]:
    """Kept (C,) and parts (T, C) of inputs ``x`` (T, C)."""
    parts = x.new_empty(x.shape, dtype=torch.float64)
    later = x.new_zeros(
        x.shape[1], dtype=torch.float64
    )  # Σ log α, which unlike Π α never underflows
    for first in reversed(range(0, len(x), _BLOCK)):
        block = x[first : first + _BLOCK]
        r, i = lru.recurrence_gate(block).double(), lru.input_gate(block).double()
        log_alpha = -F.softplus(lru.lam).double() * torch.sigmoid(r)  # (6), (8)
        u = torch.sqrt(-torch.expm1(2 * log_alpha)) * torch.sigmoid(i) * block  # (5), (7)
        since = log_alpha.flip(0).cumsum(0).flip(0) + later
        parts[first : first + _BLOCK] = torch.exp(since - log_alpha) * u
        later = since[0]
    return torch.exp(later), parts
