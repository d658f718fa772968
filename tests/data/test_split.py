"""Filters and splits against naive loops."""

from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.sequences import Sequences
from recblr.data.split import by_time, k_core, leave_one_out, time_cuts
from recblr.errors import InputError

EVENTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)
TIMES = st.lists(st.lists(st.integers(0, 9), max_size=8).map(sorted), max_size=8)


def naive_core(events: list[tuple[int, int]], k: int) -> list[bool]:
    """Remove one event at a time."""
    kept = [True] * len(events)
    changed = True
    while changed:
        changed = False
        left = [event for event, keep in zip(events, kept, strict=True) if keep]
        users, items = [u for u, _ in left], [i for _, i in left]
        for row, (user, item) in enumerate(events):
            if kept[row] and (users.count(user) < k or items.count(item) < k):
                kept[row] = False
                changed = True
                break
    return kept


@settings(deadline=None)
@given(EVENTS, st.integers(1, 4))
def test_k_core_equals_a_plain_loop(events: list[tuple[int, int]], k: int) -> None:
    users, items = np.array(events, np.int32).reshape(-1, 2).T
    assert k_core(users, items, k).tolist() == naive_core(events, k)


def test_k_core_removes_in_a_cascade() -> None:
    # User 2 has too few events; then item 1 has, then user 1, then all.
    users, items = np.array([0, 0, 1, 1, 2]), np.array([0, 2, 0, 1, 1])
    assert k_core(users, items, 1).all()
    assert not k_core(users, items, 2).any()


def test_leave_one_out_of_a_small_log() -> None:
    split = leave_one_out(np.array([0, 1, 3, 6, 6, 11]))  # 1, 2, 3, 0 and 5 events
    assert split.name == "leave-one-out"
    assert split.train_end.tolist() == [1, 3, 4, 6, 9]
    assert split.validation.tolist() == [-1, -1, 4, -1, 9]
    assert split.test.tolist() == [-1, -1, 5, -1, 10]


def test_time_cuts_are_at_80_and_90_percent() -> None:
    assert time_cuts(np.random.default_rng(0).permutation(101)) == (80, 90)
    assert time_cuts(np.arange(10)) == (8, 9)
    nanoseconds = np.arange(101) + 2**60  # float64 would round these
    assert time_cuts(nanoseconds) == (2**60 + 80, 2**60 + 90)
    assert time_cuts(np.linspace(0.0, 1.0, 11)) == (0.8, 0.9)


@pytest.mark.parametrize("times", [[3] * 20, [1] * 15 + [2] * 5, [1, 2], [5]])
def test_time_cuts_refuse_too_few_distinct_times(times: list[int]) -> None:
    with pytest.raises(InputError, match="too few distinct timestamps"):
        time_cuts(np.array(times))


def test_time_cuts_refuse_a_log_without_times() -> None:
    with pytest.raises(InputError, match="needs a timestamp column"):
        time_cuts(None)


