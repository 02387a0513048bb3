"""Which clicks make which row, what a row holds, and whether differences are luck."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from sidray.errors import UserError
from sidray.evaluation.metrics import Ranks, recall
from sidray.evaluation.protocol import (
    ALL_CLICKS,
    HIGH_FREQUENCY,
    OTHER,
    POPULAR,
    evaluate,
    interval,
    load_ranks,
    mean_result,
    popular_partitions,
    query_frequency,
    save_ranks,
    subsets,
)
from sidray.evaluation.significance import compare, compare_clicks, compare_seeds


def clicks(queries: str, partitions: str | None = None, kinds: str | None = None) -> pa.Table:
    """A letter for each click."""
    numbers = {letter: number for number, letter in enumerate(dict.fromkeys(queries))}
    columns = {
        "query": list(queries),
        "query_id": pa.array([numbers[letter] for letter in queries], pa.int32()),
        "partition": list(partitions or "p" * len(queries)),
        "click_row": list(range(len(queries))),
    }
    return pa.table(columns | ({"kind": list(kinds)} if kinds else {}))


def test_rows_hold_the_means_of_their_clicks() -> None:
    table = clicks("aabbcc", "xxxxyz", "nnnttt")
    ranks = Ranks(np.array([0, 4, 9, 10, 0, 30]), np.array([0, 0, 1, 0, 1, 0]))
    result = evaluate(table, ranks, np.array([200, 200, 5, 5, 5, 5]))
    means = {name: row["recall@10"] for name, row in result["rows"].items()}
    assert means == pytest.approx(
        {
            ALL_CLICKS: (1 + 1 + 0.5 + 0 + 1 + 0) / 6,
            "kind: n": 2.5 / 3,
            "kind: t": 1 / 3,
            HIGH_FREQUENCY: 1.0,
            POPULAR: 2.5 / 4,
            OTHER: 0.5,
        }
    )
    row = result["rows"][ALL_CLICKS]
    assert (row["clicks"], row["queries"]) == (6, 3)
    assert row["recall@1"] == pytest.approx((1 + 0 + 0 + 0 + 0.5 + 0) / 6)
    assert row["recall@10_low"] <= row["recall@10"] <= row["recall@10_high"]
    assert result["rules"][POPULAR].endswith("x")
    assert "more than 100 clicks" in result["rules"][HIGH_FREQUENCY]


def test_one_partition_and_no_kind_leave_one_row() -> None:
    table = clicks("abc")
    result = evaluate(table, Ranks(np.zeros(3, int), np.zeros(3, int)), np.ones(3, int))
    assert list(result["rows"]) == [ALL_CLICKS]
    with pytest.raises(UserError, match="no clicks"):
        evaluate(table.slice(0, 0), Ranks(np.zeros(0, int), np.zeros(0, int)), np.zeros(0, int))


def test_the_most_frequent_tenth_takes_whole_frequencies() -> None:
    """20 queries, so a tenth is two; where three share the highest frequency, all three."""
    letters = "abcdefghijklmnopqrst"
    frequency = np.array([9, 9, 4, 4] + [1] * 16)
    found = subsets(clicks(letters), frequency, 100)[HIGH_FREQUENCY]
    assert np.flatnonzero(found.mask).tolist() == [0, 1]
    assert "at least 9" in found.rule
    frequency[[0, 1, 4]] = [1, 1, 4]
    assert np.flatnonzero(subsets(clicks(letters), frequency, 100)[HIGH_FREQUENCY].mask).tolist() == [2, 3, 4]
    assert np.flatnonzero(subsets(clicks(letters), frequency, 3)[HIGH_FREQUENCY].mask).tolist() == [2, 3, 4]


def test_frequency_counts_the_clicks_of_all_splits() -> None:
    assert query_frequency(clicks("abz"), clicks("aabcaab")).tolist() == [4, 2, 0]


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [("xxxy", ["x"]), ("xy", ["x"]), ("xxyyz", ["x", "y"]), ("zyxw", ["w", "x"]), ("x", ["x"])],
)
def test_popular_partitions(partitions: str, expected: list[str]) -> None:
    assert popular_partitions(np.array(list(partitions))) == expected


def clustered(seed: int = 0, queries: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two variants of which the second is a little worse, and clicks that agree inside a query."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(queries), rng.integers(1, 6, queries))
    level = rng.random(queries)[ids]
    first = (rng.random(len(ids)) < level).astype(float)
    second = (rng.random(len(ids)) < level * 0.9).astype(float)
    return first, second, ids


def test_the_interval_is_the_bootstrap_over_queries() -> None:
    first, _, ids = clustered()
    low, high = interval(first, ids)
    bootstrap = compare_clicks(first, np.zeros_like(first), ids)
    assert (low, high) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.006)
    naive = 1.96 * first.std() / np.sqrt(len(first))
    assert high - low > 1.2 * 2 * naive  # clicks of one query are not independent


def test_compare_clicks_finds_a_difference_and_no_difference() -> None:
    first, second, ids = clustered()
    found = compare_clicks(first, second, ids)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.low < found.difference < found.high
    assert found.significant
    back = compare_clicks(second, first, ids)
    assert (back.difference, back.p) == pytest.approx((-found.difference, found.p), abs=0.01)
    same = compare_clicks(first, first, ids)
    assert (same.difference, same.p) == (0.0, 1.0)


def test_compare_clicks_is_wrong_one_time_in_twenty() -> None:
    """Where both variants are equally good, p < .05 must come up in about 5 % of the experiments."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ids = np.repeat(np.arange(60), 2)
        first, second = (rng.random((2, 60)) < 0.5).astype(float)[:, ids]
        wrong += compare_clicks(first, second, ids, resamples=400, seed=seed).significant
    assert 2 <= wrong <= 20


