"""The recipes of the paper's tables, one TOML file a data set; how they were found: docs/log.md."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from recblr.config import near, read_toml
from recblr.errors import InputError
from recblr.models import find_model


def read_preset(config: str, model: str = "recblr") -> dict[str, Any]:
    """Settings from a TOML file, or of a preset, which :func:`for_model` turns into another model's."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if config in names:
        return for_model(read_toml(folder / f"{config}.toml"), model)
    if not config.endswith(".toml"):
        raise InputError(f"--config {config}: no TOML file and no preset{near(config, names)}")
    return read_toml(Path(config))


def for_model(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Settings found with RecBLR as those of another model.

    It keeps the recipe of training, and of the model's shape what that model has too, such as the
    dropout. What is known to suit it better stands in a section of its name.
    """
    known = {field.name for field in fields(find_model(model)[1])}
    shape = {name: value for name, value in settings.get("model", {}).items() if name in known}
    own = settings.get(model, {})
    return {
        "model": {**shape, **own.get("model", {})},
        "train": {**settings.get("train", {}), **own.get("train", {})},
    }
