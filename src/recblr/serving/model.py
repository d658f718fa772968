"""A trained model as the server uses it: one event more of many users, and the best items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recblr import artifact, retrieval
from recblr.errors import InputError
from recblr.models.fused_step import FusedStep
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.recommender import load

STEPS = 64  # up to so many events one step after another is quicker than a pass over all
PIECE, PASS = 4096, 16384  # events of a history, and of all histories, in one pass


class ServedModel:
    """An artifact, loaded and never changed.

    Attributes:
        path: its folder.
        hash: of the artifact; every answer names it.
        name: of the model, such as ``recblr``.
        network: the model, on the CPU.
        memory: of transitions, which adds to the scores of the network; None where it has none.
        reach: how many of a user's last items the memory looks up.
        item_ids: by row, as the log had them.
        index: finds the best items.
        start: (D + S,), the vector of a user without events.
        counts: how often each item is in the training part.
        popular: rows of all items, the most frequent first.

    Raises:
        InputError: it is no whole artifact, or its model keeps no state.
    """

    def __init__(self, path: Path) -> None:
        recommender = load(path, "cpu")
        network = recommender.network
        if not isinstance(network, RecurrentModel):
            raise InputError(
                f"{path}: {recommender.model} has no state to update by an event and cannot be "
                "served; train recblr, gru4rec or lrurec"
            )
        self.path, self.name, self.network = path, recommender.model, network
        self.memory = recommender.memory
        self.reach = self.memory.config.reach if self.memory is not None else 1
        self.hash = artifact.digest(path)[:16]
        self.item_ids: list[str | int] = recommender.data.item_ids.to_pylist()
        self._rows = {str(name): row for row, name in enumerate(self.item_ids)}
        self._fused = FusedStep(network) if isinstance(network, RecBLR) else None
        with torch.no_grad():
            self._state = network.initial_state(1)
            self._width = network.item_embeddings.shape[1]
            self.index = retrieval.build(network.item_embeddings.detach())
        nothing = np.zeros(self._width, np.float32)
        self.start = np.concatenate([nothing, self._state.numpy().ravel()])
        self.start.flags.writeable = False
        self.counts = recommender.data.item_counts
        self.popular = np.argsort(-self.counts, kind="stable")

    def hidden(self, vectors: np.ndarray) -> np.ndarray:
        """Of vectors (B, D + S) what the items are compared with, (B, D)."""
        return vectors[:, : self._width]

    def knows(self, item_id: str) -> bool:
        """Whether it is an item of the model."""
        return item_id in self._rows

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """Rows of the items that the model knows; the others are passed over."""
        found = (self._rows.get(name) for name in item_ids)
        return np.array([row for row in found if row is not None], np.int64)

    def added(self, history: np.ndarray, repeats: bool) -> retrieval.Added | None:
        """What the memory adds to the scores after a history (T,) of item rows, T at least 1.

        The transitions look at the last ``reach`` rows only.

        Args:
            history: the whole of it with ``repeats``; without, the last rows suffice.
            repeats: whether to add the term of items that the history holds. Where they are hidden
                it makes no difference.
        """
        if self.memory is None:
            return None
        items, values = self.memory.after(history)
        if not repeats or self.memory.repeat == 0:
            return items, values
        held = np.unique(history)
        values = np.concatenate([values, np.full(len(held), self.memory.repeat)])
        items, place = np.unique(np.concatenate([items, held]), return_inverse=True)
        return items, np.bincount(place, values).astype(np.float32)

    @torch.inference_mode()
    def fold(self, vectors: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors (B, D + S) after more events of each user, oldest first, as item rows."""
        vectors = vectors.copy()
        left = [(user, rows) for user, rows in enumerate(histories) if len(rows)]
        while left:
            now: list[tuple[int, np.ndarray]] = []
            events = 0
            for user, rows in left:  # as many users as one pass takes, a piece of each
                if now and events + min(len(rows), PIECE) > PASS:
                    break
                now.append((user, rows[:PIECE]))
                events += len(now[-1][1])
            users = np.array([user for user, _ in now])
            vectors[users] = self._pass(vectors[users], [rows for _, rows in now])
            done = len(now)
            left = [(u, r[PIECE:]) for u, r in left[:done] if len(r) > PIECE] + left[done:]
        return vectors

    def _pass(self, vectors: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(rows) for rows in histories])
        if self._fused is not None and lengths.sum() <= STEPS:
            return self._steps(vectors, histories, lengths)
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        items = torch.from_numpy(np.concatenate(histories))
        hidden, state = self.network(items, offsets, self._states(vectors))
        return _joined(hidden[offsets[1:] - 1], state)

    def _steps(
        self, vectors: np.ndarray, histories: list[np.ndarray], lengths: np.ndarray
    ) -> np.ndarray:
        assert self._fused is not None
        for number in range(lengths.max()):
            users = np.flatnonzero(lengths > number)
            items = torch.tensor([histories[user][number] for user in users])
            vectors[users] = _joined(*self._fused.step(items, self._states(vectors[users])))
        return vectors

    def _states(self, vectors: np.ndarray) -> Tensor:
        states = np.ascontiguousarray(vectors[:, self._width :])
        return torch.from_numpy(states).view(len(vectors), *self._state.shape[1:])


def _joined(hidden: Tensor, state: Tensor) -> np.ndarray:
    return torch.cat([hidden, state.flatten(1)], 1).numpy()
