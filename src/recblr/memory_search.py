"""The search for the numbers of the memory of transitions, w, c and r, on the validation part.

Axes: U users, E entries, V items.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from recblr.data.sequences import Sequences
from recblr.evaluation.metrics import ndcg
from recblr.evaluation.ranking import (
    Scorer,
    block_size,
    expect_finite,
    history_batches,
    predicted_users,
)
from recblr.memory import EXCLUDE_REPEATS, Memory, MemoryConfig
from recblr.progress import progress

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SCALES = (3.0, 10.0, 30.0, 100.0)
REPEATS = (EXCLUDE_REPEATS, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
K = 10  # of the NDCG that decides
_MAX_ENTRIES = 1 << 23  # users are sampled with seed 0 up to this number of entries


@dataclass(frozen=True)
class Trial:
    """Validation NDCG@10 of a model with a memory of these numbers, under both protocols."""

    weight: float
    scale: float
    repeat: float
    unmasked: float
    masked: float


@dataclass(frozen=True)
class Choice:
    """The number of users, and the trials in order; the best one has the highest mean of both
    protocols."""

    users: int
    trials: list[Trial]

    def __repr__(self) -> str:
        return (
            f"Choice({self.users:,} users, {len(self.trials)} trials, best weight "
            f"{self.best.weight:g}, scale {self.best.scale:g}, repeat {self.best.repeat:g})"
        )

    @property
    def best(self) -> Trial:
        """The best trial; the first of equal ones."""
        return max(self.trials, key=lambda trial: trial.unmasked + trial.masked)


def choose(
    memory: Memory, config: MemoryConfig, score: Scorer, data: Sequences, max_length: int
) -> tuple[Memory, Choice]:
    """Choose those of w, c and r that are None in ``config``, on the validation part.

    The search chooses w and c on a grid, and then r if the log has repeats, by the mean NDCG@10 of
    both protocols.

    Args:
        memory: fitted on the training part.
        config: the settings; numbers that are not None are kept.
        score: scores of the model without the memory.
        data: the log.
        max_length: the most events of a history that the model uses.

    Returns:
        The memory with the chosen numbers, and the trials.

    Raises:
        DivergedError: a score is not finite.
    """
    candidates = _Candidates.collect(memory, score, data, max_length)
    trials: list[Trial] = []

    weights = WEIGHTS if config.weight is None else (config.weight,)
    scales = SCALES if config.scale is None else (config.scale,)
    for scale in scales:
        terms = candidates.terms(scale)
        for weight in weights:
            if weight or scale == scales[0]:  # at weight 0 the scale has no effect
                ndcgs = candidates.ndcg(terms, weight, memory.repeat)
                trials.append(Trial(weight, scale, memory.repeat, *ndcgs))
    if config.repeat is None and memory.repeat != EXCLUDE_REPEATS:
        best = Choice(candidates.users, trials).best
        terms = candidates.terms(best.scale)
        for repeat in REPEATS:
            if repeat != memory.repeat:
                ndcgs = candidates.ndcg(terms, best.weight, repeat)
                trials.append(Trial(best.weight, best.scale, repeat, *ndcgs))
    choice = Choice(candidates.users, trials)
    best = choice.best
    return replace(memory, weight=best.weight, scale=best.scale, repeat=best.repeat), choice


class _Values(NamedTuple):
    """Values of items for users: the score of the model, m of (1), whether an item is a repeat."""

    score: np.ndarray
    m: np.ndarray
    seen: np.ndarray

    @staticmethod
    def empty(length: int) -> "_Values":
        return _Values(*(np.empty(length, kind) for kind in (np.float32, np.float32, bool)))

    def first(self, length: int) -> "_Values":
        return _Values(*(values[:length] for values in self))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The scores of U users that can affect the first K ranks, for any numbers of the memory.

    An entry is an item in the history of a user or with m > 0. The memory changes no other score.

    Attributes:
        others: (U, K + 1) the highest scores of the other items.
        offsets: (U + 1,) user u has the entries offsets[u] .. offsets[u+1]-1.
        targets: (U,) those of the targets.
        entries: (E,) those of the entries.
    """

    others: np.ndarray
    offsets: np.ndarray
    targets: _Values
    entries: _Values

    @property
    def users(self) -> int:
        return len(self.others)

    @staticmethod
    def collect(memory: Memory, score: Scorer, data: Sequences, max_length: int) -> "_Candidates":
        users = np.random.default_rng(0).permutation(predicted_users(data, "validation"))
        catalogue = len(data.item_ids)
        # Written in place: small results that stay between large blocks fragment the heap. Pages that
        # are not written take no memory.
        targets = _Values.empty(len(users))
        entries = _Values.empty(_MAX_ENTRIES + block_size(catalogue, max_length) * catalogue)
        others = np.empty((len(users), min(K + 1, catalogue)), np.float32)
        offsets = np.zeros(len(users) + 1, np.int64)
        done = 0
        with progress("fitting the memory to the model", len(users)) as advance:
            for batch in history_batches(data, "validation", users, max_length):
                scores = score(batch).float().cpu()
                expect_finite(scores.isfinite())
                m = memory.transition_sums(batch.items.numpy(), batch.offsets.numpy()).toarray()
                seen = np.zeros(m.shape, bool)
                assert batch.seen is not None
                seen[tuple(batch.seen.numpy())] = True
                values, changed = (scores.numpy(), m, seen), (m > 0) | seen
                block, rows = slice(done, done + len(scores)), np.arange(len(scores))
                ends = offsets[done] + np.cumsum(changed.sum(1))
                for of_targets, of_entries, each in zip(targets, entries, values, strict=True):
                    of_targets[block] = each[rows, batch.targets.numpy()]
                    of_entries[offsets[done] : ends[-1]] = each[changed]
                scores[torch.from_numpy(changed)] = -torch.inf
                others[block] = scores.topk(others.shape[1]).values.numpy()
                offsets[done + 1 : block.stop + 1] = ends
                done = block.stop
                advance(len(scores))
                if ends[-1] >= _MAX_ENTRIES:
                    break
        written = targets.first(done), entries.first(offsets[done])
        return _Candidates(others[:done], offsets[: done + 1], *written)

    def terms(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """log(1 + c · m) of the targets (U,) and of the entries (E,)."""
        c = np.float32(scale)
        return np.log1p(c * self.targets.m), np.log1p(c * self.entries.m)

    def ndcg(
        self, terms: tuple[np.ndarray, np.ndarray], weight: float, repeat: float
    ) -> tuple[float, float]:
        """NDCG@K unmasked and masked with these numbers; ``terms`` from :meth:`terms`."""
        w, r = np.float32(weight), np.float32(repeat)
        targets = self.targets.score + w * terms[0] + r * self.targets.seen
        scores = w * terms[1]
        scores += self.entries.score
        np.add(scores, r, out=scores, where=self.entries.seen)
        ahead = scores >= np.repeat(targets, np.diff(self.offsets))
        others = (self.others >= targets[:, None]).sum(1)

        def rank(entries: np.ndarray) -> np.ndarray:
            counts = np.zeros(len(entries) + 1, np.int32)
            np.cumsum(entries, out=counts[1:])
            return others + np.diff(counts[self.offsets])

        masked = np.where(self.targets.seen, K + 1, rank(ahead & ~self.entries.seen))
        return float(ndcg(rank(ahead), K).mean()), float(ndcg(masked, K).mean())
