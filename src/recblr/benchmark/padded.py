"""A training epoch on packed histories beside a plain implementation on padded histories, on a CPU."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recblr.data.batches import PackedBatch, pack
from recblr.data.sequences import Sequences
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops import cpu
from recblr.ops.cross_entropy import cross_entropy
from recblr.progress import progress
from recblr.timing import seconds
from recblr.training.config import TrainConfig
from recblr.training.examples import all_positions, training_batches, training_histories
from recblr.training.step import autocast

Loss = Callable[[PackedBatch], Tensor]

_CPU = torch.device("cpu")


def time_padded(
    data: Sequences, batches: int = 7, batch_size: int = 8192, max_length: int = 200
) -> dict[str, Any]:
    """Time an epoch of both implementations, in turn, on the same weights and batches.

    Before the timing, both must give the same loss.

    Args:
        data: the log.
        batches: random batches to time; the times are scaled to an epoch by the number of targets.
        batch_size: predicted positions of a batch.
        max_length: events of the longest history.

    Returns:
        ``native_bfloat16``, whether the packed implementation computes in bfloat16; ``targets`` of an
        epoch; ``epoch_seconds`` of ``packed`` and ``padded twin``, medians; ``times_faster_than``, the
        median ratio of the times of the padded and the packed implementation.
    """
    torch.manual_seed(0)
    model = RecBLR(len(data.item_ids), RecBLRConfig()).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    config = TrainConfig(window=max_length, batch_size=batch_size)
    spans = all_positions(training_histories(data), config, 0)
    starts, stops = spans[0]
    _check_losses(model, pack(data.items, starts[:40], stops[:40], "all"))

    def packed(batch: PackedBatch) -> Tensor:
        with autocast(_CPU, "auto"):
            return _packed_loss(model, batch)

    def update(loss: Loss, batch: PackedBatch) -> None:
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    losses: dict[str, Loss] = {"packed": packed, "padded twin": partial(_padded_loss, model)}
    targets = int((data.split.train_end - data.offsets[:-1] - 1).clip(0).sum())
    times: dict[str, list[float]] = {name: [] for name in losses}
    sample = spans[: batches + 1]
    with progress("batches", len(sample)) as advance:
        for number, (batch, _) in enumerate(training_batches(data.items, sample, config)):
            for name, loss in losses.items():
                taken = seconds(partial(update, loss, batch), _CPU)
                if number:  # the first batch warms up
                    times[name].append(taken / len(batch.targets) * targets)
            advance(1)
    ratios = np.divide(times["padded twin"], times["packed"])
    return {
        "native_bfloat16": cpu.native_bfloat16(),
        "targets": targets,
        "epoch_seconds": {name: round(median(values), 2) for name, values in times.items()},
        "times_faster_than": {"padded twin": round(median(ratios), 2)},
    }


def _check_losses(model: RecBLR, batch: PackedBatch) -> None:
    """Raise AssertionError if the losses differ."""
    model.eval()
    packed, padded = _packed_loss(model, batch), _padded_loss(model, batch)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    model.train()


def _packed_loss(model: RecBLR, batch: PackedBatch) -> Tensor:
    hidden, _ = model(batch.items, batch.offsets)
    return cross_entropy(hidden[batch.positions], model.item_embeddings, batch.targets)


def _padded_loss(model: RecBLR, batch: PackedBatch) -> Tensor:
    """The model in plain PyTorch: a padded rectangle, separate gates, a loop over events."""
    lengths = batch.offsets.diff()
    inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, T)
    items = torch.zeros(inside.shape, dtype=torch.int64)
    items[inside] = batch.items
    dropout = partial(F.dropout, p=model.config.dropout, training=model.training)

    h = model.norm(dropout(model.embedding(items)))
    layers: Any = model.layers
    for layer in layers:
        gated, lru = layer.recurrent, layer.recurrent.lru
        x, z = gated.to_x(h), gated.to_z(h)
        width = gated.conv.kernel_size[0]
        x = F.silu(gated.conv(F.pad(x.transpose(1, 2), (width - 1, 0))).transpose(1, 2))
        log_alpha = -F.softplus(lru.lam) * torch.sigmoid(lru.recurrence_gate(x))
        alpha = torch.exp(log_alpha)
        beta = torch.sqrt(-torch.expm1(2 * log_alpha)) * torch.sigmoid(lru.input_gate(x))
        u, state, states = beta * x, torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = alpha[:, t] * state + u[:, t]
            states.append(state)
        y = gated.out(torch.stack(states, 1) * F.silu(z))
        h = layer.recurrent_norm(dropout(y) + h)
        inner = dropout(F.silu(layer.pffn.inner(h)))
        h = layer.pffn_norm(dropout(layer.pffn.outer(inner)) + h)
    return F.cross_entropy(h[inside] @ model.item_embeddings.t(), batch.targets)
