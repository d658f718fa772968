"""The models by name: the class and its configuration."""

from typing import Any

from recblr.models.model import Model
from recblr.models.recblr import RecBLR, RecBLRConfig

MODELS: dict[str, tuple[type[Model], type[Any]]] = {"recblr": (RecBLR, RecBLRConfig)}
