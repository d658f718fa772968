"""A file or a frame whose columns are known and whose rows are still to be read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

HEAD_ROWS = 1000

# The name of a column; its position, from 1, in a file that does not name them.
Name = str | int
# The arrays of some rows by our column names, and the location of a value: (column name, row) -> text.
Batch = tuple[dict[str, pa.Array], Callable[[str, int], str]]


@dataclass(frozen=True)
class Table:
    """The columns of a file or frame, and how to read them.

    Attributes:
        source: the name of the file in messages. where: the same, with the line of the column names.
        names: the columns.
        head: reads about the first ``HEAD_ROWS`` rows of those columns that it can read.
        read: reads all rows of some columns, given by our column names, in blocks.
        first_line: the fields of line 1, for text with a separator.
        has_names: whether line 1 was read as the names of the columns.
    """

    source: str
    where: str
    names: list[Name]
    head: Callable[[], dict[Name, pa.Array]]
    read: Callable[[dict[str, Name]], Iterator[Batch]]
    first_line: tuple[str, ...] = ()
    has_names: bool = True
