"""The time of a training epoch, and of its matrix products alone."""

import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from recblr.allocator import keep_freed_memory
from recblr.benchmark.products import Products
from recblr.data import open_log
from recblr.data.batches import PackedBatch
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.simulate import Shop, simulate_shop
from recblr.errors import InputError
from recblr.evaluation.ranking import rank_targets
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.timing import medians, seconds, synchronize
from recblr.training.config import TrainConfig
from recblr.training.trainer import Trainer

SAMPLE = 3  # batches from which an epoch of prefix samples is estimated on a CPU
_PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "recurrence": ("recblr::bd_lru", "recblr::linear_scan"),
    "convolution": ("recblr::conv_silu",),
    "cross entropy": ("_CrossEntropy",),  # without its products
    "dropout": ("recblr::dropout", "aten::native_dropout"),
    # On a GPU the second has dropout and residual in it, too.
    "layer norm": ("aten::native_layer_norm", "_DropoutAddNorm"),
    "optimiser": ("Optimizer.step", "aten::_foreach_lerp_"),
}


def default_log() -> Sequences:
    """MovieLens-1M, or a simulated shop of its size if it is not available."""
    try:
        return open_log("ml-1m")
    except InputError:
        shop = Shop(
            users=6040, categories=61, items_per_category=56, mean_length=165, max_length=2300
        )
        return prepare(simulate_shop(shop).interactions)


def time_training(data: Sequences, device: torch.device) -> dict[str, Any]:
    """Time an epoch of training, without validation, on both kinds of examples, and an evaluation.

    Returns:
        :func:`describe`; the results of :func:`time_epoch` for ``all_positions`` and ``prefixes``; and
        ``evaluation_seconds``. On a CPU the epoch of prefix samples is estimated from a few batches.
    """
    keep_freed_memory()  # as `recblr train` does
    config = TrainConfig()
    prefixes = replace(config, examples="prefixes", batch_size=2048)
    sample = SAMPLE if device.type == "cpu" else None
    return {
        **describe(data),
        "all_positions": time_epoch(data, config, device),
        "prefixes": time_epoch(data, prefixes, device, batches=sample),
        "evaluation_seconds": time_evaluation(data, device),
    }


def describe(data: Sequences) -> dict[str, Any]:
    """``log``, its name, and the numbers of its ``users`` and ``items``."""
    return {
        "log": Path(data.summary["source"]).name,
        "users": data.users,
        "items": len(data.item_ids),
    }


def time_evaluation(data: Sequences, device: torch.device) -> float:
    """The seconds in which RecBLR ranks all items for every test event, under both protocols."""
    model = RecBLR(len(data.item_ids), RecBLRConfig()).to(device).eval()
    rank = {
        "test": lambda: rank_targets(
            model.score, data, "test", TrainConfig().max_length, device=model.device
        )
    }
    return medians(rank, device, repeats=3)["test"]


def time_epoch(
    data: Sequences, config: TrainConfig, device: torch.device, batches: int | None = None
) -> dict[str, Any]:
    """Time an epoch, and at regular intervals the matrix products of a step alone.

    Args:
        data: the log.
        config: the training settings; the model is RecBLR in its default configuration.
        device: the device to train on.
        batches: time only the first ``batches`` batches, and scale to the epoch by their events.

    Returns:
        ``epoch_seconds``; ``estimated``, whether only some batches were timed; ``batches`` of the
        epoch; ``events_per_second``, predicted events; ``products_seconds``, the products of an epoch;
        ``times_products``, the ratio of the epoch to its products; ``parts``, shares of the time of a
        step, largest first. On CUDA these are shares of GPU time, in steps that are not replayed as
        graphs.
    """
    torch.manual_seed(config.seed)
    model = RecBLR(len(data.item_ids), RecBLRConfig()).to(device).train()
    lr = config.lr  # constant, as it does not affect the time
    trainer = Trainer(model, data, config)
    spans = trainer.spans(0)
    events = [int((stops - starts).sum()) for starts, stops in spans]

    # The first step of a trainer does not replay a graph, so all of its operators are recorded.
    with Products() as products:
        trainer.step(*next(trainer.batches(spans)), lr)
    repeat_products = products.repeat(device)
    # A GPU runs a shape the first time and captures it the second; the last batch has its own shape.
    warm_up = 1 if device.type == "cpu" else 2
    for _ in range(warm_up):
        repeat_products()
    for _ in range(warm_up):
        for batch, continues in trainer.batches(spans[:2] if device.type == "cpu" else spans):
            trainer.step(batch, continues, lr)

    predicted = int((data.split.train_end - data.offsets[:-1] - 1).clip(0).sum())
    timed = len(spans) if batches is None else min(batches, len(spans))
    interval = 10 if device.type == "cpu" else 50  # steps between two timings of the products
    elapsed, product_times = 0.0, list[float]()
    with progress(config.examples, timed) as advance:
        synchronize(device)
        begin = time.perf_counter()
        for number, (batch, continues) in enumerate(trainer.batches(spans[:timed]), 1):
            trainer.step(batch, continues, lr)
            advance(1)
            if number % interval == 0 or number == timed:
                synchronize(device)
                elapsed += time.perf_counter() - begin
                product_times.append(seconds(repeat_products, device))
                begin = time.perf_counter()

    epoch_seconds = elapsed / sum(events[:timed]) * sum(events)
    products_seconds = median(product_times) / events[0] * sum(events)
    first_batches = list(islice(trainer.batches(spans), 2))
    return {
        "epoch_seconds": epoch_seconds,
        "estimated": timed < len(spans),
        "batches": len(spans),
        "events_per_second": predicted / epoch_seconds,
        "products_seconds": products_seconds,
        "times_products": epoch_seconds / products_seconds,
        "parts": _parts(model, data, config, first_batches),
    }


def _parts(
    model: RecBLR, data: Sequences, config: TrainConfig, batches: list[tuple[PackedBatch, bool]]
) -> dict[str, float]:
    """The shares of _PARTS and of the rest, "other", in the time of a first step on these batches."""
    device = model.device
    trainers = [Trainer(model, data, config) for _ in batches]

    def work() -> None:
        for trainer, (batch, continues) in zip(trainers, batches, strict=True):
            trainer.step(batch, continues, config.lr)

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # keeps the profiler from writing to stderr
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiler:
        elapsed = seconds(work, device)
    spent = dict.fromkeys([*_PARTS, "other"], 0.0)  # microseconds
    for event in profiler.events() or ():
        if (
            event.device_type.name == "CPU"
        ):  # an operator; its device time is that of its GPU kernels
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[_part(event)] += time_us
    total = sum(spent.values())
    if not on_gpu:
        spent["other"] += elapsed * 1e6 - total  # Python between the operators
        total = elapsed * 1e6
    return {part: spent[part] / total for part in sorted(spent, key=spent.__getitem__)[::-1]}


def _part(event: FunctionEvent | None) -> str:
    """The part of an operator, or of the innermost caller that belongs to one."""
    while event is not None:
        for part, names in _PARTS.items():
            if event.name.startswith(names):
                return part
        event = event.cpu_parent
    return "other"
