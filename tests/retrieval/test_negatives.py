"""Hard negatives against a loop: the best items by score that the query never led to in train."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidray.retrieval.negatives import top


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 12), st.integers(1, 6))
def test_top_is_the_loop(seed: int, queries: int, items: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    item_rows = np.sort(draw.choice(40, items, replace=False))
    q, v = draw.standard_normal((queries, 3)), draw.standard_normal((items, 3))
    query_ids = draw.integers(0, 5, queries)
    clicked = [np.unique(draw.integers(0, 40, draw.integers(0, 20))) for _ in range(5)]
    known = (np.cumsum([0, *map(len, clicked)]), np.concatenate(clicked))
    for row, found in enumerate(top(q, v, item_rows, query_ids, known, count)):
        allowed = [i for i in range(items) if item_rows[i] not in clicked[query_ids[row]]]
        best = sorted(allowed, key=lambda i: -float(q[row] @ v[i]))[:count]
        assert found == [int(item_rows[i]) for i in best]


def test_no_items_no_negatives() -> None:
    nothing = np.zeros(0, np.int64)
    known = (np.zeros(6, np.int64), nothing)
    assert top(np.ones((2, 3)), np.ones((0, 3)), nothing, np.array([0, 1]), known, 4) == [[], []]
