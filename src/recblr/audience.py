"""What to recommend and to whom: the items that may be recommended, and the histories.

Axes: B histories, V items.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recblr.config import check_count, check_value
from recblr.data.batches import PackedBatch, pack_latest
from recblr.data.kinds import kind_code
from recblr.data.sequences import Sequences
from recblr.data.vocabulary import Id, Vocabulary, as_ids, as_list
from recblr.errors import InputError

Unknown = Literal["error", "skip", "popular"]
"""What to do about ids that the model does not know: see :meth:`Recommender.recommend`."""

SKIP = "pass unknown='skip' (command line: --unknown skip)"
SKIP_OR_POPULAR = "pass unknown='skip' or 'popular' (command line: --unknown)"
EFFECTS = {"skip": "left out of the result", "popular": "recommending the most popular items"}
NONE_LEFT = "allow, deny and hide_seen leave none"


@dataclass(frozen=True, eq=False)
class Selection:
    """Which items may be recommended, and how many.

    Attributes:
        k: the number of items.
        excluded: (V,) mask of the items that are never recommended.
        hide_seen: whether to exclude the items of the history.
        kind: the code of the kind of events to recommend items for, 0 for any.
    """

    k: int
    excluded: np.ndarray
    hide_seen: bool
    kind: int = 0

    @staticmethod
    def from_ids(
        data: Sequences, k: Any, allow: Any, deny: Any, hide_seen: Any, unknown: Unknown,
        kind: Any = None,
    ) -> "Selection":  # fmt: skip
        """Allow only the items ``allow``, if given, and none of the items ``deny``.

        Raises:
            InputError: a value has the wrong type, ``k`` is below 1, an item is unknown and ``unknown``
                is "error", no known item is allowed, or the kind is unknown.
        """
        items = data.item_vocabulary
        k, unknown = check_count(k, "k"), check_value(unknown, Unknown, "unknown")
        hide_seen = check_value(hide_seen, bool, "hide_seen")
        excluded = np.zeros(len(items.ids), bool)
        for name, values in (("allow", allow), ("deny", deny)):
            if values is None:
                continue
            rows = _item_rows(items, as_ids(values, name), name, unknown)
            if name == "allow":
                excluded[:] = True
            excluded[rows[rows >= 0]] = name == "deny"
        if excluded.all():
            raise InputError("allow and deny leave no item that the model knows")
        return Selection(k, excluded, hide_seen, kind_code(kind, data.kind_names))


@dataclass(frozen=True, eq=False)
class Audience:
    """B histories to recommend for.

    Attributes:
        ids: (B,) the user_id of each in the result.
        users: (B,) the row of each user in the log; -1 for others.
        histories: item rows, oldest first. An empty history gets the most popular items.
        candidates: for each history the rows of the only items to recommend, ascending; None if all
            items are candidates.
        features: for each history those of its events (T, F), rows of their table; None if the model
            reads none, or if they are not known.
    """

    ids: pa.Array
    users: np.ndarray
    histories: list[np.ndarray]
    candidates: list[np.ndarray] | None = None
    features: list[np.ndarray] | None = None

    @staticmethod
    def of_users(
        data: Sequences, users: Any, unknown: Unknown, candidates: Any = None
    ) -> "Audience":
        """Users of the log by their ids; arguments as for :meth:`Recommender.recommend`."""
        known = data.user_vocabulary
        names = as_ids(users, "users")
        rows = known.rows(names)
        missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
        message = known.describe_unknown(missing) if missing else ""
        lists = _candidate_rows(data.item_vocabulary, candidates, names, unknown)
        if unknown == "skip":
            kept = np.flatnonzero(rows >= 0)
            names, rows, lists = at(kept, names), rows[kept], lists and at(kept, lists)
        elif unknown == "error" and missing:
            raise InputError(f"{message}; give histories, or {SKIP_OR_POPULAR}")
        try:
            ids = pa.array(names, data.user_ids.type)
        except (pa.ArrowException, TypeError, OverflowError):
            raise InputError(f"{message}; a user in the result needs an id of that type") from None
        if missing:
            warnings.warn(f"{message}; {EFFECTS[unknown]}", stacklevel=3)
        return Audience.of_rows(data, rows, ids, lists)

    @staticmethod
    def of_rows(
        data: Sequences, rows: np.ndarray, ids: pa.Array, candidates: list[np.ndarray] | None = None
    ) -> "Audience":
        """Users of the log by their rows (B,), -1 for one without a history."""
        offsets, empty = data.offsets, slice(0, 0)
        parts = [slice(offsets[row], offsets[row + 1]) if row >= 0 else empty for row in rows]
        features = data.features
        return Audience(
            ids, rows, [data.items[part] for part in parts], candidates,
            None if features is None else [features[part] for part in parts],
        )  # fmt: skip

    @staticmethod
    def of_histories(
        data: Sequences, histories: Any, unknown: Unknown, candidates: Any = None
    ) -> "Audience":
        """Histories of item ids; arguments as for :meth:`Recommender.recommend`."""
        known = data.item_vocabulary
        named = [
            as_ids(history, f"histories[{number}]", ordered=True)
            for number, history in enumerate(as_list(histories, "histories", ordered=True))
        ]
        rows = [known.rows(names) for names in named]
        kept = [history[history >= 0] for history in rows]
        numbers = np.arange(len(kept))
        lists = _candidate_rows(known, candidates, range(len(kept)), unknown)
        if nothing := [number for number in numbers if not len(kept[number])]:
            first = named[nothing[0]]
            others = f" ({len(nothing):,} of {len(kept):,} histories)" * (len(nothing) > 1)
            reason = known.describe_unknown(first) if first else "it is empty"
            message = f"history {nothing[0]} has no item that the model knows{others}: {reason}"
            if unknown == "error":
                raise InputError(f"{message}; correct it, or {SKIP_OR_POPULAR}")
            warnings.warn(f"{message}; {EFFECTS[unknown]}", stacklevel=3)
            if unknown == "skip":
                numbers = np.array([number for number in numbers if len(kept[number])], np.int64)
        if missing := [
            name
            for number in numbers if len(kept[number]) < len(named[number])
            for name, row in zip(named[number], rows[number], strict=True) if row < 0
        ]:  # fmt: skip
            warnings.warn(f"histories: {known.describe_unknown(missing)}; ignored", stacklevel=3)
        if data.feature_set:
            warnings.warn(
                "histories: the model also reads the kinds of events or the gaps between them, which a "
                "list of items does not have",
                stacklevel=3,
            )
        users = np.full(len(numbers), -1)
        kept, lists = at(numbers, kept), lists and at(numbers, lists)
        return Audience(pa.array(numbers), users, kept, lists)

    def batch(self, rows: np.ndarray, max_length: int, kind: int = 0) -> PackedBatch:
        """The last ``max_length`` events of some of the histories, none of which is empty.

        ``kind`` is the code of the kind that they are asked for, 0 for any.
        """
        histories = at(rows, self.histories)
        stops = np.cumsum([len(items) for items in histories])
        starts = np.concatenate([[0], stops[:-1]])
        features = None if self.features is None else np.concatenate(at(rows, self.features))
        items = np.concatenate(histories)
        batch = pack_latest(items, starts, stops, max_length, "none", features)
        asked = torch.full((len(rows),), kind) if kind else None
        return replace(batch, users=torch.from_numpy(self.users[rows]), asked=asked)

    def warn_if_unserved(self, table: pa.Table) -> None:
        """Warn of users or histories that have no row in the result."""
        unserved = self.ids.filter(pc.invert(pc.is_in(self.ids, table["user_id"])))
        if len(unserved):
            reason = NONE_LEFT if self.candidates is None else f"candidates, {NONE_LEFT}"
            warnings.warn(
                f"{len(unserved):,} of {len(self.ids):,} users or histories get no item, such as "
                f"{unserved[0].as_py()!r}: {reason}",
                stacklevel=3,
            )


def _item_rows(items: Vocabulary, ids: list[Id], name: str, unknown: Unknown) -> np.ndarray:
    """The row of each item; -1 for an unknown one, which is an error unless ``unknown`` allows it."""
    rows = items.rows(ids)
    if missing := [item for item, row in zip(ids, rows, strict=True) if row < 0]:
        message = f"{name}: {items.describe_unknown(missing)}"
        if unknown == "error":
            raise InputError(f"{message}; correct it, or {SKIP}")
        warnings.warn(f"{message}; ignored", stacklevel=4)
    return rows


def _candidate_rows(
    items: Vocabulary, candidates: Any, keys: Sequence[Id], unknown: Unknown
) -> list[np.ndarray] | None:
    """The rows of the known candidates of each user or history, named by ``keys``."""
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):
        if missing := [key for key in keys if key not in candidates]:
            raise InputError(f"candidates: has no list for {missing[0]!r}; give each one a list")
        lists = [candidates[key] for key in keys]
    else:
        lists = as_list(candidates, "candidates", ordered=True)
        if len(lists) != len(keys):
            raise InputError(
                f"candidates: has {len(lists):,} lists for {len(keys):,} users or histories; give "
                "each one a list"
            )
    named = [as_ids(ids, f"candidates[{number}]") for number, ids in enumerate(lists)]
    rows = _item_rows(items, list(chain(*named)), "candidates", unknown)
    parts = np.split(rows, np.cumsum([len(ids) for ids in named])[:-1])
    return [np.unique(part[part >= 0]) for part in parts[: len(named)]]


def at(places: np.ndarray, values: list[Any]) -> list[Any]:
    return [values[place] for place in places]
