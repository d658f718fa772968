"""The column of weights: how much each event counts as a target of training."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recblr.data.values import BadValue, cast, first_bad_row, is_text, plain, shorten


class WeightColumn:
    """Reads the blocks of a column of positive, finite numbers."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, column: pa.Array) -> None:
        """Read the next block. BadValue names the first row that is no weight."""
        if column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            raise BadValue(row, "the weight is null; write a positive number")
        kind: Any = column.type
        if not (is_text(column) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise BadValue(0, f"weights of type {kind}; write positive numbers")
        column = plain(column)
        numbers = cast(column, pa.float64())
        if numbers is None:
            row = first_bad_row(column, lambda part: cast(part, pa.float64()))
            raise BadValue(
                row, f"found {shorten(repr(column[row].as_py()))}; write a positive number"
            )
        with np.errstate(over="ignore"):
            values = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
        for row in np.flatnonzero(~((values > 0) & (values < np.inf)))[:1]:
            raise BadValue(
                int(row), f"found the weight {column[int(row)]}; write a positive, finite number"
            )
        self._blocks.append(values)

    def finish(self) -> NDArray[np.float32] | None:
        """(N,) the weights of all blocks; None if the log has no weights."""
        return np.concatenate(self._blocks) if self._blocks else None
