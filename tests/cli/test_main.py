"""The command line as a person and as a program meet it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from recblr.cli import main as cli
from recblr.errors import DivergedError, InputError
from recblr.recommender import Recommender

FAST = [
    "--set", "model.dim=16", "--set", "model.layers=1", "--set", "train.epochs=1",
    "--set", "train.batch_size=256", "--set", "train.max_length=16",
]  # fmt: skip
COMMANDS = [
    [], ["demo"], ["prepare"], ["train"], ["evaluate"], ["compare"], ["recommend"], ["reproduce"],
    ["doctor"], ["export"], ["serve"], ["key"], ["replay"], ["verify"],
    ["bench"], ["bench", "ops"], ["bench", "step"], ["bench", "length"], ["bench", "train"],
    ["bench", "serve"],
]  # fmt: skip
METRICS = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the entry point in this process, in an empty folder, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def main(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["recblr", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return main


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def answer(result: Result) -> Any:
    """The JSON that is all a command printed."""
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def assert_evaluations(found: Any) -> None:
    assert [row["protocol"]["seen"] for row in found] == ["unmasked", "masked"]
    for row in found:
        assert row["metrics"].keys() == METRICS
        assert list(row["floors"]) == ["popularity", "markov chain", "transitions"]
        assert all(floor.keys() == METRICS for floor in row["floors"].values())
        assert all(0 <= value <= 1 for value in row["metrics"].values())
        assert row["metrics"]["HR@10"] <= row["metrics"]["HR@20"]
        assert row["protocol"]["part"] == "test"


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_screen(run: Run, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run(*command, "--help")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(" ".join(["Usage: recblr", *command]))


def test_help_lists_every_command(run: Run) -> None:
    listed = set(re.findall(r"^  ([a-z]+)  ", run("--help").out, re.MULTILINE))
    assert {command[0] for command in COMMANDS if command} <= listed


def test_the_installed_command_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['recblr', '--help']\n"
        "from recblr.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'polars' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


# ---- the way from a log to recommendations -------------------------------------------------------


def test_prepare_train_evaluate_recommend(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    users, items = tiny.frame["user_id"].n_unique(), tiny.frame["item_id"].n_unique()
    prepared = answer(run("prepare", tiny.log, "-o", "ready", "--json"))
    assert prepared["users"] == users
    assert prepared["items"] == items
    assert prepared["interactions"] == tiny.frame.height
    assert (prepared["core"], prepared["split"]) == (1, "leave-one-out")
    assert prepared["training_interactions"] == tiny.frame.height - 2 * users

    trained = answer(run("train", "ready", "-o", "model", *FAST, "--json"))
    assert_evaluations(trained)
    assert names(tmp_path) == {"ready", "model"}
    assert answer(run("evaluate", "model", "--json")) == trained
    assert answer(run("evaluate", "model", tiny.log, "--json")) == trained
    assert answer(run("evaluate", "model", "ready", "--json")) == trained

    user = tiny.frame["user_id"][0]
    rows = answer(run("recommend", "model", "--user", user, "-k", 4, "--json"))
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert {tuple(row) for row in rows} == {("user_id", "item_id", "score", "rank")}
    assert {row["user_id"] for row in rows} == {user}
    seen = set(tiny.frame.filter(pl.col("user_id") == user)["item_id"])
    assert not seen & {row["item_id"] for row in rows}


def test_training_on_the_file_is_training_on_the_prepared_folder(run: Run, tiny: Tiny) -> None:
    run("prepare", tiny.log, "-o", "ready", "--core", "4")
    from_folder = answer(run("train", "ready", "-o", "a", *FAST, "--json"))
    from_file = answer(run("train", tiny.log, "-o", "b", "--core", "4", *FAST, "--json"))
    assert from_folder == from_file
    assert from_file[0]["protocol"]["core"] == 4


def test_settings_of_a_file_and_of_the_line(run: Run, tiny: Tiny) -> None:
    Path("my.toml").write_text("[model]\ndim = 8\nlayers = 1\n[train]\nepochs = 1\nlr = 0.02\n")
    arguments = ["--config", "my.toml", "--set", "model.dim=12", "--set", "train.hide_seen=true"]
    assert run("train", tiny.log, "-o", "model", *arguments).code == 0
    settings = json.loads(Path("model/config.json").read_text())
    assert (settings["model"]["dim"], settings["model"]["layers"]) == (12, 1)
    assert settings["train"]["lr"] == 0.02
    assert settings["train"]["hide_seen"] is True


def test_columns(run: Run, tiny: Tiny) -> None:
    theirs = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    tiny.frame.rename(theirs).write_csv("other.csv")
    option = ",".join(f"{ours}={name}" for ours, name in theirs.items())
    found = answer(run("prepare", "other.csv", "-o", "a", "--columns", option, "--json"))
    plain = answer(run("prepare", tiny.log, "-o", "b", "--json"))
    assert found == {**plain, "source": "other.csv"}
    same = answer(run("evaluate", tiny.artifact, "other.csv", "--columns", option, "--json"))
    assert same == answer(run("evaluate", tiny.artifact, "--json"))


def test_what_a_person_reads(run: Run, tiny: Tiny) -> None:
    result = run("prepare", tiny.log, "-o", "ready")
    assert (result.code, result.err) == (0, "")
    assert f"{tiny.frame.height:,}" in result.out
    result = run("train", "ready", "-o", "model", *FAST)
    assert (result.code, result.err) == (0, "")
    assert "best epoch 1 of 1 (epochs)" in result.out
    assert "model in model" in result.out
    assert re.search(
        r"^memory of transitions: weight .*validation NDCG@10", result.out, re.MULTILINE
    )
    evaluated = run("evaluate", "model")
    assert evaluated.code == 0
    assert result.out.endswith(evaluated.out)
    for evaluation in answer(run("evaluate", "model", "--json")):
        for name, value in evaluation["metrics"].items():
            low, high = evaluation["intervals"][name]
            floors = " +".join(f"{floor[name]:.4f}" for floor in evaluation["floors"].values())
            numbers = rf"{value:.4f} +{low:.4f}-{high:.4f} +{floors}"
            seen = evaluation["protocol"]["seen"]
            assert re.search(rf"^ {seen} +{name} +{numbers} *$", evaluated.out, re.MULTILINE)
    assert "protocol: leave-one-out test, 1-core, full ranking of 24 items" in evaluated.out
    user = tiny.frame["user_id"][0]
    result = run("recommend", "model", "--user", user, "-k", 2)
    assert len(result.out.splitlines()) == 3
    assert result.out.count(user) == 2


# ---- recommend -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("always")
def test_unknown_items_are_named(run: Run, tiny: Tiny) -> None:
    a, b = tiny.recommender.data.item_ids.to_pylist()[:2]
    plain = run("recommend", tiny.artifact, "--history", f"{a},{b}")
    assert run("recommend", tiny.artifact, "--history", f'{a}, "{b}"') == plain
    odd = run("recommend", tiny.artifact, "--history", f'{a},"x,y",{b}')
    assert (odd.code, odd.out) == (0, plain.out)
    assert odd.err == (
        "recblr: --history: the model does not know 1 of 3 items, such as 'x,y'; passed over\n"
    )


def test_recommend_for_a_file_of_users(run: Run, tiny: Tiny) -> None:
    users = tiny.frame["user_id"].unique(maintain_order=True).to_list()[:5]
    Path("users.txt").write_text("\n".join(users) + "\n")
    expected = tiny.recommender.recommend(users=users, k=3)
    for name, read in (("out.parquet", pl.read_parquet), ("out.csv", pl.read_csv)):
        result = run("recommend", tiny.artifact, "--users", "users.txt", "-k", 3, "-o", name)
        assert (result.code, result.out, result.err) == (0, f"5 users in {name}\n", "")
        found = read(name)
        assert found.columns == ["user_id", "item_id", "score", "rank"]
        assert found.drop("score").equals(expected.drop("score"))
        assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)
    many = [option for user in users for option in ("--user", user)]
    assert answer(run("recommend", tiny.artifact, *many, "-k", 3, "--json")) == expected.to_dicts()


def test_ids_are_printed_as_they_are(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Square brackets are markup to the library that prints tables."""
    frame = tiny.frame.with_columns(pl.format("[red]{}[/x]", "item_id").alias("item_id"))
    training = replace(TINY_TRAINING, epochs=1)
    Recommender("recblr", TINY_MODEL, training).fit(frame).save(tmp_path / "odd")
    result = run("recommend", tmp_path / "odd", "--history", frame["item_id"][0], "-k", 3)
    assert result.code == 0
    shown = [line.split(maxsplit=2)[2] for line in result.out.splitlines()[1:]]
    assert len(shown) == 3
    assert all(line.startswith("[red]") for line in shown)


