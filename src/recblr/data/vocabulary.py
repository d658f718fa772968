"""Ids of users and items: which values are ids, collections of them, and their rows in a log.

Axes: V known ids, M other ids.
"""

import difflib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recblr.config import plain_value, shown_value
from recblr.data.values import is_text
from recblr.errors import InputError

Id = str | int
MAX_ID_BYTES = 256  # of an id that a server stores
MAX_BYTES = (
    1 << 31
)  # of an array of strings, whose offsets have 32 bits; a large_string has no limit
NEIGHBOURS = (
    8  # ids before and after a place in the sorted ids that are compared with an unknown id
)


# ---- values --------------------------------------------------------------------------------------


def check_id(value: Id, name: str) -> str:
    """An id as text, as event logs store it: 1 to 256 bytes of UTF-8 without a NUL character.

    ``name`` says in messages what the value is. A whole number has at most 64 bits.
    """
    text = value if isinstance(value, str) else str(_as_id(value, name))
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(f"{name}: contains an unpaired surrogate") from None
    if not 0 < size <= MAX_ID_BYTES:
        raise InputError(f"{name}: must have 1 to {MAX_ID_BYTES} bytes, found {size}")
    if "\0" in text:
        raise InputError(f"{name}: contains a NUL character")
    return text


def as_ids(values: object, name: str, ordered: bool = False) -> list[Id]:
    """The ids in a collection of any kind; arguments as for :func:`as_list`.

    Raises:
        InputError: it is not a collection, or a value is neither text nor a whole number of 64 bits.
    """
    return [
        value if type(value) is str or (type(value) is int and _has_64_bits(value))
        else _as_id(value, f"{name}[{number}]")
        for number, value in enumerate(as_list(values, name, ordered))
    ]  # fmt: skip


def as_list(values: Any, name: str, ordered: bool = False) -> list[Any]:
    """The values in a collection: a list, tuple, generator or set, an array or a series.

    Args:
        values: may be of the standard library, NumPy, pandas, Polars, Arrow or PyTorch.
        name: says in messages which argument it is.
        ordered: whether the order matters; a set is refused then.

    Raises:
        InputError: it is a single value, a mapping or a table.
    """
    if isinstance(values, Mapping) or hasattr(values, "columns"):
        raise InputError(f"{name}: is a {type(values).__name__}; give one column or list of ids")
    if ordered and isinstance(values, set | frozenset):
        raise InputError(f"{name}: is a set, which has no order; give a list, oldest first")
    for method in ("to_pylist", "to_list", "tolist", "as_py"):
        if callable(getattr(values, method, None)):
            values = getattr(values, method)()
            break
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        kind, shown = type(values).__name__, shown_value(values)
        raise InputError(f"{name}: {shown} is one {kind}, not a list of ids; write [{shown}]")
    return list(values)


