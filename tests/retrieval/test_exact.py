"""Exact search and tie-aware ranks against a float64 double loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.retrieval import exact
from sidray.retrieval.exact import ALL, NOWHERE, UNREACHABLE, tie_ranks, top_k


def cosine64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None, :]
    return np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0)


def case(seed: int, items: int, queries: int, distinct: int) -> tuple[np.ndarray, ...]:
    """Items drawn from `distinct` small integer vectors, so that exact ties are common."""
    rng = np.random.default_rng(seed)
    item_vecs = rng.integers(-2, 3, (distinct, 4)).astype(np.float32)[rng.integers(0, distinct, items)]
    query_vecs = rng.integers(-2, 3, (queries, 4)).astype(np.float32)
    item_codes = rng.integers(0, 3, items)
    query_codes = rng.integers(ALL, 3, queries)
    query_codes[rng.random(queries) < 0.1] = NOWHERE
    return query_vecs, item_vecs, item_codes, query_codes, rng.integers(0, items, queries)


def reference_ranks(inputs: tuple[np.ndarray, ...], tolerance: float) -> np.ndarray:
    query_vecs, item_vecs, item_codes, query_codes, positives = inputs
    scores = cosine64(query_vecs, item_vecs)
    result = []
    for q, positive in enumerate(positives):
        scope = [n for n in range(len(item_vecs)) if query_codes[q] in (ALL, item_codes[n])]
        if positive not in scope:
            result.append((UNREACHABLE, 0))
            continue
        others = [scores[q, n] - scores[q, positive] for n in scope if n != positive]
        result.append((sum(x > tolerance for x in others), sum(abs(x) <= tolerance for x in others)))
    return np.array(result, np.int64).reshape(-1, 2).T


@given(seed=st.integers(0, 10**6), items=st.integers(1, 40), queries=st.integers(0, 12), distinct=st.integers(1, 20))
def test_tie_ranks_equal_a_double_loop(seed: int, items: int, queries: int, distinct: int) -> None:
    inputs = case(seed, items, queries, distinct)
    greater, equal = tie_ranks(*inputs)
    expected = reference_ranks(inputs, 1e-5)
    np.testing.assert_array_equal(greater, expected[0])
    np.testing.assert_array_equal(equal, expected[1])


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case(1, 300, 90, 25)
    whole = tie_ranks(*inputs)
    best = top_k(inputs[0], inputs[1], 7, inputs[2], inputs[3])
    monkeypatch.setattr(exact, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(exact, "_ITEM_BLOCK", 11)
    monkeypatch.setattr(exact, "_SCORE_BLOCK", 200)
    np.testing.assert_array_equal(tie_ranks(*inputs), whole)
    np.testing.assert_allclose(top_k(inputs[0], inputs[1], 7, inputs[2], inputs[3])[0], best[0], atol=1e-6)


def test_constant_scores_are_one_big_tie() -> None:
    greater, equal = tie_ranks(np.ones((3, 2)), np.ones((50, 2)), np.zeros(50, int), np.full(3, ALL), np.arange(3))
    assert greater.tolist() == [0, 0, 0]
    assert equal.tolist() == [49, 49, 49]


@given(seed=st.integers(0, 10**6), items=st.integers(1, 30), queries=st.integers(0, 8), k=st.integers(1, 12))
def test_top_k_equals_a_sort(seed: int, items: int, queries: int, k: int) -> None:
    query_vecs, item_vecs, item_codes, query_codes, _ = case(seed, items, queries, 10)
    scores, rows = top_k(query_vecs, item_vecs, k, item_codes, query_codes)
    cosines = cosine64(query_vecs, item_vecs)
    for q in range(queries):
        scope = [n for n in range(items) if query_codes[q] in (ALL, item_codes[n])]
        expected = sorted((cosines[q, n] for n in scope), reverse=True)[:k]
        kept = rows[q][rows[q] >= 0]
        assert len(kept) == len(set(kept.tolist())) == len(expected)
        assert set(kept.tolist()) <= set(scope)
        np.testing.assert_allclose(scores[q, : len(expected)], expected, atol=1e-6)
        np.testing.assert_allclose(cosines[q, kept], expected, atol=1e-6)
        assert (scores[q, len(expected) :] == -np.inf).all()


def test_top_k_puts_the_lower_row_first_among_equals() -> None:
    _, rows = top_k(np.ones((1, 2)), np.ones((6, 2)), 3)
    assert rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("place", "what"), [(0, "click 7"), (1, "item row 7")])
def test_a_model_that_has_diverged_has_no_ranks(place: int, what: str) -> None:
    """Nothing is above a NaN: each of its clicks would count as found."""
    inputs = [*case(0, 40, 9, 20)]
    inputs[place] = inputs[place].copy()
    inputs[place][7, 0] = np.nan
    with pytest.raises(UserError, match=f"the vector of {what} is not finite"):
        tie_ranks(*inputs)
