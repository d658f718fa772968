"""The settings of a training run."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from recblr.config import Range, Search, changed_settings, check, expect_sizes
from recblr.errors import InputError
from recblr.models.model import Model, RecurrentModel


@dataclass(frozen=True)
class TrainConfig:
    """The settings of training; the defaults suit an untuned log."""

    __repr__ = changed_settings

    # Predict at every position in one causal pass; from every prefix as a separate sample (as in the
    # paper; about a hundred times the work on long histories); or masked items of a history (cloze).
    # "auto" is the first of these that the model supports.
    examples: Literal["auto", "all-positions", "prefixes", "cloze"] = "auto"
    loss: Literal["softmax", "paper"] = (
        "softmax"  # the full softmax or the loss of the model's paper
    )
    max_length: int = 200  # most events of a history that evaluation and serving use
    # Longer histories are cut into windows of this many events; each starts from a zero state. A window
    # that does not fit into a batch continues in the next one. (Prefix samples, and the windows of
    # models without a recurrent state, have max_length events.)
    window: int = 1000
    batch_size: int = 4096  # predicted positions per update
    epochs: int = 40  # at most
    patience: int = 10  # stop after this many epochs without a better validation NDCG@10
    lr: float = 3e-3  # peak learning rate of Adam
    weight_decay: float = 0.0  # L2 penalty: this multiple of each weight is added to its gradient
    # The learning rate rises linearly over these updates, at most a fifth of all updates.
    warmup_steps: int = 200
    # After the warm-up the learning rate follows a cosine to 0 at the last epoch, or is constant.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Decay per update of the moving average of the weights; training keeps the average.
    ema_decay: float = 0.0
    label_smoothing: float = 0.0  # share of each target spread over the catalogue
    # The number of next items that each position predicts. The factor of the n-th in the loss is in
    # proportion to n^-horizon_power.
    horizon: int = 1
    horizon_power: float = 1.2
    # Add to the vector of each item that of the time since the user's event before, in 32 classes, each
    # twice as long as the one before.
    gaps: bool = False
    # Exclude the items of a history from its softmax, as serving does. If a batch begins within
    # a history, only its items in the batch are excluded.
    mask_seen_in_loss: bool = False
    # Share of the items with content whose learned vector an update leaves out, so that the projection
    # of the content learns to stand for it.
    content_dropout: float = 0.5
    # Items with content and fewer training events than this have no learned vector, and are neither
    # targets nor candidates in training: so few events would tell the model above all that an item is
    # rarely chosen. 1: only items without events.
    content_events: int = 6
    # Validate each epoch on at most this many users, always the same random ones; 0 for all users.
    validation_users: int = 0
    # The protocol under which validation chooses the best epoch; `recommend` excludes seen items.
    selection_protocol: Literal["unmasked", "masked"] = "masked"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products in training
    # The implementation of the recurrence, for the paper's study of padding (Table 5): fused kernels;
    # event by event; the paper's trees with padded embeddings; or the trees with padded histories (a
    # history that continues in the next batch then restarts). All train the same model.
    scan: Literal["packed", "serial", "embedding-padding", "sequence-padding"] = "packed"
    # The item vectors that training starts from: random ones, or similar ones for items that are near
    # one another in the histories.
    item_init: Literal["random", "transitions"] = "random"
    seed: int = 0
    search: ClassVar[Search] = {
        "lr": Range(3e-4, 1e-2, log=True),
        "batch_size": (512, 1024, 2048, 4096),
        "label_smoothing": Range(0.0, 0.3),
    }

    def __post_init__(self) -> None:
        check(self, "train")
        expect_sizes(self, "train", "max_length", "window", "batch_size", "epochs", "patience")
        if self.seed >= 2**32:
            raise InputError(f"train.seed = {self.seed}: must be below 2**32")
        for name in ("warmup_steps", "seed", "validation_users", "content_events"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be at least 0")
        if not 0 < self.lr < math.inf:
            raise InputError(f"train.lr = {self.lr}: must be positive and finite")
        expect_sizes(self, "train", "horizon", at_most=64)
        if not 0 <= self.horizon_power <= 10:
            raise InputError(f"train.horizon_power = {self.horizon_power}: must be in 0 .. 10")
        for name in ("label_smoothing", "ema_decay", "weight_decay", "content_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} = {getattr(self, name)}: must be in [0, 1)")
        if self.mask_seen_in_loss and self.label_smoothing:
            raise InputError("set train.mask_seen_in_loss or train.label_smoothing, not both")
        if self.loss == "paper" and (
            self.mask_seen_in_loss or self.label_smoothing or self.horizon > 1
        ):
            raise InputError(
                "train.mask_seen_in_loss, train.label_smoothing and train.horizon need "
                "train.loss=softmax; set it, or set train.mask_seen_in_loss=false, "
                "train.label_smoothing=0 and train.horizon=1"
            )


def resolve(config: TrainConfig, model: Model) -> TrainConfig:
    """The settings with the values that depend on the model: the examples and the window.

    Raises:
        InputError: the model does not support a setting.
    """
    examples = model.examples[0] if config.examples == "auto" else config.examples
    if examples not in model.examples:
        raise InputError(
            f"train.examples = {examples!r}: this model supports {' and '.join(model.examples)}"
        )
    for name, default in (("mask_seen_in_loss", False), ("horizon", 1)):
        if "cloze" in model.examples and getattr(config, name) != default:
            raise InputError(
                f"train.{name} does not work with a model that predicts masked items (cloze)"
            )
    recurrent = isinstance(model, RecurrentModel)
    if config.scan != "packed" and not recurrent:
        raise InputError(f"train.scan = {config.scan!r}: this model has no recurrence")
    window = config.window if recurrent else config.max_length
    return replace(config, examples=examples, window=window)