def whole_number(text: str) -> int | None:
    """The whole number of 64 bits that a text is written for; None for texts such as "07" and "x"."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text and _has_64_bits(number) else None


def _as_id(value: object, name: str) -> Id:
    value = plain_value(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        if _has_64_bits(int(value)):
            return int(value)
        number = shown_value(int(value))
        raise InputError(f"{name}: the whole number {number} is beyond 64 bits; write it as text")
    kind = type(value).__name__
    raise InputError(f"{name}: {shown_value(value)} is a {kind}; ids are text or whole numbers")


def _has_64_bits(number: int) -> bool:
    return -(2**63) <= number < 2**63


# ---- ids of a log --------------------------------------------------------------------------------


class Vocabulary:
    """The users or the items of a log; row r has the id ``ids[r]``.

    Args:
        ids: text or whole numbers.
        kind: "user" or "item", for messages.
    """

    def __init__(self, ids: pa.Array, kind: str) -> None:
        self.ids, self.kind = ids, kind

    @cached_property
    def _rows(self) -> dict[Id, int]:
        return {name: row for row, name in enumerate(self.ids.to_pylist())}

    def rows(self, names: Iterable[Id]) -> np.ndarray:
        """The row of each id; -1 for an unknown id."""
        known = self._rows
        return np.array([known.get(name, -1) for name in names], dtype=np.int64)

    def from_text(self, text: str) -> Id:
        """The id that a text stands for, such as on a command line.

        If the log's ids are whole numbers, "7" stands for 7. Texts such as "07", "7_0" and "x" remain
        texts; they are unknown ids.
        """
        number = whole_number(text) if pa.types.is_integer(self.ids.type) else None
        return text if number is None else number

    def describe_unknown(self, names: Sequence[Id], count: int | None = None) -> str:
        """One line about unknown ids: the first of them, and an id of the log that is similar.

        ``count`` is how many different ids there are, if not all are passed."""
        names = list(dict.fromkeys(names))
        count = len(names) if count is None else count
        first, kind = names[0], "whole numbers" if pa.types.is_integer(self.ids.type) else "text"
        near = self.nearest(first)
        if near is None:
            hint = f"its ids are {kind}, such as {self.ids[0].as_py()!r}"
        elif isinstance(first, type(near)):
            hint = f"did you mean {near!r}?"
        else:
            hint = f"its ids are {kind}, did you mean {near!r}?"
        if count == 1:
            return f"{self.kind} {first!r} is not in the log of the model ({hint})"
        shown = ", ".join(map(repr, names[:3])) + ", …" * (count > 3)
        return f"{count:,} {self.kind}s are not in the log of the model: {shown} ({hint})"

    def nearest(self, name: Id) -> Id | None:
        """The id that is spelled most like ``name``, among those with the same beginning or end.

        The cost does not grow with the number of ids, after the first call.
        """
        text = str(name)[:MAX_ID_BYTES].lower()
        similar: dict[str, int] = {}
        for backwards, (words, order) in enumerate(self._sorted):
            key = text[::-1] if backwards else text
            place = bisect_left(order, key, key=lambda row: words[row].as_py())
            for row in order[max(0, place - NEIGHBOURS) : place + NEIGHBOURS].tolist():
                word = words[row].as_py()
                similar.setdefault(word[::-1] if backwards else word, row)
        matches = difflib.get_close_matches(text, similar, 1)
        return self.ids[similar[matches[0]]].as_py() if matches else None

    @cached_property
    def _sorted(self) -> list[tuple[pa.Array, np.ndarray]]:
        """The ids in lower case and their order, forwards and backwards."""
        texts = pc.utf8_lower(self.ids.cast(pa.string()))
        return [
            (words, pc.sort_indices(words).to_numpy().astype(np.int64))
            for words in (texts, pc.utf8_reverse(texts))
        ]


def extend(known: pa.Array, ids: pa.Array, kind: str) -> tuple[pa.Array, np.ndarray]:
    """The known ids (V,) followed by the new ones of ``ids`` (M,), and the row of each of ``ids``.

    The known ids keep their rows and their type: beside whole numbers the text "7" is 7, and beside
    text the number 7 is "7".

    Args:
        known, ids: each id once.
        kind: "user" or "item", for messages.

    Raises:
        InputError: the known ids are whole numbers, and another id is not.
    """
    if ids.type != known.type:
        texts, ids = ids, ids.cast(pa.large_string())
        if pa.types.is_integer(known.type):
            numbers = pc.match_substring_regex(ids, "^(0|-?[1-9][0-9]{0,17})$")
            if not pc.all(numbers).as_py():
                other = texts.filter(pc.invert(numbers))[0].as_py()
                raise InputError(
                    f"{kind} {other!r} is text, and the {kind}s of the model's log are whole numbers; "
                    "write all ids alike"
                )
    if is_text(known) and known.nbytes + ids.nbytes > MAX_BYTES:
        known = known.cast(pa.large_string())
    ids = ids.cast(known.type)
    rows = pc.index_in(ids, known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    new = rows < 0
    rows[new] = len(known) + np.arange(new.sum())
    return pa.concat_arrays([known, ids.filter(pa.array(new))]), rows
