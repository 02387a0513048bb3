"""The randomisation test against the enumeration of all sign flips, and how often it is wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sidray.errors import UserError
from sidray.evaluation import randomisation as module
from sidray.evaluation.protocol import interval
from sidray.evaluation.randomisation import randomisation, seed_mean


def enumerated(first: np.ndarray, second: np.ndarray, queries: np.ndarray) -> float:
    """The share of all sign flips of the query notes whose |sum| is at least the measured one."""
    sums = [float((first - second)[queries == query].sum()) for query in np.unique(queries)]
    flipped = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=len(sums))]
    return float(np.mean([value >= abs(sum(sums)) - 1e-9 for value in flipped]))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), notes=st.integers(2, 9))
def test_p_is_that_of_all_sign_flips(seed: int, notes: int) -> None:
    """Thirds, as of three seeds, tie only up to rounding."""
    rng = np.random.default_rng(seed)
    queries = rng.permutation(np.concatenate([np.arange(notes), rng.integers(0, notes, 5)]))
    first, second = rng.integers(0, 4, (2, len(queries))) / 3
    found = randomisation(first, second, queries, rounds=20_000, seed=seed)
    exact = enumerated(first, second, queries)
    assert found.p == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)
    assert found.difference == pytest.approx((first - second).mean())
    back = randomisation(second, first, queries, rounds=20_000, seed=seed)
    assert back == pytest.approx((-found.difference, -found.high, -found.low, found.p))


def test_by_hand() -> None:
    """Three notes whose sums are 2, 1 and 0.5: of the eight flips +++ and --- alone reach 3.5; p = 1/4."""
    first, queries = np.array([1.0, 1.0, 1.0, 0.5]), np.array([7, 7, 3, 9])
    found = randomisation(first, np.zeros(4), queries, rounds=100_000)
    assert found.p == pytest.approx(1 / 4, abs=0.006)
    assert found.difference == 3.5 / 4


def test_no_flip_reaches_a_large_difference_and_all_reach_none() -> None:
    first, queries = np.ones(200), np.arange(200)
    found = randomisation(first, np.zeros(200), queries, rounds=999)
    assert found == (1.0, 1.0, 1.0, 1 / 1000)
    assert found.significant
    same = randomisation(first, first, queries, rounds=999)
    assert same == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(UserError, match="two distinct query notes"):
        randomisation(np.ones(3), np.zeros(3), np.zeros(3, int))


def test_the_interval_is_that_of_the_protocol() -> None:
    """Differences within 0 and 1, so that the protocol clips nothing; and it is not clipped where they are negative."""
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 60, 200)
    first = 0.3 + 0.4 * rng.random(200)
    found = randomisation(first, np.zeros(200), queries, rounds=10)
    assert (found.low, found.high) == pytest.approx(interval(first, queries))
    back = randomisation(np.zeros(200), first, queries, rounds=10)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_blocks_only_change_which_flips_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second, queries = rng.random(300), rng.random(300), np.repeat(np.arange(100), 3)
    whole = randomisation(first, second, queries)
    monkeypatch.setattr(module, "_BATCH", 777)
    blocks = randomisation(first, second, queries)
    assert blocks.p == pytest.approx(whole.p, abs=0.03)
    assert blocks[:3] == whole[:3]
    assert randomisation(first, second, queries, seed=1).p != blocks.p


def test_p_is_uniform_when_nothing_differs() -> None:
    """Pairs of one note agree, which a test over single pairs would take for evidence."""
    values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        queries = np.repeat(np.arange(40), 4)
        first, second = rng.random((2, 40))[:, queries]
        values.append(randomisation(first, second, queries, rounds=400, seed=seed).p)
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert 4 <= np.count_nonzero(np.array(values) < 0.05) <= 28


def run(greater: list[int], related: list[int] | None = None) -> pa.Table:
    count = len(greater)
    zeros = [0] * count
    columns = {"item_row": list(range(count)), "related_row": related or [9] * count, "greater": greater}
    return pa.table(columns | {"equal": zeros, "all_greater": [20] * count, "all_equal": [79] * count})


def test_values_are_averaged_over_seeds() -> None:
    tables = [run([0, 9, 30]), run([0, 10, 5]), run([3, 10, 7])]
    assert seed_mean(tables, "recall@10").tolist() == pytest.approx([1, 1 / 3, 2 / 3])
    assert seed_mean(tables[:1], "all recall@60").tolist() == [0.5] * 3
    for other in (run([0, 1]), run([0, 1, 2], [9, 9, 8])):
        with pytest.raises(UserError, match="different pairs"):
            seed_mean([tables[0], other], "recall@10")
