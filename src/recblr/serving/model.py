"""A trained model for serving: adds events to the states of many users, and finds the best items."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recblr import artifact, retrieval
from recblr.data.vocabulary import Vocabulary
from recblr.errors import InputError
from recblr.models.fused_step import FusedStep
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.training.stage import describe_unseen

MAX_STEPS = 12  # up to so many events of a user, single steps are faster than a pass of the network
SHOWN = 3  # unknown ids in a message
PART_EVENTS, PASS_EVENTS = 4096, 16384  # of one history, and of all histories, in a pass


class ServedModel:
    """A loaded artifact; it is not changed.

    A vector of a user has D + S numbers: the hidden vector after the last event, and the state of the
    network.

    Attributes:
        path: the folder of the artifact.
        hash: the hash of the artifact, which every answer names.
        name: the kind of model, such as ``recblr``.
        network: the model, on the CPU.
        memory: the memory of transitions, or None.
        reach: how many of a user's last items the memory looks up.
        item_ids: item ids by row, with the types that they have in the log.
        vocabulary: the same ids, for messages.
        index: searches the best items.
        start: (D + S,) the vector of a user without events.
        counts: (V,) how often each item occurs in the training part.
        popular: (V,) item rows, the most frequent first.
        unseen: one line about events of its log that the model was not trained on; "" if none.

    Raises:
        InputError: the folder is not a complete artifact, or its model has no state.
    """

    def __init__(self, path: Path) -> None:
        contents = artifact.load(path, histories=False)
        network = contents.network
        if not isinstance(network, RecurrentModel):
            raise InputError(
                f"{path}: {contents.model} has no state to update by an event and cannot be "
                "served; train recblr, gru4rec or lrurec"
            )
        self.path, self.name, self.network = path, contents.model, network
        self.memory = contents.memory
        self.reach = self.memory.config.reach if self.memory is not None else 1
        self.hash = artifact.digest(path)[:16]
        self.vocabulary = Vocabulary(contents.data.item_ids, "item")
        self.item_ids: list[str | int] = contents.data.item_ids.to_pylist()
        self._rows = {str(name): row for row, name in enumerate(self.item_ids)}
        self._fused = FusedStep(network) if isinstance(network, RecBLR) else None
        with torch.no_grad():
            self._state = network.initial_state(1)
            self._width = network.item_embeddings.shape[1]
            self.index = retrieval.build(network.item_embeddings.detach())
        no_event = np.zeros(self._width, np.float32)
        self.start = np.concatenate([no_event, self._state.numpy().ravel()])
        self.start.flags.writeable = False
        some = np.arange(min(3, len(self.item_ids)))
        if not np.isfinite(self.fold(self.start[None], [some])).all():
            raise InputError(f"{path}: the states are not finite; train the model again")
        self.counts = contents.data.item_counts
        self.unseen = describe_unseen(contents.stages)
        self.popular = np.argsort(-self.counts, kind="stable")

    def __repr__(self) -> str:
        return f"ServedModel({self.name!r}, {self.hash}, {len(self.item_ids):,} items)"

    def hidden(self, vectors: np.ndarray) -> np.ndarray:
        """The hidden vectors (B, D) in vectors (B, D + S)."""
        return vectors[:, : self._width]

    def knows(self, item_id: str) -> bool:
        """Whether the model has an item."""
        return item_id in self._rows

    def describe_unknown(self, item_ids: Iterable[str]) -> str:
        """One line about the items that the model does not know; empty if it knows all."""
        unknown: list[str | int] = [*dict.fromkeys(id for id in item_ids if id not in self._rows)]
        unknown[:SHOWN] = [self.vocabulary.from_text(str(id)) for id in unknown[:SHOWN]]
        return self.vocabulary.describe_unknown(unknown) if unknown else ""

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """The rows of items; items that the model does not know are left out."""
        rows = map(self._rows.get, item_ids)
        return np.array([row for row in rows if row is not None], np.int64)

    def knows_all(self, item_ids: Sequence[str]) -> bool:
        """Whether the model has all of some items."""
        return self._rows.keys() >= set(item_ids)

    def memory_scores(self, history: np.ndarray, repeats: bool) -> retrieval.Added | None:
        """What the memory adds to the scores, as :meth:`Memory.terms_after`; None without a memory."""
        return None if self.memory is None else self.memory.terms_after(history, repeats)

    @torch.inference_mode()
    def fold(self, vectors: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors (B, D + S) of users after more events: item rows, oldest first."""
        vectors = vectors.copy()
        pending = [(user, rows) for user, rows in enumerate(histories) if len(rows)]
        while pending:
            batch: list[tuple[int, np.ndarray]] = []
            events = 0
            for user, rows in pending:  # one part each, of as many users as fit into a pass
                if batch and events + min(len(rows), PART_EVENTS) > PASS_EVENTS:
                    break
                batch.append((user, rows[:PART_EVENTS]))
                events += len(batch[-1][1])
            users = np.array([user for user, _ in batch])
            vectors[users] = self._pass(vectors[users], [rows for _, rows in batch])
            rest = [(user, rows[PART_EVENTS:]) for user, rows in pending[: len(batch)]]
            pending = [(user, rows) for user, rows in rest if len(rows)] + pending[len(batch) :]
        return vectors

    def _pass(self, vectors: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(rows) for rows in histories])
        if self._fused is not None and lengths.max() <= MAX_STEPS:
            return self._steps(vectors, histories, lengths)
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        items = torch.from_numpy(np.concatenate(histories))
        hidden, state = self.network(items, offsets, self.states(vectors))
        return _joined(hidden[offsets[1:] - 1], state)

    def _steps(
        self, vectors: np.ndarray, histories: list[np.ndarray], lengths: np.ndarray
    ) -> np.ndarray:
        assert self._fused is not None
        for step in range(lengths.max()):
            users = np.flatnonzero(lengths > step)
            items = torch.tensor([histories[user][step] for user in users])
            vectors[users] = _joined(*self._fused.step(items, self.states(vectors[users])))
        return vectors

    def states(self, vectors: np.ndarray) -> Tensor:
        """The states of the network in vectors (B, D + S)."""
        states = np.ascontiguousarray(vectors[:, self._width :])
        return torch.from_numpy(states).view(len(vectors), *self._state.shape[1:])


def _joined(hidden: Tensor, state: Tensor) -> np.ndarray:
    return torch.cat([hidden, state.flatten(1)], 1).numpy()
