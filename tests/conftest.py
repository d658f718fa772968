"""Fixtures of several tests: a simulated log, a recommender trained on it, figures of `make soak`."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from torch import Tensor

from recblr.data.log import Interactions
from recblr.data.preparing import prepare
from recblr.data.sequences import Sequences
from recblr.data.simulate import Shop, simulate_shop
from recblr.models.recblr import RecBLRConfig
from recblr.provenance import provenance
from recblr.recommender import Recommender
from recblr.training.config import TrainConfig

if TYPE_CHECKING:
    import polars as pl

if not torch.cuda.is_available():  # read when the kernels are first imported
    os.environ["TRITON_INTERPRET"] = "1"

# A busy machine may be slow: no example has a deadline.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

pytest_plugins = [
    "cli.fixtures",
    "compare.fixtures",
    "data.fixtures",
    "ops.tools",
    "retrieval.tools",
    "training.tools",
]
if find_spec("apsw"):  # the tests of a GPU also run where no server can
    pytest_plugins.append("serving.fixtures")

SOAK = bool(os.environ.get("RECBLR_SOAK"))  # `make soak`: many repetitions, on a quiet machine
# Tests of many seconds whose parts are tested without them, too.
slow = pytest.mark.skipif(not SOAK, reason="takes long; `make soak` runs it")
TINY_MODEL = RecBLRConfig(dim=16, layers=1)
TINY_TRAINING = TrainConfig(
    epochs=2, batch_size=256, max_length=16, lr=1e-2, warmup_steps=5, precision="float32"
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: compressed bytes hold the time, and all processes need the same
    names."""
    return argname if isinstance(val, bytes) else None


@dataclass(frozen=True)
class Tiny:
    """A recommender trained on ``frame``, which is also the file ``log``, saved at ``artifact``."""

    frame: "pl.DataFrame"
    log: Path
    artifact: Path
    recommender: Recommender


@pytest.fixture(scope="session")
def interactions() -> Interactions:
    shop = Shop(
        users=150, categories=4, items_per_category=6, interests=2, mean_length=12, max_length=40
    )
    return simulate_shop(shop).interactions


@pytest.fixture(scope="session")
def sequences(interactions: Interactions) -> Sequences:
    return prepare(interactions)


@pytest.fixture(scope="session")
def tiny(interactions: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    frame = interactions.to_polars()
    frame.write_csv(folder / "log.csv")
    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING)
    recommender.fit(folder / "log.csv", out=folder / "model")
    return Tiny(frame, folder / "log.csv", folder / "model", recommender)


@pytest.fixture
def artifact_copy(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.artifact, tmp_path / "copy"))


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names and, bit for bit, the same values."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not ours[name].equal(theirs[name])]
    assert different == []


@pytest.fixture
def keep() -> Callable[..., None]:
    """Add figures to the file that RECBLR_SOAK names."""

    def add(promise: str, **figures: Any) -> None:
        if results := os.environ.get("RECBLR_SOAK"):
            path = Path(results)
            content = json.loads(path.read_text()) if path.exists() else provenance("make soak")
            path.write_text(json.dumps({**content, promise: figures}, indent=1) + "\n")

    return add
