"""The numbers by which the memory of transitions adds to a model, chosen on validation in seconds.

Axes: U users, E entries, V items.
"""

from dataclasses import dataclass, replace

import numpy as np

from recblr.data.sequences import Sequences
from recblr.evaluation.metrics import ndcg
from recblr.evaluation.ranking import Scorer, expect_finite, history_batches, predicted_users
from recblr.memory import NEVER, Memory, MemoryConfig
from recblr.progress import progress

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SCALES = (3.0, 10.0, 30.0, 100.0)
REPEATS = (NEVER, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
K = 10  # of the NDCG that chooses
_ENTRIES = 1 << 23  # in all; so many users, drawn with seed 0, as have them


@dataclass(frozen=True)
class Trial:
    """NDCG@10 on validation of a memory with these numbers and a model together."""

    weight: float
    scale: float
    repeat: float
    unmasked: float
    masked: float


@dataclass(frozen=True)
class Choice:
    """All trials, on how many users, in the order they were made; the chosen one has the best mean of
    both protocols."""

    users: int
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """Of equal ones the first."""
        return max(self.trials, key=lambda trial: trial.unmasked + trial.masked)


def choose(
    memory: Memory, asked: MemoryConfig, score: Scorer, data: Sequences, max_length: int
) -> tuple[Memory, Choice]:
    """The memory with those of w, c and r that ``asked`` leaves open chosen on the validation part.

    w and c together on a grid, then r where the log has repeats, by the mean NDCG@10 of both protocols.

    Args:
        memory: fitted on the training part.
        asked: the settings; numbers that are not None stay.
        score: scores of the model alone.
        data: the log.
        max_length: events of a history that the model looks at.

    Raises:
        DivergedError: a score is not finite.
    """
    seen = _Shortlist.make(memory, score, data, max_length)
    trials: list[Trial] = []

    weights = WEIGHTS if asked.weight is None else (asked.weight,)
    scales = SCALES if asked.scale is None else (asked.scale,)
    for scale in scales:
        added = seen.added(scale)
        for weight in weights:
            if weight or scale == scales[0]:  # without weight the scale does nothing
                figures = seen.ndcg(added, weight, memory.repeat)
                trials.append(Trial(weight, scale, memory.repeat, *figures))
    if asked.repeat is None and memory.repeat != NEVER:
        best = Choice(seen.users, trials).best
        added = seen.added(best.scale)
        for repeat in REPEATS:
            if repeat != memory.repeat:
                figures = seen.ndcg(added, best.weight, repeat)
                trials.append(Trial(best.weight, best.scale, repeat, *figures))
    choice = Choice(seen.users, trials)
    best = choice.best
    return replace(memory, weight=best.weight, scale=best.scale, repeat=best.repeat), choice


@dataclass(frozen=True, eq=False)
class _Shortlist:
    """What of the scores of U users decides the first K ranks, whatever the memory adds.

    An entry is an item that the memory or the history of a user holds; no other score changes.

    Attributes:
        others: (U, K + 1) the highest scores of the other items.
        target: (U,) score of the target, target_recall (U,) its m of (1), target_seen (U,) if a repeat.
        user, score, recall, seen: (E,) the same of each entry.
    """

    others: np.ndarray
    target: np.ndarray
    target_recall: np.ndarray
    target_seen: np.ndarray
    user: np.ndarray
    score: np.ndarray
    recall: np.ndarray
    seen: np.ndarray

    @property
    def users(self) -> int:
        return len(self.target)

    @staticmethod
    def make(memory: Memory, score: Scorer, data: Sequences, max_length: int) -> "_Shortlist":
        users = np.random.default_rng(0).permutation(predicted_users(data, "validation"))
        parts: list[tuple[np.ndarray, ...]] = []
        done = entries = 0
        with progress("fitting the memory to the model", len(users)) as advance:
            for batch in history_batches(data, "validation", users, max_length):
                scores = score(batch).float().cpu()
                expect_finite(scores.isfinite())
                recall = memory.recall(batch.items.numpy(), batch.offsets.numpy()).toarray()
                seen = np.zeros(recall.shape, bool)
                assert batch.seen is not None
                seen[tuple(batch.seen.numpy())] = True
                rows, target = np.arange(len(scores)), batch.targets.numpy()
                user, item = np.nonzero((recall > 0) | seen)
                values = scores.numpy()
                of_entries = (done + user, values[user, item], recall[user, item], seen[user, item])
                of_target = tuple(each[rows, target] for each in (values, recall, seen))
                values[user, item] = -np.inf
                others = scores.topk(min(K + 1, scores.shape[1])).values.numpy()
                parts.append((others, *of_target, *of_entries))
                done, entries = done + len(scores), entries + len(user)
                advance(len(scores))
                if entries >= _ENTRIES:
                    break
        return _Shortlist(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def added(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """log(1 + c · m) of the targets (U,) and of the entries (E,)."""
        c = np.float32(scale)
        return np.log1p(c * self.target_recall), np.log1p(c * self.recall)

    def ndcg(
        self, added: tuple[np.ndarray, np.ndarray], weight: float, repeat: float
    ) -> tuple[float, float]:
        """NDCG@K unmasked and masked with these numbers, ``added`` from :meth:`added`."""
        w, r = np.float32(weight), np.float32(repeat)
        target = self.target + w * added[0] + r * self.target_seen
        scores = self.score + w * added[1] + r * self.seen
        ahead = scores >= target[self.user]
        others = (self.others >= target[:, None]).sum(1)

        def rank(entries: np.ndarray) -> np.ndarray:
            return others + np.bincount(self.user[entries], minlength=self.users)

        masked = np.where(self.target_seen, K + 1, rank(ahead & ~self.seen))
        return float(ndcg(rank(ahead), K).mean()), float(ndcg(masked, K).mean())
