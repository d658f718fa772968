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
from recblr.ranks import ALONE, Bounds, Ranks
from recblr.training.config import TrainConfig
from recblr.training.cuda_graph import Graphed, has_fixed_shapes

_SCANS: dict[str, ops.Implementation] = {
    "packed": "auto", "serial": "serial", "embedding-padding": "tree", "sequence-padding": "tree"
}  # fmt: skip
_FIELDS = ("items", "offsets", "positions", "targets", "weights", "features", "asked")


class TrainingStep:
    """The update of a model on a batch. On a GPU, the step of a model whose shapes do not depend on the
    items is replayed as a CUDA graph.

    Args:
        model: the model.
        average: a copy of it for the moving average of its weights; the model if there is none.
        config: the training settings, resolved for the model.
        ranks: the processes that train the model; a batch has the histories of this one.

    Attributes:
        optimizer: the optimiser of the model.
        loss: the mean loss since the start of the epoch.
    """

    def __init__(
        self, model: Model, average: Model, config: TrainConfig, ranks: Ranks = ALONE
    ) -> None:
        self.optimizer = adam(model, config.weight_decay)
        self.loss = LossMonitor(model.device, config.lr)
        self._model, self._config, self._ranks = model, config, ranks
        self._weights = tuple(model.parameters())
        self._in_every_process = [
            weight for name, weight in model.named_parameters() if name not in model.item_tables
        ]
        self._averages = () if average is model else tuple(average.parameters())
        self._run: Callable[[PackedBatch, Tensor, Bounds], Tensor] = self._update
        if has_fixed_shapes(model, config, ranks):
            present: tuple[str, ...] = ()  # the same for all batches of a run

            def update(state: Tensor, *tensors: Tensor) -> Tensor:
                batch = PackedBatch(**dict(zip(present, tensors, strict=True)))
                return self._update(batch, state, (0, len(batch.targets)))

            graphed = Graphed(update)

            def replay(batch: PackedBatch, state: Tensor, targets: Bounds) -> Tensor:
                nonlocal present
                parts = {
                    name: part for name in _FIELDS if (part := getattr(batch, name)) is not None
                }
                present = tuple(parts)
                return graphed(state, *parts.values())

            self._run = replay

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
        ranks, targets = self._ranks, self._ranks.bounds(len(batch.targets))
        self.loss.count += targets[-1]
        if targets[ranks.number] or not len(
            batch.targets
        ):  # the first history is of another process
            state = torch.zeros_like(state)
        with ops.rows_before(ranks.bounds(len(batch.items))[ranks.number]):
            if self._config.scan == "sequence-padding":  # the state after the pads is not usable
                return torch.zeros_like(self._run(sequence_padding(batch), state, targets))
            return ranks.from_last(self._run(batch, state, targets))

    def _update(self, batch: PackedBatch, state: Tensor, targets_of: Bounds) -> Tensor:
        self.optimizer.zero_grad()  # before the loss, which needs the memory of a table of gradients
        # Cached: tables with content are summed once in a step.
        with recurrence_by(self._model, _SCANS[self._config.scan]), parametrize.cached():
            with autocast(state.device, self._config.precision):
                vectors, targets, after = self._model.training_pairs(batch, state)
                vectors = self._model.ask(vectors, batch.asked)
                loss = self._loss(vectors, targets, batch.seen, batch.weights, targets_of)
            loss.backward()  # type: ignore[no-untyped-call]
        self._ranks.sum_gradients(self._in_every_process)
        self.optimizer.step()
        with torch.no_grad():
            if self._averages:
                torch._foreach_lerp_(self._averages, self._weights, 1 - self._config.ema_decay)
            self.loss.total.add_(loss.double(), alpha=targets_of[-1])
        return after

    def _loss(
        self, vectors: Tensor, targets: Tensor, seen: Tensor | None, weights: Tensor | None,
        targets_of: Bounds,
    ) -> Tensor:  # fmt: skip
        """The mean loss over the targets of all processes; ``targets_of`` are their bounds."""
        ranks, table = self._ranks, self._model.item_embeddings
        vectors, targets = (ranks.gather(rows, targets_of) for rows in (vectors, targets))
        if weights is not None:
            weights = ranks.gather(weights, targets_of)
        if seen is not None:
            pairs = seen + seen.new_tensor([[targets_of[ranks.number]], [0]])
            seen = ranks.gather(pairs.t(), ranks.bounds(seen.shape[1])).t()
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
        smoothing = self._config.label_smoothing
        return cross_entropy(vectors, table, targets, seen, smoothing, weights, ranks)


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
