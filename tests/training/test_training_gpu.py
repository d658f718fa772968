"""Training on a GPU: the results of the CPU, no waiting for the device, replayed CUDA graphs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY_MODEL, TINY_TRAINING
from recblr import recommender
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError
from recblr.evaluation.ranking import rank_targets
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.ops.cross_entropy import cross_entropy
from recblr.training import step, trainer
from recblr.training.config import TrainConfig
from recblr.training.cuda_graph import Graphed
from recblr.training.examples import training_batches
from recblr.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]
CUDA = torch.device("cuda")
STILL = replace(TINY_MODEL, dropout=0.0)  # two devices draw different random numbers
Update = Callable[..., Tensor]


@contextmanager
def never_waiting() -> Iterator[None]:
    """Inside the block, an operation that waits for the GPU is an error."""
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def fresh(data: Sequences, device: torch.device, config: RecBLRConfig = STILL) -> RecBLR:
    torch.manual_seed(0)
    return RecBLR(len(data.item_ids), config).to(device)


def log_of(data: Sequences, device: torch.device) -> Any:
    return data.items if device.type == "cpu" else torch.tensor(data.items, device=device)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "epoch"]


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


# ---- Graphed -------------------------------------------------------------------------------------


def test_a_graph_replays_the_function_on_new_inputs() -> None:
    weight, total, calls = torch.ones(3, device=CUDA), torch.zeros(3, device=CUDA), 0

    def work(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        total.add_(x.sum(0))
        return x * weight + y, x.sum()

    graphed = Graphed(work)
    expected = torch.zeros(3)
    for number in range(6):
        for rows in (2, 5):
            x, y = torch.randn(rows, 3), torch.randn(3)
            weight.fill_(number)  # read by the function
            product, summed = graphed(x.to(CUDA), y.to(CUDA))
            expected += x.sum(0)
            torch.testing.assert_close(product.cpu(), x * number + y)
            torch.testing.assert_close(summed.cpu(), x.sum())
    torch.testing.assert_close(total.cpu(), expected)  # once per call, also for the captured one
    assert calls == 4, "two shapes, each run once and captured once"


def test_the_number_of_graphs_is_limited() -> None:
    calls: list[int] = []

    def work(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x + 1

    graphed = Graphed(work, graphs=2)
    for _ in range(4):
        for rows in (1, 2, 3):
            assert graphed(torch.zeros(rows, device=CUDA)).tolist() == [1] * rows
    assert [calls.count(rows) for rows in (1, 2, 3)] == [2, 2, 4]


def test_every_replay_draws_new_random_numbers() -> None:
    graphed = Graphed(lambda x: torch.nn.functional.dropout(x, 0.5))
    x = torch.ones(1000, device=CUDA)

    def draw() -> list[Tensor]:
        torch.manual_seed(7)
        return [graphed(x).clone() for _ in range(4)]

    draw()
    once, again = draw(), draw()
    assert all(ours.equal(theirs) for ours, theirs in zip(once, again, strict=True))
    assert len({tuple(drawn.tolist()) for drawn in once}) == 4


@torch.no_grad()
def test_the_step_of_a_model_is_captured() -> None:
    torch.manual_seed(0)
    model = RecBLR(50, RecBLRConfig(dim=16)).to(CUDA).eval()
    graphed = Graphed(model.step)
    state = ours = model.initial_state(3)
    for number in range(8):
        items = torch.randint(50, (3,), device=CUDA)
        hidden, state = model.step(items, state)
        if number < 2:
            vectors, after = graphed(items, ours)
        else:
            with never_waiting():
                vectors, after = graphed(items, ours)
        torch.testing.assert_close(vectors, hidden, rtol=0, atol=1e-5)
        ours = after.clone()
        torch.testing.assert_close(ours, state, rtol=0, atol=1e-5)


# ---- a step --------------------------------------------------------------------------------------


def run_epochs(
    data: Sequences, device: torch.device, config: TrainConfig, epochs: int = 3
) -> tuple[RecBLR, RecBLR, float]:
    """The model, its average and the sum of the losses after ``epochs`` epochs."""
    model = fresh(data, device).train()
    ours = Trainer(model, data, config)
    for epoch in range(epochs):
        for batch, continues in ours.batches(ours.spans(epoch)):
            ours.step(batch, continues, 1e-3)
    return model, ours.average, ours.loss.total.item()


def assert_same_run(ours: Any, theirs: Any, data: Sequences) -> None:
    """Within a thousandth of the change of the weights, as Adam amplifies rounding errors."""
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)
    start, *runs = (
        torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])
        for model in (fresh(data, torch.device("cpu")), *ours[:2], *theirs[:2])
    )
    for one, other in zip(runs[:2], runs[2:], strict=True):
        assert (one - other).norm() < 1e-3 * (other - start).norm()


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
def test_the_gpu_trains_like_the_cpu(
    examples: Any, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY_TRAINING, examples=examples, ema_decay=0.9)
    replayed = run_epochs(sequences, CUDA, config)
    assert_same_run(replayed, run_epochs(sequences, torch.device("cpu"), config), sequences)
    monkeypatch.setattr(step, "Graphed", lambda update: update)
    assert_same_run(replayed, run_epochs(sequences, CUDA, config), sequences)


@pytest.mark.parametrize("scan", ["serial", "embedding-padding", "sequence-padding"])
def test_every_scan_trains_the_same_on_a_gpu(scan: Any, sequences: Sequences) -> None:
    config = replace(TINY_TRAINING, batch_size=10**6)  # no history continues in another batch
    packed = run_epochs(sequences, CUDA, config)
    assert_same_run(run_epochs(sequences, CUDA, replace(config, scan=scan)), packed, sequences)


@pytest.mark.parametrize("examples", ["all-positions", "prefixes"])
@pytest.mark.parametrize(("mask_seen", "horizon"), [(False, 1), (False, 3), (True, 1), (True, 3)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_step_waits_for_the_gpu(
    precision: Any, mask_seen: bool, horizon: int, examples: Any, sequences: Sequences
) -> None:
    config = replace(
        TINY_TRAINING,
        examples=examples,
        mask_seen_in_loss=mask_seen,
        horizon=horizon,
        precision=precision,
        batch_size=150,
    )
    model = fresh(sequences, CUDA, TINY_MODEL).train()
    calls = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "cross_entropy", counted)
        ours = Trainer(model, sequences, config)
        total, spans, epochs = ours.loss.total, ours.spans(0), []
        for epoch in range(3):
            # A capture waits for the GPU; a replay and a plain run do not.
            before, calls = total.item(), 0
            with never_waiting() if epoch == 2 else nullcontext():
                for batch, continues in ours.batches(spans):
                    ours.step(batch, continues, 1e-3)
            epochs.append(total.item() - before)
    assert len(spans) > 4
    assert calls == (len(spans) if mask_seen else 0), "the third epoch is replayed"
    assert 0 < epochs[2] < epochs[0]


def test_memory_does_not_grow_with_the_length_of_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        step, "Graphed", lambda function: function
    )  # a graph has buffers of its own
    monkeypatch.setattr("recblr.training.examples._ROWS_AT_ONCE", 1 << 14)
    peaks = []
    for length in (50_000, 100_000, 1_000_000):  # the first one warms up
        config = replace(TINY_TRAINING, window=length, batch_size=4096)
        model = RecBLR(100, STILL).to(CUDA).train()
        update = step.TrainingStep(model, deepcopy(model), config)
        log = torch.randint(100, (length,), dtype=torch.int32, device=CUDA)
        bounds = np.arange(0, length - 1, 4096)
        spans = [(np.array([a]), np.array([min(a + 4096, length - 1)])) for a in bounds]
        state = zero_state = model.initial_state(1)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        batches = training_batches(
            log, spans, replace(config, examples="all-positions"), None, True
        )
        for number, (batch, continues) in enumerate(batches):
            assert continues == (number > 0)
            state = update(batch, state if continues else zero_state)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] < 1.2 * peaks[1]


# ---- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_learns_like_on_the_cpu(precision: Any, sequences: Sequences, tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, epochs=4, precision=precision)
    curves = []
    for device in (torch.device("cpu"), CUDA):
        model = fresh(sequences, device, TINY_MODEL)
        trained = Trainer(model, sequences, config).train(folder(tmp_path, device.type))
        assert model.item_embeddings.device.type == device.type
        assert trained.ended == "epochs"
        curves.append(losses(tmp_path / device.type))
    assert curves[1] == sorted(curves[1], reverse=True)
    assert curves[1] == pytest.approx(curves[0], rel=0.03)


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_run_can_be_resumed_on_another_device(
    devices: tuple[str, str], sequences: Sequences, tmp_path: Path
) -> None:
    config, calls = replace(TINY_TRAINING, epochs=4), 0
    whole = Trainer(fresh(sequences, CUDA), sequences, config).train(folder(tmp_path, "whole"))

    def interrupted(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return validate(*arguments)

    validate, parts = trainer.validate, folder(tmp_path, "parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "validate", interrupted)
        first = fresh(sequences, torch.device(devices[0]))
        assert Trainer(first, sequences, config).train(parts).epoch == 2
    second = fresh(sequences, torch.device(devices[1]))
    resumed = Trainer(second, sequences, config).train(parts, resume=True)
    assert second.item_embeddings.device.type == devices[1]
    assert (resumed.epoch, resumed.ended) == (whole.epoch, whole.ended)
    assert losses(parts) == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_divergence_is_an_error_that_names_the_steps(sequences: Sequences, tmp_path: Path) -> None:
    model = fresh(sequences, CUDA)
    with torch.no_grad():
        model.norm.weight[0] = torch.inf
    config = replace(TINY_TRAINING, batch_size=16)
    with pytest.raises(DivergedError, match=r"nan in epoch 1, steps 1 to 50: .* lower train\.lr"):
        Trainer(model, sequences, config).train(tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_ranks_are_computed_on_the_gpu(sequences: Sequences) -> None:
    """Integer scores with many ties: all ranks are equal."""
    scores = torch.randint(9, (len(sequences.item_ids), len(sequences.item_ids))).float()

    def scorer(device: torch.device) -> Any:
        return lambda batch: scores[batch.items[batch.offsets[1:] - 1]].to(device)

    for part in ("validation", "test"):
        ours, theirs = (
            rank_targets(scorer(device), sequences, part, 10)  # type: ignore[arg-type]
            for device in (CUDA, torch.device("cpu"))
        )
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_recommender_moves_between_devices(sequences: Sequences, tmp_path: Path) -> None:
    ours = recommender.Recommender("recblr", TINY_MODEL, TINY_TRAINING, device="cuda")
    ours.fit(sequences, out=tmp_path / "model")
    assert ours.network.item_embeddings.is_cuda
    assert recommender.Recommender().device.type == "cuda", "auto"
    users = sequences.user_ids.to_pylist()
    offers = ours.recommend(users=users, k=3)
    for device in ("cuda", "cpu"):
        other = recommender.load(tmp_path / "model", device)
        assert other.network.item_embeddings.device.type == device
        theirs = other.recommend(users=users, k=3)
        np.testing.assert_allclose(theirs["score"], offers["score"], rtol=0, atol=1e-4)
        same = theirs["item_id"] == offers["item_id"]
        assert same.mean() > 0.99  # two items may be within a rounding error
        for evaluation, kept in zip(other.evaluate(), ours.measured, strict=True):
            assert evaluation.metrics == pytest.approx(kept["metrics"], abs=0.02)


# ---- cross entropy -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("v", [7, 3000])
@pytest.mark.parametrize("chunk", [1 << 26, 50_000])
@pytest.mark.parametrize("least", [0, 1 << 40])  # parts of all items, of some items
def test_cross_entropy_on_a_gpu(
    least: int, chunk: int, v: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.__globals__, "_PART", {"cuda": chunk})
    monkeypatch.setitem(cross_entropy.__globals__, "_MIN_ROWS", least)
    torch.manual_seed(v)
    hidden = torch.randn(70, 16, device=CUDA, requires_grad=True)
    weight = torch.randn(v, 16, device=CUDA, requires_grad=True)
    targets = torch.randint(v, (70,), device=CUDA)
    seen = (torch.rand(70, v, device=CUDA) < 0.2).nonzero().t().contiguous() if masked else None

    logits = hidden.double() @ weight.double().t()
    if seen is not None:
        mask = torch.zeros(70, v, dtype=torch.bool, device=CUDA)
        mask[seen[0], seen[1]] = True
        mask[torch.arange(70), targets] = False
        logits = logits.masked_fill(mask, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    loss = cross_entropy(hidden, weight, targets, seen)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    ours = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_cross_entropy_of_a_large_catalogue_does_not_hold_all_logits() -> None:
    m, v, d = 8192, 330_000, 64
    hidden = torch.randn(m, d, device=CUDA, requires_grad=True)
    weight = torch.randn(v, d, device=CUDA, requires_grad=True)
    targets = torch.randint(v, (m,), device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with never_waiting(), torch.autocast("cuda", torch.bfloat16):
        cross_entropy(hidden, weight, targets).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1 << 30  # all logits in float32 are 10 GiB
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
