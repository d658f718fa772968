"""The search for the numbers of the memory of transitions, w, c and r, on the validation part.

Axes: U users, E entries, V items.
"""

from dataclasses import dataclass, replace

import numpy as np

from recblr.data.sequences import Sequences
from recblr.evaluation.metrics import ndcg
from recblr.evaluation.ranking import Scorer, expect_finite, history_batches, predicted_users
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


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The scores of U users that can affect the first K ranks, for any numbers of the memory.

    An entry is an item in the history of a user or with m > 0. The memory changes no other score.

    Attributes:
        others: (U, K + 1) the highest scores of the other items.
        target: (U,) the score of the target.
        target_m: (U,) its m of (1).
        target_seen: (U,) whether it is a repeat.
        user: (E,) the user of each entry.
        score, m, seen: (E,) the same values for each entry.
    """

    others: np.ndarray
    target: np.ndarray
    target_m: np.ndarray
    target_seen: np.ndarray
    user: np.ndarray
    score: np.ndarray
    m: np.ndarray
    seen: np.ndarray

    @property
    def users(self) -> int:
        return len(self.target)

    @staticmethod
    def collect(memory: Memory, score: Scorer, data: Sequences, max_length: int) -> "_Candidates":
        users = np.random.default_rng(0).permutation(predicted_users(data, "validation"))
        parts: list[tuple[np.ndarray, ...]] = []
        done = entries = 0
        with progress("fitting the memory to the model", len(users)) as advance:
            for batch in history_batches(data, "validation", users, max_length):
                scores = score(batch).float().cpu()
                expect_finite(scores.isfinite())
                m = memory.transition_sums(batch.items.numpy(), batch.offsets.numpy()).toarray()
                seen = np.zeros(m.shape, bool)
                assert batch.seen is not None
                seen[tuple(batch.seen.numpy())] = True
                rows, target = np.arange(len(scores)), batch.targets.numpy()
                user, item = np.nonzero((m > 0) | seen)
                values = scores.numpy()
                entry_values = (done + user, values[user, item], m[user, item], seen[user, item])
                target_values = tuple(array[rows, target] for array in (values, m, seen))
                values[user, item] = -np.inf
                others = scores.topk(min(K + 1, scores.shape[1])).values.numpy()
                parts.append((others, *target_values, *entry_values))
                done, entries = done + len(scores), entries + len(user)
                advance(len(scores))
                if entries >= _MAX_ENTRIES:
                    break
        return _Candidates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def terms(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """log(1 + c · m) of the targets (U,) and of the entries (E,)."""
        c = np.float32(scale)
        return np.log1p(c * self.target_m), np.log1p(c * self.m)

    def ndcg(
        self, terms: tuple[np.ndarray, np.ndarray], weight: float, repeat: float
    ) -> tuple[float, float]:
        """NDCG@K unmasked and masked with these numbers; ``terms`` from :meth:`terms`."""
        w, r = np.float32(weight), np.float32(repeat)
        target = self.target + w * terms[0] + r * self.target_seen
        scores = self.score + w * terms[1] + r * self.seen
        ahead = scores >= target[self.user]
        others = (self.others >= target[:, None]).sum(1)

        def rank(entries: np.ndarray) -> np.ndarray:
            return others + np.bincount(self.user[entries], minlength=self.users)

        masked = np.where(self.target_seen, K + 1, rank(ahead & ~self.seen))
        return float(ndcg(rank(ahead), K).mean()), float(ndcg(masked, K).mean())
