"""What a model reads of an event beside its item: the kind, and the gap to the event before.

Axes: N events, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAPS = 32  # classes of gaps


@dataclass(frozen=True)
class FeatureSet:
    """The features of an event. Each value is a row of one table of embeddings, those of gaps first.

    Attributes:
        kinds: the number of kinds; 0 if kinds are not read.
        gaps: whether gaps are read.
    """

    kinds: int = 0
    gaps: bool = False

    def __bool__(self) -> bool:
        return bool(self.kinds) or self.gaps

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        return GAPS * self.gaps + (self.kinds + 1 if self.kinds else 0)

    @property
    def unknown(self) -> NDArray[np.int16]:
        """(F,) the rows of an event without a kind, and without an event before."""
        return np.array([0] * self.gaps + [GAPS * self.gaps] * (self.kinds > 0), np.int16)

    def encode(
        self, codes: NDArray[np.uint8] | None, gaps: NDArray[np.float64]
    ) -> NDArray[np.int16]:
        """The rows (N, F) of events.

        Args:
            codes: (N,) of the kinds, as in :class:`recblr.data.kinds.Kinds`; None if not known.
            gaps: (N,) as for :func:`gap_classes`.
        """
        encoded = np.tile(self.unknown, (len(gaps), 1))
        if self.gaps:
            encoded[:, 0] = gap_classes(gaps)
        if self.kinds and codes is not None:
            encoded[:, -1] += codes
        return encoded


ITEM_ONLY = FeatureSet()


def gap_classes(gaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """The classes 0 .. 31 of gaps (N,), seconds since the event before of the user.

    0: there is no event before, which is an infinite gap. 1: less than a second. From 2: a doubling of
    the seconds each, 2 for one second, 3 for two and three, and so on.
    """
    digits = np.frexp(np.rint(gaps))[1].clip(0)  # of the whole seconds in the binary system
    return np.where(np.isinf(gaps), 0, np.minimum(digits + 1, GAPS - 1))
