"""Text becomes configuration, or an error that says what was meant."""

import json
import math
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from recblr.config import apply_settings, build, check, did_you_mean, read_toml
from recblr.errors import InputError
from recblr.memory import MemoryConfig
from recblr.models import MODELS
from recblr.training.config import TrainConfig


@dataclass(frozen=True)
class Example:
    rate: float = 0.5
    steps: int = 3
    kind: Literal["plain", "fancy"] = "plain"
    name: str = ""
    on: bool = False
    part: float | None = None

    def __post_init__(self) -> None:
        check(self, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.003", 0.003),
        ("3", 3),
        ("true", True),
        ("1e-3", 1e-3),
        ("fancy", "fancy"),
        (" fancy ", "fancy"),
        ('"fancy"', "fancy"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_setting_is_read_as_toml_or_as_text(text: str, value: object) -> None:
    found = apply_settings({}, [f"train.key={text}"])
    assert found == {"train": {"key": value}}
    assert type(found["train"]["key"]) is type(value)


def test_later_settings_win_and_the_table_stays_as_it_was() -> None:
    table = {"train": {"lr": 0.1, "seed": 1}}
    found = apply_settings(table, ["train.lr = 0.2", "train.lr=0.3", "model.dim=8"])
    assert found == {"train": {"lr": 0.3, "seed": 1}, "model": {"dim": 8}}
    assert table == {"train": {"lr": 0.1, "seed": 1}}


@pytest.mark.parametrize("setting", ["lr=0.1", "train.lr", "train.=3", "", "="])
def test_a_setting_without_section_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=r"write section\.key=value"):
        apply_settings({}, [setting])


@pytest.mark.parametrize("values", [0.1, "abc", [{"lr": 0.1}], []])
def test_a_setting_outside_a_section_is_refused(values: object) -> None:
    with pytest.raises(InputError, match=r"lr = .*settings stand in a section"):
        apply_settings({"lr": values}, ["train.seed=1"])


def test_build_fills_in_defaults() -> None:
    assert build(Example, {}, "x") == Example()
    found = build(Example, {"rate": 2, "kind": "fancy", "on": True}, "x")
    assert found == Example(rate=2.0, kind="fancy", on=True)
    assert type(found.rate) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, r"x\.stepz: no such setting; did you mean steps\?"),
        ({"qqq": 1}, r"x\.qqq: no such setting; there are rate, steps, kind, name, on, part"),
        ({"kind": "odd"}, r"x\.kind = 'odd': choose one of plain, fancy"),
        ({"kind": ["plain"]}, r"x\.kind = \['plain'\]: choose one of plain, fancy"),
    ],
)
def test_build_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Example, values, "x")


WRONG = [
    ("rate", "fast", "float"),
    ("rate", "0.5", "float"),
    ("rate", True, "float"),
    ("rate", np.True_, "float"),
    ("rate", None, "float"),
    ("rate", 1j, "float"),
    ("rate", 10**400, "float"),
    ("part", "none", "float"),
    ("steps", 2.5, "int"),
    ("steps", np.float32(2.5), "int"),
    ("steps", math.nan, "int"),
    ("steps", math.inf, "int"),
    ("steps", Decimal("NaN"), "int"),
    ("steps", True, "int"),
    ("steps", np.True_, "int"),
    ("steps", [3], "int"),
    ("steps", np.array([3]), "int"),
    ("steps", np.zeros((30, 30)), "int"),
    ("steps", 2**63, "int of 64 bits"),
    ("steps", 1e23, "int of 64 bits"),
    pytest.param("steps", 10**5000, "int of 64 bits", id="5,000 digits"),
    ("on", 1, "bool"),
    ("on", "true", "bool"),
    ("name", 7, "str"),
    ("kind", None, "one of plain, fancy"),
    ("kind", np.array(["plain", "fancy"]), "one of plain, fancy"),
]


@pytest.mark.parametrize(("name", "value", "kind"), WRONG)
def test_a_value_of_another_type_is_refused_at_both_doors(name: str, value: Any, kind: str) -> None:
    for door in (lambda: Example(**{name: value}), lambda: build(Example, {name: value}, "x")):
        with pytest.raises(
            InputError, match=rf"^x\.{name} = .*: (must be|choose) {kind}$"
        ) as error:
            door()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("steps", 2.0, 2),
        ("steps", 2e3, 2000),
        ("steps", Decimal(4), 4),
        ("steps", np.int32(4), 4),
        ("steps", np.uint64(4), 4),
        ("steps", np.float32(4), 4),
        ("steps", np.array(4), 4),
        ("steps", torch.tensor(4), 4),
        ("steps", pa.scalar(4), 4),
        ("rate", 2, 2.0),
        ("rate", Decimal("0.25"), 0.25),
        ("rate", Fraction(1, 4), 0.25),
        ("rate", np.float16(0.25), 0.25),
        ("rate", np.int8(2), 2.0),
        ("rate", torch.tensor(0.25), 0.25),
        ("part", np.float64(0.25), 0.25),
        ("part", None, None),
        ("on", np.True_, True),
        ("kind", np.str_("fancy"), "fancy"),
        ("name", np.str_("a"), "a"),
    ],
)
def test_a_number_of_any_type_becomes_the_python_number(name: str, value: Any, plain: Any) -> None:
    for made in (Example(**{name: value}), build(Example, {name: value}, "x")):
        assert getattr(made, name) == plain
        assert type(getattr(made, name)) is type(plain)


CONFIGS = [TrainConfig, MemoryConfig, *(config for _, config in MODELS.values())]


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_setting_of_every_configuration_is_checked(cls: Any) -> None:
    for field in fields(cls):
        with pytest.raises(InputError, match=rf"^\w+\.{field.name} = "):
            cls(**{field.name: {"of": "another type"}})
        value = getattr(cls(), field.name)
        if value is not None:
            made = cls(**{field.name: np.array(value)[()]})
            assert made == cls()
            assert type(getattr(made, field.name)) is type(value)
            json.dumps(asdict(made))


def test_a_setting_has_one_value() -> None:
    """A line break in a value does not begin another setting."""
    with pytest.raises(InputError, match=r"^train\.lr = '0\.1\\nvalue2 = 3': must be float$"):
        build(TrainConfig, apply_settings({}, ["train.lr=0.1\nvalue2 = 3"])["train"], "train")
    (text,) = apply_settings({}, [f"train.seed={'9' * 5000}"])["train"].values()
    assert text == "9" * 5000, "more digits than an int can be read from"


def test_near_names_the_nearest_or_all() -> None:
    assert did_you_mean("trian", ["model", "train"]) == "; did you mean train?"
    assert did_you_mean("z", iter(["model", "train"])) == "; there are model, train"


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[train]\nlr = 0.1\nkind = "é"\n', encoding="utf-8")
    assert read_toml(path) == {"train": {"lr": 0.1, "kind": "é"}}
    path.write_text("[train\n")
    with pytest.raises(InputError, match=r"a\.toml: not valid TOML"):
        read_toml(path)
    for content in (b'a = "\xff"\n', b"a = " + b"9" * 5000, b"a = " + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not valid TOML"):
            read_toml(path)
    for missing in (tmp_path / "b.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_toml(missing)
