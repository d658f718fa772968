"""Settings in Python and in TOML: what is accepted means what was written, and what is saved loads."""

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import asdict, fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Tiny, assert_same_tensors
from fuzz.outcomes import Outcomes, Result, fuzz
from recblr.config import apply_settings, build, read_toml
from recblr.memory import MemoryConfig
from recblr.models import MODELS
from recblr.recommender import Recommender, load
from recblr.training.config import TrainConfig

SECTIONS: dict[str, Any] = {"train": TrainConfig, "memory": MemoryConfig}
SECTIONS |= {model: config for model, (_, config) in MODELS.items()}
WORDS = [
    "auto",
    "masked",
    "paper",
    "fp16",
    "bfloat16",
    "cosine",
    "cloze",
    "true",
    "64",
    "",
    "\n",
    "é",
]
NUMBERS = st.integers(-2, 300) | st.floats(-1, 2) | st.integers() | st.floats()
NUMPY = [np.int8, np.int64, np.uint16, np.float16, np.float32, np.float64, np.bool_, np.array]
VALUES = st.one_of(
    NUMBERS, st.booleans(), st.none(), st.sampled_from(WORDS), st.text(max_size=5),
    st.fractions(-2, 300), st.decimals(-2, 300), st.sampled_from(NUMPY).flatmap(
        lambda kind: st.integers(0, 100).map(kind)
    ),
    st.integers(-2, 300).map(torch.tensor), st.lists(NUMBERS, max_size=2),
    st.dictionaries(st.sampled_from(WORDS), NUMBERS, max_size=1), st.just(np.zeros((3, 40))),
    st.just(10**5000), st.sampled_from(WORDS).map(np.str_),
)  # fmt: skip


def like(default: Any) -> st.SearchStrategy[Any]:
    """The default value of a setting, in several types."""
    if isinstance(default, bool | str) or default is None:
        return st.sampled_from(
            [default, np.array(default)[()]] if default is not None else [None, 1.5]
        )
    return st.sampled_from([int, float, np.float32, np.int64, Decimal, Fraction, torch.tensor]).map(
        lambda kind: kind(default)
    )


