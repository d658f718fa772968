"""The memory of transitions against its equations, written out in float64."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Tiny
from recblr import memory_search
from recblr.data.batches import pack_latest
from recblr.data.sequences import Sequences
from recblr.data.split import leave_one_out
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import rank_targets
from recblr.memory import EXCLUDE_REPEATS, Memory, MemoryConfig, fit

ITEMS = 7


def log_of(histories: list[list[int]], size: int = ITEMS) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(int)
    items = np.concatenate(histories).astype(np.int32)
    ids = (pa.array(range(len(histories))), pa.array(range(size)))
    return Sequences(items, offsets, *ids, leave_one_out(offsets), 1)


def expected_matrix(data: Sequences, config: MemoryConfig) -> np.ndarray:
    """Equation (3), pair by pair: (V, V)."""
    size = len(data.item_ids)
    counts = np.zeros((size, size))
    for start, end in zip(data.offsets[:-1], data.split.train_end, strict=True):
        history = data.items[start:end]
        for first in range(len(history)):
            for second in range(first + 1, min(first + config.reach, len(history) - 1) + 1):
                weight = (second - first) ** -config.lag_power
                counts[history[first], history[second]] += weight
                counts[history[second], history[first]] += config.backward * weight
    rows, columns = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    rows[rows == 0], columns[columns == 0] = 1, 1
    return counts / rows**config.row_power / columns**config.column_power


def expected_sums(matrix: np.ndarray, history: list[int], config: MemoryConfig) -> np.ndarray:
    """Equation (2), item by item: (V,)."""
    m = np.zeros(len(matrix))
    for age, item in enumerate(reversed(history[-config.reach :])):
        m += config.decay**age * matrix[item]
    return m


histories = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=6
)
hundredths = st.integers(0, 100).map(lambda n: n / 100)  # representable in float32
configs = st.builds(
    MemoryConfig,
    reach=st.integers(1, 10),
    lag_power=hundredths,
    backward=hundredths,
    row_power=hundredths,
    column_power=hundredths,
    decay=hundredths,
)


@given(histories, configs)
@settings(deadline=None)
def test_counts_equal_the_equation(histories: list[list[int]], config: MemoryConfig) -> None:
    data = log_of(histories)
    matrix = fit(data, config).matrix.toarray()
    np.testing.assert_allclose(matrix, expected_matrix(data, config), rtol=1e-5, atol=1e-7)


@given(histories, configs, st.floats(0, 3), st.floats(0, 100), st.floats(-5, 5))
@settings(deadline=None)
def test_scores_equal_the_equation(
    histories: list[list[int]], config: MemoryConfig, w: float, c: float, r: float
) -> None:
    data = log_of(histories)
    memory = Memory(config, fit(data, config).matrix, w, c, r)
    begins, stops = data.offsets[:-1], data.offsets[1:]
    batch = pack_latest(data.items, begins, stops, 12, "none")
    scores = torch.zeros(len(histories), ITEMS, dtype=torch.float64)
    memory.add_to(scores, batch)
    matrix = expected_matrix(data, config)
    on_device = memory.transition_sums_on_device(batch.items, batch.offsets).numpy()
    for history, row, sums in zip(histories, scores.numpy(), on_device, strict=True):
        m = expected_sums(matrix, history, config)
        np.testing.assert_allclose(sums, m, rtol=1e-5, atol=1e-6)
        repeats = np.isin(np.arange(ITEMS), history)
        np.testing.assert_allclose(row, w * np.log1p(c * m) + r * repeats, rtol=1e-4, atol=1e-5)
        for item in range(ITEMS):
            contributions = memory.contributions(np.array(history), item)
            assert contributions.shape == (len(history),)
            whole = w * math.log1p(c * m[item])
            assert contributions.sum() == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_sums_on_a_device_without_events_or_counts() -> None:
    memory = fit(log_of([[0], [1]]), MemoryConfig())
    assert memory.matrix.nnz == 0
    none = torch.zeros(0, dtype=torch.int32)
    assert memory.transition_sums_on_device(none, torch.zeros(1, dtype=torch.int64)).shape == (0, 7)
    items, offsets = torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    assert torch.equal(memory.transition_sums_on_device(items, offsets), torch.zeros(2, 7))
    counted = fit(log_of([[0, 1, 2, 3, 4]]), MemoryConfig())
    empty = torch.tensor([0, 0, 2])  # the first history
    sums = counted.transition_sums_on_device(items, empty)
    assert not sums[0].any()
    np.testing.assert_allclose(
        sums[1], counted.transition_sums(items.numpy(), np.array([0, 2])).toarray()[0], rtol=1e-6
    )


@pytest.mark.gpu
def test_scores_on_a_gpu_equal_those_on_a_cpu() -> None:
    rng = np.random.default_rng(0)
    data = log_of([rng.integers(0, 50, 30).tolist() for _ in range(40)], 50)
    memory = fit(data, MemoryConfig())
    batch = pack_latest(data.items, data.offsets[:-1], data.offsets[1:], 30, "none")
    expected = memory.add_to(torch.zeros(40, 50), batch)
    first = memory.add_to(torch.zeros(40, 50, device="cuda"), batch)
    torch.testing.assert_close(first.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(memory.add_to(torch.zeros(40, 50, device="cuda"), batch), first)


def test_contributions_are_in_proportion_to_the_terms() -> None:
    data = log_of([[0, 1, 2, 0, 0], [1, 2, 1, 1]])
    memory = fit(data, MemoryConfig(reach=3, decay=0.5))
    contributions = memory.contributions(np.array([3, 0, 1, 0]), 2)
    matrix = memory.matrix.toarray().astype(float)
    terms = np.array([0, 0.25 * matrix[0, 2], 0.5 * matrix[1, 2], matrix[0, 2]])
    whole = memory.weight * math.log1p(memory.scale * terms.sum())
    np.testing.assert_allclose(contributions, terms / terms.sum() * whole, rtol=1e-6)


def test_only_the_training_part_is_counted() -> None:
    longer, shorter = log_of([[0, 1, 2, 3, 4]]), log_of([[0, 1, 2, 5, 6]])
    config = MemoryConfig()
    np.testing.assert_array_equal(
        fit(longer, config).matrix.toarray(), fit(shorter, config).matrix.toarray()
    )


def test_the_largest_entries_of_a_row_are_kept() -> None:
    rng = np.random.default_rng(0)
    data = log_of([rng.integers(0, 30, 40).tolist() for _ in range(20)], 30)
    whole = fit(data, MemoryConfig(pairs=30)).matrix.toarray()
    kept = fit(data, MemoryConfig(pairs=5)).matrix.toarray()
    for whole_row, row in zip(whole, kept, strict=True):
        assert np.count_nonzero(row) == min(5, np.count_nonzero(whole_row))
        np.testing.assert_array_equal(row[row > 0], whole_row[row > 0])
        assert row[row > 0].min() >= np.delete(whole_row, np.flatnonzero(row)).max()


def test_the_first_of_equal_entries_are_kept() -> None:
    data = log_of([[6, item, 0, 0] for item in (5, 3, 1, 4)])
    kept = fit(data, MemoryConfig(pairs=2, reach=1, row_power=0, column_power=0)).matrix
    assert kept[[6]].nonzero()[1].tolist() == [1, 3]


def test_counts_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    data = log_of([rng.integers(0, 30, 40).tolist() for _ in range(20)], 30)
    whole = fit(data, MemoryConfig())
    monkeypatch.setattr("recblr.memory._BLOCK_EVENTS", 7)
    in_blocks = fit(data, MemoryConfig())
    np.testing.assert_allclose(whole.matrix.toarray(), in_blocks.matrix.toarray(), rtol=1e-6)


def test_a_log_without_repeats_excludes_them() -> None:
    assert fit(log_of([[0, 1, 2, 3, 4], [1, 0, 3, 2]]), MemoryConfig()).repeat == EXCLUDE_REPEATS
    assert fit(log_of([[0, 1, 2, 3, 3]]), MemoryConfig()).repeat == EXCLUDE_REPEATS  # held out
    assert fit(log_of([[0, 1, 0, 3, 4]]), MemoryConfig()).repeat == 0
    assert fit(log_of([[0, 1, 2, 3, 4]]), MemoryConfig(repeat=1)).repeat == 1


@pytest.mark.parametrize("repeats", [False, True])
def test_trials_equal_a_full_evaluation(repeats: bool) -> None:
    rng = np.random.default_rng(2)
    size = 60
    data = log_of(
        [
            (rng.integers(0, size, 20) if repeats else rng.permutation(size)[:20]).tolist()
            for _ in range(150)
        ],
        size,
    )
    table = torch.from_numpy(rng.normal(size=(size, size)).astype(np.float32))

    def score(batch):  # depends on the last item only
        return table[batch.items[batch.offsets[1:] - 1]].clone()

    config = MemoryConfig(reach=3)
    memory, choice = memory_search.choose(fit(data, config), config, score, data, 10)
    assert choice.users == 150
    assert len({trial.repeat for trial in choice.trials}) == (8 if repeats else 1)
    for trial in choice.trials[::7]:
        tried = Memory(config, memory.matrix, trial.weight, trial.scale, trial.repeat)
        ranks = rank_targets(
            lambda batch, tried=tried: tried.add_to(score(batch), batch), data, "validation", 10
        )
        for seen in ("unmasked", "masked"):
            assert getattr(trial, seen) == pytest.approx(
                metrics.means(ranks[seen])["NDCG@10"], abs=1e-6
            )
    best = choice.best
    assert (memory.weight, memory.scale, memory.repeat) == (best.weight, best.scale, best.repeat)
    assert best.unmasked + best.masked >= max(t.unmasked + t.masked for t in choice.trials)


def test_given_numbers_are_kept() -> None:
    data = log_of([[0, 1, 2, 1, 4], [1, 0, 3, 3, 2]])
    config = MemoryConfig(weight=0.4, scale=7.0, repeat=0.3)

    def score(batch):
        return torch.zeros(len(batch.offsets) - 1, ITEMS)

    memory, choice = memory_search.choose(fit(data, config), config, score, data, 5)
    assert (memory.weight, memory.scale, memory.repeat) == (0.4, 7.0, 0.3)
    assert len(choice.trials) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("reach", 0), ("decay", -0.1), ("weight", math.inf), ("repeat", math.nan)],
)
def test_invalid_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"memory.{setting}"):
        MemoryConfig(**{setting: value})


def test_representations_are_short(tiny: Tiny) -> None:
    memory, choice = tiny.recommender.memory, tiny.recommender.memory_choice
    assert memory is not None
    assert choice is not None
    assert repr(memory).startswith(f"Memory(24 items, {memory.matrix.nnz:,} transitions, weight ")
    assert repr(choice).startswith(f"Choice(150 users, {len(choice.trials)} trials, best weight ")


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("lag_power", 11.0, "in 0 .. 10"),
        ("decay", -0.1, "in 0 .. 10"),
        ("weight", 1e300, r"in 0 .. 1e\+06"),
        ("scale", math.nan, r"in 0 .. 1e\+06"),
        ("repeat", -math.inf, r"in -1e\+06 .. 1e\+06"),
        ("reach", 1001, "at most 1,000"),
        ("pairs", 0, "at least 1"),
    ],
)
def test_numbers_beyond_the_limits_are_refused(name: str, value: Any, limits: str) -> None:
    with pytest.raises(InputError, match=rf"^memory\.{name} = .*: must be {limits}$"):
        MemoryConfig(**{name: value})


def test_a_memory_that_overflows_is_an_error() -> None:
    config = MemoryConfig(backward=1e-5, row_power=10.0)  # the row of item 1 has a sum of 1e-5
    overflow = pytest.warns(RuntimeWarning, match="overflow")
    with overflow, pytest.raises(InputError, match=r"lower memory\.row_power"):
        fit(log_of([[0, 1, 2, 3]]), config)


def test_what_is_no_setting_of_the_memory_is_refused(tiny: Tiny) -> None:
    recommender = tiny.recommender
    with pytest.raises(InputError, match="fit_memory takes a MemoryConfig, not 3"):
        recommender.fit_memory(3)  # type: ignore[arg-type]
    assert isinstance(recommender.memory_config, MemoryConfig)
