"""The models by name: the class and its configuration."""

from recblr.models.recblr import RecBLR, RecBLRConfig

MODELS: dict[str, tuple[type[RecBLR], type[RecBLRConfig]]] = {"recblr": (RecBLR, RecBLRConfig)}
