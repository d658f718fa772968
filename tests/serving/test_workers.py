"""Several servers of one log, and several clients of one user."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from conftest import SOAK
from recblr.serving.model import ServedModel
from serving.fixtures import Store, expected_scores
from serving.server_process import ServerProcess, event_body, wait_until

READS, EVENTS_PER_CLIENT = (10_000, 50) if SOAK else (100, 15)


def test_read_your_writes_over_http(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    """Whichever server the event was sent to."""
    workers = [ServerProcess(models / "a", store) for _ in range(store.workers)]
    for number in range(READS):
        user, writer, reader = f"u{number % 7}", workers[number % len(workers)], workers[-1]
        writer.post("/v1/events", event_body(number, user, str(a.item_ids[0])))
        assert reader.get(f"/v1/users/{user}")["last_event_id"] == f"e{number}"
    for worker in workers:
        worker.stop()
    keep(f"read your writes, {store.kind}", reads=READS, stale=0)


def best_five(model: ServedModel, history: list[str]) -> dict[str | int, float]:
    scores = expected_scores(model, model.rows(history))
    return {model.item_ids[row]: float(scores[row]) for row in np.argsort(-scores)[:5]}


def serves(worker: ServerProcess, model: ServedModel) -> Callable[[], bool]:
    return lambda: worker.get("/health/live")["model"] == model.hash


def test_every_worker_follows_a_swap(
    models: Path, a: ServedModel, b: ServedModel, shared: Store
) -> None:
    """Under load: each request is answered by one of the two models."""
    workers = [ServerProcess(models / "a", shared) for _ in range(2)]
    first = workers[0]
    history = [str(item_id) for item_id in a.item_ids[:70]]
    events = [event_body(number, "u", item) for number, item in enumerate(history)]
    first.post("/v1/events", {"events": events})
    expected = {model.hash: best_five(model, history) for model in (a, b)}
    answered_by: list[list[str]] = [[], []]

    def recommend(number: int) -> None:
        hashes = answered_by[number]
        with httpx.Client(base_url=workers[number].client.base_url, timeout=60) as client:
            while hashes[-1:] != [b.hash] or len(hashes) < 20:
                answer = client.get("/v1/users/u/recommendations?k=5&hide_seen=false").json()
                scores = {item["item_id"]: item["score"] for item in answer["items"]}
                assert scores == pytest.approx(expected[answer["model"]], abs=1e-4)
                hashes.append(answer["model"])

    threads = [threading.Thread(target=recommend, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(answered_by))
    assert first.post("/v1/models/swap", {"name": "b"})["model"] == b.hash
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert {model for hashes in answered_by for model in hashes} == {a.hash, b.hash}
    # A server that starts later follows, too. One that is started with another model leads.
    later = ServerProcess(models / "a", shared)
    assert serves(later, b)()
    lead = ServerProcess(models / "b", shared)
    first.post("/v1/models/swap", {"name": "a"})
    for worker in (*workers, later, lead):
        wait_until(serves(worker, a))
    # A worker notices that its own swap is undone at once.
    for worker, name in ((workers[1], "b"), (workers[0], "a")):
        worker.post("/v1/models/swap", {"name": name})
    for worker in (*workers, later, lead):
        wait_until(serves(worker, a))
        worker.stop()


def test_a_worker_that_cannot_load_the_model_is_not_ready(
    models: Path, a: ServedModel, tmp_path: Path, shared: Store
) -> None:
    shutil.copytree(models, tmp_path / "models")
    worker = ServerProcess(tmp_path / "models" / "a", shared)
    log = shared.log()
    log.record_swap(str(tmp_path / "models" / "none"), "another")
    wait_until(lambda: worker.client.get("/health/ready").status_code == 503)
    error = worker.client.get("/health/ready").json()["error"]
    assert error.startswith("the model to be served failed to load: ")
    assert worker.post("/v1/recommend", {"history": [a.item_ids[0]]})["model"] == a.hash
    log.record_swap(str(tmp_path / "models" / "a"), a.hash)
    log.close()
    wait_until(lambda: worker.client.get("/health/ready").status_code == 200)
    worker.stop()


def test_events_of_one_user_from_many_clients(
    models: Path, a: ServedModel, store: Store, keep: Callable[..., None]
) -> None:
    workers = [ServerProcess(models / "a", store) for _ in range(store.workers)]
    clients, count = 8, 8 * EVENTS_PER_CLIENT

    def send(client: int) -> None:
        url = workers[client % len(workers)].client.base_url
        with httpx.Client(base_url=url, timeout=60) as connection:
            for number in range(EVENTS_PER_CLIENT):
                event = event_body(number * clients + client, "u", str(a.item_ids[client]))
                connection.post("/v1/events", json=event).raise_for_status()

    threads = [threading.Thread(target=send, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workers[0].get("/v1/users/u")["events"] == count
    history = [str(a.item_ids[number % clients]) for number in range(count)]
    expected = workers[0].post("/v1/recommend", {"history": history, "k": 20})["items"]
    for worker in workers:
        items = worker.get("/v1/users/u/recommendations?k=20")["items"]
        assert [item["item_id"] for item in items] == [item["item_id"] for item in expected]
        assert [item["score"] for item in items] == pytest.approx(
            [item["score"] for item in expected], abs=1e-5
        )
    for worker in workers:
        worker.stop()
    keep(f"one user, {store.kind}", workers=len(workers), clients=clients, events=count, lost=0)
