"""Artifacts are saved completely, loaded unchanged, and refused if anything is wrong."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import numpy as numpy_arrays
from safetensors.torch import load_file, save_file

import recblr
from cli.fixtures import names
from conftest import TINY_MODEL, TINY_TRAINING, Tiny, assert_same_tensors
from helpers import untrained
from recblr import artifact
from recblr.artifact import _digest
from recblr.errors import InputError
from recblr.files import sha256
from recblr.memory import MemoryConfig
from recblr.recommender import Recommender, load

FILES = {
    "config.json",
    "histories.parquet",
    "manifest.json",
    "memory.safetensors",
    "model.safetensors",
    "vocabulary.parquet",
}


def rehash(folder: Path) -> None:
    """Write the hashes of the changed files to the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["digest"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_saved_model_is_loaded_unchanged(tiny: Tiny) -> None:
    ours, theirs = tiny.recommender, recblr.load(tiny.artifact)
    assert_same_tensors(ours.network.state_dict(), theirs.network.state_dict())
    assert (theirs.model, theirs.config, theirs.training) == ("recblr", TINY_MODEL, TINY_TRAINING)
    assert theirs.trained == ours.trained
    assert theirs.data.fingerprint == ours.data.fingerprint
    assert not theirs.network.training
    users = ours.data.user_ids.to_pylist()
    assert theirs.recommend(users=users).equals(ours.recommend(users=users))
    again, before = theirs.evaluate(), ours.evaluate()
    assert [e.to_json() for e in again] == [e.to_json() for e in before]


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_the_split_is_saved(tiny: Tiny, split: str, tmp_path: Path) -> None:
    frame = tiny.frame.with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    ours = untrained().fit(frame, core=5, split=split)
    ours.save(tmp_path / "model")
    theirs = load(tmp_path / "model")
    assert (theirs.data.core, theirs.data.split.name) == (5, split)
    for part in ("train_end", "validation", "test"):
        np.testing.assert_array_equal(
            getattr(theirs.data.split, part), getattr(ours.data.split, part)
        )
    assert theirs.data.fingerprint == ours.data.fingerprint
    assert [e.to_json() for e in theirs.evaluate(frame)] == [e.to_json() for e in ours.evaluate()]


def test_the_files_of_an_artifact_are_not_pickles(tiny: Tiny, tmp_path: Path) -> None:
    assert names(tiny.artifact) == FILES | {"run.jsonl"}
    tiny.recommender.save(tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == FILES
    starts = {
        "model.safetensors": b"",
        "memory.safetensors": b"",
        "config.json": b"{",
        "manifest.json": b"{",
    }
    for name in FILES:
        content = (tmp_path / "model" / name).read_bytes()
        assert content.startswith(starts.get(name, b"PAR1"))
        # A pickle begins with its protocol; a safetensors file with the length of its JSON.
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


def test_the_manifest_describes_the_artifact(tiny: Tiny) -> None:
    manifest = json.loads((tiny.artifact / "manifest.json").read_text())
    assert manifest["files"] == {n: sha256(tiny.artifact / n) for n in FILES - {"manifest.json"}}
    assert manifest["format"] == 1
    assert manifest["versions"].keys() == {"recblr", "torch", "python"}
    assert manifest["data"]["fingerprint"] == tiny.recommender.data.fingerprint
    assert manifest["data"]["kept"]["users"] == tiny.frame["user_id"].n_unique()
    assert manifest["measured"] == [e.to_json() for e in tiny.recommender.evaluate()]
    assert manifest["training"]["best_epoch"] == tiny.recommender.trained.best_epoch
    settings = json.loads((tiny.artifact / "config.json").read_text())
    assert settings["model"] == {"name": "recblr", **asdict(TINY_MODEL)}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_is_refused(artifact_copy: Path, name: str) -> None:
    content = (artifact_copy / name).read_bytes()
    for place in np.linspace(0, len(content) - 1, 12).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 1
        if name == "manifest.json" and chr(content[place]) in " \n":
            damaged[place] = ord("x")
        (artifact_copy / name).write_bytes(damaged)
        with pytest.raises(InputError):
            load(artifact_copy)
    (artifact_copy / name).write_bytes(content)
    load(artifact_copy)


def test_a_changed_metric_is_refused(artifact_copy: Path) -> None:
    manifest = json.loads((artifact_copy / "manifest.json").read_text())
    manifest["measured"][0]["metrics"]["HR@10"] = 0.99
    (artifact_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        load(artifact_copy)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_or_truncated_file_is_refused(artifact_copy: Path, name: str) -> None:
    content = (artifact_copy / name).read_bytes()
    (artifact_copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"damaged|not a whole recblr artifact"):
        load(artifact_copy)
    (artifact_copy / name).unlink()
    with pytest.raises(InputError, match=f"not a whole recblr artifact.*{name}"):
        load(artifact_copy)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="not a whole recblr artifact"):
            load(folder)


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def change_config(section: str, key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        settings[section][key] = value
        (folder / "config.json").write_text(json.dumps(settings))

    return edit


def set_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["embedding.weight"][3, 2] = math.nan


def set_infinite(weights: dict[str, torch.Tensor]) -> None:
    weights["layers.0.recurrent.lru.lam"][0] = math.inf


def shorten(weights: dict[str, torch.Tensor]) -> None:
    weights["embedding.weight"] = weights["embedding.weight"][1:].clone()


def move_items(folder: Path) -> None:
    table = pq.read_table(folder / "histories.parquet")
    lists = table["items"].combine_chunks()
    moved = pa.LargeListArray.from_arrays(lists.offsets, pc.add(lists.values, 1_000_000))
    pq.write_table(table.set_column(1, "items", moved), folder / "histories.parquet")


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["norm.bias"]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["more"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(change_weights(set_nan), "a weight is not finite", id="nan"),
        pytest.param(change_weights(set_infinite), "a weight is not finite", id="inf"),
        pytest.param(change_weights(shorten), "do not have the shapes", id="shape"),
        pytest.param(change_weights(drop), "do not have the shapes", id="dropped"),
        pytest.param(change_weights(add), "do not have the shapes", id="added"),
        pytest.param(change_config("model", "dim", 32), "do not have the shapes", id="dim"),
        pytest.param(change_config("model", "dim", "16"), "model.dim = '16'", id="type"),
        pytest.param(change_config("model", "dim", 0), "model.dim = 0", id="range"),
        pytest.param(change_config("model", "dims", 16), "did you mean dim", id="unknown"),
        pytest.param(change_config("train", "max_length", -1), "train.max_length", id="train"),
        pytest.param(change_config("model", "name", "other"), "not a whole", id="model"),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"), "not a whole", id="no json"
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text('{"model": "recblr"}'),
            "not a whole",
            id="other json",
        ),
        pytest.param(
            lambda folder: (folder / "vocabulary.parquet").write_bytes(b"PAR1"),
            "not a whole",
            id="no parquet",
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01."),
            "not a whole",
            id="pickle",
        ),
        pytest.param(move_items, "histories do not fit the vocabulary", id="items"),
    ],
)
def test_wrong_contents_with_correct_hashes_are_refused(
    artifact_copy: Path, edit: Callable[[Path], None], message: str
) -> None:
    load(artifact_copy)
    edit(artifact_copy)
    rehash(artifact_copy)
    with pytest.raises(InputError, match=message):
        load(artifact_copy)


# ---- the memory of transitions -------------------------------------------------------------------


def test_the_memory_is_loaded_unchanged(tiny: Tiny) -> None:
    ours, theirs = tiny.recommender, load(tiny.artifact)
    assert ours.memory is not None
    assert theirs.memory is not None
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(
            getattr(ours.memory.matrix, name), getattr(theirs.memory.matrix, name)
        )
    numbers = ("config", "weight", "scale", "repeat")
    assert [getattr(ours.memory, n) for n in numbers] == [
        getattr(theirs.memory, n) for n in numbers
    ]
    assert theirs.memory_choice == ours.memory_choice
    assert theirs.memory_config == MemoryConfig()


def test_without_a_memory_scores_are_those_of_the_network(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"model": asdict(TINY_MODEL), "train": asdict(TINY_TRAINING)}
    settings["memory"] = {"enabled": False}
    recommender = Recommender.configured("recblr", settings).fit(tiny.log)
    assert recommender.memory is None
    assert_same_tensors(recommender.network.state_dict(), tiny.recommender.network.state_dict())
    recommender.save(tmp_path / "model")
    assert names(tmp_path / "model") == FILES - {"memory.safetensors"}
    again = load(tmp_path / "model")
    assert again.memory is None
    users = tiny.recommender.data.user_ids.to_pylist()[:3]
    assert again.recommend(users).equals(recommender.recommend(users))
    validation = recommender.evaluate(part="validation")
    assert validation[1].metrics == recommender.trained.validation  # masked


def test_an_artifact_of_version_0_1_0_loads(tiny: Tiny, artifact_copy: Path) -> None:
    """It has no memory, and no settings for one."""
    (artifact_copy / "memory.safetensors").unlink()
    settings = json.loads((artifact_copy / "config.json").read_text())
    del settings["memory"]
    (artifact_copy / "config.json").write_text(json.dumps(settings))
    manifest = json.loads((artifact_copy / "manifest.json").read_text())
    del manifest["memory"], manifest["files"]["memory.safetensors"]
    (artifact_copy / "manifest.json").write_text(json.dumps(manifest))
    rehash(artifact_copy)
    old = load(artifact_copy)
    assert old.memory is None
    assert old.settings["memory"]["enabled"] is False
    assert old.evaluate(part="validation")[1].metrics == tiny.recommender.trained.validation


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("values", np.float32(np.nan), "a value is not finite"),
        ("items", 10_000, "not a whole"),
        ("ends", -1, "not a whole"),
    ],
)
def test_a_wrong_memory_with_correct_hashes_is_refused(
    artifact_copy: Path, name: str, value: float, message: str
) -> None:
    arrays = numpy_arrays.load_file(artifact_copy / "memory.safetensors")
    arrays[name][len(arrays[name]) // 2] = value
    numpy_arrays.save_file(arrays, artifact_copy / "memory.safetensors")
    rehash(artifact_copy)
    with pytest.raises(InputError, match=message):
        load(artifact_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"files": {}}', '{"files": 3}'])
def test_another_manifest_is_refused(artifact_copy: Path, text: str) -> None:
    (artifact_copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not a whole recblr artifact"):
        load(artifact_copy)


def test_save_overwrites_only_if_told(tiny: Tiny, artifact_copy: Path) -> None:
    (artifact_copy / "mine.txt").write_text("keep")
    before = {path: path.read_bytes() for path in artifact_copy.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        tiny.recommender.save(artifact_copy)
    assert {path: path.read_bytes() for path in artifact_copy.iterdir()} == before
    tiny.recommender.save(artifact_copy, overwrite=True)
    assert names(artifact_copy) == FILES
    assert names(artifact_copy.parent) == {"copy"}
    load(artifact_copy)
    with pytest.raises(InputError, match="does not exist"):
        tiny.recommender.save(artifact_copy.parent / "no" / "model")


def test_what_would_not_load_is_not_saved(tiny: Tiny, artifact_copy: Path) -> None:
    broken = load(artifact_copy)
    with torch.no_grad():
        next(broken.network.parameters())[0, 0] = math.nan
    before = {path: path.read_bytes() for path in artifact_copy.iterdir()}
    for folder in (artifact_copy, artifact_copy.parent / "new"):
        with pytest.raises(InputError, match=rf"not saved, .*: {folder}: a weight is not finite"):
            broken.save(folder, overwrite=True)
    assert names(artifact_copy.parent) == {"copy"}
    assert {path: path.read_bytes() for path in artifact_copy.iterdir()} == before


def test_settings_of_numpy_are_saved_and_loaded(tiny: Tiny, tmp_path: Path) -> None:
    plain = replace(TINY_TRAINING, epochs=1)
    training = replace(plain, epochs=np.int64(1), lr=np.float64(plain.lr), batch_size=256.0)
    config = replace(TINY_MODEL, layers=np.int32(1), gated=np.True_)
    Recommender("recblr", config, training, MemoryConfig(reach=np.uint8(8))).fit(
        tiny.frame, out=tmp_path / "model"
    )
    loaded = load(tmp_path / "model")
    assert (loaded.config, loaded.training) == (TINY_MODEL, plain)
    assert loaded.memory_config == MemoryConfig()


def test_a_failed_save_keeps_the_old_folder(
    tiny: Tiny, artifact_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("recblr.artifact.pq.write_table", full)
    for folder in (artifact_copy, artifact_copy.parent / "new"):
        with pytest.raises(InputError, match=r"cannot be written \(no space"):
            tiny.recommender.save(folder, overwrite=True)
    assert names(artifact_copy.parent) == {"copy"}
    load(artifact_copy)


def test_without_its_histories_an_artifact_has_the_same_model(tiny: Tiny) -> None:
    whole, part = artifact.load(tiny.artifact), artifact.load(tiny.artifact, histories=False)
    assert (part.data.users, len(part.data.items)) == (0, 0)
    assert part.data.item_ids.equals(whole.data.item_ids)
    np.testing.assert_array_equal(part.data.item_counts, whole.data.item_counts)
    assert part.stages == whole.stages
    for one, other in zip(part.network.parameters(), whole.network.parameters(), strict=True):
        assert one.equal(other)
