"""Exact cosine search: the reference that the index is held to, and the ranks that evaluation counts.

    scores, rows = top_k(query_vecs, item_vecs, k=10, item_codes=item_codes, query_codes=query_codes)
    greater, equal = tie_ranks(query_vecs, item_vecs, item_codes, query_codes, positive_rows)

A partition is an integer code per item; a query with the code ALL is matched with every item (SMGR appendix C: queries
meet only the candidates of their own geo_hash). Scores are cosines (equation 2). Work goes in blocks, so that memory
stays at a few tens of MB beside the inputs, which may be memory maps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sidray.errors import UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ALL = -1  # the partition code of a query that searches everything
NOWHERE = -2  # the partition code of a query whose partition holds no item
UNREACHABLE = 2**40  # `greater` of a click whose item is not in the query's partition: a miss at every k
SAME_SCORE = 1e-5  # scores that differ by less are the same

_QUERY_BLOCK = 512
_ITEM_BLOCK = 16_384
_SCORE_BLOCK = 2**24  # scores held at once by top_k


def unit(vectors: npt.NDArray[np.floating]) -> Floats:
    """Rows scaled to length 1 as float32 [N, d]; a zero row stays zero, so its cosine with anything is 0."""
    wide = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms > 0, norms, 1), dtype=np.float32)


def groups(query_codes: Ints, item_codes: Ints) -> Iterator[tuple[Ints, Ints]]:
    """For every partition that is asked for: (positions of its queries, rows of its items in ascending order)."""
    by_code = np.argsort(item_codes, kind="stable")  # rows, ascending inside each code
    codes = item_codes[by_code]
    order = np.argsort(query_codes, kind="stable")
    asked, starts = np.unique(query_codes[order], return_index=True)
    for code, members in zip(asked, np.split(order, starts[1:]), strict=False):
        low, high = np.searchsorted(codes, [code, code + 1])
        yield members, np.arange(len(item_codes)) if code == ALL else by_code[low:high]


def top_k(
    query_vecs: Floats, item_vecs: Floats, k: int, item_codes: Ints | None = None, query_codes: Ints | None = None
) -> tuple[Floats, Ints]:
    """The k items of highest cosine per query: scores [Q, k] and rows [Q, k], of equal scores the lower row first.

    Where a partition holds fewer than k items the rest is padded with row -1 and score -inf."""
    item_codes = np.zeros(len(item_vecs), np.int64) if item_codes is None else item_codes
    query_codes = np.full(len(query_vecs), ALL) if query_codes is None else query_codes
    scores = np.full((len(query_vecs), k), -np.inf, np.float32)
    rows = np.full((len(query_vecs), k), -1, np.int64)
    for members, candidates in groups(query_codes, item_codes):
        for _, queries in _blocks(members, max(1, _SCORE_BLOCK // max(1, len(candidates)))):
            cosines = np.empty((len(queries), len(candidates)), np.float32)
            unit_queries = unit(query_vecs[queries])  # [b, d]
            for start, items in _blocks(candidates, _ITEM_BLOCK):
                cosines[:, start : start + len(items)] = unit_queries @ unit(item_vecs[items]).T
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]  # [b, min(k, C)]
            scores[queries, : best.shape[1]] = np.take_along_axis(cosines, best, axis=1)
            rows[queries, : best.shape[1]] = candidates[best]
    return scores, rows


def check_finite(vectors: Floats, what: str, names: Ints | None = None) -> None:
    """UserError for a vector of [n, d] that is not finite: nothing scores above a NaN, so it would count as found.
    `names` [n]: what its row is called, else the number of the row."""
    for start in range(0, len(vectors), _ITEM_BLOCK):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + _ITEM_BLOCK]).all(axis=1)) + start
        if len(bad):
            row = bad[0] if names is None else names[bad[0]]
            remedy = "the model has diverged: train it again with a lower learning rate"
            raise UserError(f"the vector of {what} {row} is not finite", remedy)


def tie_ranks(
    query_vecs: Floats,
    item_vecs: Floats,
    item_codes: Ints,
    query_codes: Ints,
    positive_rows: Ints,
) -> tuple[Ints, Ints]:
    """How many other items score above the clicked one, and how many the same within SAME_SCORE.

    query_vecs [Q, d], item_vecs [N, d], item_codes [N], query_codes [Q] (ALL = every partition), positive_rows [Q].
    Returns (greater [Q], equal [Q]); a clicked item that is not in the query's partition has greater = UNREACHABLE.
    Raises UserError when a vector is not finite."""
    check_finite(query_vecs, "click")
    check_finite(item_vecs, "item row")
    greater = np.full(len(query_vecs), UNREACHABLE, np.int64)
    equal = np.zeros(len(query_vecs), np.int64)
    found = reachable(item_codes, query_codes, positive_rows)
    asked = np.flatnonzero(found)
    for members, rows in groups(query_codes[asked], item_codes):
        for _, queries in _blocks(asked[members], _QUERY_BLOCK):
            above, same = _count(query_vecs[queries], item_vecs, rows, positive_rows[queries])
            greater[queries], equal[queries] = above, same
    return greater, equal


def reachable(item_codes: Ints, query_codes: Ints, positive_rows: Ints) -> Bools:
    """Whether the clicked item of each query is in the query's partition: bool [Q]."""
    return np.asarray((query_codes == ALL) | (item_codes[positive_rows] == query_codes))


def _count(query_vecs: Floats, item_vecs: Floats, rows: Ints, positives: Ints) -> tuple[Ints, Ints]:
    """(greater, equal) for a block of queries [b, d] of one partition, whose candidates are `rows`, ascending."""
    queries = unit(query_vecs)
    own = np.einsum("bd,bd->b", queries, unit(item_vecs[positives]))[:, None]  # [b, 1]
    place = np.searchsorted(rows, positives)  # where each positive stands among the candidates
    greater = np.zeros(len(queries), np.int64)
    equal = np.zeros(len(queries), np.int64)
    for start, items in _blocks(rows, _ITEM_BLOCK):
        scores = queries @ unit(item_vecs[items]).T  # [b, items]
        here = np.flatnonzero((place >= start) & (place < start + len(items)))
        scores[here, place[here] - start] = -np.inf  # the positive does not compete with itself
        above = np.count_nonzero(scores > own + SAME_SCORE, axis=1)
        greater += above
        equal += np.count_nonzero(scores >= own - SAME_SCORE, axis=1) - above
    return greater, equal


def _blocks(values: Ints, size: int) -> Iterator[tuple[int, Ints]]:
    for start in range(0, len(values), size):
        yield start, values[start : start + size]
