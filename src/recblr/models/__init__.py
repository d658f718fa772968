"""The models by name: the class and its configuration."""

from typing import Any

from recblr.config import near
from recblr.errors import InputError
from recblr.models.model import Model
from recblr.models.recblr import RecBLR, RecBLRConfig

MODELS: dict[str, tuple[type[Model], type[Any]]] = {"recblr": (RecBLR, RecBLRConfig)}


def find_model(name: str) -> tuple[type[Model], type[Any]]:
    """The class of a model and of its configuration; InputError if there is no such model."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}{near(name, MODELS)}")
    return MODELS[name]
