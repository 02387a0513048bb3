"""Ranks of pairs against a plain float64 loop, which notes make a pool, and which pairs make a row of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sidray.data.catalogue import Catalogue
from sidray.errors import UserError
from sidray.evaluation import pairs as module
from sidray.evaluation.metrics import Ranks, recall
from sidray.evaluation.pairs import (
    ALL_PAIRS,
    PairRanks,
    Pairs,
    evaluate_pairs,
    pair_ranks,
    pair_recall,
    pair_subsets,
    product_ranks,
    save_pair_ranks,
    saved_ranks,
)
from sidray.evaluation.protocol import load_ranks
from sidray.evaluation.significance import REACH, standard_error

SPLITS = ["train", "valid", "test", "mixed"]


class Memory:
    """Stands in for the Lance dataset of the items."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def take(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        return self.table.select(columns).take(pa.array(rows))


def catalogue_of(items: pa.Table, pairs: pa.Table, clicks: pa.Table | None = None) -> Catalogue:
    """A catalogue without files. pairs: item_row, related_row, split; clicks: item_row, split."""
    tables = ["items", "pairs"] + ["clicks"] * (clicks is not None)
    text_fields = [name for name in items.column_names if name not in ("item_id", "title")]
    catalogue = Catalogue("memory", {"items": items.num_rows, "text_fields": text_fields, "tables": tables})
    vars(catalogue).update(_items=Memory(items), _pairs=pairs, _clicks=clicks)
    return catalogue


def pair_table(rows: Sequence[tuple[int, int, str]]) -> pa.Table:
    item, related, split = zip(*rows, strict=True)
    return pa.table({"item_row": item, "related_row": related, "split": split})


def world(seed: int, texts: list[str] | None = None) -> Pairs:
    """Up to 12 notes and up to 30 pairs, at least one of them in the test split; half of the worlds have clicks."""
    rng = np.random.default_rng(seed)
    count = len(texts) if texts else int(rng.integers(2, 13))
    every = [(a, b) for a in range(count) for b in range(count) if a != b]
    chosen = rng.permutation(len(every))[: rng.integers(1, 31)]
    splits = ["test", *rng.choice(SPLITS, len(chosen) - 1)]
    pairs = pair_table([(*every[n], str(split)) for n, split in zip(chosen, splits, strict=True)])
    titles = texts or [f"note {n}" for n in range(count)]
    clicks = pa.table({"item_row": rng.integers(0, count, 3), "split": ["train"] * 3}) if seed % 2 else None
    return Pairs.of(catalogue_of(pa.table({"title": titles}), pairs, clicks), "test")


def loop(pairs: Pairs, score: Callable[[int, int, list[int]], float]) -> np.ndarray:
    """(greater, equal) of each pair in both pools, by comparing scores one by one: [2 pools, 2, n].

    Worlds are passed over where two scores are neither the same nor clearly different."""
    found: list[list[tuple[int, int]]] = []
    for pool in (pairs.rows.tolist(), pairs.everything.tolist()):
        found.append([])
        for query, target in zip(pairs.queries.tolist(), pairs.targets.tolist(), strict=True):
            own = score(query, target, pool)
            others = [score(query, row, pool) - own for row in pool if row not in (query, target)]
            assume(all(abs(each) <= 1e-6 or abs(each) > 2e-5 for each in others))
            found[-1].append((sum(each > 1e-6 for each in others), sum(abs(each) <= 1e-6 for each in others)))
    return np.array(found, np.int64).transpose(0, 2, 1)


def same(ranks: PairRanks, expected: Any) -> None:
    np.testing.assert_array_equal(np.array([list(pool) for pool in ranks]), np.array(expected))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


def test_the_pools_hold_what_the_split_and_what_the_catalogue_has() -> None:
    rows = [(7, 2, "test"), (2, 5, "test"), (1, 3, "train"), (0, 8, "mixed")]
    items, clicks = pa.table({"title": ["x"] * 12}), pa.table({"item_row": [11, 2], "split": ["valid", "test"]})
    pairs = Pairs.of(catalogue_of(items, pair_table(rows), clicks), "test")
    assert pairs.rows.tolist() == [2, 5, 7]
    assert pairs.everything.tolist() == [0, 1, 2, 3, 5, 7, 8, 11]
    assert (pairs.queries.tolist(), pairs.targets.tolist()) == ([7, 2], [2, 5])
    without = Pairs.of(catalogue_of(items, pair_table(rows)), "train")
    assert (without.rows.tolist(), without.everything.tolist()) == ([1, 3], [0, 1, 2, 3, 5, 7, 8])


