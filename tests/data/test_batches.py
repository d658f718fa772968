"""Packed batches and windows, against plain loops over lists."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.batches import (
    Beside,
    Horizon,
    PackedBatch,
    Targets,
    all_positions,
    append_empty,
    pack,
    pack_each,
    prefixes,
    ranges,
    rectangles,
    seen_pairs,
    sequence_padding,
    windows,
)

LENGTHS = st.lists(st.integers(0, 30), max_size=12)


def histories(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(begins, ends) of histories of these lengths, end to end."""
    offsets = np.cumsum([0, *lengths])
    return offsets[:-1], offsets[1:]


def spans(batches: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    """All (start, stop) of an epoch."""
    return [
        (start, stop)
        for starts, stops in batches
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def targets_of(lengths: list[int]) -> list[int]:
    """The rows to predict: all but the first of each history."""
    begins, ends = histories(lengths)
    return [row for begin, end in zip(begins, ends, strict=True) for row in range(begin + 1, end)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 100), st.integers(0, 6)), max_size=8))
def test_ranges_equals_a_plain_loop(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(pairs, int).reshape(-1, 2).T
    assert ranges(starts, lengths).tolist() == [s + i for s, n in pairs for i in range(n)]


@pytest.mark.parametrize("targets", ["all", "last", "none"])
@settings(deadline=None)
@given(st.data())
def test_pack_equals_a_plain_loop(targets: Targets, data: st.DataObject) -> None:
    flat = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=30))
    cut = st.integers(0, len(flat) - 1)
    drawn = data.draw(st.lists(st.tuples(cut, cut), max_size=6))
    pairs = [(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]]
    starts, stops = np.array(pairs, int).reshape(-1, 2).T

    items, offsets, positions, following = [], [0], [], []
    for start, stop in pairs:
        for row in range(start, stop):
            items.append(flat[row])
            if targets == "all" or (targets == "last" and row == stop - 1):
                positions.append(len(items) - 1)
                following.append(flat[row + 1])
        offsets.append(len(items))

    array = np.array(flat, np.int32)
    array.flags.writeable = False
    for log in (array, torch.tensor(flat, dtype=torch.int32)):
        batch = pack(log, starts, stops, targets)
        for ours, truth in (
            (batch.items, items),
            (batch.offsets, offsets),
            (batch.positions, positions),
            (batch.targets, following),
        ):
            assert ours.tolist() == truth
            assert ours.dtype == torch.int64