def number(value: Any) -> Any:
    """An exact number, NaN or infinity; None for anything else."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return float(value)
    return Fraction(value) if isinstance(value, int | float | Decimal | Fraction) else None


def check_settings(made: Any, written: dict[str, Any], section: str) -> None:
    """The settings have the written values, as plain values that JSON keeps."""
    hints = get_type_hints(type(made))
    for name, value in written.items():
        kept = getattr(made, name)
        assert isinstance(kept, str | bool | int | float | None)
        if isinstance(kept, bool | str) or kept is None:
            assert kept == value
            assert isinstance(value, bool | np.bool_ | str | None)
        elif hints[name] is int:
            assert type(kept) is int
            assert kept == number(value)
        else:
            assert type(kept) is float
            assert kept == float(number(value))
    plain = json.loads(json.dumps(asdict(made), allow_nan=False))
    assert build(type(made), plain, section) == made


def test_python(keep: Callable[..., None]) -> None:
    outcomes = Outcomes()

    @fuzz(2000)
    @given(st.sampled_from([*SECTIONS]), st.data())
    def test(section: str, data: st.DataObject) -> None:
        cls = SECTIONS[section]
        names = st.sampled_from([field.name for field in fields(cls)])
        chosen = data.draw(st.lists(names, min_size=1, max_size=2, unique=True))
        written = {name: data.draw(like(getattr(cls(), name)) | VALUES) for name in chosen}
        outcome = outcomes.of(lambda: cls(**written))
        if isinstance(outcome, Result):
            assert not outcome.warnings
            check_settings(outcome.value, written, section)
        else:
            assert any(name in outcome for name in written), outcome

    test()
    keep("fuzz of settings in Python", **outcomes.figures())


TOML = st.one_of(
    NUMBERS.map(str),
    st.sampled_from(["2e1", "1e-3", "0x10", "1_000", "+5", "nan", "-inf", "true", "1.0"]),
    st.sampled_from(WORDS), st.sampled_from(WORDS).map(json.dumps), st.text(max_size=6),
    st.sampled_from(["[1]", "{a = 1}", "1979-05-27", "0.1 # a tenth", "0.1\nseed = 1", "[" * 3000]),
)  # fmt: skip
NAMES = [
    "lr",
    "epochs",
    "seed",
    "selection_protocol",
    "mask_seen_in_loss",
    "select",
    "leraning_rate",
    "",
]


def test_toml(tmp_path: Path, keep: Callable[..., None]) -> None:
    """A file, `--set` and Python agree on a value."""
    outcomes = Outcomes()
    path = tmp_path / "settings.toml"

    def by_file(name: str, text: str) -> Any:
        path.write_text(f"[train]\n{name} = {text}\n", encoding="utf-8")
        return build(TrainConfig, read_toml(path)["train"], "train")

    def by_option(name: str, text: str) -> Any:
        return build(TrainConfig, apply_settings({}, [f"train.{name}={text}"])["train"], "train")

    @fuzz(2000)
    @given(st.sampled_from(NAMES), TOML)
    def test(name: str, text: str) -> None:
        outcome = outcomes.of(lambda: by_option(name, text))
        try:
            table = tomllib.loads(f"{name} = {text}")
        except (ValueError, RecursionError):
            table = {}
        if table.keys() == {name}:
            assert repr(outcomes.of(lambda: by_file(name, text))) == repr(outcome)
        if isinstance(outcome, Result) and name != "select":
            check_settings(outcome.value, table or {name: text.strip()}, "train")

    test()
    keep("fuzz of settings in TOML", **outcomes.figures())


@st.composite
def small_settings(draw: st.DrawFn) -> tuple[str, dict[str, dict[str, Any]]]:
    """A model and settings by which an epoch takes a moment."""
    model = draw(st.sampled_from([*MODELS]))
    choices = {
        name: list(kind.__args__)
        for name, kind in get_type_hints(TrainConfig).items() if hasattr(kind, "__args__")
    }  # fmt: skip
    sizes = {
        "max_length": [1, 7, 16],
        "window": [1, 30],
        "batch_size": [1000, 4000],
        "seed": [0, 2**32 - 1],
    }
    rates = {"lr": [1e-9, 1e-2, 1e30], "label_smoothing": [0.0, 0.2], "ema_decay": [0.0, 0.999],
             "mask_seen_in_loss": [False, True], "weight_decay": [0.0, 0.9],
             "horizon": [1, 5, 64]}  # fmt: skip
    every = choices | sizes | rates
    names = draw(st.lists(st.sampled_from([*every]), max_size=4, unique=True))
    train = {name: draw(st.sampled_from(every[name])) for name in names}
    shape = {
        f.name: draw(st.sampled_from([1, 2, 3, 8]))
        for f in fields(MODELS[model][1])
        if f.type is int
    }
    memory = {
        "weight": draw(st.sampled_from([0.0, 3.0, 1e6])),
        "reach": draw(st.sampled_from([1, 50])),
    }
    return model, {
        "model": shape,
        "train": {"epochs": 1, "batch_size": 2000, **train},
        "memory": memory,
    }


def test_training(tiny: Tiny, tmp_path: Path, keep: Callable[..., None]) -> None:
    """What trains is saved, and what was saved loads."""
    outcomes = Outcomes()

    def train(model: str, settings: dict[str, dict[str, Any]]) -> Recommender:
        recommender = Recommender.configured(model, settings)
        return recommender.fit(tiny.frame, out=tmp_path / "model", overwrite=True)

    @fuzz(400)
    @given(small_settings())
    def test(drawn: tuple[str, dict[str, dict[str, Any]]]) -> None:
        outcome = outcomes.of(lambda: train(*drawn))
        if isinstance(outcome, Result):
            saved = load(tmp_path / "model")
            assert saved.settings == outcome.value.settings
            assert_same_tensors(saved.network.state_dict(), outcome.value.network.state_dict())

    test()
    keep("fuzz of training", **outcomes.figures())
