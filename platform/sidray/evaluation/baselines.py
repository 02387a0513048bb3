"""What a model is compared with. Every scorer takes a `Pool` and returns `Ranks`: one row of the report each.

    pool = Pool.of(test_clicks, partitions)
    popularity(pool, train_clicks["item_row"]);  bm25(pool, texts);  oracle(pool, all_clicks)
    vectors(pool, query_vecs, item_vecs)  # a model's own

A click's item is ranked among the candidates (the items that occur in clicks) of the click's partition; a click without
a partition is ranked among all of them. "Rows" are places among the candidates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from sidray.evaluation.metrics import Ints, Ranks
from sidray.retrieval.exact import ALL, NOWHERE, SAME_SCORE, UNREACHABLE, Bools, Floats, groups, reachable, tie_ranks

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # kana, han, hangul
_RUNS = re.compile(f"[{_CJK}]+|[^\\W{_CJK}]+")
_SCORE_BLOCK = 2**22  # scores held at once by bm25


@dataclass(frozen=True)
class Pool:
    """The clicks to rank and the candidates to rank them among; partitions are integer codes."""

    queries: pa.ChunkedArray  # [n] strings
    query_codes: Ints  # [n] the click's partition; ALL without one, NOWHERE when no item is in it
    positives: Ints  # [n] row of the clicked item
    item_codes: Ints  # [N] of the candidates

    @classmethod
    def of(cls, clicks: pa.Table, partitions: pa.ChunkedArray) -> Pool:
        """clicks: query, item_row, partition ("" or null: search everything). partitions: [N] strings."""
        known, item_codes = np.unique(np.asarray(partitions, dtype=str), return_inverse=True)
        asked = pc.index_in(pc.fill_null(clicks["partition"], ""), pa.array(known.tolist(), pa.string()))
        query_codes = pc.fill_null(asked, NOWHERE).to_numpy().astype(np.int64)
        query_codes[pc.equal(pc.fill_null(clicks["partition"], ""), "").to_numpy()] = ALL
        positives = clicks["item_row"].to_numpy().astype(np.int64)
        return cls(clicks["query"], query_codes, positives, item_codes.astype(np.int64))


def vectors(pool: Pool, query_vecs: Floats, item_vecs: Floats) -> Ranks:
    """Cosine of a model's vectors: query_vecs [n, d], one for each click; item_vecs [N, d]."""
    return Ranks(*tie_ranks(query_vecs, item_vecs, pool.item_codes, pool.query_codes, pool.positives))


def popularity(pool: Pool, train_item_rows: Ints | pa.ChunkedArray) -> Ranks:
    """Items by their number of train clicks. Cold items tie at 0: chance among them, behind every warm one."""
    counts = np.bincount(np.asarray(train_item_rows), minlength=len(pool.item_codes))
    ranks = _misses(pool)
    asked = np.flatnonzero(_found(pool))
    for members, rows in groups(pool.query_codes[asked], pool.item_codes):
        clicks = asked[members]
        ordered, own = np.sort(counts[rows]), counts[pool.positives[clicks]]
        above = len(rows) - np.searchsorted(ordered, own, side="right")
        ranks.greater[clicks] = above
        ranks.equal[clicks] = len(rows) - above - np.searchsorted(ordered, own, side="left") - 1
    return ranks


def oracle(pool: Pool, clicks: pa.Table) -> Ranks:
    """A perfect ranker that cannot tell items of the same query apart: the ceiling of what the clicks allow.

    clicks: query, item_row of all splits. Of each click, `equal` counts the other candidates of its partition that the
    very same query led to in any click."""
    vocabulary = pc.unique(pa.chunked_array([*clicks["query"].chunks, *pool.queries.chunks], pa.string()))
    pairs = np.stack([_codes(clicks["query"], vocabulary), clicks["item_row"].to_numpy().astype(np.int64)])
    pairs = np.unique(pairs, axis=1)  # [2, distinct (query, candidate)]
    first = np.searchsorted(pairs[0], np.arange(len(vocabulary) + 1))  # where each query's items begin
    ranks = _misses(pool)
    queries = _codes(pool.queries, vocabulary)
    for click in np.flatnonzero(_found(pool)):
        items = pairs[1, first[queries[click]] : first[queries[click] + 1]]
        code = pool.query_codes[click]
        inside = items if code == ALL else items[pool.item_codes[items] == code]
        ranks.greater[click] = 0
        ranks.equal[click] = np.count_nonzero(inside != pool.positives[click])
    return ranks


