"""The settings of a training run."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from recblr.config import expect_sizes
from recblr.errors import InputError
from recblr.models.model import Model, RecurrentModel


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults suit a log that nobody has tuned for."""

    # Predict at every position in one causal pass; from every prefix as a sample of its own (the
    # paper's way; about a hundred times the work on long histories); or items hidden within a history
    # (cloze). "auto" is the first of these that the model supports.
    examples: Literal["auto", "all-positions", "prefixes", "cloze"] = "auto"
    loss: Literal["softmax", "paper"] = "softmax"  # full softmax, or the loss of the model's paper
    max_length: int = 200  # the latest events of a history that evaluation and serving look at
    # Longer histories are cut into windows of this many events, each trained on from a zero state.
    # (Prefix samples, and windows of a model without a recurrent state, are max_length long.) A window
    # that does not fit into a batch continues in the next one.
    window: int = 1000
    batch_size: int = 4096  # predicted positions per update
    epochs: int = 40  # the most
    patience: int = 10  # stop after this many epochs without a better validation NDCG@10
    lr: float = 3e-3  # of Adam, at its highest
    weight_decay: float = 0.0  # this share of each weight is added to its gradient (L2)
    # The rate rises linearly over these updates, but at most over a fifth of all updates.
    warmup_steps: int = 200
    # After the warm-up the rate falls to 0 at the last epoch along a cosine, or stays.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Decay per update of the moving average of the weights; the average is what is kept.
    ema_decay: float = 0.0
    label_smoothing: float = 0.0  # share of each target that is spread over the catalogue
    # Leave the items of a history out of its softmax, as serving leaves them out. If a batch begins
    # within a history, only the items since then are left out.
    mask_seen_in_loss: bool = False
    # The protocol under which validation chooses the best epoch.
    selection_protocol: Literal["unmasked", "masked"] = "unmasked"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products in training
    # How the recurrence is computed, for the paper's study of padding (Table 5): by the fused kernels,
    # event after event, by the paper's trees padded inside, or by its trees with every history of a
    # batch padded (a history that a batch cuts then restarts in the next). All train the same model.
    scan: Literal["packed", "serial", "embedding-padding", "sequence-padding"] = "packed"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_sizes(self, "train", "max_length", "window", "batch_size", "epochs", "patience")
        if self.seed >= 2**32:
            raise InputError(f"train.seed = {self.seed}: must be below 2**32")
        for name in ("warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be at least 0")
        if not 0 < self.lr < math.inf:
            raise InputError(f"train.lr = {self.lr}: must be positive and finite")
        for name in ("label_smoothing", "ema_decay", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be in [0, 1)")
        if self.mask_seen_in_loss and self.label_smoothing:
            raise InputError("set train.mask_seen_in_loss or train.label_smoothing, not both")
        if self.loss == "paper" and (self.mask_seen_in_loss or self.label_smoothing):
            raise InputError(
                "train.loss=paper has no softmax for train.mask_seen_in_loss and "
                "train.label_smoothing to change; set train.loss=softmax, or "
                "train.mask_seen_in_loss=false and train.label_smoothing=0"
            )


def resolve(config: TrainConfig, model: Model) -> TrainConfig:
    """The settings with those that depend on the model filled in: its examples and its window.

    Raises:
        InputError: the model cannot be trained in this way.
    """
    examples = model.examples[0] if config.examples == "auto" else config.examples
    if examples not in model.examples:
        raise InputError(
            f"train.examples = {examples!r}: this model supports {' and '.join(model.examples)}"
        )
    if "cloze" in model.examples and config.mask_seen_in_loss:
        raise InputError(
            "train.mask_seen_in_loss does not go with a model that predicts hidden items (cloze)"
        )
    recurrent = isinstance(model, RecurrentModel)
    if config.scan != "packed" and not recurrent:
        raise InputError(f"train.scan = {config.scan!r}: this model has no recurrence to scan")
    window = config.window if recurrent else config.max_length
    return replace(config, examples=examples, window=window)