def test_compare_clicks_agrees_with_the_t_test_when_every_query_has_one_click() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(500), rng.random(500) - 0.03
    found = compare_clicks(first, second, np.arange(500), resamples=5000)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


def test_compare_seeds_is_the_paired_t_test() -> None:
    first, second = [0.71, 0.73, 0.70, 0.74], [0.70, 0.71, 0.69, 0.70]
    found, wanted = compare_seeds(first, second), stats.ttest_rel(first, second)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval()))
    assert compare_seeds([1, 2], [1, 2]).p == 1
    assert compare_seeds([1.5, 2.5], [1, 2]).p == 0
    with pytest.raises(UserError, match="pairs of runs"):
        compare_seeds([1], [2])
    with pytest.raises(UserError, match="pairs of runs"):
        compare_seeds([1, 2, 3], [2, 3])


def test_several_seeds_make_one_result() -> None:
    table, frequency = clicks("aabb"), np.ones(4, int)
    runs = [
        evaluate(table, Ranks(np.array(greater), np.zeros(4, int)), frequency) for greater in ([0, 0, 0, 90], [90] * 4)
    ]
    found = mean_result(runs)["rows"][ALL_CLICKS]
    assert (found["recall@10"], found["seeds"], found["clicks"]) == (0.375, 2, 4)
    assert found["recall@10_sd"] == pytest.approx(np.std([0.75, 0], ddof=1))
    assert found["recall@10_high"] == pytest.approx(runs[0]["rows"][ALL_CLICKS]["recall@10_high"] / 2)
    assert "recall@10_low_sd" not in found
    assert mean_result(runs[:1]) == runs[0]


def test_clicks_count_with_the_mean_over_the_seeds(tmp_path: Path) -> None:
    table = clicks("abcdefgh")
    paths = [str(tmp_path / f"{n}.parquet") for n in range(3)]
    for path, greater in zip(paths, ([0] * 8, [90] * 8, [0] * 4 + [90] * 4), strict=True):
        save_ranks(path, table, Ranks(np.array(greater), np.zeros(8, np.int64)))
    up, down, half = map(load_ranks, paths)
    assert compare([up, down], [half]).difference == 0
    assert compare([up, down], [down]).difference == 0.5
    with pytest.raises(UserError, match="different clicks"):
        compare([up, down.slice(1)], [half])


def test_saved_ranks_are_compared(tmp_path: Path) -> None:
    table, rng = clicks("abcdefghij" * 20), np.random.default_rng(0)
    better = Ranks(rng.integers(0, 12, 200), np.zeros(200, np.int64))
    worse = Ranks(better.greater + 3, rng.integers(0, 5, 200))
    for name, ranks in (("better", better), ("worse", worse)):
        save_ranks(str(tmp_path / f"{name}.parquet"), table, ranks)
    tables = [load_ranks(str(tmp_path / f"{name}.parquet")) for name in ("better", "worse")]
    found = compare(tables[:1], tables[1:], metric="recall@5")
    assert found.difference == pytest.approx(recall(*better, 5).mean() - recall(*worse, 5).mean())
    assert found.significant
    with pytest.raises(UserError, match="different clicks"):
        compare(tables[:1], [tables[1].slice(1)])
    with pytest.raises(UserError, match="two distinct queries"):
        compare_clicks(np.ones(3), np.zeros(3), np.zeros(3, int))