def test_recommend_for_a_history_among_some_items(run: Run, tiny: Tiny) -> None:
    a, b, c, d, e = tiny.recommender.data.item_ids.to_pylist()[:5]
    arguments = ["recommend", tiny.artifact, "--history", f"{a},{b}", "--json"]
    rows = answer(run(*arguments, "--allow", f"{a},{c},{d},{e}", "--deny", d))
    assert {row["item_id"] for row in rows} == {c, e}
    assert {row["user_id"] for row in rows} == {0}
    rows = answer(run(*arguments, "--allow", f"{a},{c}", "--no-hide-seen"))
    assert {row["item_id"] for row in rows} == {a, c}


def test_ids_that_are_numbers(run: Run, tiny: Tiny) -> None:
    frame = tiny.frame.with_columns(pl.col("user_id", "item_id").rank("dense").cast(pl.Int64))
    frame.write_parquet("log.parquet")
    assert run("train", "log.parquet", "-o", "model", *FAST).code == 0
    rows = answer(run("recommend", "model", "--user", "12", "-k", 1, "--json"))
    assert rows[0]["user_id"] == 12
    assert isinstance(rows[0]["item_id"], int)
    result = run("recommend", "model", "--user", "ada")
    assert result.code == 2
    assert "whole numbers" in result.err


