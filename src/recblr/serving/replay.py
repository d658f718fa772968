"""Rebuild all states from the event log, and compare them with offline scoring."""

import json
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recblr.data.batches import pack_latest
from recblr.data.log import Interactions, read_log
from recblr.data.preparing import NEWEST_FIRST, sort_events
from recblr.data.times import UNITS, unit_of
from recblr.errors import InputError
from recblr.progress import progress
from recblr.serving.keys import DEFAULT_TENANT
from recblr.serving.model import ServedModel, split
from recblr.serving.open_storage import open_storage
from recblr.serving.storage import Event, EventLog, History, State, User, batches
from recblr.serving.timestamps import check_not_future, to_unit
from recblr.serving.user_states import UserStates

BATCH_USERS, BATCH_EVENTS = 256, 10_000  # in one transaction
BATCH_SCORES = 1 << 24  # computed offline at once
TOLERANCE = 1e-4
TOP = 20


def replay(
    model: Path, store: str, source: Any = None, cache: str | None = None, columns: Any = None
) -> dict[str, Any]:  # fmt: skip
    """Rebuild all snapshots from the event log. The events of the log ``source``, if given, are added
    first.

    An event that the event log has already, with the same user, item and time, is not added again, so
    adding a log twice has no effect. Equal rows of ``source`` are as many events. ``source`` and
    ``columns`` are as for :func:`read_log`; ``source`` may also be Interactions.

    Returns:
        ``users`` and ``events`` in the event log, how many events of ``source`` were ``added`` and how
        many were ``present``, what gives the ``order`` of its events, and ``seconds``.
    """
    if columns is not None and source is None:
        raise InputError("--columns describes a log; pass it with --log")
    begin = time.perf_counter()
    served = ServedModel(model)
    interactions: Interactions | None = source
    if source is not None and not isinstance(source, Interactions):
        interactions = read_log(source, columns=columns)
    if interactions is not None:
        _warn_of_unknown_items(served, interactions)
    # Last, so that an error leaves no new file. Without a log, there is nothing to create one for.
    log, cached = open_storage(store, cache, BATCH_USERS, create=interactions is not None)
    try:
        states = UserStates(log, cached, served)
        added, order = (0, None) if interactions is None else _add(log, interactions)
        events, users = 0, list(log.users())
        with progress("replaying", len(users)) as advance:
            for batch in batches(users, BATCH_USERS):
                events += sum(state.count for state in states.rebuild(batch) if state)
                advance(len(batch))
    finally:
        log.close()
    return {
        "users": len(users),
        "events": events,
        "added": added,
        "present": 0 if interactions is None else len(interactions) - added,
        "order": order,
        "seconds": time.perf_counter() - begin,
    }


def _warn_of_unknown_items(served: ServedModel, interactions: Interactions) -> None:
    if text := served.describe_unknown([*map(str, interactions.item_ids.to_pylist())]):
        warnings.warn(
            f"{interactions.source}: {text}; their events are kept for a later model", stacklevel=3
        )


def _add(log: EventLog, interactions: Interactions) -> tuple[int, str]:
    """Add the interactions that an event log does not have.

    Returns:
        How many were added, and what gives the order of the interactions.

    Raises:
        InputError: a time cannot be stored, or the order of some events is unknown.
    """
    users = [str(name) for name in interactions.user_ids.to_pylist()]
    items = [str(name) for name in interactions.item_ids.to_pylist()]
    rows = np.arange(len(interactions))
    times = rows if interactions.timestamps is None else interactions.timestamps
    kinds = interactions.kind_texts()
    stored = log.unit(DEFAULT_TENANT)
    try:
        stamps = to_unit(times, interactions.unit, stored)
        check_not_future(max(stamps, default=0.0) * UNITS[stored] / UNITS["seconds"])
    except InputError as error:
        raise InputError(f"{interactions.source}: {error}") from None
    order, _, newest_first, _ = sort_events(
        interactions.users, interactions.items, interactions.timestamps
    )
    starts = np.flatnonzero(np.diff(interactions.users[order], prepend=-1))
    by_user = np.split(order, starts[1:])
    added = 0
    with progress("adding events", len(order)) as advance:
        for batch in batches(by_user, BATCH_USERS):
            names = [(DEFAULT_TENANT, users[interactions.users[rows[0]]]) for rows in batch]
            new: list[Event] = []
            with log.transaction():
                versions = log.lock(names)
                for user, version, rows in zip(names, versions, batch, strict=True):
                    wanted = [
                        (stamps[row], items[interactions.items[row]], kinds[row]) for row in rows
                    ]
                    history = log.events(user) if version else []
                    if interactions.timestamps is None:
                        _check_places(interactions.source, user, history, wanted)
                    new += _new_events(user, wanted, history)
                    advance(len(rows))
                for part in batches(new, BATCH_EVENTS):
                    versions = log.add([(DEFAULT_TENANT, event) for event in part])
                    if min(versions) <= 0:
                        event_id = part[versions.index(min(versions))].event_id
                        raise InputError(f"another event in {log.name} has the id {event_id!r}")
            added += len(new)
    return added, interactions.order + NEWEST_FIRST * newest_first


