"""A damaged model is refused, and the server goes on with the model that it has."""

import json
import shutil
from pathlib import Path

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
    else:
        tensors = load_file(weights)
        name = "embedding.weight"
        tensors[name] = tensors[name] * float("nan") if how == "a NaN" else tensors[name][:-1]
        save_file(tensors, weights)
        update_hashes(folder)


def update_hashes(folder: Path) -> None:
    """Make the manifest match the files, so that only their content can be refused."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["digest"] = artifact._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "how", ["a flipped bit", "a NaN", "a wrong shape", "a pickle", "no manifest"]
)
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
