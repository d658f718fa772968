"""The models by name: the class and its configuration."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recblr.config import did_you_mean
from recblr.data.features import ITEM_ONLY, FeatureSet
from recblr.data.kinds import LEAVE_OUT
from recblr.errors import InputError
from recblr.models.bert4rec import BERT4Rec, BERT4RecConfig
from recblr.models.caser import Caser, CaserConfig
from recblr.models.fmlprec import FMLPRec, FMLPRecConfig
from recblr.models.fpmc import FPMC, FPMCConfig
from recblr.models.gru4rec import GRU4Rec, GRU4RecConfig
from recblr.models.lrurec import LRURec, LRURecConfig
from recblr.models.model import ITEM_VECTORS, FeatureEmbedding, Model
from recblr.models.narm import NARM, NARMConfig
from recblr.models.recblr import RecBLR, RecBLRConfig
from recblr.models.sasrec import SASRec, SASRecConfig

MODELS: dict[str, tuple[type[Model], type[Any]]] = {  # in the order of the paper's Table 1
    "fpmc": (FPMC, FPMCConfig),
    "caser": (Caser, CaserConfig),
    "narm": (NARM, NARMConfig),
    "gru4rec": (GRU4Rec, GRU4RecConfig),
    "sasrec": (SASRec, SASRecConfig),
    "bert4rec": (BERT4Rec, BERT4RecConfig),
    "fmlprec": (FMLPRec, FMLPRecConfig),
    "lrurec": (LRURec, LRURecConfig),
    "recblr": (RecBLR, RecBLRConfig),
}


def create_model(
    name: str, config: Any, *, items: int, users: int, max_length: int,
    feature_set: FeatureSet = ITEM_ONLY,
) -> Model:  # fmt: skip
    """A new model; ``users`` and ``max_length`` are passed to the models that need them.

    Raises:
        InputError: the model cannot read the features of events.
    """
    cls, _ = find_model(name)
    if feature_set and not cls.embeds_events:
        able = ", ".join(name for name, (cls, _) in MODELS.items() if cls.embeds_events)
        kinds = (
            f"leave the kinds out with {LEAVE_OUT}" if feature_set.kinds else "set train.gaps=false"
        )
        raise InputError(f"{name} reads only the items of events; {kinds}, or train one of {able}")
    sizes = {"users": users, "max_length": max_length}
    model = cls(items, config, **{size: sizes[size] for size in cls.needs})
    if feature_set:
        tables = model.get_parameter(ITEM_VECTORS), model.item_embeddings
        widths = (table.shape[1] for table in tables)
        model.feature_embedding = FeatureEmbedding(feature_set, *widths)
    return model


def empty_model(name: str, config: Any, **sizes: Any) -> Model:
    """Create a model whose weights have shapes but no memory, to load saved weights into."""
    with torch.device("meta"), _NothingDrawn():
        return create_model(name, config, **sizes)


_DRAWS = {nn.init.normal_, nn.init.uniform_, Tensor.normal_, Tensor.uniform_}


class _NothingDrawn(TorchFunctionMode):
    """Draws no random numbers. On the device "meta" each draw would import PyTorch's compiler, which
    takes two seconds."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def find_model(name: str) -> tuple[type[Model], type[Any]]:
    """The class of a model and the class of its configuration; InputError for an unknown model."""
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(f"unknown model {name!r}{did_you_mean(name, MODELS)}")
    return MODELS[name]
