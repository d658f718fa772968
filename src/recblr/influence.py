"""The influence of each event of a history on the state of RecBLR and on the score of an item.

A score is the sum of the network's score and the terms of the memory of transitions. The influences in
the memory's terms are exact; those in the network's score are approximations.

The recurrence (5) unrolls to h_T = Σ_t (Π_{s>t} α_s) ⊙ √(1 - α_t²) ⊙ σ(i_t) ⊙ x_t. Term t is the part
of event t in the state. x_t is an output of the convolution, so the part also depends on the W-1 events
before t; in higher layers it depends on all of them.

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

_BLOCK = 256  # events processed at a time, so that they fit into the cache
_POINTS = 32  # of integrated gradients


@dataclass(frozen=True)
class Influence:
    """The influence of each of the T events of a history on the score of one item, in float64.

    ``score``, ``rest``, ``memory`` and ``repeat`` sum to the score that ranks the item. A value of
    ``score`` is not the change of the score if the event is removed, as that also changes the parts of
    later events.

    Attributes:
        first_layer: (T,) the share of each event in the recurrent state of the first layer after the
            history: the projection of its part on the state, divided by the length of the state. The
            shares are exact and sum to 1. A negative share points away from the state.
        score: (T,) for every event except the last, its part of the state before the last event (the
            recurrences and convolutions of all layers) times the gradient of the score, averaged on the
            straight line from the zero state to that state (integrated gradients, arXiv 1703.01365; the
            layer norms flatten the gradient at the end of the line). For the last event, the network's
            score of a history of this event only.
        rest: the network's score minus the sum of ``score``, the error of the average over 32 points.
        memory: (T,) the exact :meth:`Memory.contributions`; zero without a memory.
        repeat: the repeat term of the memory, if the target is in the history.
    """

    first_layer: Tensor
    score: Tensor
    rest: float
    memory: Tensor
    repeat: float

    def __repr__(self) -> str:
        return (
            f"Influence({len(self.score):,} events, network {float(self.score.sum()) + self.rest:.4f}, "
            f"memory {float(self.memory.sum()):.4f}, repeat {self.repeat:.4f})"
        )


def influence(
    model: RecBLR,
    items: Tensor,
    target: int,
    memory: Memory | None = None,
    before: Tensor | None = None,
    features: Tensor | None = None,
) -> Influence:
    """The influence of each event of a history on the score of ``target`` after it.

    Time and memory are proportional to T.

    Args:
        model: the network, in evaluation mode.
        items: (T,) the history as rows of the vocabulary, T at least 1.
        target: a row of the vocabulary.
        memory: the memory of transitions, if it adds to the scores.
        before: (1, L, W, C) the state after earlier events, if ``items`` are only the latest ones.
            ``rest`` then includes the earlier events, and the shares do not sum to 1.
        features: (T, F) the features of the events, as in :meth:`Sequences.features`, for a model that
            reads them. The score is that of any kind.

    Raises:
        InputError: the history is empty, an item or the target is not in 0 .. V-1, or the model is in
            training mode.
    """
    table = model.item_embeddings.detach()
    size = len(table)
    if items.dim() != 1 or len(items) == 0 or items.min() < 0 or items.max() >= size:
        raise InputError(f"influence needs a history of one or more items in 0 .. {size - 1}")
    if not 0 <= target < size:
        raise InputError(f"target = {target}: must be in 0 .. {size - 1}")
    if model.training:
        raise InputError("the model is in training mode; call model.eval() first")
    items = items.to(table.device)
    if before is None:
        before = model.initial_state(1).to(table)
    if features is None:
        features = torch.from_numpy(model.feature_set.unknown).long().expand(len(items), -1)
    features = features.to(table.device)
    state, kept_before, parts = state_parts(model, items[:-1], before, features[:-1])
    _, kept, last = state_parts(model, items[-1:], state, features[-1:])
    first_layer_parts = torch.cat([kept[0] * parts[0], last[0]])
    first_layer_before = kept[0] * kept_before[0] * before[0, 0, 0]
    first_layer_state = first_layer_before + first_layer_parts.sum(0)

    points = (torch.arange(_POINTS, device=state.device) + 0.5) / _POINTS
    factors = torch.cat([points, points.new_tensor([0.0, 1.0])]).to(state.dtype)
    with torch.enable_grad():
        states = (factors.view(-1, 1, 1, 1) * state).requires_grad_()
        last_item, its_features = (
            x[-1:].expand(len(states), *x.shape[1:]) for x in (items, features)
        )
        hidden, _ = model.step(last_item, states, its_features)
        scores = hidden @ table[target]
        gradients = torch.autograd.grad(scores[:_POINTS].sum(), states)[0]
    gradient = gradients[:_POINTS].double().mean(0)
    last_event_score, score = scores.detach().double()[_POINTS:]
    earlier = torch.einsum("ltc,lc->t", parts, gradient[:, 0])
    inputs = (gradient * state[0])[:, 1:].sum((0, 2))  # (W-1,), oldest first
    count = min(len(inputs), len(earlier))
    earlier[len(earlier) - count :] += inputs[len(inputs) - count :]
    values = torch.cat([earlier, last_event_score.reshape(1)])
    norm = first_layer_state @ first_layer_state
    shares, rest = first_layer_parts @ first_layer_state / norm, float(score - values.sum())
    if memory is None:
        return Influence(shares, values, rest, torch.zeros_like(values), 0.0)
    history = items.cpu().numpy()
    contributions = torch.from_numpy(memory.contributions(history, target)).to(values)
    repeat = memory.repeat if target in history else 0.0
    return Influence(shares, values, rest, contributions, repeat)


@torch.no_grad()
def state_parts(
    model: RecBLR, items: Tensor, state: Tensor | None = None, features: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Unroll the recurrence of each layer over ``items`` (T,).

    Args:
        model: the network.
        items: (T,) rows of the vocabulary.
        state: (1, L, W, C) the state before; by default the initial state.
        features: (T, F) the features of the events; None if they are not known.

    Returns:
        The state after (1, L, W, C), and in float64 kept (L, C) and parts (L, T, C): the recurrent
        state, row 0, of each layer is kept ⊙ the recurrent state before + Σ_t parts_t.
    """
    if state is None:
        state = model.initial_state(1).to(model.item_embeddings.dtype)
    unrolled: list[tuple[Tensor, Tensor]] = []
    thread = get_ident()

    def unroll(lru: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == thread:  # other threads may run the same model
            assert isinstance(lru, BDLRU)
            unrolled.append(_unroll(lru, inputs[0]))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, BDLRU):
                hooks.enter_context(module.register_forward_pre_hook(unroll))
        offsets = torch.tensor([0, len(items)], device=items.device)
        _, after = model(items, offsets, state, features)
    kept, parts = (torch.stack(tensors) for tensors in zip(*unrolled, strict=True))
    return after, kept, parts


def _unroll(lru: BDLRU, x: Tensor) -> tuple[Tensor, Tensor]:
    """Kept (C,) and parts (T, C) for inputs ``x`` (T, C)."""
    parts = x.new_empty(x.shape, dtype=torch.float64)
    # Σ log α of the later events; unlike Π α, it does not underflow.
    later = x.new_zeros(x.shape[1], dtype=torch.float64)
    for first in reversed(range(0, len(x), _BLOCK)):
        block = x[first : first + _BLOCK]
        r, i = lru.recurrence_gate(block).double(), lru.input_gate(block).double()
        log_alpha = -F.softplus(lru.lam).double() * torch.sigmoid(r)  # (6), (8)
        u = torch.sqrt(-torch.expm1(2 * log_alpha)) * torch.sigmoid(i) * block  # (5), (7)
        since = log_alpha.flip(0).cumsum(0).flip(0) + later
        parts[first : first + _BLOCK] = torch.exp(since - log_alpha) * u
        later = since[0]
    return torch.exp(later), parts
