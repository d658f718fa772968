"""Text becomes configuration, or an error that says what was meant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from recblr.config import apply_settings, build, did_you_mean, read_toml
from recblr.errors import InputError


@dataclass(frozen=True)
class Example:
    rate: float = 0.5
    steps: int = 3
    kind: Literal["plain", "fancy"] = "plain"
    name: str = ""
    on: bool = False


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
        ({"qqq": 1}, r"x\.qqq: no such setting; there are rate, steps, kind, name, on"),
        ({"rate": "fast"}, r"x\.rate = 'fast': must be float"),
        ({"rate": True}, r"x\.rate = True: must be float"),
        ({"steps": 3.0}, r"x\.steps = 3\.0: must be int"),
        ({"steps": True}, r"x\.steps = True: must be int"),
        ({"on": 1}, r"x\.on = 1: must be bool"),
        ({"name": 7}, r"x\.name = 7: must be str"),
        ({"kind": "odd"}, r"x\.kind = 'odd': choose one of plain, fancy"),
        ({"kind": ["plain"]}, r"x\.kind = \['plain'\]: choose one of plain, fancy"),
    ],
)
def test_build_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Example, values, "x")


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
    path.write_bytes(b'a = "\xff"\n')
    with pytest.raises(InputError, match="not valid TOML"):
        read_toml(path)
    for missing in (tmp_path / "b.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_toml(missing)
