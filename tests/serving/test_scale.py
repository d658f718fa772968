"""Long histories and large logs: bounded replays, restarts, and all events of MovieLens."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SOAK, slow
from recblr.data.log import read_log
from recblr.recommender import Recommender
from recblr.serving.model import ServedModel
from recblr.serving.replay import verify
from recblr.serving.storage import Event
from recblr.training.config import TrainConfig
from serving.fixtures import Store
from serving.server_process import ServerProcess, event_body

HISTORY, LATE, LOG_EVENTS = (5_000, 200, 1_000_000) if SOAK else (2_000, 50, 10_000)


def test_a_late_event_costs_a_bounded_replay(
    a: ServedModel, store: Store, keep: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is recomputed from a snapshot close to the event, however long the history is."""
    folded: list[int] = []
    fold = ServedModel.fold

    def counted(self: ServedModel, vectors: Any, histories: Any) -> Any:
        folded.append(sum(map(len, histories)))
        return fold(self, vectors, histories)

    engine, draw = store.engine(a), random.Random(4)
    for start in range(0, HISTORY, 500):
        events = [
            Event(f"e{n}", "u", str(draw.choice(a.item_ids)), float(n))
            for n in range(start, start + 500)
        ]
        engine.record("t", events).result(60)
    monkeypatch.setattr(ServedModel, "fold", counted)
    seconds = []
    for number in range(LATE):
        folded.clear()
        late = Event(f"late{number}", "u", str(a.item_ids[0]), HISTORY - draw.uniform(0, 30))
        begin = time.perf_counter()
        engine.record("t", [late]).result(60)
        seconds.append(time.perf_counter() - begin)
        assert sum(folded) <= 4 * (30 + number) + 128 + 1
    engine.close()
    p99 = 1000 * float(np.percentile(seconds, 99))
    keep(f"late events, {store.kind}", p99_ms=round(p99, 2), history=HISTORY)


@slow
def test_a_server_starts_again_from_a_large_log(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    draw, log = random.Random(5), store.log()
    for start in range(0, LOG_EVENTS, 10_000):
        events = [
            Event(f"e{n}", f"u{n % 5000}", str(draw.choice(a.item_ids)), n)
            for n in range(start, start + 10_000)
        ]
        with log.transaction():
            log.add([("default", event) for event in events])
    log.close()
    server = ServerProcess(models / "a", store)
    server.post("/v1/events", event_body(LOG_EVENTS, "u0", str(a.item_ids[0])))
    server.kill()
    server = ServerProcess(models / "a", store)
    assert server.get("/v1/users/u0")["last_event_id"] == f"e{LOG_EVENTS}"
    server.stop()
    keep(f"recovery, {store.kind}", events=LOG_EVENTS, seconds=round(server.seconds, 2))
    assert not SOAK or server.seconds < 10


@pytest.mark.skipif(
    not SOAK or "RECBLR_DATA" not in os.environ, reason="needs RECBLR_SOAK and RECBLR_DATA"
)
def test_all_of_movielens(tmp_path: Path, file: Store, keep: Callable[..., None]) -> None:
    """All events in the order of time, a few at a time; then all states against offline scoring."""
    path = Path(os.environ["RECBLR_DATA"]) / "ml-1m.tsv.gz"
    training = TrainConfig(epochs=1, batch_size=2048, window=3000, lr=3e-3, seed=0)
    Recommender("recblr", training=training).fit(path, core=5, out=tmp_path / "model")
    log = read_log(path)
    users, items = log.user_ids.to_pylist(), log.item_ids.to_pylist()
    engine = file.engine(ServedModel(tmp_path / "model"))
    # The file has no times: first come the first events of all users, then their second ones.
    by_user = np.argsort(log.users, kind="stable")
    counts = np.bincount(log.users)
    place = np.empty(len(log), np.int64)
    place[by_user] = np.arange(len(log)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(place, kind="stable")
    begin = time.perf_counter()
    for rows in np.array_split(order, len(order) // 50):
        events = [
            Event(f"{row:07d}", str(users[log.users[row]]), str(items[log.items[row]]),
                  float(place[row]))
            for row in rows
        ]  # fmt: skip
        outcomes = engine.record("t", events).result(60)
        assert {outcome.status for outcome in outcomes} == {"accepted"}
    seconds = time.perf_counter() - begin
    engine.close()
    result = verify(tmp_path / "model", file.name)
    assert result["equal"]
    assert (result["users"], result["events"]) == (len(users), len(log))
    keep("online is offline", **result, recorded_in_seconds=round(seconds))
