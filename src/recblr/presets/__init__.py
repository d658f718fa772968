"""Settings for the data sets of the paper, a TOML file each. docs/experiments.md has their origin."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from recblr.config import did_you_mean, read_toml
from recblr.errors import InputError
from recblr.models import MODELS, find_model


def read_preset(config: str, model: str = "recblr") -> dict[str, Any]:
    """Read the settings of ``model`` from a TOML file or a preset.

    Args:
        config: the path of a TOML file or the name of a preset.
        model: a name in :data:`recblr.models.MODELS`. Presets are adapted by :func:`for_model`, and
            settings of a file that only other models have are ignored, with a warning.

    Raises:
        InputError: there is no such preset or model, or the file cannot be read.
    """
    find_model(model)
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if config in names:
        return for_model(read_toml(folder / f"{config}.toml"), model)
    if not config.endswith(".toml"):
        raise InputError(
            f"--config {config}: no TOML file and no preset{did_you_mean(config, names)}"
        )
    settings = _merge_model_section(read_toml(Path(config)), model)
    shape = settings.get("model")
    if not isinstance(shape, dict):
        return settings
    known = {name: {field.name for field in fields(kind)} for name, (_, kind) in MODELS.items()}
    foreign = [name for name in shape if name in set().union(*known.values()) - known[model]]
    for name in foreign:
        warnings.warn(
            f"{config}: model.{name} is ignored, as {model} has no such setting", stacklevel=2
        )
    return {**settings, "model": {name: shape[name] for name in shape if name not in foreign}}


def for_model(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Adapt settings for RecBLR to another model.

    Settings of training stay. Settings of the model stay if ``model`` has them, such as the dropout.
    Settings in the model's own section, such as ``[sasrec.train]``, take precedence.
    """
    known = {field.name for field in fields(find_model(model)[1])}
    shape = {name: value for name, value in settings.get("model", {}).items() if name in known}
    return _merge_model_section(
        {**settings, "model": shape, "train": settings.get("train", {})}, model
    )


def _merge_model_section(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Override settings by those in the section named after the model; drop those of other models."""
    merged = {name: values for name, values in settings.items() if name not in MODELS}
    own = settings.get(model, {})
    if not (isinstance(own, dict) and all(isinstance(values, dict) for values in own.values())):
        raise InputError(
            f"{model} = {own!r}: put settings of {model} into [{model}.model] or [{model}.train]"
        )
    for section, values in own.items():
        merged[section] = {**merged.get(section, {}), **values}
    return merged