def test_a_split_without_pairs_and_a_pair_of_a_note_with_itself_are_refused() -> None:
    items = pa.table({"title": ["x"] * 3})
    with pytest.raises(UserError, match="no pairs of the split 'test'"):
        Pairs.of(catalogue_of(items, pair_table([(0, 1, "train")])), "test")
    with pytest.raises(AssertionError, match="with itself"):
        Pairs.of(catalogue_of(items, pair_table([(1, 1, "test")])), "test")


@given(seed=st.integers(0, 10**6))
def test_ranks_are_those_of_the_loop(seed: int) -> None:
    """Few distinct vectors, so that duplicates, zero rows and ties are everywhere; lengths differ."""
    pairs = world(seed)
    vectors = np.random.default_rng(seed).integers(-1, 3, (pairs.catalogue.n_items, 2)).astype(np.float32)
    same(pair_ranks(pairs, vectors), loop(pairs, lambda query, row, _: cosine(vectors[query], vectors[row])))
    products = loop(pairs, lambda query, row, _: float(vectors[query] @ vectors[row]))
    same(product_ranks(pairs, vectors), products)


def test_ranks_by_hand() -> None:
    """Notes on a circle: 0, 10, 20, 90 degrees and a copy of the second; a sixth is in the large pool alone."""
    angles = np.radians([0, 10, 20, 90, 10, 1])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = [(0, 1, "test"), (1, 3, "test"), (3, 0, "test"), (0, 4, "test"), (2, 4, "test"), (5, 0, "train")]
    pairs = Pairs.of(catalogue_of(pa.table({"title": ["x"] * 6}), pair_table(rows)), "test")
    pool = [[0, 3, 3, 0, 0], [1, 0, 0, 1, 1]]
    same(pair_ranks(pairs, vectors), [pool, [[1, 4, 4, 1, 0], [1, 0, 0, 1, 1]]])


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = world(5)
    vectors = np.random.default_rng(0).standard_normal((pairs.catalogue.n_items, 4)).astype(np.float32)
    whole = pair_ranks(pairs, vectors)
    for size in (1, 2 * len(pairs.everything)):
        monkeypatch.setattr(module, "_SCORE_BLOCK", size)
        same(pair_ranks(pairs, vectors), whole)


def test_vectors_that_are_not_finite_are_refused_where_they_are_read() -> None:
    rows = [(0, 1, "test"), (3, 2, "train")]
    pairs = Pairs.of(catalogue_of(pa.table({"title": ["x"] * 5}), pair_table(rows)), "test")
    vectors = np.ones((5, 2), np.float32)
    vectors[4] = np.nan
    same(pair_ranks(pairs, vectors), [[[0], [0]], [[0], [2]]])
    for value in (np.nan, np.inf):
        vectors[3, 1] = value
        with pytest.raises(UserError, match="item row 3 is not finite"):
            pair_ranks(pairs, vectors)


@given(seed=st.integers(0, 10**6), short=st.floats(0.01, 0.5))
def test_short_and_long_are_whole_lengths_that_reach_the_share(seed: int, short: float) -> None:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 6, 12)
    pairs = world(seed, [" ".join(["word"] * count) for count in words])
    lengths = words[pairs.rows]
    few = min(limit for limit in lengths if (lengths <= limit).mean() >= short - 1e-12)
    many = max(limit for limit in lengths if (lengths >= limit).mean() >= short - 1e-12)
    expected = {ALL_PAIRS: np.ones(len(pairs.queries), bool)}
    for side, rows in (("query", pairs.queries), ("target", pairs.targets)):
        expected |= {f"short {side} pairs": words[rows] <= few, f"long {side} pairs": words[rows] >= many}
    found = pair_subsets(pairs, short)
    kept = {name: mask for name, mask in expected.items() if name == ALL_PAIRS or 0 < mask.mean() < 1}
    assert {name: each.mask.tolist() for name, each in found.items()} == {n: m.tolist() for n, m in kept.items()}


