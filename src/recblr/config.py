"""Read and check settings. Their dataclasses are beside the code that they configure.

Every dataclass of settings calls :func:`check` where it is made, so that Python, TOML, the command line
and saved files have the same rule.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from recblr.errors import InputError
from recblr.renamed import current_settings

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high`` that ``recblr tune`` tries, evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False


# What `recblr tune` tries for the settings of a configuration: a range, or each of some values.
Search = Mapping[str, Range | tuple[Any, ...]]


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dictionaries."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, an int of 4,300 digits
        raise InputError(f"{path}: not valid TOML: {error}") from error


def apply_settings(table: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``table`` with settings such as ``train.lr=0.003`` put in, later ones over earlier ones."""
    result = {section: current_settings(section, values) for section, values in table.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise InputError(f"--set {setting}: write section.key=value, such as train.lr=0.003")
        result.setdefault(section, {})
        result[section] |= current_settings(section, {key: toml_value(text)})
    return result


def toml_value(text: str) -> Any:
    """A value of TOML, such as a number; other text as it is."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return values["value"] if len(values) == 1 else text


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A configuration dataclass from plain values, which it checks; an unknown name is an error.

    ``where`` names the values in messages, for example "train".
    """
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    current = current_settings(where, values)
    for name in current:
        if name not in names:
            raise InputError(f"{where}.{name}: no such setting{did_you_mean(name, names)}")
    return cls(**current)


def check(config: object, where: str) -> None:
    """InputError unless every setting has its type; ``where`` as in :func:`build`.

    A number of any numeric type, such as a NumPy scalar, becomes the Python number of the declared
    type. A whole number may be written as a float: 2e3 is 2000.
    """
    cls: Any = type(config)
    for name, kind in _kinds(cls).items():
        value = check_value(getattr(config, name), kind, f"{where}.{name}")
        object.__setattr__(config, name, value)  # the dataclasses are frozen


def expect_sizes(config: object, where: str, *names: str, at_most: int = 2**40) -> None:
    """InputError unless each of these settings is in 1 .. ``at_most``."""
    for name in names:
        size = getattr(config, name)
        if not 1 <= size <= at_most:
            limit = "at least 1" if size < 1 else f"at most {at_most:,}"
            raise InputError(f"{where}.{name} = {size}: must be {limit}")


def expect_dropouts(config: object, where: str, *names: str) -> None:
    """InputError unless each of these settings is in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(
                f"{where}.{name} = {getattr(config, name)}: must be at least 0 and below 1"
            )


def changed_settings(config: Any) -> str:
    """The ``repr`` of settings, one short line: those that differ from the defaults."""
    text = type(config).__name__ + "("
    for f in fields(config):
        value = getattr(config, f.name)
        if value != f.default:
            setting = f"{', ' * (text[-1] != '(')}{f.name}={shown_value(value)}"
            if len(text + setting) > 110:
                return f"{text}, …)"
            text += setting
    return f"{text})"


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """A hint for a message: the nearest of ``names``, else all of them."""
    names = list(names)
    close = difflib.get_close_matches(str(name), names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


@cache
def _kinds(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def check_value(value: Any, kind: Any, where: str) -> Any:
    """The value of a setting as its declared type."""
    if isinstance(kind, UnionType):  # of a type and None
        if value is None:
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    plain = plain_value(value)
    if get_origin(kind) is Literal:
        if isinstance(plain, str) and plain in get_args(kind):
            return str(plain)
        raise InputError(
            f"{where} = {shown_value(value)}: choose one of {', '.join(get_args(kind))}"
        )
    name = kind.__name__
    if kind in (int, float) and isinstance(plain, int | float | Decimal | Fraction):
        with suppress(ValueError, OverflowError):  # not finite, or too large for a float
            number = kind(plain)
            if (kind is float or number == plain) and not isinstance(plain, bool):
                if kind is float or abs(number) < 2**63:
                    return number
                name = "int of 64 bits"
    elif isinstance(plain, kind):
        return kind(plain)
    raise InputError(f"{where} = {shown_value(value)}: must be {name}")


def check_count(value: Any, where: str) -> int:
    """A whole number from 1."""
    count: int = check_value(value, int, where)
    if count < 1:
        raise InputError(f"{where} must be at least 1, found {count}")
    return count


def plain_value(value: Any) -> Any:
    """A scalar of NumPy, PyTorch or Arrow as a Python value; any other value as it is."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def shown_value(value: Any) -> str:
    """A value in a message of one line."""
    try:
        text = " ".join(repr(value).splitlines())
    except ValueError:  # an int of more than 4,300 digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