def _new_events(
    user: User, wanted: Sequence[tuple[float, str, str]], history: History
) -> list[Event]:
    """The events of a user, as (timestamp, item id, kind) in order, that are not in ``history`` yet.

    The number at the start of an event id keeps the order of events with equal timestamps, of which
    some may differ in nanoseconds.
    """
    present = Counter((timestamp, item_id) for timestamp, _, item_id, _ in history)
    ids = {event_id for _, event_id, *_ in history}
    events = []
    number, last = 0, None
    for timestamp, item_id, kind in wanted:
        number = number + 1 if timestamp == last else 0
        last = timestamp
        if present[timestamp, item_id]:
            present[timestamp, item_id] -= 1
            continue
        content = json.dumps([user[1], item_id, timestamp])
        digest = blake2b(content.encode(), digest_size=16).hexdigest()
        while (event_id := f"{number:09d}-{digest}") in ids:
            number += 1
        events.append(Event(event_id, user[1], item_id, timestamp, kind))
    return events


def _check_places(
    source: str, user: User, history: History, wanted: Sequence[tuple[float, str, str]]
) -> None:
    """InputError if a user has events without a time, but not the first ones of this log without times.

    A log may have grown since it was added, or may be an older copy.
    """
    places = {
        (timestamp, item_id) for timestamp, _, item_id, _ in history if not unit_of(timestamp)
    }
    theirs = {(timestamp, item_id) for timestamp, item_id, _ in wanted}
    if not (places <= theirs or theirs <= places):
        raise InputError(
            f"{source}: has no times, and user {user[1]!r} has events of another log without times, so "
            "that their order is unknown; add a column timestamp, or give another --store"
        )


@torch.inference_mode()
def verify(model: Path, store: str, cache: str | None = None) -> dict[str, Any]:
    """Compare the scores by every user's state with those of network and memory over the whole history.

    Users who get events in the meantime, from other servers of the log, are left out.

    Returns:
        ``users`` and ``events`` compared; ``largest``, the largest difference of a score of any user
        and item; ``lists``, how many top-20 lists differ; ``equal``, whether no list differs and no
        score by more than 1e-4.
    """
    served = ServedModel(model)
    log, cached = open_storage(store, cache, BATCH_USERS, create=False)
    states = UserStates(log, cached, served)
    largest, lists, compared, events = 0.0, 0, 0, 0
    users = list(log.users())
    if not users:
        log.close()
        raise InputError(f"{log.name} has no events to compare; recblr replay --log adds some")
    items = len(served.item_ids)
    with progress("comparing", len(users)) as advance:
        for batch in batches(users, max(1, min(BATCH_USERS, BATCH_SCORES // items))):
            by_user = {
                user: state for user, state in zip(batch, states.get_complete(batch), strict=True)
                if state is not None and state.seen
            }  # fmt: skip
            advance(len(batch))
            if not by_user:
                continue
            offline = _offline_scores(served, log, list(by_user))
            versions = log.versions(list(by_user))
            same = [
                state.version == version
                for state, version in zip(by_user.values(), versions, strict=True)
            ]
            if not any(same):
                continue
            online, offline = _online_scores(served, list(by_user.values()))[same], offline[same]
            largest = max(largest, float((online - offline).abs().max()))
            top = min(TOP, items)
            lists += int((online.topk(top)[1] != offline.topk(top)[1]).any(1).sum())
            compared += sum(same)
            events += sum(
                state.count for state, kept in zip(by_user.values(), same, strict=True) if kept
            )
    log.close()
    return {
        "users": compared,
        "events": events,
        "largest": largest,
        "lists": lists,
        "equal": lists == 0 and largest <= TOLERANCE,
    }


def _online_scores(served: ServedModel, states: Sequence[State]) -> torch.Tensor:
    """The scores (B, V) of network and memory by users' states, summed as a search does."""
    hidden = torch.from_numpy(served.hidden(np.stack([state.vector for state in states])))
    scores = hidden @ served.network.item_embeddings.t()
    for row, state in zip(scores.numpy(), states, strict=True):
        if added := served.memory_scores(np.array(state.seen), repeats=True):
            items, values = added
            row[items] += values
    return scores


def _offline_scores(served: ServedModel, log: EventLog, users: Sequence[User]) -> torch.Tensor:
    """The scores (B, V) of network and memory after whole histories, in one pass of the network."""
    histories = [served.encode(log.events(user), -np.inf, log.unit(user[0])) for user in users]
    stops = np.cumsum([len(rows) for rows in histories])
    starts, longest = np.concatenate([[0], stops[:-1]]), max(len(rows) for rows in histories)
    items, features = split(np.concatenate(histories))
    batch = pack_latest(
        items.numpy(), starts, stops, longest, "none",
        None if features is None else features.numpy(),
    )  # fmt: skip
    scores = served.network.score(batch)
    return scores if served.memory is None else served.memory.add_to(scores, batch)
