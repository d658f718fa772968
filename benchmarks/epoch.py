"""One training epoch on a CPU: packed and fused, against its plain padded twin.

    python benchmarks/epoch.py ml-1m

Both are timed in turn in one run, on the same weights and targets, on random batches of an epoch, and
scaled to all of it by their number of targets; the twin must give the same loss before anything is
timed. For the epoch as such, and prefix samples, see `recblr bench train`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from recblr.data import open_log
from recblr.data.batches import PackedBatch, pack
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops import cpu
from recblr.ops.cross_entropy import cross_entropy
from recblr.provenance import provenance
from recblr.training.config import TrainConfig
from recblr.training.examples import all_positions, training_batches
from recblr.training.step import autocast

RESULTS = Path(__file__).parent / "results"


def padded_loss(model: RecBLR, batch: PackedBatch, dropout: float) -> Tensor:
    """The model as one would first write it: a padded rectangle, eager gates, a loop over time."""
    lengths = batch.offsets.diff()
    inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, T)
    items = torch.zeros(inside.shape, dtype=torch.int64)
    items[inside] = batch.items

    h = model.norm(F.dropout(model.embedding(items), dropout))
    for layer in model.layers:
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
        h = layer.recurrent_norm(F.dropout(y, dropout) + h)
        inner = F.dropout(F.silu(layer.pffn.inner(h)), dropout)
        h = layer.pffn_norm(F.dropout(layer.pffn.outer(inner), dropout) + h)
    return F.cross_entropy(h[inside] @ model.item_embeddings.t(), batch.targets)


def packed_loss(model: RecBLR, batch: PackedBatch) -> Tensor:
    hidden, _ = model(batch.items, batch.offsets)
    return cross_entropy(hidden[batch.positions], model.item_embeddings, batch.targets)


def main(
    log: Annotated[str, typer.Argument(help="A log, as for `recblr train`.")] = "ml-1m",
    batches: Annotated[int, typer.Option(help="Batches of each kind to time.")] = 7,
    batch_size: int = 8192,
    max_length: int = 200,
) -> None:
    data = open_log(log)
    torch.manual_seed(0)
    config = RecBLRConfig()
    model = RecBLR(len(data.item_ids), config).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    training = TrainConfig(window=max_length, batch_size=batch_size)
    spans = all_positions(data, training, 0)

    model.eval()
    check = pack(data.items, *(rows[:40] for rows in spans[0]), "all")
    torch.testing.assert_close(
        packed_loss(model, check), padded_loss(model, check, 0.0), rtol=1e-5, atol=1e-5
    )
    model.train()

    def packed(batch: PackedBatch) -> Tensor:
        with autocast(torch.device("cpu"), "auto"):
            return packed_loss(model, batch)

    def padded(batch: PackedBatch) -> Tensor:
        return padded_loss(model, batch, config.dropout)

    def seconds(loss: Callable[[PackedBatch], Tensor], batch: PackedBatch) -> float:
        begin = time.perf_counter()
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return time.perf_counter() - begin

    targets = int((data.split.train_end - data.offsets[:-1] - 1).clip(0).sum())
    timings: dict[str, list[float]] = {"packed": [], "padded twin": []}
    for number, (batch, _) in enumerate(
        training_batches(data.items, spans[: batches + 1], training)
    ):
        for name, loss in (("packed", packed), ("padded twin", padded)):
            took = seconds(loss, batch) / len(batch.targets) * targets
            if number:  # the first warms up
                timings[name].append(took)

    result = {
        **provenance(f"python benchmarks/epoch.py {log}"),
        "native_bfloat16": cpu.native_bfloat16(),
        "targets": targets,
        "epoch_seconds": {name: round(median(values), 2) for name, values in timings.items()},
        "times_faster_than": {
            "padded twin": round(median(np.divide(timings["padded twin"], timings["packed"])), 2)
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "epoch-cpu.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
