"""FittedModel: evaluate a fitted model, recommend by it, save it.

Axes: B histories, V items.
"""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recblr import artifact, vectors
from recblr.audience import Audience, Selection, Unknown
from recblr.config import check_count
from recblr.data import open_with_items
from recblr.data.batches import PackedBatch
from recblr.data.columns import Columns
from recblr.data.kinds import kind_code
from recblr.data.sequences import Part, Sequences, index_in
from recblr.data.vocabulary import Id, as_ids
from recblr.errors import InputError, NotFittedError
from recblr.evaluation.evaluate import Evaluation, evaluate
from recblr.evaluation.metrics import CUTOFFS
from recblr.evaluation.ranking import Scorer
from recblr.memory import Memory, MemoryConfig
from recblr.memory_search import Choice
from recblr.models.content import Content
from recblr.models.model import Model
from recblr.progress import progress
from recblr.recommending import BatchRecommender
from recblr.similar import Similarity, similar_items
from recblr.training.checkpoint import Trained
from recblr.training.config import TrainConfig
from recblr.training.stage import Stage, describe, expect_held_out

if TYPE_CHECKING:
    import polars as pl


class FittedModel:
    """A model with the log it was fitted on. Users and items are named by the ids of the log.

    Attributes:
        model: the name of the model.
        config, training, memory_config: the settings of the model, of training, of the memory.
        device: the device of the weights.
        data: the histories of the log, with their split.
        network: the model, a ``torch.nn.Module``.
        trained: how training ended.
        memory: the fitted memory of transitions; None if it is not enabled.
        memory_choice: the trials that chose the settings of the memory; None without a memory.
        measured: evaluations on the test part as JSON values; they are saved in the artifact, and those
            of before a refit or an update are kept.
        content: the content of the items; None if there is none.
        stages: how the weights came about; the last one says what they were trained on.
    """

    model: str
    config: Any
    training: TrainConfig
    memory_config: MemoryConfig
    device: torch.device
    data: Sequences
    network: Model
    trained: Trained
    measured: list[dict[str, Any]]
    stages: list[Stage]
    memory: Memory | None = None
    memory_choice: Choice | None = None
    content: Content | None = None

    def score(self, batch: PackedBatch) -> torch.Tensor:
        """Scores (B, V) of the model and the memory together, as in :meth:`Model.score`."""
        scores = self.network.score(batch)
        return scores if self.memory is None else self.memory.add_to(scores, batch)

    def evaluate(
        self, log: Any = None, part: Part = "test", columns: Columns | None = None, *,
        k: Any = CUTOFFS, baselines: Any = (), lists: bool = False, slice_by: Any = (),
        kind: Any = None,
    ) -> list[Evaluation]:  # fmt: skip
        """The evaluations of ``part`` under both protocols, "unmasked" and "masked".

        Args:
            log: another log instead of the fitted one, with the same core and split. Unknown items are
                removed from its histories, and count as missed as targets; so do the targets of users
                without a known item before. ``Evaluation.population`` has the numbers.
            part: "validation" or "test".
            columns: our column names to those of ``log``.
            k, baselines, lists, slice_by: as in :func:`recblr.evaluation.evaluate.evaluate`.
            kind: predict only the events of this kind, and ask the model for it; by default all, asked
                for any kind.

        Raises:
            InputError: the log cannot be read, or the model knows none of its items.
            DivergedError: a score is not finite.
        """
        data, score = self.data, self.score
        if log is None and columns is not None:
            raise InputError("columns need a log; give the log as well")
        if log is None:
            expect_held_out(self.stages)
        else:
            data = open_with_items(log, data, part, columns)
            known_users = torch.from_numpy(index_in(data.user_ids, self.data.user_ids))

            def score(batch: PackedBatch) -> torch.Tensor:
                assert batch.users is not None
                return self.score(replace(batch, users=known_users[batch.users]))

        if code := kind_code(kind, self.data.kind_names):
            data, score = data.with_targets_of(code, part), partial(_ask, score, code)
        length, table = self.training.max_length, self.network.item_embeddings.detach()
        measured = evaluate(
            score, data, length, part, k, baselines, lists, table, slice_by, device=self.device
        )
        if code:
            return [
                replace(each, protocol=replace(each.protocol, part=f"{part}, kind {kind}"))
                for each in measured
            ]
        if log is None and part == "test":
            self.measured = [evaluation.to_json() for evaluation in measured]
        return measured

    def recommend(
        self, users: Any = None, histories: Any = None, k: Any = 10, *, candidates: Any = None,
        allow: Any = None, deny: Any = None, hide_seen: bool | None = None,
        unknown: Unknown = "error", kind: Any = None,
    ) -> "pl.DataFrame":  # fmt: skip
        """Recommend the best ``k`` items to users of the log, or for other histories.

        Lists of ids may be lists, tuples, generators, arrays or series of any library; sets, too, where
        the order does not matter.

        Args:
            users: the ids of users of the log.
            histories: lists of item ids, oldest first; unknown items are ignored, with a warning. As in
                evaluation, the model reads the last ``training.max_length`` events.
            k: the number of items; a user gets fewer if fewer are allowed.
            candidates: rerank lists. Either a list of item ids for each user or history, in the same
                order, or a mapping of user ids to such lists; each gets the best ``k`` of its own list.
            allow: recommend only these items. deny: never these.
            hide_seen: do not recommend items of the history. By default true, but false if
                ``candidates`` are given, as a reranked list keeps its items.
            unknown: what to do about unknown users, histories without a known item, and unknown items
                of ``candidates``, ``allow`` and ``deny``. "error" refuses the call. "skip" leaves them
                out, with a warning. "popular" is "skip", but such users and histories get the most
                popular items, with the number of training events as their score.
            kind: recommend items for events of this kind, such as "purchase"; by default of any kind.
                The log needs a column ``kind``; see docs/kinds.md.

        Returns:
            A frame ``user_id, item_id, score, rank``, rank from 1. For histories, ``user_id`` is the
            number of the history, from 0.

        Raises:
            InputError: an id is unknown and ``unknown`` is "error", an argument has the wrong type, or
                no known item is allowed.
            DivergedError: a score is not finite.
        """
        import polars as pl

        if (users is None) == (histories is None):
            raise InputError("give either users or histories")
        hide_seen = candidates is None if hide_seen is None else hide_seen
        selection = Selection.from_ids(self.data, k, allow, deny, hide_seen, unknown, kind)
        if users is not None:
            audience = Audience.of_users(self.data, users, unknown, candidates)
        else:
            audience = Audience.of_histories(self.data, histories, unknown, candidates)
        with progress("recommending", len(audience.ids)) as advance:
            table = self._batches.table(audience, selection, advance)
        audience.warn_if_unserved(table)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def recommend_all(
        self, out: str | Path, k: Any = 10, *, allow: Any = None, deny: Any = None,
        hide_seen: bool = True, unknown: Unknown = "error", shard: tuple[int, int] | None = None,
        kind: Any = None,
    ) -> None:  # fmt: skip
        """Write the rows of :meth:`recommend` for every user of the log to a Parquet file.

        Memory does not grow with the number of users. A repeated call continues a killed one: finished
        parts are in ``<out>.parts`` and are used if model, log and arguments are the same. For many
        users and 50,000 items or more on a CPU, the items are scanned in int8, which is exact, too.

        Args:
            out: the file, or with ``shard`` a folder.
            shard: (i, n) recommends to the i-th of n parts of the users, i from 1, and writes a file
                of its own, so that n machines can share the work. All n files, in order of their names,
                have the rows of one call without ``shard``.

        Raises:
            InputError: as in :meth:`recommend`, or ``out`` cannot be written.
        """
        selection = Selection.from_ids(self.data, k, allow, deny, hide_seen, unknown, kind)
        if shard is None:
            self._batches.write_all(Path(out), selection)
            return
        number, count = (check_count(part, "shard") for part in shard)
        if number > count:
            raise InputError(f"shard {number}/{count}: write i/n, i from 1 to n")
        file = Path(out) / f"{number:0{len(str(count))}}-of-{count}.parquet"
        self._batches.write_all(file, selection, (number, count))

    def similar_items(self, items: Any, k: Any = 10, by: Similarity = "model") -> "pl.DataFrame":
        """The items most similar to each of ``items``, as :func:`recblr.similar.similar_items`."""
        return similar_items(self._contents, items, k, by)

    def item_vectors(self) -> "pl.DataFrame":
        """The vectors of all items, as :func:`recblr.vectors.item_vectors`."""
        return vectors.item_vectors(self._contents)

    def user_vectors(self, users: Any = None, histories: Any = None) -> "pl.DataFrame":
        """The vectors of users or histories, as :func:`recblr.vectors.user_vectors`.

        The dot product with the vector of an item is the score of the item without the memory.
        """
        return vectors.user_vectors(self._contents, users, histories)

    def save_vectors(
        self, folder: str | Path, format: vectors.Format = "parquet", overwrite: bool = False
    ) -> dict[str, Any]:
        """Write the vectors of all items and users to a folder, as :func:`recblr.vectors.write`."""
        return vectors.write(self._contents, Path(folder), format, overwrite)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the artifact, a folder with the model and the histories, complete or not at all.

        Raises:
            InputError: the folder exists, unless it is an artifact and ``overwrite`` is true.
        """
        artifact.save(self._contents, Path(folder), overwrite)

    def user_ids(self, texts: Any) -> list[Id]:
        """The ids of users that texts stand for, such as on a command line.

        If the log's ids are whole numbers, "7" becomes 7; other texts, such as "07", stay unknown ids.
        """
        return [self.data.user_vocabulary.from_text(str(text)) for text in as_ids(texts, "texts")]

    def item_ids(self, texts: Any) -> list[Id]:
        """The ids of items that texts stand for, as for :meth:`user_ids`."""
        return [self.data.item_vocabulary.from_text(str(text)) for text in as_ids(texts, "texts")]

    def __repr__(self) -> str:
        if "trained" not in self.__dict__:
            return f"{type(self).__name__}({self.model!r}, not fitted, {self.device})"
        return (
            f"{type(self).__name__}({self.model!r}, {self.data.users:,} users, "
            f"{len(self.data.item_ids):,} items, epoch {self.trained.best_epoch}, "
            f"{describe(self.stages)}, {self.device})"
        )

    @property
    def _contents(self) -> artifact.Artifact:
        return artifact.Artifact(*(getattr(self, f.name) for f in fields(artifact.Artifact)))

    @property
    def _batches(self) -> BatchRecommender:
        return BatchRecommender(self._contents, self.score)

    def __getattr__(self, name: str) -> Any:
        # A property that reads one of the three attributes leads here, too.
        if name in ("data", "network", "trained") or hasattr(type(self), name):
            raise NotFittedError("this recommender is not fitted; call fit, or load a saved one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _ask(score: Scorer, kind: int, batch: PackedBatch) -> torch.Tensor:
    """The scores of a batch that is asked for a kind, by its code."""
    return score(replace(batch, asked=torch.full((len(batch.offsets) - 1,), kind)))
