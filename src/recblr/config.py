"""How text becomes configuration. The dataclasses themselves stand beside what they configure."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from recblr.errors import InputError
from recblr.renamed import current_settings

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dictionaries."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def apply_settings(table: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``table`` with settings such as ``train.lr=0.003`` put in, later ones over earlier ones."""
    for section, values in table.items():
        if not isinstance(values, Mapping):
            raise InputError(
                f"{section} = {values!r}: settings stand in a section, such as lr in [train]"
            )
    result = {section: current_settings(section, values) for section, values in table.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise InputError(f"--set {setting}: write section.key=value, such as train.lr=0.003")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        result.setdefault(section, {})
        result[section] |= current_settings(section, {key: value})
    return result


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A configuration dataclass from plain values; a name or a type it does not know is an error.

    ``where`` says in messages what the values belong to, such as "train".
    """
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    checked = {}
    for name, value in current_settings(where, values).items():
        if name not in names:
            raise InputError(f"{where}.{name}: no such setting{did_you_mean(name, names)}")
        checked[name] = _check(value, hints[name], f"{where}.{name}")
    return cls(**checked)


def expect_sizes(config: object, where: str, *names: str) -> None:
    """InputError unless each of these settings is at least 1; ``where`` as in :func:`build`."""
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{where}.{name} = {getattr(config, name)}: must be at least 1")


def expect_dropouts(config: object, where: str, *names: str) -> None:
    """InputError unless each of these settings is in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(
                f"{where}.{name} = {getattr(config, name)}: must be at least 0 and below 1"
            )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint for a message: the nearest of ``names``, else all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _check(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, UnionType):  # of a type and None
        if value is None:
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"{where} = {value!r}: choose one of {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} = {value!r}: must be {kind.__name__}")
    return value
