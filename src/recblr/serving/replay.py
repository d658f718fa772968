"""Rebuild all states from the event log, and compare them with offline scoring."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from recblr.data.batches import pack_latest
from recblr.data.log import Interactions, read_log
from recblr.errors import InputError
from recblr.progress import progress
from recblr.serving.keys import DEFAULT_TENANT
from recblr.serving.model import ServedModel
from recblr.serving.open_storage import open_storage
from recblr.serving.storage import Event, EventLog, State, User
from recblr.serving.user_states import UserStates

BATCH_USERS, BATCH_EVENTS = 256, 10_000  # in one transaction
BATCH_SCORES = 1 << 24  # computed offline at once
TOLERANCE = 1e-4
TOP = 20

T = TypeVar("T")


def replay(
    model: Path, store: str, source: str | None = None, cache: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rebuild all snapshots from the event log. The events of the log ``source``, if given, are added
    first.

    An added event has the id ``<file>:<row>``, so adding a log twice has no effect. Its dates become
    seconds since 1970; its numbers do not change. ``columns`` as for :func:`read_log`.

    Returns:
        ``users`` and ``events`` in the event log, how many events were ``added``, and ``seconds``.
    """
    if columns is not None and source is None:
        raise InputError("--columns describes a log; pass it with --log")
    begin = time.perf_counter()
    served = ServedModel(model)
    interactions = None if source is None else read_log(source, columns=columns)
    log, cached = open_storage(store, cache, BATCH_USERS)  # last: an error leaves no new file
    states = UserStates(log, cached, served)
    added = 0 if interactions is None else _add(log, interactions)
    events, users = 0, list(log.users())
    with progress("replaying", len(users)) as advance:
        for batch in _batches(users, BATCH_USERS):
            rebuilt = states.rebuild(batch, from_scratch=True)
            events += sum(state.count for state in rebuilt.values())
            advance(len(batch))
    log.close()
    seconds = time.perf_counter() - begin
    return {"users": len(users), "events": events, "added": added, "seconds": seconds}


def _add(log: EventLog, interactions: Interactions) -> int:
    """Add interactions to an event log; returns how many were new."""
    name = Path(interactions.source).name
    users, items = interactions.user_ids.to_pylist(), interactions.item_ids.to_pylist()
    count = len(interactions)
    times = np.arange(count) if interactions.timestamps is None else interactions.timestamps
    if interactions.dates:
        times = times / 1e6
    added = 0
    with progress("adding events", count) as advance:
        for rows in _batches(range(count), BATCH_EVENTS):
            events = [
                Event(f"{name}:{row:012d}", str(users[interactions.users[row]]),
                      str(items[interactions.items[row]]), float(times[row]))
                for row in rows
            ]  # fmt: skip
            with log.transaction():
                log.lock(list({(DEFAULT_TENANT, event.user_id) for event in events}))
                versions = log.add([(DEFAULT_TENANT, event) for event in events])
                added += sum(version > 0 for version in versions)
            advance(len(rows))
    return added


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
    items = len(served.item_ids)
    with progress("comparing", len(users)) as advance:
        for batch in _batches(users, max(1, min(BATCH_USERS, BATCH_SCORES // items))):
            by_user = {
                user: state for user, state in zip(batch, states.get(batch), strict=True)
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
    histories = [served.rows([item for _, _, item in log.events(user)]) for user in users]
    stops = np.cumsum([len(rows) for rows in histories])
    starts, longest = np.concatenate([[0], stops[:-1]]), max(len(rows) for rows in histories)
    batch = pack_latest(np.concatenate(histories), starts, stops, longest, "none")
    scores = served.network.score(batch)
    return scores if served.memory is None else served.memory.add_to(scores, batch)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
