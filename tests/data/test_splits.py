"""Splits given to rows that bring none, and pairs counted from behaviour, against hand and brute force."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidray.data import related, splits


def test_hash_splits_have_the_shares_asked_for_and_do_not_move() -> None:
    ids = [f"item-{n}" for n in range(20_000)]
    codes = splits.by_hash(ids, valid=0.1, test=0.15, seed=0)
    assert np.abs(np.bincount(codes) / len(ids) - [0.75, 0.1, 0.15]).max() < 0.01
    assert (splits.by_hash(ids[::-1], valid=0.1, test=0.15, seed=0)[::-1] == codes).all()
    assert (splits.by_hash(ids, valid=0.1, test=0.15, seed=1) != codes).mean() > 0.3


def test_a_larger_test_share_keeps_the_old_test_items() -> None:
    ids = [f"item-{n}" for n in range(500)]
    small, large = (splits.by_hash(ids, valid=0.1, test=share, seed=0) for share in (0.1, 0.2))
    assert set(np.flatnonzero(small == 2)) < set(np.flatnonzero(large == 2))


def test_time_splits_by_hand() -> None:
    stamps = np.array([9, 1, 8, 2, 7, 3, 6, 4, 5, 10])
    codes = splits.by_time(stamps, valid=0.2, test=0.3)
    assert codes[np.argsort(stamps)].tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]


@given(st.lists(st.integers(0, 5), max_size=30), st.floats(0, 0.4), st.floats(0, 0.4))
def test_time_splits_never_train_on_what_is_later(stamps: list[int], valid: float, test: float) -> None:
    given_stamps = np.array(stamps, dtype=np.int64)
    codes = splits.by_time(given_stamps, valid, test)
    for early, late in ((0, 1), (1, 2), (0, 2)):
        if (codes == early).any() and (codes == late).any():
            assert given_stamps[codes == early].max() < given_stamps[codes == late].min()
    if stamps:
        assert codes[given_stamps.argmin()] == 0


def test_pairs_across_splits_are_mixed() -> None:
    left, right = np.array([0, 1, 2, 0], dtype=np.int8), np.array([0, 1, 2, 2], dtype=np.int8)
    assert splits.names(splits.of_pairs(left, right)).to_pylist() == ["train", "valid", "test", "mixed"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 14)), max_size=60))
def test_items_bought_together_equal_a_count_by_hand(events: list[tuple[int, int]]) -> None:
    baskets: dict[int, set[int]] = {}
    for user, item in events:
        baskets.setdefault(user, set()).add(item)
    together = Counter(pair for items in baskets.values() for pair in permutations(items, 2))
    wanted = []
    for item in range(15):
        own = sorted((-count, other) for (left, other), count in together.items() if left == item)
        wanted += [(item, other, -count) for count, other in own[:10]]
    columns = np.array(events, dtype=np.int64).reshape(-1, 2).T
    found = related.bought_together(columns[0], columns[1], n_items=15, most=10)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == wanted


def test_only_a_user_s_latest_items_count() -> None:
    many = related.MAX_ITEMS_PER_USER + 5
    item, _, _ = related.bought_together(np.zeros(many, np.int64), np.arange(many), n_items=many, most=10)
    assert set(item.tolist()) == set(range(5, many))