# ---- mistakes ------------------------------------------------------------------------------------


def broken(tiny: Tiny, folder: Path) -> Path:
    shutil.copytree(tiny.artifact, folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


MISTAKES: dict[str, tuple[str, str]] = {
    "missing log": ("train no.csv -o new", r"no\.csv: no such file"),
    "missing log to prepare": ("prepare no.csv -o new", r"no\.csv: no such file"),
    "unknown data set": ("train ml-1n -o new", "ml-1n: no such .* set; did you mean ml-1m"),
    "unlike any data set": ("train clicks -o new", "no such data set; there are .*ml-1m"),
    "no such column": ("train LOG -o new --columns user_id=who", "no column 'who'"),
    "not our column": ("train LOG -o new --columns name=user_id", "not 'name'"),
    "half a column": ("train LOG -o new --columns user_id", "write user_id=theirs"),
    "unknown split": ("train LOG -o new --split random", "unknown split 'random'"),
    "core of zero": ("prepare LOG -o new --core 0", "core must be at least 1"),
    "core too large": ("prepare LOG -o new --core 999", "no user is left"),
    "existing folder": ("train LOG -o MODEL", "exists already; .*--overwrite"),
    "existing prepared folder": ("prepare LOG -o MODEL", "exists already; .*--overwrite"),
    "missing parent": ("train LOG -o no/new", "the folder no does not exist"),
    "unknown device": ("train LOG -o new --device gpu", "unknown device 'gpu'; choose auto"),
    "unknown device to evaluate": ("evaluate MODEL --device cuda:x", "unknown device 'cuda:x'"),
    "no such GPU": ("recommend MODEL --user USER --device cuda:99", "no device 'cuda:99'"),
    "nothing to resume": ("train LOG -o new --resume", "nothing to resume"),
    "unknown model": ("train LOG -o new --model gru", "unknown model 'gru'"),
    "unknown setting": ("train LOG -o new --set train.epoch=1", "epoch: .*did you mean epochs"),
    "unknown section": ("train LOG -o new --set optim.lr=1", "no such section of settings: optim"),
    "no section": ("train LOG -o new --set lr=1", "write section.key=value"),
    "no value": ("train LOG -o new --set train.lr", "write section.key=value"),
    "wrong type": ("train LOG -o new --set train.lr=fast", "train.lr = 'fast': must be float"),
    "wrong choice": ("train LOG -o new --set train.schedule=step", "choose one of cosine"),
    "no epochs": ("train LOG -o new --set train.epochs=0", "train.epochs = 0: must be"),
    "empty batches": ("train LOG -o new --set train.batch_size=0", "train.batch_size = 0: must"),
    "no rate": ("train LOG -o new --set train.lr=nan", "train.lr = nan: must be"),
    "no width": ("train LOG -o new --set model.dim=0", "model.dim = 0: must be"),
    "all dropped": ("train LOG -o new --set model.dropout=1", "model.dropout = 1.0: must be"),
    "no such preset": ("train LOG -o new --config ml-1n", "no TOML file and no preset"),
    "no such TOML file": ("train LOG -o new --config no.toml", r"no\.toml: cannot be read"),
    "broken TOML": ("train LOG -o new --config BROKEN_TOML", "not valid TOML"),
    "setting outside of a section": ("train LOG -o new --config FLAT_TOML", "lr"),
    "no model": (
        "evaluate nowhere",
        "nowhere is not a whole recblr artifact: there is no such folder",
    ),
    "damaged model": ("evaluate DAMAGED", "model.safetensors is damaged"),
    "damaged model to recommend": ("recommend DAMAGED --history a", "safetensors is damaged"),
    "missing other log": ("evaluate MODEL no.csv", r"no\.csv: no such file"),
    "unknown user": ("recommend MODEL --user nobody", "user 'nobody' is not in the log"),
    "unknown history": ("recommend MODEL --history x,y", "no item that the model knows"),
    "nobody": ("recommend MODEL", "give --user, --history or --users"),
    "two ways": ("recommend MODEL --user a --history b", "give --user, --history or --users"),
    "none allowed": ("recommend MODEL --user USER --allow x", "leave no item"),
    "no items": ("recommend MODEL --user USER -k 0", "k must be at least 1"),
    "no file of users": ("recommend MODEL --users no.txt", "no.txt: cannot be read"),
    "output of unknown kind": ("recommend MODEL --user USER -o a.xlsx", "must end in .parquet or"),
    "unknown device to measure": ("bench step --device tpu", "unknown device 'tpu'; choose auto"),
    "missing log to measure": ("bench train no.csv", r"no\.csv: no such file"),
    "output nowhere": ("recommend MODEL --user USER -o no/a.csv", "the folder no does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    run: Run, tiny: Tiny, tmp_path: Path, mistake: str
) -> None:
    line, message = MISTAKES[mistake]
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "flat.toml").write_text("lr = 0.1\n")
    places = {
        "LOG": tiny.log, "MODEL": tiny.artifact, "USER": tiny.frame["user_id"][0],
        "BROKEN_TOML": "broken.toml", "FLAT_TOML": "flat.toml",
    }  # fmt: skip
    if "DAMAGED" in line:
        places["DAMAGED"] = broken(tiny, tmp_path / "damaged")
    before, beside = names(tmp_path), names(tiny.log.parent)
    result = run(*[places.get(word, word) for word in line.split()])
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(rf"recblr: .*{message}.*\n", result.err), result.err
    assert names(tmp_path) == before
    assert names(tiny.log.parent) == beside


def test_a_log_without_events_to_predict_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,1\n1,2\n2,1\n2,2\n")
    result = run("train", "log.csv", "-o", "model", *FAST)
    assert result.code == 2
    assert re.fullmatch(r"recblr: .*no user has an event to predict.*\n", result.err)
    assert names(tmp_path) == {"log.csv"}


@pytest.mark.parametrize(
    "line",
    ["nonsense", "train", "train LOG", "train LOG -o new --core many", "recommend MODEL -k few",
     "demo --loud", "bench nothing"],
)  # fmt: skip
def test_typers_own_refusals(run: Run, line: str, tmp_path: Path) -> None:
    result = run(*line.split())
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert "Usage: recblr" in result.err
    assert names(tmp_path) == set()


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from recblr.cli.main import main; main()", "evaluate", "nowhere"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"recblr: nowhere is not a whole recblr artifact.*\n", done.stderr)


def test_overwrite(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    run("train", tiny.log, "-o", "model", *FAST, "--set", "train.seed=1")
    assert run("train", tiny.log, "-o", "model", *FAST, "--overwrite").code == 0
    assert json.loads((tmp_path / "model/config.json").read_text())["train"]["seed"] == 0
    refused = run("prepare", tiny.log, "-o", "model", "--overwrite")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "something else, there is no prepared.json in it" in refused.err
    assert (tmp_path / "model/model.safetensors").exists()
    assert run("prepare", tiny.log, "-o", "log").code == 0
    assert run("prepare", tiny.log, "-o", "log", "--overwrite").code == 0
    assert names(tmp_path) == {"model", "log"}


# ---- trouble -------------------------------------------------------------------------------------


def test_divergence_exits_with_1(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    result = run("train", tiny.log, "-o", "model", *FAST, "--set", "train.lr=1e30", "--json")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"recblr: .*diverged.*\n", result.err)
    assert not (tmp_path / "model").exists()
    # Nothing stands in the way of the next try.
    assert run("train", tiny.log, "-o", "model", *FAST).code == 0
    assert names(tmp_path) == {"model"}


NO_MEMORY = (
    "recblr: out of memory; lower train.batch_size, train.window, train.max_length or the size of "
    "the model\n"
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a mistake"), 2, "recblr: a mistake\n"),
        (DivergedError("not finite"), 1, "recblr: not finite\n"),
        (KeyboardInterrupt(), 130, "recblr: interrupted\n"),
        (MemoryError(), 1, NO_MEMORY),
        (torch.OutOfMemoryError(), 1, NO_MEMORY),
    ],
)
def test_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("recblr.doctor.examine", fail)
    assert run("doctor") == Result(code, "", message)


def test_a_model_larger_than_memory_is_one_line(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    found = run("train", tiny.log, "-o", "model", "--set", "model.dim=1000000000000")
    assert found == Result(1, "", NO_MEMORY)
    assert names(tmp_path) <= {"model.training"}


def test_ctrl_c_and_resume(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from recblr.training.trainer import validate

    calls = 0

    def once(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    arguments = ["train", tiny.log, "-o", "model", *FAST, "--set", "train.epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr("recblr.training.trainer.validate", once)
        result = run(*arguments)
    assert result.code == 0
    assert "best epoch 1 of 1 (interrupted)" in result.out
    result = run(*arguments, "--resume")
    assert result.code == 0
    assert "of 2 (epochs)" in result.out
    assert names(Path()) == {"model"}


# ---- the machine ---------------------------------------------------------------------------------


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(run("doctor", "--json"))
    assert found["healthy"] is True
    assert "healthy" in run("doctor").out
    monkeypatch.setattr("recblr.doctor.examine", lambda: {"healthy": False})
    assert run("doctor").code == 1


def test_bench_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"history": 1000, "median": 250.0, "p10": 200.0, "p90": 300.0}]
    monkeypatch.setattr("recblr.benchmark.step.time_steps", lambda device: rows)
    told = answer(run("bench", "step", "--device", "cpu", "--json"))
    assert told["steps"] == rows
    assert told["command"] == "recblr bench step --device cpu --json"
    assert told["date"]
    shown = run("bench", "step").out
    assert re.search(r"1,000 +250 +200 +300", shown)


def test_bench_ops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"forward_ns": 1.5, "both_ns": 6.0, "times_slower": 1.0}
    missing = dict.fromkeys(row)
    rows = [{"name": "fused", "gate": "ok", **row}, {"name": "peer", "gate": "absent", **missing}]
    found = {"shape": [4, 5, 6], "dtype": "float32", "rows": rows}
    monkeypatch.setattr("recblr.benchmark.ops.time_ops", lambda device: {**found, "device": device})
    told = answer(run("bench", "ops", "--device", "cpu", "--json"))
    assert {key: told[key] for key in found} == found
    assert told["device"] == "cpu"
    shown = run("bench", "ops").out
    assert re.search(r"fused +ok +1\.50 +6\.00 +1\.00 *\n *peer +absent *\n", shown)


def test_bench_length(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "length": 4096,
            "recblr": {"event_ns": 5000.0, "step_us": 40.0},
            "attention": {"event_ns": attention, "step_us": 90.0},
        }
        for attention in (8000.0, None)
    ]
    found = {"events": 4096, "width": 64, "rows": rows}
    monkeypatch.setattr("recblr.benchmark.length.time_lengths", lambda device: found)
    told = answer(run("bench", "length", "-o", "picture.png", "--json"))
    assert {key: told[key] for key in found} == found
    assert names(tmp_path) == {"picture.png"}
    shown = run("bench", "length").out
    assert re.search(r"4,096 +5,000 +8,000 +40 +90 *\n *4,096 +5,000 +40 +90 *\n", shown)
    result = run("bench", "length", "-o", "no/picture.png")
    assert (result.code, result.out) == (2, shown)
    assert re.fullmatch(r"recblr: no/picture\.png: the picture cannot be written.*\n", result.err)


def test_bench_train(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from recblr.training.trainer import TrainConfig

    monkeypatch.setattr("recblr.benchmark.train.TrainConfig", lambda: TrainConfig(batch_size=512))
    told = answer(run("bench", "train", tiny.log, "--device", "cpu", "--json"))
    assert told["log"] == "log.csv"
    assert told["all_positions"]["times_products"] > 1
    shown = run("bench", "train", tiny.log, "--device", "cpu").out
    assert re.search(r"seconds an epoch +\d+\.\d\d +\d+\.\d\d *\n", shown)
    assert re.search(r"  matrix products +\d+% +\d+% *\n", shown)


def test_demo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(console: Any) -> dict[str, Any]:
        console.print("A simulated shop")
        return {"metrics": {}}

    monkeypatch.setattr("recblr.demo.run_demo", short)
    assert answer(run("demo", "--json")) == {"metrics": {}}
    assert run("demo").out == "A simulated shop\n"
