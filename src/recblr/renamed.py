"""Renamed settings and keys, so that configurations, artifacts and records of version 0.1.0 load."""

from collections.abc import Mapping
from typing import Any

from recblr.errors import InputError

SETTINGS = {  # section, old key: new key
    ("train", "weight_average"): "ema_decay",
    ("train", "select"): "selection_protocol",
    ("train", "hide_seen"): "mask_seen_in_loss",
}
VALUES = {("train", "loss", "own"): "paper"}  # section, key, old value: new value
EVALUATION = {"floors": "baselines"}  # keys of an evaluation as JSON


def current_settings(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings of a section to their current names.

    Raises:
        InputError: ``values`` is no mapping, or a setting is given under both its old and its new name.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            f"{section} = {values!r}: settings stand in a section, such as lr in [train]"
        )
    current: dict[str, Any] = {}
    for key, value in values.items():
        name = SETTINGS.get((section, key), key)
        if name in current or (name != key and name in values):
            old = next(old for (_, old), new in SETTINGS.items() if new == name)
            raise InputError(f"{section}.{old} is the old name of {section}.{name}; give only one")
        if isinstance(value, str):
            value = VALUES.get((section, name, value), value)
        current[name] = value
    return current


def current_evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of an evaluation as JSON to the current ones."""
    return {EVALUATION.get(key, key): value for key, value in record.items()}
