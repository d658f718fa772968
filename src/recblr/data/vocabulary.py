"""Ids of users or items, and their rows."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pyarrow as pa

from recblr.errors import InputError

Id = str | int


class Vocabulary:
    """The users or the items of a log; row r has the id ``ids[r]``."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids

    @cached_property
    def _rows(self) -> dict[Id, int]:
        return {name: row for row, name in enumerate(self.ids.to_pylist())}

    def row(self, name: Id) -> int | None:
        """The row of an id; None for an unknown id."""
        return self._rows.get(name)

    def known_rows(self, names: Iterable[Id]) -> np.ndarray:
        """The rows of the known ids among ``names``, in order."""
        rows = self._rows
        return np.array([rows[name] for name in names if name in rows], dtype=np.int64)

    def parse(self, texts: Iterable[str]) -> list[Id]:
        """Convert ids given as text, such as on a command line, to the type of the log's ids.

        Raises:
            InputError: the log's ids are whole numbers, and a text is not a number.
        """
        if not pa.types.is_integer(self.ids.type):
            return list(texts)
        names: list[Id] = []
        for text in texts:
            try:
                names.append(int(text))
            except ValueError:
                raise InputError(
                    f"{text!r} is not an id of this log; its ids are whole numbers"
                ) from None
        return names
