"""Refit a model on all events of its log, and update it with the events of another log.

Axes: V items.
"""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import sparse

from recblr import memory as transitions
from recblr.artifact import Artifact
from recblr.data.columns import Columns
from recblr.data.log import Interactions, read_log
from recblr.data.merge import Added, add_events
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.memory import Memory, MemoryConfig
from recblr.models.content import Content, add_content, attached
from recblr.models.growth import grow
from recblr.ranks import ALONE, Ranks
from recblr.training.examples import new_and_old_histories
from recblr.training.stage import Stage
from recblr.training.start import new_network
from recblr.training.trainer import Trainer

# How an update trains; docs/experiments.md has the trials.
EPOCHS = 10  # passes over the new events
REPLAY = 1.0  # older events for each new one


def refit(contents: Artifact, folder: Path, resume: bool = False, ranks: Ranks = ALONE) -> Artifact:
    """Train new weights on all events, for as many updates as the best epoch took.

    Settings, seed and schedule are those of the measured model, as are the numbers of the memory, whose
    transitions are counted anew.

    Args:
        contents: a model as ``fit`` left it.
        folder: the folder of run.jsonl and of the checkpoint.
        resume: continue from the checkpoint in ``folder``, if there is one.
        ranks: the processes that train the model together.

    Raises:
        InputError: the model is refitted or updated already.
        DivergedError: the loss is not finite.
    """
    if contents.stages[-1].kind != "fit":
        raise InputError(
            f"the model is the result of {contents.stages[-1].kind}; only a model that fit has "
            "measured can be refitted: train it anew"
        )
    config, data = contents.training, contents.data.all_for_training()
    network = new_network(contents.model, contents.config, config, data, ranks)
    network = network.to(contents.network.device)
    content = contents.content and Content(contents.content.items)
    per_epoch = len(Trainer(network, contents.data, config).spans(0))
    updates = contents.trained.best_epoch * per_epoch
    settings = config.content_dropout, config.content_events
    with attached(content, network, data.item_counts, *settings):
        trainer = Trainer(network, data, config, ranks=ranks)
        run = trainer.train_without_validation(folder, updates, per_epoch, resume)
    memory = _count(contents, data, ranks)
    stage = Stage.of("refit", data, updates, run.seconds)
    return replace(
        contents, data=data, network=network, memory=memory, content=content,
        stages=[*contents.stages, stage],
    )  # fmt: skip


def update(
    contents: Artifact,
    source: Any,
    folder: Path,
    memory_only: bool = False,
    columns: Columns | None = None,
    item_vectors: Any = None,
    item_categories: Any = None,
) -> tuple[Artifact, Added]:
    """Add the events of a log: to the histories, to the memory, and by training to the weights.

    Known users and items keep their rows. A new item starts as the mean of the items that are near it
    in the histories, weighted by the memory's counts, and with content as :func:`grow` says. Training
    goes on with the events that the weights have not seen (the held-out ones of ``contents``, too) and
    a sample of older ones: see ``EPOCHS`` and ``REPLAY``. The memory is equal to one that is fitted on
    all events.

    Args:
        contents: a model.
        source: a log as for :func:`recblr.read_log`, as are ``columns``.
        folder: the folder of run.jsonl and of the checkpoint.
        memory_only: do not train.
        item_vectors, item_categories: content of new items, as for :func:`read_content`.

    Raises:
        InputError: the log or the content cannot be read, it does not fit that of the model, or nothing
            is new.
        DivergedError: the loss is not finite.
    """
    log = source if isinstance(source, Interactions) else read_log(source, columns=columns)
    data, added = add_events(contents.data, log)
    data, content = add_content(data, item_vectors, item_categories, contents.content)
    added = replace(added, items=len(data.item_ids) - len(contents.data.item_ids))
    everything = data.all_for_training()
    counted = contents.stages[-1].kind != "fit"
    if (
        not added.events
        and not added.items
        and counted
        and (memory_only or data.training_events == len(data.items))
    ):
        raise InputError(f"{log.source}: the model has all {added.known_events:,} events already")
    memory = _count(contents, everything)
    near = memory or transitions.fit(everything, MemoryConfig())
    known = len(contents.data.item_ids)
    neighbours = sparse.csr_array(near.matrix[known:, :known])
    config = contents.training
    torch.manual_seed(config.seed)
    network = grow(
        contents.network, contents.model, neighbours, users=data.users,
        max_length=config.max_length, content=content, feature_set=data.feature_set,
    )  # fmt: skip
    if memory_only:
        stage = Stage.of("memory-only update", data, 0, 0.0)
    else:
        repeated = replace(config, epochs=EPOCHS, schedule="cosine")
        histories = partial(new_and_old_histories, data, config.max_length, REPLAY, config.seed)
        settings = config.content_dropout, config.content_events
        with attached(content, network, everything.item_counts, *settings):
            trainer = Trainer(network, everything, repeated, histories)
            per_epoch = len(trainer.spans(0))
            run = trainer.train_without_validation(folder, EPOCHS * per_epoch, per_epoch)
        data = everything
        stage = Stage.of("update", data, EPOCHS * per_epoch, run.seconds)
    stages = [*contents.stages, stage]
    updated = replace(
        contents, data=data, network=network, memory=memory, content=content, stages=stages
    )
    return updated, added


def _count(contents: Artifact, data: Sequences, ranks: Ranks = ALONE) -> Memory | None:
    """The memory of a model with the transitions of the training part of ``data``."""
    old, config = contents.memory, contents.memory_config
    if old is None:
        return None
    fitted = transitions.fit(data, config, ranks)
    repeat = old.repeat
    if config.repeat is None and data.has_repeats and not contents.data.has_repeats:
        warnings.warn(
            "users repeat items in the new events, and did not before; seen items are no longer ranked "
            "last; train the model anew to choose its settings for repeats",
            stacklevel=4,
        )
        repeat = fitted.repeat
    return replace(fitted, weight=old.weight, scale=old.scale, repeat=repeat)
