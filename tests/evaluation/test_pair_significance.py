"""The test over pairs against the sum over all couples of pairs, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sidray.errors import UserError
from sidray.evaluation.pairs import seed_mean
from sidray.evaluation.significance import compare_pairs, standard_error


def by_loops(values: np.ndarray, queries: np.ndarray, targets: np.ndarray) -> float:
    """The standard error from its definition."""
    residuals, sides = values - values.mean(), [*zip(queries, targets, strict=True)]
    shared = sum(
        residuals[p] * residuals[q] for p in range(len(sides)) for q in range(len(sides)) if {*sides[p]} & {*sides[q]}
    )
    notes = len({*queries, *targets})
    return float(np.sqrt(max(shared * notes / (notes - 1), (residuals**2).sum())) / len(values))


def some_pairs(rng: np.random.Generator, notes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    queries = rng.integers(0, notes, count)
    return queries, (queries + rng.integers(1, notes, count)) % notes  # never a note with itself


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), notes=st.integers(3, 9), count=st.integers(4, 20))
def test_the_error_is_the_sum_over_pairs_with_a_common_note(seed: int, notes: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    queries, targets = some_pairs(rng, notes, count)
    values = rng.integers(0, 4, count) / 3
    assert standard_error(values, 7 * queries, 7 * targets) == pytest.approx(by_loops(values, queries, targets))
    mirrored = standard_error(values, targets, queries)
    assert mirrored == pytest.approx(standard_error(values, queries, targets))


def test_pairs_without_a_common_note_are_independent() -> None:
    values = np.random.default_rng(0).random(50)
    found = compare_pairs(values, np.zeros(50), np.arange(50), np.arange(50, 100))
    plain = stats.ttest_1samp(values, 0.0)
    assert found.difference == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(plain.confidence_interval(), abs=0.01)


def test_the_sign_follows_the_order_and_equal_models_do_not_differ() -> None:
    rng = np.random.default_rng(1)
    queries, targets = some_pairs(rng, 40, 100)
    first, second = rng.random((2, 100))
    found, back = compare_pairs(first, second, queries, targets), compare_pairs(second, first, queries, targets)
    assert back == pytest.approx((-found.difference, -found.high, -found.low, found.p))
    assert compare_pairs(first, first, queries, targets) == (0, 0, 0, 1)
    assert compare_pairs(np.ones(100), np.zeros(100), queries, targets) == (1, 1, 1, 0)
    with pytest.raises(UserError, match="two distinct query notes"):
        compare_pairs(first[:3], second[:3], np.zeros(3, int), np.arange(1, 4))


def test_p_is_uniform_when_nothing_differs() -> None:
    """A pair's difference is made of its two notes', and it stands in both directions: clusters of query notes alone,
    and pairs taken for independent, find a difference far too often."""
    values, alone = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        notes = rng.normal(size=120)
        queries, targets = some_pairs(rng, 120, 200)
        queries, targets = np.concatenate([queries, targets]), np.concatenate([targets, queries])
        differences = notes[queries] + notes[targets] + rng.normal(size=400)
        values.append(compare_pairs(differences, np.zeros(400), queries, targets).p)
        alone.append(stats.ttest_1samp(differences, 0.0).pvalue)
    assert 8 <= np.count_nonzero(np.array(values) < 0.05) <= 40  # 20 of 400
    assert np.count_nonzero(np.array(alone) < 0.05) > 60


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
