"""A trained model for serving: adds events to the states of many users, and finds the best items."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recblr import artifact, retrieval
from recblr.data.times import seconds_between
from recblr.data.vocabulary import Vocabulary
from recblr.errors import InputError
from recblr.inverted_file import build
from recblr.models.fused_step import FusedStep
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLR
from recblr.serving.storage import History
from recblr.training.stage import describe_unseen

MAX_STEPS = 12  # up to so many events of a user, single steps are faster than a pass of the network
SHOWN = 3  # unknown ids in a message,
SEARCHED = 100  # the first different ones among so many
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
        kind_names: the kinds of events that the model knows.
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
        self._rows = dict(zip(map(str, self.item_ids), range(len(self.item_ids)), strict=True))
        self.kind_names = contents.data.kind_names
        self._kinds = {name: code for code, name in enumerate(self.kind_names, 1)}
        self._fused = FusedStep(network) if isinstance(network, RecBLR) else None
        with torch.no_grad():
            self._state = network.initial_state(1)
            self._width = network.item_embeddings.shape[1]
            vectors = network.item_embeddings.detach()
            self.index = build(vectors, artifact.read_lists(path, vectors))
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

    def describe_unknown(self, item_ids: Sequence[str]) -> str:
        """One line about the items that the model does not know; empty if it knows all."""
        distinct = {*item_ids}
        count = len(distinct) - len(self._rows.keys() & distinct)
        unknown = dict.fromkeys(islice((id for id in item_ids if id not in self._rows), SEARCHED))
        first = [self.vocabulary.from_text(id) for id in islice(unknown, SHOWN)]
        return self.vocabulary.describe_unknown(first, count) if count else ""

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """The rows of items; items that the model does not know are left out."""
        rows = map(self._rows.get, item_ids)
        return np.array([row for row in rows if row is not None], np.int64)

    def encode(self, events: History, before: float, unit: str) -> np.ndarray:
        """The events of items that the model knows: item rows (T,), or for a model that reads features
        of events (T, 1 + F), with the features, rows of their table.

        Args:
            events: of one user, in order.
            before: the timestamp of the event before them; -inf if there is none.
            unit: of the timestamps.
        """
        read = self.network.feature_set
        if not read:
            return self.rows([item for _, _, item, _ in events])
        times = np.array([timestamp for timestamp, *_ in events])
        rows = np.array([self._rows.get(item, -1) for _, _, item, _ in events], np.int64)
        codes = np.array([self._kinds.get(kind, 0) for *_, kind in events], np.uint8)
        features = read.encode(codes, seconds_between(times, unit, before))
        return np.column_stack([rows, features])[rows >= 0]

    def ask(self, vectors: np.ndarray, kind: str) -> np.ndarray:
        """Hidden vectors (B, D) asked for a kind of events, "" for any."""
        if not kind:
            return vectors
        code = torch.full((len(vectors),), self._kinds[kind])
        with torch.inference_mode():
            return self.network.ask(torch.tensor(vectors), code).numpy()

    def memory_scores(self, history: np.ndarray, repeats: bool) -> retrieval.Added | None:
        """What the memory adds to the scores, as :meth:`Memory.terms_after`; None without a memory."""
        return None if self.memory is None else self.memory.terms_after(history, repeats)

    @torch.inference_mode()
    def fold(self, vectors: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors (B, D + S) of users after more events, oldest first, as :meth:`encode` returns
        them; of item rows alone the features are not known."""
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
        items, features = split(np.concatenate(histories))
        hidden, state = self.network(items, offsets, self.states(vectors), features)
        return _joined(hidden[offsets[1:] - 1], state)

    def _steps(
        self, vectors: np.ndarray, histories: list[np.ndarray], lengths: np.ndarray
    ) -> np.ndarray:
        assert self._fused is not None
        for step in range(lengths.max()):
            users = np.flatnonzero(lengths > step)
            items, features = split(np.stack([histories[user][step] for user in users]))
            states = self.states(vectors[users])
            vectors[users] = _joined(*self._fused.step(items, states, features))
        return vectors

    def states(self, vectors: np.ndarray) -> Tensor:
        """The states of the network in vectors (B, D + S)."""
        states = np.ascontiguousarray(vectors[:, self._width :])
        return torch.from_numpy(states).view(len(vectors), *self._state.shape[1:])


def split(events: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """The item rows and the features of events as :meth:`ServedModel.encode` returns them."""
    tensor = torch.from_numpy(events)
    return (tensor, None) if events.ndim == 1 else (tensor[:, 0], tensor[:, 1:])


def _joined(hidden: Tensor, state: Tensor) -> np.ndarray:
    return torch.cat([hidden, state.flatten(1)], 1).numpy()
