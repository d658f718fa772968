"""An index of millions of items by lists: approximate, with a measured recall.

Dividing the items into lists takes minutes, so it is done once, and the lists are kept in the artifact.

Axes: V items, D the width of a vector, Q queries, L lists.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recblr.errors import InputError
from recblr.progress import report
from recblr.retrieval import Added, Exact, Index

MAX_EXACT = 4_000_000  # items that are searched exactly: a scan takes about 10 ms
QUERIES = 256  # on at most this many the recall is measured
_RECALL_K, _RECALL = 20, 0.99  # the recall@20 that must be reached
_RERANKED = 4  # so many times k items are scored in float32
_SAMPLE = 10_000  # items that the range of the codes is computed from
_TRAINED = 64  # items for each list that its centre is computed from


@dataclass(frozen=True, eq=False)
class Lists:
    """A division of items into lists.

    Attributes:
        centres: (L, D) float32.
        list_of: (V,) int32, the list of each item.
        probes: how many lists a search looks through.
        recall: the share of the true best 20 items that it finds.
    """

    centres: np.ndarray
    list_of: np.ndarray
    probes: int
    recall: float


class InvertedFile(Index):
    """A search of the lists with the nearest centres, by faiss.

    It probes more lists if filters leave fewer than k items.

    Args:
        vectors: as in :class:`Index`.
        lists: of the items.

    Attributes:
        probes: how many lists a search looks through.

    Raises:
        InputError: faiss is not installed.
    """

    kind = "inverted file"

    def __init__(self, vectors: Tensor, lists: Lists) -> None:
        super().__init__(vectors)
        self._faiss, self.recall = _import_faiss(), lists.recall
        self._lists, self.probes = len(lists.centres), lists.probes
        quantizer = self._faiss.IndexFlatIP(self._vectors.shape[1])
        quantizer.add(lists.centres)
        self._index = _new_index(self._faiss, quantizer, self._lists)
        self._index.train(self._vectors[:_SAMPLE])  # only the range of the codes
        pointer, lists_of = self._faiss.swig_ptr, lists.list_of.astype(np.int64)
        self._index.add_core(len(self._vectors), pointer(self._vectors), None, pointer(lists_of))

    def _candidates(
        self, queries: np.ndarray, k: int, hidden: list[np.ndarray], added: list[Added]
    ) -> list[np.ndarray]:
        candidates = []
        for query, rows, (items, values) in zip(queries, hidden, added, strict=True):
            if len(items) == 0:
                candidates.append(self._probe(query, k, rows))
                continue
            # Every item with an added value is a candidate. The probe skips negative values, so that
            # their items do not displace others.
            probed = self._probe(query, k, np.concatenate([rows, items[values < 0]]))
            candidates.append(np.union1d(probed, items[~np.isin(items, rows)]))
        return candidates

    def _probe(self, query: np.ndarray, k: int, hidden: np.ndarray) -> np.ndarray:
        faiss, probes = self._faiss, self.probes
        needed = min(k, len(self._vectors) - len(np.unique(hidden)))
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(hidden)) if len(hidden) else None
        while True:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
            items = self._index.search(query[None], _RERANKED * k, params=parameters)[1][0]
            items = np.sort(items[items >= 0])
            if len(items) >= needed or probes >= self._lists:
                return items
            probes *= 2


def divide(vectors: Tensor, queries: Tensor) -> Lists:
    """Divide items into lists, and find out how many a search must look through.

    Args:
        vectors: (V, D).
        queries: (Q, D) vectors, such as those of users, on which the recall is measured.

    Raises:
        DivergedError: a vector is not finite.
        InputError: faiss is not installed.
    """
    faiss, exact = _import_faiss(), Exact(vectors)
    faiss.omp_set_num_threads(torch.get_num_threads())  # for the current thread
    items = vectors.detach().float().contiguous().numpy()
    count = min(len(items), int(2 * len(items) ** 0.5))
    quantizer = faiss.IndexFlatIP(items.shape[1])
    trained = _new_index(faiss, quantizer, count)
    trained.cp.spherical = True
    trained.cp.min_points_per_centroid = 1  # disables a warning
    trained.cp.max_points_per_centroid = _TRAINED
    trained.train(items)
    list_of = quantizer.search(items, 1)[1][:, 0].astype(np.int32)
    centres = quantizer.reconstruct_n(0, count)
    sample = np.random.default_rng(0).permutation(len(queries))[:QUERIES]
    queries = queries[torch.from_numpy(sample)]
    truth = exact.search(queries, _RECALL_K)[1]
    index = InvertedFile(vectors, Lists(centres, list_of, 1, 0.0))
    while True:
        found = index.search(queries, _RECALL_K)[1]
        recall = float((found[:, :, None] == truth[:, None]).any(1).mean())
        if recall >= _RECALL or index.probes >= count:
            return Lists(centres, list_of, index.probes, recall)
        index.probes *= 2


def divide_if_large(vectors: Tensor, queries: Callable[[], Tensor]) -> Lists | None:
    """:func:`divide` more than 4 million items; None for fewer, or with a report without faiss."""
    if len(vectors) <= MAX_EXACT:
        return None
    try:
        _import_faiss()
    except InputError as error:
        report(f"the artifact has no index of its items, so each search scans all of them: {error}")
        return None
    report(f"dividing {len(vectors):,} items into lists")
    return divide(vectors.detach().cpu(), queries())


def build(vectors: Tensor, lists: Lists | None) -> Index:
    """An inverted file with ``lists``, an exact index without."""
    return Exact(vectors) if lists is None else InvertedFile(vectors, lists)


def _import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise InputError(
            "a catalogue of this size needs faiss; run pip install 'recblr[serve]'"
        ) from error


def _new_index(faiss: Any, quantizer: Any, lists: int) -> Any:
    return faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
