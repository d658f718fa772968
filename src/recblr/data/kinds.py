"""The column of kinds: what sort of event each is, such as a view or a purchase."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recblr.config import did_you_mean
from recblr.data.values import BadValue, cast, decoded, first_bad_row, is_text, plain, shorten
from recblr.data.vocabulary import check_id
from recblr.errors import InputError

MAX_KINDS = 255  # their codes are uint8
LEAVE_OUT = "columns={'kind': None} (command line: --columns kind=)"


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds of N events.

    Attributes:
        codes: (N,) uint8; c > 0 is the kind ``names[c - 1]``, and 0 an event without a kind.
        names: every kind once, as text.
    """

    codes: NDArray[np.uint8]
    names: tuple[str, ...]

    def at(self, rows: Any) -> "Kinds":
        """The kinds of the events in ``rows``, an index of NumPy."""
        return Kinds(self.codes[rows], self.names)

    def in_terms_of(self, names: tuple[str, ...]) -> "Kinds":
        """The same kinds with codes of other names; a kind that these do not have becomes 0."""
        known = {name: code for code, name in enumerate(names, 1)}
        table = np.array([0, *(known.get(name, 0) for name in self.names)], np.uint8)
        return Kinds(table[self.codes], names)


def kind_code(kind: object, names: tuple[str, ...]) -> int:
    """The code of a kind; 0 for None, which stands for any kind.

    Raises:
        InputError: there is no such kind.
    """
    if kind is None:
        return 0
    if not names:
        raise InputError("kind: the model was trained on a log without kinds; leave kind out")
    if str(kind) not in names:
        hint = did_you_mean(str(kind)[:100], names)
        raise InputError(f"kind: the model knows no kind {shorten(repr(kind))}{hint}")
    return names.index(str(kind)) + 1


def check_number(names: tuple[str, ...], source: str) -> None:
    """InputError if there are too many kinds."""
    if len(names) > MAX_KINDS:
        raise InputError(
            f"{source}: with it there are more than {MAX_KINDS} kinds; leave them out with {LEAVE_OUT}"
        )


class KindColumn:
    """Encodes the blocks of a column of text or whole numbers; a null or an empty text is no kind."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {"": 0}
        self._blocks: list[NDArray[np.uint8]] = []

    def add(self, column: pa.Array) -> None:
        """Encode the next block. BadValue names the first row that cannot be read."""
        column = decoded(column)
        types: Any = pa.types
        if not (is_text(column) or types.is_integer(column.type) or types.is_null(column.type)):
            raise BadValue(0, f"kinds of type {column.type}; write text or whole numbers")
        column = plain(column)
        texts = cast(column, pa.string())
        if texts is None:
            row = first_bad_row(column, lambda part: cast(part, pa.string()))
            raise BadValue(row, "found text that is not UTF-8; write the kinds as UTF-8 text")
        block = pc.fill_null(texts, "").dictionary_encode()
        codes = []
        for name in block.dictionary.to_pylist():
            if name not in self._codes:
                self._check(name, block)
            codes.append(self._codes.setdefault(name, len(self._codes)))
        self._blocks.append(np.array(codes, np.uint8)[block.indices.to_numpy()])

    def finish(self) -> Kinds | None:
        """The kinds of all blocks, sorted by name; None if no event has one."""
        names = tuple(sorted(name for name in self._codes if name))
        if not names:
            return None
        return Kinds(np.concatenate(self._blocks), tuple(self._codes)[1:]).in_terms_of(names)

    def _check(self, name: str, block: pa.DictionaryArray) -> None:
        """BadValue if a name cannot be one more kind."""
        try:
            check_id(name, "kind")
            if len(self._codes) > MAX_KINDS:
                raise InputError(
                    f"kind: {shorten(repr(name))} is one more than the {MAX_KINDS} kinds that a log "
                    f"may have; leave them out with {LEAVE_OUT}"
                )
        except InputError as error:
            row = pc.index(block.indices, pc.index(block.dictionary, name)).as_py()
            raise BadValue(row, str(error)) from None