def after_quantile(times: list[int]) -> list[int]:
    """The times greater than the 0.9 quantile, which is interpolated between its neighbours."""
    place = Fraction(9, 10) * (len(times) - 1)
    low, high = (sorted(times)[rounded(place)] for rounded in (floor, ceil))
    return [time for time in times if time > low + (place - floor(place)) * (high - low)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_last_time_cuts_are_quantiles_of_quantiles(times: list[int]) -> None:
    late = after_quantile(times)
    before = [time for time in times if not late or time < min(late)]
    middle = after_quantile(before)
    if not late or not middle:
        with pytest.raises(InputError, match="too few distinct timestamps"):
            time_cuts(np.array(times), last=True)
    else:
        assert time_cuts(np.array(times), last=True) == (min(middle), min(late))


def test_last_time_cuts_are_at_81_and_90_percent() -> None:
    assert time_cuts(np.random.default_rng(0).permutation(101), last=True) == (82, 91)
    nanoseconds = np.arange(101) + 2**60  # float64 would round these
    assert time_cuts(nanoseconds, last=True) == (2**60 + 82, 2**60 + 91)
    # An event at the time of the quantile is before the cut, as in the source.
    assert time_cuts(np.array([*range(26), 26, 26, 26, 27]), last=True) == (26, 27)


@settings(deadline=None)
@given(TIMES, st.integers(0, 9), st.integers(1, 5))
def test_by_time_equals_a_plain_loop(histories: list[list[int]], first: int, more: int) -> None:
    second = first + more
    offsets = np.cumsum([0, *map(len, histories)])
    times = np.array([time for history in histories for time in history], int)
    split = by_time(offsets, times, (first, second))
    assert split.name == "time"

    train_end, validation, test = [], [], []
    for begin, end in pairwise(offsets.tolist()):
        train = [row for row in range(begin, end) if times[row] < first]
        middle = [row for row in range(begin, end) if first <= times[row] < second]
        late = [row for row in range(begin, end) if times[row] >= second]
        train_end.append(begin + len(train))
        validation.append(middle[0] if middle and train else -1)
        test.append(late[0] if late and (train or middle) else -1)
    assert split.train_end.tolist() == train_end
    assert split.validation.tolist() == validation
    assert split.test.tolist() == test


@settings(deadline=None)
@given(TIMES, st.integers(0, 9), st.integers(1, 5))
def test_by_last_time_equals_a_plain_loop(
    histories: list[list[int]], first: int, more: int
) -> None:
    second = first + more
    offsets = np.cumsum([0, *map(len, histories)])
    times = np.array([time for history in histories for time in history], int)
    split = by_time(offsets, times, (first, second), last=True)
    assert split.name == "time-last"

    train_end, validation, test = [], [], []
    for begin, end in pairwise(offsets.tolist()):
        rows = range(begin, end)
        train = [row for row in rows if times[row] < first]
        early = [row for row in rows if times[row] < second]
        train_end.append(begin + len(train))
        # The last event, if it is in the period and has an event before it.
        validation.append(early[-1] if len(early) > len(train) and early[:-1] else -1)
        test.append(rows[-1] if len(rows) > len(early) and rows[:-1] else -1)
    assert split.train_end.tolist() == train_end
    assert split.validation.tolist() == validation
    assert split.test.tolist() == test


def test_by_last_time_of_a_small_log() -> None:
    histories = [[1, 5, 6, 7, 8], [1, 2], [1, 5], [4, 7], [7], [5], [7, 8], []]
    offsets = np.cumsum([0, *map(len, histories)])
    times = np.array([time for history in histories for time in history])
    split = by_time(offsets, times, (5, 7), last=True)
    assert (split.train_end - offsets[:-1]).tolist() == [1, 2, 1, 1, 0, 0, 0, 0]
    assert np.where(split.validation < 0, -1, split.validation - offsets[:-1]).tolist() == [
        2, -1, 1, -1, -1, -1, -1, -1,
    ]  # fmt: skip
    assert np.where(split.test < 0, -1, split.test - offsets[:-1]).tolist() == [
        4, -1, -1, 1, -1, -1, 1, -1,
    ]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@settings(deadline=None)
@given(histories=TIMES, first=st.integers(0, 9), more=st.integers(1, 5))
def test_no_training_event_is_later_than_a_target(
    histories: list[list[int]], first: int, more: int, last: bool
) -> None:
    offsets = np.cumsum([0, *map(len, histories)])
    times = np.array([time for history in histories for time in history], int)
    split = by_time(offsets, times, (first, first + more), last)
    trained = [
        times[row]
        for begin, end in zip(offsets[:-1].tolist(), split.train_end.tolist(), strict=True)
        for row in range(begin, end)
    ]
    for rows in (split.validation, split.test):
        for user in np.flatnonzero(rows >= 0):
            begin, target = offsets[user], rows[user]
            assert begin < target < offsets[user + 1]
            if not last:
                assert max(times[begin:target]) < times[target]
            assert all(time < times[target] for time in trained)


def test_an_event_at_a_cut_is_after_it() -> None:
    offsets, times = np.array([0, 4, 6, 8]), np.array([1, 5, 5, 7, 5, 7, 4, 7])
    split = by_time(offsets, times, (5, 7))
    assert split.train_end.tolist() == [1, 4, 7]
    assert split.validation.tolist() == [1, -1, -1]  # the second user has no history at 5
    assert split.test.tolist() == [3, 5, 7]


def test_representations_are_short(sequences: Sequences) -> None:
    assert repr(sequences.split) == "Split('leave-one-out', 150 validation users, 150 test users)"
    assert repr(sequences) == (
        "Sequences(simulated shop, seed 0: 1,842 events, 150 users, 24 items, 1-core, leave-one-out)"
    )
