"""The search of the best items, for several requests in one pass over the items."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch

from recblr.serving.fair_queue import FairQueue
from recblr.serving.model import ServedModel
from recblr.serving.requests import RankedItems

BATCH = 16  # searches in one pass
# Items of a catalogue that is searched without passing the request to another thread: both would wait
# for the lock of the interpreter for longer than the search takes.
FEW = 200_000


class ItemSearch(NamedTuple):
    """A hidden vector (D,) to compare with the items, and the history for the memory of transitions.

    ``history`` and ``repeats`` are arguments of :meth:`ServedModel.memory_scores`. ``hide`` and
    ``allow`` are item rows.
    """

    model: ServedModel
    hidden: np.ndarray
    history: np.ndarray
    repeats: bool
    k: int
    hide: np.ndarray
    allow: np.ndarray | None

    @property
    def is_quick(self) -> bool:
        """Whether it is best done alone and at once."""
        return self.model.index.is_small

    @property
    def is_short(self) -> bool:
        """Whether it takes less time than passing it to another thread."""
        return len(self.model.item_ids) <= FEW

    def run(self) -> RankedItems:
        """The best items."""
        model = self.model
        if self.allow is not None:
            return _search(model, [self])[0]
        added = model.memory_scores(self.history, self.repeats)
        scores, rows = model.index.search_one(self.hidden, self.k, self.hide, added)
        return RankedItems(model, "history", rows, scores)


class ItemSearcher:
    """Runs searches on a thread of its own."""

    def __init__(self) -> None:
        self._queue: FairQueue[tuple[ItemSearch, Future[Any]]] = FairQueue(BATCH)
        self._thread = threading.Thread(target=self._run, name="items", daemon=True)
        self._thread.start()

    def submit(self, tenant: str, search: ItemSearch, answer: "Future[Any]") -> None:
        """Queue a search; ``answer`` gets the RankedItems."""
        self._queue.put(tenant, (search, answer))

    def close(self) -> None:
        """Finish the queued searches and end the thread."""
        self._queue.close()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._queue.take()) is not None:
            search_together(batch)


def search_together(batch: Sequence[tuple[ItemSearch, "Future[Any]"]]) -> None:
    """Give each future the RankedItems of its search, or the error."""
    for model in {search.model for search, _ in batch}:
        searches, answers = zip(
            *((search, answer) for search, answer in batch if search.model is model), strict=True
        )
        try:
            results = _search(model, searches)
        except Exception as error:
            for answer in answers:
                answer.set_exception(error)
            continue
        for answer, result in zip(answers, results, strict=True):
            answer.set_result(result)


def _search(model: ServedModel, searches: Sequence[ItemSearch]) -> list[RankedItems]:
    vectors = torch.from_numpy(np.stack([search.hidden for search in searches]))
    added = [model.memory_scores(search.history, search.repeats) for search in searches]
    scores, rows = model.index.search(
        vectors, max(search.k for search in searches), [search.hide for search in searches],
        [search.allow for search in searches], added,
    )  # fmt: skip
    results = []
    for search, best, row in zip(searches, scores, rows, strict=True):
        count = min(search.k, int((row >= 0).sum()))
        results.append(RankedItems(model, "history", row[:count], best[:count]))
    return results
