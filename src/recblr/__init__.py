"""Sequential recommendation with behaviour-dependent linear recurrent units (arXiv 2406.12580).

>>> import recblr
>>> log = recblr.read_log("clicks.parquet")  # doctest: +SKIP
>>> rec = recblr.Recommender("recblr").fit(log)  # doctest: +SKIP
>>> rec.recommend(users=["u7"], k=10)  # doctest: +SKIP
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# torch's threads wait for one another by spinning. Where another program wants the cores too, a small
# training step takes ten times as long for it. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Its matrix library keeps a kernel for each of the last 1,024 shapes it has met: 230 MB, strewn over
# the heap, where batches vary in size. A step needs 20 to 60. Read once, too.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

if TYPE_CHECKING:
    from recblr.data import open_log
    from recblr.data.log import Interactions, read_log
    from recblr.data.preparing import prepare
    from recblr.data.sequences import Sequences
    from recblr.errors import DivergedError, InputError
    from recblr.evaluation.evaluate import Evaluation, Protocol
    from recblr.models.recblr import RecBLRConfig
    from recblr.recommender import Recommender, load
    from recblr.training.config import TrainConfig

_HOMES = {
    "open_log": "recblr.data",
    "Interactions": "recblr.data.log",
    "read_log": "recblr.data.log",
    "Sequences": "recblr.data.sequences",
    "prepare": "recblr.data.preparing",
    "DivergedError": "recblr.errors",
    "InputError": "recblr.errors",
    "Evaluation": "recblr.evaluation.evaluate",
    "Protocol": "recblr.evaluation.evaluate",
    "RecBLRConfig": "recblr.models.recblr",
    "Recommender": "recblr.recommender",
    "load": "recblr.recommender",
    "TrainConfig": "recblr.training.config",
}
__all__ = [
    "DivergedError",
    "Evaluation",
    "InputError",
    "Interactions",
    "Protocol",
    "RecBLRConfig",
    "Recommender",
    "Sequences",
    "TrainConfig",
    "load",
    "open_log",
    "prepare",
    "read_log",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `recblr --help` need not wait for torch."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("recblr")
        except PackageNotFoundError:
            return "not installed"  # runs from a source tree
    if name not in _HOMES:
        raise AttributeError(f"module 'recblr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