def bm25(pool: Pool, texts: Sequence[str]) -> Ranks:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75) of the query in the item's text; texts [N]."""
    matrix, words = bm25_matrix(list(map(tokens, texts)))  # [N, words]
    counts = count_words(pool.queries.to_pylist(), words, matrix.shape[1])  # [n, words]
    ranks = _misses(pool)
    asked = np.flatnonzero(_found(pool))
    for members, scope in groups(pool.query_codes[asked], pool.item_codes):
        inside = matrix[scope].T.tocsr()  # [words, scope]
        block = max(1, _SCORE_BLOCK // max(1, len(scope)))
        for start in range(0, len(members), block):
            clicks = asked[members[start : start + block]]
            scores = (counts[clicks] @ inside).toarray()  # [b, scope]
            place = np.searchsorted(scope, pool.positives[clicks])
            ranks.greater[clicks], ranks.equal[clicks] = rank_scores(scores, place)
    return ranks


def tokens(text: str) -> list[str]:
    """Lower-case words; text without spaces between words (Chinese, Japanese, Korean) as pairs of characters."""
    found: list[str] = []
    for run in _RUNS.findall(text.lower()):
        cjk = re.match(f"[{_CJK}]", run) and len(run) > 1
        found += [run[n : n + 2] for n in range(len(run) - 1)] if cjk else [run]
    return found


def bm25_matrix(documents: list[list[str]]) -> tuple[scipy.sparse.csr_matrix, dict[str, int]]:
    """The score that each word adds to each document, and the column of each word."""
    if not any(documents):
        return scipy.sparse.csr_matrix((len(documents), 0)), {}
    # bm25s runs JAX where that is installed, and JAX would take three quarters of a GPU's memory.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    retriever = bm25s.BM25(dtype="float64")
    retriever.index(documents, show_progress=False)
    parts = (retriever.scores["data"], retriever.scores["indices"], retriever.scores["indptr"])
    shape = (len(documents), len(parts[2]) - 1)
    return scipy.sparse.csc_matrix(parts, shape=shape).tocsr(), retriever.vocab_dict


def count_words(queries: list[str], words: dict[str, int], width: int) -> scipy.sparse.csr_matrix:
    columns = [[words[word] for word in tokens(query) if word in words] for query in queries]
    starts = np.concatenate([[0], np.cumsum([len(line) for line in columns])])
    flat = np.array([column for line in columns for column in line], np.int64)
    return scipy.sparse.csr_matrix((np.ones(len(flat)), flat, starts), shape=(len(queries), width))


def rank_scores(scores: npt.NDArray[np.floating], place: Ints) -> Ranks:
    """Ranks of the candidates at column `place` [b] in scores [b, C]."""
    lines = np.arange(len(scores))
    own = scores[lines, place][:, None]
    scores[lines, place] = -np.inf
    above = np.count_nonzero(scores > own + SAME_SCORE, axis=1)
    return Ranks(above, np.count_nonzero(scores >= own - SAME_SCORE, axis=1) - above)


def _codes(queries: pa.ChunkedArray, vocabulary: Any) -> Ints:
    return np.asarray(pc.index_in(queries, vocabulary).to_numpy(), dtype=np.int64)


def _found(pool: Pool) -> Bools:
    return reachable(pool.item_codes, pool.query_codes, pool.positives)


def _misses(pool: Pool) -> Ranks:
    """Ranks to be filled: what stays is a miss at every k."""
    n = len(pool.positives)
    return Ranks(np.full(n, UNREACHABLE, np.int64), np.zeros(n, np.int64))
