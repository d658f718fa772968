"""A mistake of the user prints one line that says what to do, and exits with code 2."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.fixtures import Run, names
from conftest import Tiny


def damaged(tiny: Tiny, folder: Path) -> Path:
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
    "unknown name of a column": ("train LOG -o new --columns name=user_id", "not 'name'"),
    "incomplete column": ("train LOG -o new --columns user_id", "write user_id=COLUMN"),
    "unknown split": ("train LOG -o new --split random", "unknown split 'random'"),
    "core of zero": ("prepare LOG -o new --core 0", "core must be at least 1"),
    "core too large": ("prepare LOG -o new --core 999", "no user is left"),
    "existing folder": ("train LOG -o MODEL", "exists already; .*--overwrite"),
    "existing prepared folder": ("prepare LOG -o MODEL", "exists already; .*--overwrite"),
    "missing parent": ("train LOG -o no/new", "the folder no does not exist"),
    "unknown device": ("train LOG -o new --device gpu", "unknown device 'gpu'; choose auto"),
    "unknown device to evaluate": ("evaluate MODEL --device cuda:x", "unknown device 'cuda:x'"),
    "no such GPU": ("recommend MODEL --user USER --device cuda:99", "no device 'cuda:99'"),
    "no run to resume": ("train LOG -o new --resume", "nothing to resume"),
    "unknown model": ("train LOG -o new --model gru", "unknown model 'gru'"),
    "unknown setting": ("train LOG -o new --set train.epoch=1", "epoch: .*did you mean epochs"),
    "unknown section": ("train LOG -o new --set optim.lr=1", "no such section of settings: optim"),
    "no section": ("train LOG -o new --set lr=1", "write section.key=value"),
    "no value": ("train LOG -o new --set train.lr", "write section.key=value"),
    "wrong type": ("train LOG -o new --set train.lr=fast", "train.lr = 'fast': must be float"),
    "wrong choice": ("train LOG -o new --set train.schedule=step", "choose one of cosine"),
    "no epochs": ("train LOG -o new --set train.epochs=0", "train.epochs = 0: must be"),
    "empty batches": ("train LOG -o new --set train.batch_size=0", "train.batch_size = 0: must"),
    "learning rate not finite": ("train LOG -o new --set train.lr=nan", "train.lr = nan: must be"),
    "dim of zero": ("train LOG -o new --set model.dim=0", "model.dim = 0: must be"),
    "dropout of one": ("train LOG -o new --set model.dropout=1", "model.dropout = 1.0: must be"),
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
    "user of 20 digits": ("recommend MODEL --user 99999999999999999999", "user '9{20}' is not in"),
    "unknown history": ("recommend MODEL --history x,y", "no item that the model knows"),
    "empty history": ("recommend MODEL --history ,", "history 0 has no item .*: item '' is not in"),
    "open quote": ('recommend MODEL --history a,"b', "--history 'a,\"b': a quote is not closed"),
    "text after a quote": (
        'recommend MODEL --deny "a"b --user USER',
        "'\"a\"b': ',' expected",
    ),
    "unknown choice": (
        "recommend MODEL --user USER --unknown no",
        "unknown = 'no': choose one of error",
    ),
    "unknown denied item": (
        "recommend MODEL --user USER --deny x",
        "deny: item 'x' is not in the log",
    ),
    "no user": ("recommend MODEL", "give exactly one of --user, --history"),
    "a user and a history": (
        "recommend MODEL --user a --history b",
        "give exactly one of --user, --history",
    ),
    "unknown allowed item": ("recommend MODEL --user USER --allow x", "allow: item 'x' is not in"),
    "no items": ("recommend MODEL --user USER -k 0", "k must be at least 1"),
    "no file of users": ("recommend MODEL --users no.txt", "no.txt: cannot be read"),
    "output of unknown kind": ("recommend MODEL --user USER -o a.xlsx", "must end in .parquet or"),
    "unknown device to measure": ("bench step --device tpu", "unknown device 'tpu'; choose auto"),
    "missing log to measure": ("bench train no.csv", r"no\.csv: no such file"),
    "missing folder of the output": (
        "recommend MODEL --user USER -o no/a.csv",
        "the folder no does not exist",
    ),
    "output is a folder": ("recommend MODEL --user USER -o FOLDER.csv", "FOLDER.csv is a folder"),
    "output for all is a folder": (
        "recommend MODEL --all -o FOLDER.parquet",
        "is a folder; give a",
    ),
    "output in /proc": (
        "recommend MODEL --user USER -o /proc/a.csv",
        "/proc/a.csv: cannot be written",
    ),
    "output for all in /proc": ("recommend MODEL --all -o /proc/a.parquet", "cannot be written"),
    "name that is too long": (
        "recommend MODEL --user USER -o LONG.csv",
        "cannot be written .*long",
    ),
    "folder is here": ("train LOG -o .", r"\. cannot be created as a new folder"),
    "folder is the root": ("train LOG -o /", "/ cannot be created as a new folder"),
    "folder is above": ("prepare LOG -o ..", r"\.\. exists already"),
    "folder in /proc": ("train LOG -o /proc/model", "/proc/model: cannot be written"),
    "prepared folder in /proc": ("prepare LOG -o /proc/data", "/proc/data: cannot be written"),
    "name of a folder that is too long": ("train LOG -o LONG", "cannot be written .*long"),
    "export to /proc": ("export MODEL -o /proc/onnx", "/proc/onnx: cannot be written"),
    "page in /proc": ("compare MODEL MODEL --html /proc/a.html", "/proc/a.html: cannot be written"),
    "page is a folder": ("compare MODEL MODEL --html FOLDER.csv", "is a folder; give a file"),
    "users in a folder": ("recommend MODEL --users FOLDER.csv", "FOLDER.csv: cannot be read"),
    "keys in a missing folder": ("key shop no/keys.json", "the folder no does not exist"),
    "keys in /proc": ("key shop /proc/keys.json", "/proc/keys.json: cannot be written"),
    "keys are a folder": ("key shop FOLDER.csv", "FOLDER.csv is a folder"),
    "server without keys": ("serve MODEL --keys no.json", "no.json is not a key file"),
    "titles missing": ("serve MODEL --titles no.csv", "no.csv: the columns .* cannot be read"),
    "store is a folder": ("serve MODEL --store FOLDER.csv", "is a folder; give a file"),
    "store that does not exist": (
        "replay MODEL --store a.sqlite",
        "a.sqlite: no such event log; pass another with --store",
    ),
    "store in a missing folder": (
        "replay MODEL --log LOG --store no/a.sqlite",
        "no/a.sqlite cannot be opened",
    ),
    "store in /proc": ("replay MODEL --log LOG --store /proc/a.sqlite", "/proc/a.sqlite cannot be"),
    "store of another database": ("verify MODEL --store mysql://a/b", "give a file, or postgresql"),
    "damaged store": ("verify MODEL --store BROKEN_TOML", "is not a SQLite file"),
    "log to replay missing": ("replay MODEL --log no.csv", r"no\.csv: no such file"),
    "host that is no name": (
        "serve MODEL --host a..b --keys KEYS",
        r"a\.\.b:8000: .*; choose another",
    ),
    "line break in a path": ("train no.csv -o LINES", "the folder a b does not exist"),
    "model is a file": ("recommend LOG --user USER", "log.csv is not a whole recblr artifact"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_files(
    run: Run, tiny: Tiny, tmp_path: Path, mistake: str
) -> None:
    line, message = MISTAKES[mistake]
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "flat.toml").write_text("lr = 0.1\n")
    places = {
        "LOG": tiny.log, "MODEL": tiny.artifact, "USER": tiny.frame["user_id"][0],
        "BROKEN_TOML": "broken.toml", "FLAT_TOML": "flat.toml", "LONG": "a" * 300,
        "LONG.csv": "a" * 300 + ".csv", "LINES": "a\nb/c", "KEYS": "keys.json",
    }  # fmt: skip
    (tmp_path / "keys.json").write_text("{}")
    for folder in ("FOLDER.csv", "FOLDER.parquet"):
        (tmp_path / folder).mkdir()
    if "DAMAGED" in line:
        places["DAMAGED"] = damaged(tiny, tmp_path / "damaged")
    before, beside_the_log = names(tmp_path), names(tiny.log.parent)
    result = run(*[places.get(word, word) for word in line.split()])
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(rf"recblr: .*{message}.*\n", result.err), result.err
    assert names(tmp_path) == before
    assert names(tiny.log.parent) == beside_the_log


def test_a_mistake_in_a_new_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from recblr.cli.main import main; main()", "evaluate", "nowhere"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"recblr: nowhere is not a whole recblr artifact.*\n", done.stderr)