@pytest.mark.parametrize("targets", ["all", "last"])
@settings(deadline=None)
@given(data=st.data())
def test_a_horizon_ends_with_the_history(targets: Targets, data: st.DataObject) -> None:
    """A batch may have a part of a history; what it predicts may lie after the part."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    flat = data.draw(st.permutations(range(sum(lengths) + 1)))  # the last event has no history
    begins, ends = histories(lengths)
    pairs = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        cuts = sorted(data.draw(st.sets(st.integers(begin, end - 1), max_size=3)))
        pairs += list(pairwise(cuts))
    starts, stops = np.array(pairs, int).reshape(-1, 2).T
    shares = torch.tensor([0.5, 0.3, 0.2])
    weights = np.arange(len(flat), dtype=np.float32) + 1

    expected = []
    for start, stop in pairs:
        end = ends[begins <= start][-1]
        for row in range(start, stop):
            if targets == "all" or row == stop - 1:
                rows = range(row + 1, min(row + 4, end))
                total = sum(shares[: len(rows)].tolist())
                expected.append(
                    {flat[r]: shares[n].item() / total * (row + 2) for n, r in enumerate(rows)}
                )
    for log in (np.array(flat, np.int32), torch.tensor(flat)):
        beside = Beside(
            weights if isinstance(log, np.ndarray) else torch.tensor(weights),
            horizon=Horizon(begins, ends, shares),
        )
        batch = pack(log, starts, stops, targets, beside)
        assert batch.targets.shape == (len(batch.positions), 3)
        assert batch.weights is not None
        found = [
            {item: factor for item, factor in zip(*row, strict=True) if factor}
            for row in zip(batch.targets.tolist(), batch.weights.tolist(), strict=True)
        ]
        assert found == [pytest.approx(truth, rel=1e-6) for truth in expected]


def test_pack_of_the_last_event_needs_no_event_after_it() -> None:
    for log in (np.array([4, 5, 6], np.int32), torch.tensor([4, 5, 6])):
        batch = pack(log, np.array([1]), np.array([3]), "none")
        assert batch.items.tolist() == [5, 6]
        assert len(batch.targets) == 0


def assert_same(ours: PackedBatch, theirs: PackedBatch) -> None:
    for name, tensor in vars(theirs).items():
        value = getattr(ours, name)
        assert value is tensor is None or torch.equal(value, tensor), name


@pytest.mark.parametrize("targets", ["all", "last", "none"])
@settings(deadline=None)
@given(several=st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=4))
def test_pack_each_equals_packing_one_by_one(targets: Targets, several: list[list[int]]) -> None:
    flat = np.random.default_rng(0).integers(0, 9, 50).astype(np.int32)
    spans = [(7 + begins, 7 + ends) for begins, ends in map(histories, several)]
    for log in (flat, torch.from_numpy(flat)):
        for batch, (starts, stops) in zip(pack_each(log, spans, targets), spans, strict=True):
            assert_same(batch, pack(flat, starts, stops, targets))


def example(lengths: list[int], targets: Targets = "all") -> PackedBatch:
    flat = np.random.default_rng(0).integers(0, 5, sum(lengths) + 1).astype(np.int32)
    return pack(flat, *histories(lengths), targets)


def test_append_empty_adds_histories_at_the_end() -> None:
    batch = example([3, 1])
    extended = append_empty(batch, 5)
    assert extended.offsets.tolist() == [0, 3, 4, 4, 4, 4]
    assert extended.items is batch.items
    assert_same(append_empty(batch, 2), batch)
    assert append_empty(example([]), 2).offsets.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=9))
def test_rectangles_have_every_history_once(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    events = sum(lengths)
    shapes, cells = rectangles(offsets)
    histories = []
    for rows in shapes:
        sizes = (rows < events).sum(1).tolist()
        assert max(sizes) == rows.shape[1]
        assert max(sizes) <= 4 or max(sizes) < 2 * min(sizes)
        for row, size in zip(rows.tolist(), sizes, strict=True):
            assert row[size:] == [events] * (len(row) - size)
            histories.append(row[:size])
    plain = [list(range(*ends)) for ends in pairwise(offsets.tolist()) if ends[0] < ends[1]]
    assert sorted(histories) == plain
    joined = torch.cat([torch.empty(0, dtype=torch.int64), *(rows.flatten() for rows in shapes)])
    assert joined[cells].tolist() == list(range(events))


@pytest.mark.parametrize("targets", ["all", "last"])
@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=5))
def test_sequence_padding_equals_a_plain_loop(targets: Targets, lengths: list[int]) -> None:
    batch = example([length for length in lengths if length], targets)
    batch = PackedBatch(
        batch.items, torch.tensor([0, *lengths]).cumsum(0), batch.positions, batch.targets
    )
    longest = 1
    while longest < max(lengths, default=0):
        longest *= 2
    items, offsets, positions = [], [0], []
    for begin, end in pairwise(batch.offsets.tolist()):
        positions += [
            len(items) + row - begin for row in batch.positions.tolist() if begin <= row < end
        ]
        items += batch.items[begin:end].tolist() + [0] * (longest - (end - begin))
        offsets.append(len(items))
    padded = sequence_padding(batch)
    assert padded.items.tolist() == items
    assert padded.offsets.tolist() == offsets
    assert padded.positions.tolist() == positions
    assert padded.targets.equal(batch.targets)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 12))
def test_windows_cover_every_target_once(lengths: list[int], longest: int, shift: int) -> None:
    begins, ends = histories(lengths)
    starts, stops = windows(begins, ends, longest, min(shift, longest))
    covered = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        assert 1 <= stop - start <= longest
        (owner,) = np.flatnonzero((begins <= start) & (start < ends))
        assert stop < ends[owner]  # the row after the window is its last target
        covered += range(start + 1, stop + 1)
    assert sorted(covered) == targets_of(lengths)


@settings(deadline=None)
@given(LENGTHS, st.integers(2, 12), st.data())
def test_shift_cuts_only_histories_longer_than_a_window(
    lengths: list[int], longest: int, data: st.DataObject
) -> None:
    shift = data.draw(st.integers(1, longest - 1))
    begins, ends = histories(lengths)
    plain = spans([windows(begins, ends, longest, 0)])
    shifted = spans([windows(begins, ends, longest, shift)])
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        own = [span for span in plain if begin <= span[0] < end]
        moved = [span for span in shifted if begin <= span[0] < end]
        inputs = end - begin - 1
        if inputs <= longest:
            whole = [(begin, end - 1)] if inputs > 0 else []
            assert own == moved == whole
        else:
            assert {stop for _, stop in moved} == {end - 1} | {
                stop - shift for _, stop in own if stop - shift > begin
            }


def test_windows_of_two_histories() -> None:
    begins, ends = np.array([0, 3]), np.array([3, 14])  # 2 and 10 inputs
    assert sorted(spans([windows(begins, ends, 4, 0)])) == [(0, 2), (3, 5), (5, 9), (9, 13)]
    assert sorted(spans([windows(begins, ends, 4, 2)])) == [(0, 2), (3, 7), (7, 11), (11, 13)]
    assert sorted(spans([windows(begins, ends, 4, 4)])) == [(0, 2), (3, 5), (5, 9), (9, 13)]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 60), st.integers(0, 3))
def test_all_positions_predicts_every_position_once(
    lengths: list[int], longest: int, budget: int, epoch: int
) -> None:
    begins, ends = histories(lengths)
    batches = all_positions(begins, ends, longest, budget, epoch, np.random.default_rng(0))
    pieces = spans(batches)
    assert all(1 <= stop - start <= longest for start, stop in pieces)
    covered = [row for start, stop in pieces for row in range(start + 1, stop + 1)]
    assert sorted(covered) == targets_of(lengths)

    # The windows of the epoch, of which at most one is divided between two batches.
    whole = spans([windows(begins, ends, longest, longest // 2 * (epoch % 2))])
    assert {start for start, _ in whole} <= {start for start, _ in pieces}
    assert {stop for _, stop in whole} <= {stop for _, stop in pieces}
    assert len(pieces) <= len(whole) + max(0, len(batches) - 1)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 60))
def test_batches_have_equal_sizes_near_the_budget(
    lengths: list[int], longest: int, budget: int
) -> None:
    begins, ends = histories(lengths)
    batches = all_positions(begins, ends, longest, budget, 1, np.random.default_rng(0))
    sizes = [int((stops - starts).sum()) for starts, stops in batches]
    total = len(targets_of(lengths))
    assert sum(sizes) == total
    if sizes:
        assert len(set(sizes[:-1])) <= 1
        assert 1 <= sizes[-1] <= sizes[0]
        assert sizes[0] - 1 < total / max(1, round(total / budget)) <= sizes[0]


def test_batches_of_many_windows_have_sizes_near_the_budget() -> None:
    begins, ends = histories(np.random.default_rng(0).integers(2, 200, 2000).tolist())
    batches = all_positions(begins, ends, 50, 1024, 1, np.random.default_rng(0))
    sizes = [int((stops - starts).sum()) for starts, stops in batches]
    assert len(sizes) == round(sum(sizes) / 1024)
    assert all(1019 <= size <= 1029 for size in sizes[:-1])  # half a batch is spread over 190


def test_a_divided_window_continues_in_the_next_batch() -> None:
    batches = all_positions(*histories([101]), 200, 30, 0, np.random.default_rng(0))
    assert spans(batches) == [(0, 34), (34, 68), (68, 100)]
    assert [len(starts) for starts, _ in batches] == [1, 1, 1]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 60), st.integers(0, 3))
def test_batches_are_in_order_of_length_between_divided_windows(
    lengths: list[int], longest: int, budget: int, epoch: int
) -> None:
    begins, ends = histories(lengths)
    batches = all_positions(begins, ends, longest, budget, epoch, np.random.default_rng(0))
    whole = spans([windows(begins, ends, longest, longest // 2 * (epoch % 2))])
    cuts = {stop for start, stop in spans(batches)} - {stop for start, stop in whole}
    divided = set()
    for (_, stops), (starts, _) in pairwise(batches):
        if stops[-1] == starts[0]:
            divided.add(int(starts[0]))
    assert cuts <= divided
    for starts, stops in batches:
        between = (stops - starts)[1:-1].tolist()
        assert between == sorted(between, reverse=True)


def test_epochs_differ_and_the_generator_determines_them() -> None:
    begins, ends = histories([9, 40, 2, 77, 30])

    def epoch(seed: int, number: int, budget: int = 20) -> list[tuple[int, int]]:
        rng = np.random.default_rng(seed)
        return spans(all_positions(begins, ends, 8, budget, number, rng))

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(2, 0)
    # A single batch has undivided windows.
    assert sorted(epoch(1, 0, 999)) == sorted(epoch(2, 0, 999)) == sorted(epoch(1, 2, 999))
    assert sorted(epoch(1, 0, 999)) != sorted(epoch(1, 1, 999))  # cut elsewhere
    first, again = (prefixes(begins, ends, 8, 20, np.random.default_rng(1)) for _ in range(2))
    assert spans(first) == spans(again)
    assert spans(first) != spans(prefixes(begins, ends, 8, 20, np.random.default_rng(2)))


@pytest.mark.parametrize("lengths", [[], [0], [1], [1, 0, 1]])
def test_histories_without_targets_give_no_batch(lengths: list[int]) -> None:
    begins, ends = histories(lengths)
    assert all_positions(begins, ends, 5, 10, 1, np.random.default_rng(0)) == []
    assert prefixes(begins, ends, 5, 10, np.random.default_rng(0)) == []


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 40))
def test_prefixes_have_every_prefix_once(lengths: list[int], longest: int, samples: int) -> None:
    begins, ends = histories(lengths)
    batches = prefixes(begins, ends, longest, samples, np.random.default_rng(0))
    truth = [
        (max(begin, stop - longest), stop)
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        for stop in range(begin + 1, end)
    ]
    assert sorted(spans(batches)) == truth
    sizes = [len(starts) for starts, _ in batches]
    assert all(size == samples for size in sizes[:-1])
    assert all(0 < size <= samples for size in sizes)
    for starts, stops in batches:
        assert (stops - starts).tolist() == sorted(stops - starts, reverse=True)


@pytest.mark.parametrize("targets", ["all", "last", "none"])
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 8), max_size=5))
def test_seen_pairs_equal_a_plain_loop(targets: Targets, lengths: list[int]) -> None:
    batch = example(lengths, targets)
    pairs, items = [], batch.items.tolist()
    for begin, end in pairwise(batch.offsets.tolist()):
        for number, position in enumerate(batch.positions.tolist()):
            if begin <= position < end:
                pairs += [(number, item) for item in items[begin : position + 1]]
    seen = seen_pairs(batch)
    assert seen.shape == (2, len(pairs))
    assert list(zip(*seen.tolist(), strict=True)) == pairs
    assert seen_pairs(append_empty(batch, len(lengths) + 2), len(pairs)).equal(seen)
