"""Training in several processes equals training in one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import nn

import recblr
from conftest import slow
from recblr.cli.main import main
from recblr.data.sequences import Sequences
from recblr.errors import InputError
from recblr.models import create_model
from recblr.ranks import Ranks, divide
from recblr.sizing import build_settings
from recblr.training.examples import part_of
from recblr.training.trainer import Trainer
from training.in_ranks import train
from training.tools import lines

TRAIN = {
    "epochs": 2, "batch_size": 200, "max_length": 16, "window": 30, "lr": 0.01, "warmup_steps": 5,
    "precision": "float32",
}  # fmt: skip
# A state that goes on in the next batch, an average and a smoothed target, vectors from transitions; a
# second table of items, masked items and several targets; a model without a state (its attention would
# draw its own dropout); prefixes.
TRAININGS = {
    "recblr": (
        "recblr",
        {"dim": 16, "layers": 1},
        {"ema_decay": 0.9, "label_smoothing": 0.1, "item_init": "transitions"},
    ),
    "lrurec": ("lrurec", {"dim": 16, "layers": 1}, {"mask_seen_in_loss": True, "horizon": 3}),
    "sasrec": ("sasrec", {"dim": 16, "layers": 1, "heads": 1, "dropout": 0.0}, {}),
    "prefixes": ("gru4rec", {"dim": 16}, {"examples": "prefixes"}),
}


def plan(folder: Path, names: Any = TRAININGS, **options: Any) -> list[dict[str, Any]]:
    return [
        {"model": model, "settings": {"model": config, "train": {**TRAIN, **training}},
         "folder": str(folder / name), **options}
        for name in names for model, config, training in [TRAININGS[name]]
    ]  # fmt: skip


def in_processes(count: int, data: Path, plan: list[dict[str, Any]]) -> None:
    """Run a plan in several processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("in_ranks.py")), str(data)]
    processes = [
        subprocess.Popen(
            [*command, json.dumps(plan)], env={**os.environ, **shared, "RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, errors


@pytest.fixture(scope="module")
def prepared(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "prepared"
    sequences.save(folder)
    return folder


@pytest.fixture(scope="module")
def one(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(sequences, plan(folder))
    return folder


def assert_equal_runs(folder: Path, expected: Path) -> None:
    ours, theirs = (
        [line for line in lines(each) if line["event"] == "epoch"] for each in (folder, expected)
    )
    assert [line["epoch"] for line in ours] == [line["epoch"] for line in theirs] == [1, 2]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["targets"] == other["targets"]
        assert one["masked"] == pytest.approx(other["masked"], abs=0.01)
    tensors, expected_tensors = (
        load_file(each / "weights.safetensors") for each in (folder, expected)
    )
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected_tensors[name], rtol=1e-3, atol=1e-4)
    memory, expected_memory = (sparse.load_npz(each / "memory.npz") for each in (folder, expected))
    assert memory.nnz > 0
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(memory, name), getattr(expected_memory, name))


def test_two_processes_train_the_model_of_one(one: Path, prepared: Path, tmp_path: Path) -> None:
    """So do two that go on with the checkpoint of one, and one that goes on with that of two."""
    one_to_two, two_to_one = tmp_path / "one-to-two", tmp_path / "two-to-one"
    for folder in (one_to_two, two_to_one):
        folder.mkdir()
    data = recblr.open_log(prepared)
    train(data, plan(one_to_two, ["lrurec"], stop_after=1))
    steps = [
        *plan(tmp_path), *plan(one_to_two, ["lrurec"], resume=True),
        *plan(two_to_one, ["recblr"], stop_after=1),
    ]  # fmt: skip
    in_processes(2, prepared, steps)
    for name in TRAININGS:
        assert_equal_runs(tmp_path / name, one / name)
    assert_equal_runs(one_to_two / "lrurec", one / "lrurec")
    train(data, plan(two_to_one, ["recblr"], resume=True))
    assert_equal_runs(two_to_one / "recblr", one / "recblr")


@slow
@pytest.mark.parametrize("count", [3, 4])
def test_more_processes_train_the_model_of_one(
    count: int, one: Path, prepared: Path, tmp_path: Path
) -> None:
    in_processes(count, prepared, plan(tmp_path))
    for name in TRAININGS:
        assert_equal_runs(tmp_path / name, one / name)


@slow
def test_torchrun_goes_on_after_a_process_is_killed(prepared: Path, tmp_path: Path) -> None:
    """By the command line: the losses and the model are those of a run without the failure."""
    settings = ["--set", "train.epochs=3", "--set", "train.batch_size=50", "--set", "model.dim=16"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "recblr", "train", str(prepared), *settings, "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, *command, tmp_path / "whole"], check=True, env=environment)
    run = subprocess.Popen(
        [*torchrun, "--max-restarts", "1", *command, str(tmp_path / "killed")], env=environment
    )
    log = tmp_path / "killed.training" / "run.jsonl"
    while not (log.exists() and '"epoch": 1' in log.read_text()):
        assert run.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert run.wait(timeout=300) == 0
    events = [line["event"] for line in lines(tmp_path / "killed")]
    assert events == ["start", "epoch", "resume", "epoch", "epoch", "end"]
    whole, killed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())


def as_rank_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)


def test_only_train_runs_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_rank_1(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["recblr", "evaluate", "model"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "torchrun is for recblr train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("caser", {}, "Caser is trained in one process"),
        ("gru4rec", {"train": {"loss": "paper"}}, r"train\.loss=paper needs one process"),
    ],
)
def test_what_needs_one_process_says_so(
    model: str, settings: dict[str, Any], message: str, sequences: Sequences
) -> None:
    config, training, _ = build_settings(model, settings)
    network = create_model(
        model, config, items=len(sequences.item_ids), users=sequences.users,
        max_length=training.max_length,
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        Trainer(network, sequences, training, ranks=Ranks(0, 2))


def test_too_few_items_for_the_processes() -> None:
    with pytest.raises(InputError, match="9 items are too few for 4 processes"):
        divide(nn.ModuleDict({"embedding": nn.Embedding(9, 2)}), ["embedding.weight"], Ranks(0, 4))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("lengths", [[7], [1, 1], [30, 2, 2, 2, 2, 1], [3] * 20, [1, 50]])
def test_the_parts_of_a_batch_are_its_histories(lengths: list[int], count: int) -> None:
    stops = np.cumsum(lengths) + 10
    starts = stops - lengths
    parts = [part_of((starts, stops), Ranks(rank, count)) for rank in range(count)]
    for side, whole in enumerate((starts, stops)):
        assert np.array_equal(np.concatenate([part[side] for part in parts]), whole)
    assert len(parts[-1][0])
    if len(lengths) >= count:
        assert all(len(part[0]) for part in parts)
