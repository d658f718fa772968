"""The event log made into states again, and held against the offline scorer."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from recblr.data.batches import latest
from recblr.data.log import Interactions, read_log
from recblr.errors import InputError
from recblr.progress import progress
from recblr.serving.app import ALONE
from recblr.serving.events import Event, User
from recblr.serving.model import ServedModel
from recblr.serving.states import States
from recblr.serving.store import Log, State
from recblr.serving.stores import open_stores

USERS, EVENTS = 256, 10_000  # of a transaction
SCORES = 1 << 24  # made offline at once
CLOSE = 1e-4
TOP = 20

T = TypeVar("T")


def replay(
    model: Path, store: str, source: str | None = None, cache: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make all snapshots anew from the events; those of a log first, where ``source`` names one.

    An event of a log has the id ``<file>:<row>``, so that a log put in twice counts once. Its dates
    become seconds since 1970, its numbers stay as they are. ``columns`` as for :func:`read_log`.

    Returns:
        ``users``, ``events`` in the log, ``added`` of them now, ``seconds``.
    """
    if columns is not None and source is None:
        raise InputError("--columns are of a log; name it by --log")
    begin = time.perf_counter()
    served = ServedModel(model)
    put = None if source is None else read_log(source, columns=columns)
    log, kept = open_stores(store, cache, USERS)  # after all that can be wrong: it leaves no file
    states = States(log, kept, served)
    added = 0 if put is None else _add(log, put, Path(put.source).name)
    events, users = 0, list(log.users())
    with progress("replaying", len(users)) as advance:
        for some in _batches(users, USERS):
            events += sum(state.count for state in states.rebuild(some, whole=True).values())
            advance(len(some))
    log.close()
    seconds = time.perf_counter() - begin
    return {"users": len(users), "events": events, "added": added, "seconds": seconds}


def _add(log: Log, source: Interactions, name: str) -> int:
    """Put the events of a log into the event log; how many were not there."""
    users, items = source.user_ids.to_pylist(), source.item_ids.to_pylist()
    times = np.arange(len(source)) if source.timestamps is None else source.timestamps
    if source.dates:
        times = times / 1e6
    added = 0
    with progress("adding events", len(source)) as advance:
        for rows in _batches(range(len(source)), EVENTS):
            events = [
                (ALONE, Event(f"{name}:{row:012d}", str(users[source.users[row]]),
                              str(items[source.items[row]]), float(times[row])))
                for row in rows
            ]  # fmt: skip
            with log.transaction():
                log.lock(list({(tenant, event.user_id) for tenant, event in events}))
                added += sum(version > 0 for version in log.add(events))
            advance(len(rows))
    return added


@torch.inference_mode()
def verify(model: Path, store: str, cache: str | None = None) -> dict[str, Any]:
    """Compare what is remembered of every user with network and memory run over the whole history.

    Users who get events meanwhile, from servers that share the log, are left out.

    Returns:
        ``users``, ``events`` that were compared; ``largest`` difference of a score of any user and
        item; ``lists``, how many top 20 differ; ``equal``, whether none does and no score by more
        than 1e-4.
    """
    served = ServedModel(model)
    log, kept = open_stores(store, cache, USERS, make=False)
    states = States(log, kept, served)
    vectors = served.network.item_embeddings
    largest, lists, compared, events = 0.0, 0, 0, 0
    users = list(log.users())
    with progress("comparing", len(users)) as advance:
        for some in _batches(users, max(1, min(USERS, SCORES // len(vectors)))):
            found = {
                user: state for user, state in zip(some, states.of(some), strict=True)
                if state is not None and state.seen
            }  # fmt: skip
            offline = _offline(served, log, list(found)) if found else vectors[:0]
            now = log.versions(list(found))
            same = [state.version == it for state, it in zip(found.values(), now, strict=True)]
            if any(same):
                online = _online(served, list(found.values()))[same]
                offline = offline[same]
                largest = max(largest, float((online - offline).abs().max()))
                top = min(TOP, len(vectors))
                lists += int((online.topk(top)[1] != offline.topk(top)[1]).any(1).sum())
            compared += sum(same)
            events += sum(state.count for state, it in zip(found.values(), same, strict=True) if it)
            advance(len(some))
    log.close()
    equal = lists == 0 and largest <= CLOSE
    return {
        "users": compared,
        "events": events,
        "largest": largest,
        "lists": lists,
        "equal": equal,
    }


def _online(served: ServedModel, states: Sequence[State]) -> torch.Tensor:
    """Scores (B, V) by what is remembered of users, of network and memory, as a search adds them up."""
    hidden = torch.from_numpy(served.hidden(np.stack([state.vector for state in states])))
    scores = hidden @ served.network.item_embeddings.t()
    for row, state in zip(scores.numpy(), states, strict=True):
        if added := served.added(np.array(state.seen), repeats=True):
            items, values = added
            row[items] += values
    return scores


def _offline(served: ServedModel, log: Log, users: Sequence[User]) -> torch.Tensor:
    """Scores (B, V) after whole histories, in one pass of the network and with what the memory adds."""
    histories = [served.rows([item for _, _, item in log.events(user)]) for user in users]
    stops = np.cumsum([len(rows) for rows in histories])
    starts, longest = np.concatenate([[0], stops[:-1]]), max(len(rows) for rows in histories)
    batch = latest(np.concatenate(histories), starts, stops, longest, "none")
    scores = served.network.score(batch)
    return scores if served.memory is None else served.memory.add_to(scores, batch)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
