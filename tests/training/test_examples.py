"""The examples of an epoch and their batches."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from conftest import TINY_TRAINING
from recblr.data.batches import Beside, Spans
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.training.examples import training_batches as batches
from training.tools import (
    LOSS,
    epoch_spans,
    folder,
    fresh,
    gradients,
    lines,
    perturbed,
    recorded,
    train,
    training_batches,
    zero_rate_step,
)


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_examples_predict_every_event_except_the_first(
    examples: Any, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(LOSS, recorded(calls))
    # Windows of 5 cut most histories; every position must still occur once per epoch.
    config = replace(TINY_TRAINING, examples=examples, max_length=5)
    train(fresh(sequences), sequences, config, tmp_path)
    expected = np.sort(
        np.concatenate(
            [
                sequences.items[begin + 1 : end]
                for begin, end in zip(
                    sequences.offsets[:-1], sequences.split.train_end, strict=True
                )
            ]
        )
    )
    seen = np.sort(torch.cat([call["targets"] for call in calls]).numpy())
    np.testing.assert_array_equal(seen, np.sort(np.concatenate([expected, expected])))
    epochs = [line for line in lines(tmp_path) if line["event"] == "epoch"]
    assert [line["targets"] for line in epochs] == [len(expected)] * 2
    assert epochs[1]["loss"] < epochs[0]["loss"] < math.log(len(sequences.item_ids)) + 0.1


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_mask_seen_in_loss_excludes_the_history_from_the_softmax(
    examples: Any, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(LOSS, recorded(calls))
    config = replace(TINY_TRAINING, examples=examples, max_length=200, epochs=1, batch_size=10**6)
    train(
        fresh(sequences), sequences, replace(config, mask_seen_in_loss=True), folder(tmp_path, "on")
    )
    train(fresh(sequences), sequences, config, folder(tmp_path, "off"))
    masking, plain = calls
    assert plain["seen"] is None
    # The excluded items of each target, in any order of the targets.
    excluded: list[list[int]] = [[] for _ in masking["targets"]]
    for row, item in masking["seen"].t().tolist():
        excluded[row].append(item)
    result = sorted(
        (target, sorted(set(items)))
        for target, items in zip(masking["targets"].tolist(), excluded, strict=True)
    )
    expected = []
    for begin, end in zip(sequences.offsets[:-1], sequences.split.train_end, strict=True):
        history = sequences.items[begin:end].tolist()
        for t in range(1, len(history)):
            expected.append((history[t], sorted(set(history[:t]))))  # noqa: PERF401
    assert result == sorted(expected)
    assert masking["loss"] < plain["loss"] - 0.1


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_a_horizon_predicts_the_next_items_of_the_training_part(
    examples: Any, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 5 events and small batches cut most histories; the items after a cut are predicted."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(LOSS, recorded(calls))
    config = replace(
        TINY_TRAINING, examples=examples, max_length=5, epochs=1, horizon=3, horizon_power=1.0
    )
    train(fresh(sequences), sequences, config, tmp_path)
    expected = []
    for begin, end in zip(sequences.offsets[:-1], sequences.split.train_end, strict=True):
        history = sequences.items[begin:end].tolist()
        for t in range(1, len(history)):
            following = history[t : t + 3]
            total = sum(1 / n for n in range(1, len(following) + 1))
            following = [(item, 1 / n / total) for n, item in enumerate(following, 1)]
            expected.append(following)
    found = [
        [pair for pair in zip(*row, strict=True) if pair[1]]
        for call in calls
        for row in zip(call["targets"].tolist(), call["weights"].tolist(), strict=True)
    ]
    for ours, truth in zip(sorted(found), sorted(expected), strict=True):
        assert [item for item, _ in ours] == [item for item, _ in truth]
        np.testing.assert_allclose([w for _, w in ours], [w for _, w in truth], rtol=1e-6)


def test_a_prefix_sample_never_continues_another(sequences: Sequences) -> None:
    spans = [(np.array([0]), np.array([5])), (np.array([5]), np.array([9]))]
    for examples, expected in (("all-positions", [False, True]), ("prefixes", [False, False])):
        config = replace(TINY_TRAINING, examples=examples)  # type: ignore[arg-type]
        batches = training_batches(sequences.items, spans, config)
        assert [continues for _, continues in batches] == expected


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_batches_of_fixed_shapes_train_the_same(examples: Any, sequences: Sequences) -> None:
    """The log is a tensor on a GPU, and an array on a CPU."""
    size = 300 if examples == "prefixes" else 100
    config = replace(TINY_TRAINING, examples=examples, batch_size=size)
    model = perturbed(sequences)
    step, total = zero_rate_step(model, config)
    zero_state, log = model.initial_state(1), torch.tensor(sequences.items)
    results: list[list[Any]] = [[], []]
    shapes = set()
    for epoch in range(2):
        spans = epoch_spans(sequences, config, epoch)
        for rows, items in zip(results, (sequences.items, log), strict=True):
            state = zero_state
            for batch, continues in training_batches(items, spans, config):
                total.zero_()
                state = step(batch, state if continues else zero_state)
                count = torch.tensor(len(batch.targets))
                rows.append([continues, state, total.clone(), count, *gradients(model)])
                if items is log:
                    shapes.add((len(batch.items), len(batch.offsets), len(batch.targets)))
    for theirs, ours in zip(*results, strict=True):
        assert ours[0] == theirs[0]
        # Prefix samples do not continue, and the state after the last row is that of a pad.
        first = 2 if examples == "prefixes" else 1
        torch.testing.assert_close(ours[first:], theirs[first:], rtol=1e-4, atol=1e-6)
    assert len(results[0]) >= 10 > 2 * len(shapes)
    if examples == "prefixes":
        assert {rows % 16384 for rows, _, _ in shapes} == {0}


def test_a_cloze_epoch_is_five_passes(sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, window=20)
    cloze = replace(config, examples="cloze")

    def rows(spans: list[Spans]) -> list[int]:
        each = [zip(starts, stops, strict=True) for starts, stops in spans]
        return sorted(row for batch in each for a, b in batch for row in range(a, b))

    once, every = rows(epoch_spans(sequences, config, 0)), epoch_spans(sequences, cloze, 1)
    assert rows(every) == sorted(5 * once)
    passes = [
        every[first : first + len(every) // 5] for first in range(0, len(every), len(every) // 5)
    ]
    assert all(rows(one) == once for one in passes)
    begins = [frozenset(start for starts, _ in one for start in starts) for one in passes]
    assert len(set(begins)) == 5, "each pass is shuffled, and every other one has other windows"


def test_short_histories_fill_a_bucket_of_samples(sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, examples="prefixes", batch_size=64, max_length=12)
    log = torch.tensor(sequences.items)
    spans = epoch_spans(sequences, config, 0)
    plain = training_batches(sequences.items, spans, config)
    for (batch, _), (exact, _) in zip(training_batches(log, spans, config), plain, strict=True):
        rows = len(exact.items)
        assert rows < len(batch.items) == 16384
        assert batch.items[:rows].equal(exact.items)
        assert batch.positions.equal(exact.positions)
        assert batch.targets.equal(exact.targets)
        lengths = batch.offsets.diff()
        assert lengths.max() == 12
        assert lengths.min() == 0
        more = batch.items[rows : rows + 24]
        assert more.tolist() == 2 * sequences.items[:12].tolist()


def test_a_long_history_trains_in_several_batches(tmp_path: Path) -> None:
    """200,000 events in one window; three in four events follow from the previous one."""
    rng, items, length = np.random.default_rng(0), 20, 200_000
    steps = np.where(rng.random(length) < 0.75, 1, rng.integers(items, size=length))
    walk = np.cumsum(steps) % items
    user = np.zeros(length, np.int64)
    data = prepare(read_log(pl.DataFrame({"user_id": user, "item_id": walk})))
    config = replace(
        TINY_TRAINING, epochs=1, window=length, batch_size=2048, selection_protocol="unmasked"
    )
    assert all(len(starts) == 1 for starts, _ in epoch_spans(data, config, 0))
    train(fresh(data), data, config, tmp_path)
    chance = 0.75 + 0.25 / items
    others = 0.25 / items
    entropy = -chance * math.log(chance) - (items - 1) * others * math.log(others)
    (epoch,) = [line for line in lines(tmp_path) if line["event"] == "epoch"]
    assert epoch["targets"] == length - 3
    assert entropy - 0.01 < epoch["loss"] < (entropy + math.log(items)) / 2


def test_batches_smaller_than_a_window(sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, batch_size=8, epochs=1, max_length=30)
    assert train(fresh(sequences), sequences, config, tmp_path).epoch == 1
    assert lines(tmp_path)[1]["loss"] < math.log(len(sequences.item_ids))


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_target_has_the_weight_and_the_kind_of_its_event(
    examples: Any, fixed_shapes: bool, sequences: Sequences
) -> None:
    config = replace(TINY_TRAINING, examples=examples, max_length=5, batch_size=100)
    spans = epoch_spans(sequences, config, 0)
    rows = np.arange(len(sequences.items))
    weights = rows.astype(np.float32)
    beside = Beside(weights, rows[:, None], rows)
    found = []
    for batch, _ in batches(sequences.items, spans, config, None, fixed_shapes, beside):
        assert batch.weights is not None
        assert len(batch.weights) == len(batch.targets)
        assert np.array_equal(sequences.items[batch.weights.long()], batch.targets)
        assert batch.asked is not None
        assert torch.equal(batch.asked, batch.weights.long())
        assert batch.features is not None
        assert np.array_equal(sequences.items[batch.features[:, 0]], batch.items)
        found.append(batch.weights)
    ends = zip(sequences.offsets[:-1], sequences.split.train_end, strict=True)
    expected = np.concatenate([np.arange(begin + 1, end) for begin, end in ends])
    assert np.array_equal(np.sort(torch.cat(found)), expected)
