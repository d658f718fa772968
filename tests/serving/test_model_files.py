"""A damaged model is refused, and the server goes on with the model that it has."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from recblr import artifact
from recblr.files import sha256
from recblr.serving.model import ServedModel
from serving.fixtures import OpenSite


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "a flipped bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif how == "a pickle":
        torch.save({"x": 1}, weights)
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how in ("a pipe", "a link"):
        config = folder / "config.json"
        config.rename(folder.parent / "outside.json")
        if how == "a pipe":
            os.mkfifo(config)
        else:
            config.symlink_to("../outside.json")
    elif how in CHANGED_JSON:
        file, change = CHANGED_JSON[how]
        content = json.loads((folder / file).read_text())
        change(content)
        text = json.dumps(content)
        if how == "deep JSON":
            text = text[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
        (folder / file).write_text(text)
        update_hashes(folder)
    elif how == "many rows in few bytes":
        table = pa.table({"item_id": pa.DictionaryArray.from_arrays(pa.array([0] * 10**7), ["x"])})
        pq.write_table(table, folder / "vocabulary.parquet")
        update_hashes(folder)
    else:
        tensors = load_file(weights)
        name = "embedding.weight"
        factor = {"a NaN": float("nan"), "a large weight": 1e37}.get(how)
        tensors[name] = tensors[name][:-1] if factor is None else tensors[name] * factor
        save_file(tensors, weights)
        update_hashes(folder)


CHANGED_JSON: dict[str, tuple[str, Callable[[Any], None]]] = {
    "many layers": ("config.json", lambda content: content["model"].update(layers=100_000)),
    "a wide layer": ("config.json", lambda content: content["model"].update(dim=10**6)),
    "no settings": ("config.json", lambda content: content.clear()),
    "a list of settings": ("config.json", lambda content: content.update(model=[])),
    "an unknown model": ("config.json", lambda content: content["model"].update(name="x")),
    "deep JSON": ("config.json", lambda content: None),
    "a newer format": ("manifest.json", lambda content: content.update(format=99)),
    "no format": ("manifest.json", lambda content: content.pop("format")),
    "a large factor": ("manifest.json", lambda content: content.update(
        memory={"weight": 1e300, "scale": 1, "repeat": 0, "chosen": None}
    )),
}  # fmt: skip


def update_hashes(folder: Path) -> None:
    """Make the manifest match the files, so that only their content can be refused."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["digest"] = artifact._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "how",
    [
        "a flipped bit", "a NaN", "a large weight", "a wrong shape", "a pickle", "no manifest",
        "a pipe", "a link", "many rows in few bytes", *CHANGED_JSON,
    ],
)  # fmt: skip
def test_a_damaged_model_is_refused(
    open_site: OpenSite, models: Path, a: ServedModel, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder, ignore=shutil.ignore_patterns("link"))
    damage(folder / "b", how)
    site = open_site(folder=folder)
    answer = site.client.post("/v1/models/swap", json={"name": "b"})
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
    assert site.client.get("/health/ready").json()["model"] == a.hash
    answer = site.client.post("/v1/recommend", json={"history": [a.item_ids[0]]})
    assert answer.json()["model"] == a.hash
