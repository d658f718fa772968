"""A training step: the loss of a batch, the gradient, the update of the weights.

Axes: M predicted positions, D the width of a vector.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recblr import ops
from recblr.data.batches import PackedBatch, sequence_padding
from recblr.errors import DivergedError
from recblr.models.model import Model, recurrence_by
from recblr.ops import cpu
from recblr.ops.cross_entropy import cross_entropy
from recblr.training.config import TrainConfig
from recblr.training.cuda_graph import Graphed, has_fixed_shapes

_SCANS: dict[str, ops.Implementation] = {
    "packed": "auto", "serial": "serial", "embedding-padding": "tree", "sequence-padding": "tree"
}  # fmt: skip


class TrainingStep:
    """The update of a model on a batch. On a GPU, the step of a model whose shapes do not depend on the
    items is replayed as a CUDA graph.

    Args:
        model: the model.
        average: a copy of it for the moving average of its weights; the model if there is none.
        config: the training settings, resolved for the model.

    Attributes:
        optimizer: the optimiser of the model.
        loss: the mean loss since the start of the epoch.
    """

    def __init__(self, model: Model, average: Model, config: TrainConfig) -> None:
        self.optimizer = adam(model, config.weight_decay)
        self.loss = LossMonitor(model.device, config.lr)
        self._model, self._config = model, config
        self._weights = tuple(model.parameters())
        self._averages = () if average is model else tuple(average.parameters())
        self._run: Callable[[PackedBatch, Tensor], Tensor] = self._update
        if has_fixed_shapes(model, config):
            names = ("items", "offsets", "positions", "targets", "weights")
            graphed = Graphed(
                lambda state, *tensors: self._update(
                    PackedBatch(**dict(zip(names, tensors, strict=False))), state
                )
            )
            self._run = lambda batch, state: graphed(
                state, *(part for name in names if (part := getattr(batch, name)) is not None)
            )

    def __call__(self, batch: PackedBatch, state: Tensor) -> Tensor:
        """Update the weights.

        Args:
            batch: the examples.
            state: (1, …) the state before the first history.

        Returns:
            The state (1, …) after the last history that is not empty, valid until the next call. It is
            detached: a history that continues in the next batch has the same values as in one pass, but
            its gradient stops between the batches (truncated backpropagation through time).
        """
        self.loss.count += len(batch.targets)
        if self._config.scan == "sequence-padding":  # the state after the pads is not usable
            return torch.zeros_like(self._run(sequence_padding(batch), state))
        return self._run(batch, state)

    def _update(self, batch: PackedBatch, state: Tensor) -> Tensor:
        self.optimizer.zero_grad()  # before the loss, which needs the memory of a table of gradients
        # Cached: tables with content are summed once in a step.
        with recurrence_by(self._model, _SCANS[self._config.scan]), parametrize.cached():
            with autocast(state.device, self._config.precision):
                vectors, targets, after = self._model.training_pairs(batch, state)
                loss = self._loss(vectors, targets, batch.seen, batch.weights)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            if self._averages:
                torch._foreach_lerp_(self._averages, self._weights, 1 - self._config.ema_decay)
            self.loss.total.add_(loss.double(), alpha=len(batch.targets))
        return after

    def _loss(
        self, vectors: Tensor, targets: Tensor, seen: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        table = self._model.item_embeddings
        if (content := self._model.content) is not None:
            table = table.index_select(0, content.candidates)
            targets, known = content.rows(targets)
            if not content.have_all_targets:
                weights = known.float() if weights is None else weights * known
            if seen is not None:
                items, known = content.rows(seen[1])
                seen = torch.stack([seen[0], items])[:, known]
        if self._config.loss == "paper":
            return self._model.paper_loss(vectors, table, targets, weights)
        return cross_entropy(vectors, table, targets, seen, self._config.label_smoothing, weights)


class LossMonitor:
    """The mean loss of an epoch.

    Reading it waits for the device, so on a GPU it is read only every 50 steps.

    Attributes:
        total: () float64, the sum of the losses of all predicted positions.
        count: the number of these positions.
    """

    def __init__(self, device: torch.device, lr: float) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.count = self._epoch = 0
        self._interval, self._lr = 1 if device.type == "cpu" else 50, lr

    def start(self, epoch: int) -> None:
        """Reset the sums; epochs count from 1."""
        self.total.zero_()
        self.count, self._epoch = 0, epoch

    def read(self, step: int, last: bool) -> float | None:
        """The mean loss after ``step`` steps of the epoch, or None if this step does not read it.

        Raises:
            DivergedError: the loss is not finite.
        """
        if step % self._interval and not last:
            return None
        loss = self.total.item() / self.count
        if not math.isfinite(loss):
            first = (step - 1) // self._interval * self._interval + 1
            steps = f"step {step}" if self._interval == 1 else f"steps {first} to {step}"
            raise DivergedError(
                f"the loss is {loss} in epoch {self._epoch}, {steps}: training has diverged; "
                f"lower train.lr (it is {self._lr:g})"
            )
        return loss


def adam(model: Model, weight_decay: float = 0.0) -> torch.optim.Adam:
    """The optimiser. Its learning rate is a tensor, which a CUDA graph reads at every step."""
    lr = torch.zeros((), device=model.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=lr, weight_decay=weight_decay, fused=True, capturable=lr.is_cuda
    )
    # Disables torch's warning about steps outside a graph.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def learning_rate(config: TrainConfig, epoch: int, number: int, batches: int) -> float:
    """The learning rate of update ``number`` of ``batches`` in ``epoch``, both from 0."""
    done = epoch + number / batches
    rising = min(config.warmup_steps, batches * config.epochs // 5)
    warmup = min(1.0, (done * batches + 1) / max(1, rising))
    cosine = (1 + math.cos(math.pi * done / config.epochs)) / 2
    return config.lr * warmup * (cosine if config.schedule == "cosine" else 1.0)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16 if requested, or for "auto" if the processor multiplies in bfloat16."""
    native = device.type != "cpu" or cpu.native_bfloat16()
    narrow = precision == "bfloat16" or (precision == "auto" and native)
    # Do not cache bfloat16 copies of weights: each replay of a CUDA graph must copy them again.
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow, cache_enabled=False)
