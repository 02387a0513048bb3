"""Coarse lists: how a partition that is too large for one scan is searched in a small part of it.

    perm, starts, centroids, probes = cut(vectors[low:high])  # at build
    scores, rows = Lists(...).search(queries, vectors, k=10)  # at query time

A partition is cut by spherical k-means into about 2 sqrt(n) lists of similar vectors, and its rows are sorted by list.
A search takes the lists whose centroids are nearest to the query (IVF, the inverted file of Jegou, Douze and Schmid,
2011) and searches their rows exactly, in place: nothing is stored but a centroid and a first row for each list.

How many lists: as few as find RECALL of the true neighbours of sampled queries, counted at build for k = 10, 100 and
1000; for more than 1000 neighbours the whole partition is searched. The sampled queries are items moved by noise of
their own length (cosine .71 with the item): queries that lie further off than that may find less.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

import faiss
import numpy as np

from sidray.retrieval.exact import Floats, Ints, unit

KS = (10, 100, 1000)  # numbers of neighbours for which `probes` are counted
RECALL = 0.995
_LISTS = 2.0  # times the square root of the rows
_POINTS = 64  # rows that k-means sees for each list
_ROUNDS = 10
_SAMPLES = 256  # queries on which the probes are counted
_NOISE = 1.0  # length of what is added to an item to make such a query
_BLOCK = 65_536  # rows assigned at once


class Cut(NamedTuple):
    """A partition of n rows in L lists, none of them empty."""

    order: Ints  # [n], the rows of the partition sorted by list, then as they were
    starts: Ints  # [L], the first row of each list in that order
    centroids: Floats  # [L, d]
    probes: list[int]  # [len(KS)], how many lists to search


def cut(vectors: Floats) -> Cut:
    """Cuts unit vectors [n, d], which may be a memory map; equal vectors give an equal cut."""
    rng = np.random.default_rng(0)
    centroids = _centroids(vectors, rng)
    assigned = np.concatenate(
        [_nearest(vectors[start : start + _BLOCK], centroids) for start in range(0, len(vectors), _BLOCK)]
    )
    used, assigned = np.unique(assigned, return_inverse=True)  # lists that hold nothing are dropped
    centroids = centroids[used]
    order = np.argsort(assigned, kind="stable")
    starts = np.searchsorted(assigned[order], np.arange(len(used)))
    return Cut(order, starts, centroids, _probes(vectors, assigned, centroids, rng))


class Lists:
    """The lists of one partition. Never written, so that threads may share it."""

    def __init__(self, bounds: Ints, centroids: Floats, probes: list[int]) -> None:
        self._bounds = bounds  # [L + 1], rows of the index: list i is bounds[i]:bounds[i + 1]
        self._centroids = centroids  # [L, d]
        self._probes = probes

    def search(self, queries: Floats, vectors: Floats, k: int, spare: int = 0) -> tuple[Floats, Ints]:
        """The k + spare nearest rows in the lists that hold the k nearest to each unit query [Q, d]: scores and rows of
        the index [Q, min(k + spare, n)]. `vectors` [N, d] are those of the whole index."""
        low, high = int(self._bounds[0]), int(self._bounds[-1])
        probes = self._probes[bisect.bisect_left(KS, k)] if k <= KS[-1] else len(self._centroids)
        if probes == len(self._centroids):
            return search_range(queries, vectors, low, high, k + spare)
        _, lists = faiss.knn(queries, self._centroids, probes, metric=faiss.METRIC_INNER_PRODUCT)  # [Q, probes]
        wanted = min(k + spare, high - low)
        scores, rows = np.empty((len(queries), wanted), np.float32), np.empty((len(queries), wanted), np.int64)
        for i, chosen in enumerate(lists):
            candidates = self._rows(np.sort(chosen))
            if len(candidates) < wanted:
                scores[i], rows[i] = search_range(queries[i : i + 1], vectors, low, high, wanted)
            else:
                _search_rows(queries[i], vectors, candidates, scores[i], rows[i])
        return scores, rows

    def _rows(self, lists: Ints) -> Ints:
        """The rows of these lists, in their order."""
        starts, ends = self._bounds[lists], self._bounds[lists + 1]
        after = np.cumsum(ends - starts)  # [P], rows up to the end of each list
        return np.asarray(np.arange(after[-1]) + np.repeat(ends - after, ends - starts))


def search_range(queries: Floats, vectors: Floats, low: int, high: int, k: int) -> tuple[Floats, Ints]:
    """FAISS's exact search in the rows low:high: scores and rows of the whole index, [Q, min(k, high - low)]."""
    wanted = min(k, high - low)
    scores, places = faiss.knn(queries, vectors[low:high], wanted, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, places + low


def _search_rows(query: Floats, vectors: Floats, candidates: Ints, scores: Floats, rows: Ints) -> None:
    """FAISS's exact search for one query [d] among `candidates`, without copying them; fills scores and rows [k]."""
    pointers = [faiss.swig_ptr(array) for array in (query, vectors, candidates, scores, rows)]
    sizes = (vectors.shape[1], 1, len(vectors), len(candidates), len(rows))
    faiss.knn_inner_products_by_idx(*pointers[:3], *sizes, *pointers[3:])  # type: ignore[attr-defined] # of SWIG


def _centroids(vectors: Floats, rng: np.random.Generator) -> Floats:
    count = min(len(vectors), math.ceil(_LISTS * math.sqrt(len(vectors))))
    rows = np.sort(rng.choice(len(vectors), min(len(vectors), _POINTS * count), replace=False))
    kmeans = faiss.Kmeans(
        vectors.shape[1], count, niter=_ROUNDS, spherical=True, seed=1, min_points_per_centroid=1
    )  # spherical: the nearest centroid is that of the greatest inner product
    kmeans.train(np.ascontiguousarray(vectors[rows]))
    return np.asarray(kmeans.centroids, np.float32).reshape(count, -1)


def _nearest(vectors: Floats, centroids: Floats) -> Ints:
    return np.asarray(faiss.knn(vectors, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0])


def _probes(vectors: Floats, assigned: Ints, centroids: Floats, rng: np.random.Generator) -> list[int]:
    """For each of KS how many lists hold RECALL of the true neighbours, over all sampled queries."""
    rows = np.sort(rng.choice(len(vectors), min(len(vectors), _SAMPLES), replace=False))
    noise = rng.normal(size=(len(rows), vectors.shape[1])) * _NOISE / math.sqrt(vectors.shape[1])
    queries = unit(vectors[rows] + noise)
    _, true = search_range(queries, vectors, 0, len(vectors), KS[-1])  # [S, min(1000, n)]
    nearest_first = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")  # [S, L]
    rank = np.argsort(nearest_first, axis=1)  # of each list, for each query
    needed = np.take_along_axis(rank, assigned[true], axis=1) + 1  # [S, min(1000, n)], lists to search to find it
    return [int(np.quantile(needed[:, :k], RECALL, method="higher")) for k in KS]