def five() -> Pairs:
    """Notes of 1, 2, 2, 3 and 9 words with a second text field, one of them null."""
    items = pa.table({"title": ["a", "a b", "a", "a b c", "a b c"], "field": ["", None, "b", " ", "d, e, f-g h i"]})
    rows = [(0, 1, "test"), (0, 4, "test"), (1, 2, "test"), (4, 3, "test")]
    return Pairs.of(catalogue_of(items, pair_table(rows)), "test")


def test_the_rows_say_what_they_hold() -> None:
    found = pair_subsets(five(), 0.4)
    assert list(found) == [
        "all pairs",
        "short query pairs",
        "long query pairs",
        "short target pairs",
        "long target pairs",
    ]
    assert found["short query pairs"].mask.tolist() == [True, True, True, False]
    assert found["long target pairs"].mask.tolist() == [False, True, False, True]
    assert found["all pairs"].rule == (
        "4 pairs of 3 query notes; every pair of the split, among 5 notes of the pool and 5 of all"
    )
    assert found["short query pairs"].rule == (
        "3 pairs of 2 query notes; the query note has at most 2 words: "
        "the shortest 40 % of the pool's notes, 60 % with all of that length"
    )
    assert "at least 3 words: the longest 40 %" in found["long target pairs"].rule
    lonely = pair_subsets(five(), 0.2)
    assert "at most 1 word:" in lonely["short query pairs"].rule
    assert "short target pairs" not in lonely  # no target is that short


def test_a_row_holds_the_means_of_its_pairs() -> None:
    ranks = PairRanks(
        Ranks(np.array([0, 1, 2, 0]), np.array([0, 0, 0, 1])), Ranks(np.array([0, 9, 2, 0]), np.array([0, 0, 0, 3]))
    )
    pairs = five()
    result = evaluate_pairs(pairs, ranks, 0.4, [1, 2], [2, 10])
    row = result["rows"]["all pairs"]
    names = ["recall@1", "recall@2", "all recall@2", "all recall@10"]
    assert [row[name] for name in names] == [1.5 / 4, 3 / 4, 1.5 / 4, 1.0]
    assert list(row) == ["pairs", "queries"] + [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    assert (row["pairs"], row["queries"]) == (4, 3)
    values = recall(*ranks.pool, 1)
    error = standard_error(values, pairs.queries, pairs.targets)
    assert (row["recall@1_low"], row["recall@1_high"]) == (
        max(0, 1.5 / 4 - REACH * error),
        min(1, 1.5 / 4 + REACH * error),
    )
    short = result["rows"]["short query pairs"]
    assert (short["pairs"], short["queries"], short["recall@1"]) == (3, 2, 1 / 3)
    assert list(result["rules"]) == list(result["rows"])


def test_one_pair_is_found_at_once() -> None:
    pairs = Pairs.of(catalogue_of(pa.table({"title": ["x", "y"]}), pair_table([(1, 0, "test")])), "test")
    result = evaluate_pairs(pairs, pair_ranks(pairs, np.zeros((2, 3), np.float32)), 0.1, [10, 30], [10, 100])
    assert list(result["rows"]) == ["all pairs"]
    row = result["rows"]["all pairs"]
    assert all(row[f"recall@{k}{end}"] == 1 for k in (10, 30) for end in ("", "_low", "_high"))
    assert all(row[f"all recall@{k}"] == 1 for k in (10, 100))


def test_saved_ranks_come_back(tmp_path: Path) -> None:
    pairs = world(7)
    ranks = pair_ranks(pairs, np.random.default_rng(0).integers(0, 3, (pairs.catalogue.n_items, 2)).astype(np.float32))
    save_pair_ranks(str(tmp_path / "ranks.parquet"), pairs, ranks)
    table = load_ranks(str(tmp_path / "ranks.parquet"))
    assert table.column_names == ["item_row", "related_row", "greater", "equal", "all_greater", "all_equal"]
    assert table["item_row"].to_pylist() == pairs.queries.tolist()
    assert table["related_row"].to_pylist() == pairs.targets.tolist()
    same(saved_ranks(table), ranks)
    assert pair_recall(ranks, "all recall@2").tolist() == recall(*ranks.everything, 2).tolist()
    assert pair_recall(ranks, "recall@2").tolist() == recall(*ranks.pool, 2).tolist()
