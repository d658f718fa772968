"""The recipes of the paper's tables, one TOML file a data set; how they were found: docs/log.md."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from recblr.config import near, read_toml
from recblr.errors import InputError
from recblr.models import MODELS, find_model


def read_preset(config: str, model: str = "recblr") -> dict[str, Any]:
    """Settings of ``model`` from a TOML file, or from a preset by :func:`for_model`."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if config in names:
        return for_model(read_toml(folder / f"{config}.toml"), model)
    if not config.endswith(".toml"):
        raise InputError(f"--config {config}: no TOML file and no preset{near(config, names)}")
    return _with_own(read_toml(Path(config)), model)


def for_model(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Settings found with RecBLR as those of another model.

    It keeps the recipe of training, and of the model's shape what that model has too, such as the
    dropout. What is known to suit it better stands in a section of its name.
    """
    known = {field.name for field in fields(find_model(model)[1])}
    shape = {name: value for name, value in settings.get("model", {}).items() if name in known}
    return _with_own({**settings, "model": shape, "train": settings.get("train", {})}, model)


def _with_own(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """The settings with those in the section of the model's name, ``[sasrec.train]``, over the others;
    sections of other models are for them."""
    found = {name: values for name, values in settings.items() if name not in MODELS}
    own = settings.get(model, {})
    if not (isinstance(own, dict) and all(isinstance(values, dict) for values in own.values())):
        raise InputError(
            f"{model} = {own!r}: settings of {model} stand in [{model}.train] and the like"
        )
    for section, values in own.items():
        found[section] = {**found.get(section, {}), **values}
    return found
