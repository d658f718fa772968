"""Presets and settings files."""

import warnings
from pathlib import Path

import pytest

from recblr import presets
from recblr.config import build
from recblr.errors import InputError
from recblr.models import MODELS, find_model
from recblr.presets import for_model, read_preset
from recblr.training.config import TrainConfig

PRESETS = sorted(Path(presets.__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_preset_is_valid_for_every_model(model):
    assert [preset.stem for preset in PRESETS] == [
        "beauty", "gowalla-10core", "gowalla", "ml-1m-recbole", "ml-1m", "sports", "steam", "xlong",
    ]  # fmt: skip
    for preset in PRESETS:
        settings = read_preset(preset.stem, model)
        build(find_model(model)[1], settings["model"], "model")
        assert build(TrainConfig, settings["train"], "train").max_length >= 50


def test_for_model_keeps_the_settings_that_the_model_has():
    settings = {"model": {"dropout": 0.5, "expansion": 3}, "train": {"lr": 0.1}}
    assert for_model(settings, "recblr") == settings
    assert for_model(settings, "sasrec") == {"model": {"dropout": 0.5}, "train": {"lr": 0.1}}
    assert for_model(settings, "fpmc") == {"model": {}, "train": {"lr": 0.1}}


def test_the_section_of_a_model_takes_precedence():
    settings = {
        "model": {"dropout": 0.5},
        "train": {"lr": 0.1, "epochs": 3},
        "bert4rec": {"model": {"dropout": 0.2}, "train": {"epochs": 4}},
    }
    plain = {"model": {"dropout": 0.5}, "train": {"lr": 0.1, "epochs": 3}}
    assert for_model(settings, "sasrec") == plain
    assert for_model(settings, "bert4rec") == {
        "model": {"dropout": 0.2}, "train": {"lr": 0.1, "epochs": 4},
    }  # fmt: skip


def test_the_name_of_a_preset_precedes_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = read_preset("beauty")
    (tmp_path / "beauty").mkdir()
    assert read_preset("beauty") == before
    assert before["train"]["epochs"] == 50


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_copy_of_a_preset_is_read_like_the_preset(tmp_path, model):
    for preset in PRESETS:
        copy = tmp_path / preset.name
        copy.write_text(preset.read_text())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = read_preset(str(copy), model)
        assert settings == read_preset(preset.stem, model)
        assert settings["train"]["selection_protocol"] == "unmasked", "as in the paper"
        ignored = [] if "dropout" in settings["model"] else ["dropout"]
        assert [str(each.message) for each in caught] == [
            f"{copy}: model.{name} is ignored, as {model} has no such setting" for name in ignored
        ]


def test_unknown_settings_of_a_file_are_kept(tmp_path):
    """A wrong name is an error later."""
    file = tmp_path / "mine.toml"
    file.write_text("[model]\ndropuot = 0.5\n[memory]\nreach = 4\n[sasrec.model]\nheads = 4\n")
    assert read_preset(str(file)) == {"model": {"dropuot": 0.5}, "memory": {"reach": 4}}
    assert read_preset(str(file), "sasrec")["model"] == {"dropuot": 0.5, "heads": 4}


@pytest.mark.parametrize("text", ["recblr = 3", "[recblr]\ndropout = 0.5"])
def test_the_section_of_a_model_must_have_sections(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=r"recblr.* into \[recblr.model\] or \[recblr.train\]"):
        read_preset(str(tmp_path / "mine.toml"))
