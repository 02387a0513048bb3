"""Is one variant better than another, or was it luck?

    compare_seeds([.71, .72, .70], [.69, .71, .68])  # the paper's test: one value for each run of an experiment
    compare([load_ranks("a.parquet")], [load_ranks("b.parquet")])  # runs of each: the same clicks, resampled by query
    compare_pairs(first, second, pairs.queries, pairs.targets)  # the same pairs of notes, with those that share a note

All are paired and two-sided; `difference` is the first minus the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from sidray.errors import UserError
from sidray.evaluation.metrics import Ranks, Values, per_click

Notes = npt.NDArray[np.integer]
REACH = float(stats.norm.ppf(0.975))  # of a 95 % interval, in standard errors
_BATCH = 2**22  # resampled values held at once


class Comparison(NamedTuple):
    """`low` and `high` bound the 95 % confidence interval of the difference of means."""

    difference: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """p < 0.05: the paper's asterisk."""
        return self.p < 0.05


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Paired t-test over repeated runs (SMGR appendix C: ten), run i of both with the same seed.

    Raises UserError for fewer than two runs or unequal numbers of them."""
    if len(first) != len(second) or len(first) < 2:
        remedy = "run both variants with the same seeds, at least two"
        raise UserError(f"a paired t-test needs pairs of runs, there are {len(first)} and {len(second)}", remedy)
    differences = np.subtract(first, second)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # no variance: the statistic is 0/0 or infinite
        return Comparison(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Comparison(mean, float(low), float(high), float(test.pvalue))


def compare(first: Sequence[pa.Table], second: Sequence[pa.Table], metric: str = "recall@10") -> Comparison:
    """Two variants on the same clicks, from the tables of protocol.save_ranks of each one's runs: a click counts with
    the mean over them.

    Raises UserError when the tables are of different clicks."""
    keys = [each.select(["click_row", "query_id"]) for each in (*first, *second)]
    if not all(key.equals(keys[0]) for key in keys):
        raise UserError("the two variants were evaluated on different clicks", "evaluate both on the same split")
    values = [np.mean([click_values(table, metric) for table in tables], axis=0) for tables in (first, second)]
    return compare_clicks(values[0], values[1], first[0]["query_id"].to_numpy())


def click_values(table: pa.Table, metric: str) -> Values:
    """The metric of every click of a table of protocol.save_ranks: [n]."""
    return per_click(Ranks(table["greater"].to_numpy(), table["equal"].to_numpy()))[metric]


def compare_clicks(
    first: Values, second: Values, queries: npt.NDArray[np.integer], resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Bootstrap over distinct queries, whose clicks stand or fall together; values and query of each click: [n].

    p = twice the smaller share of resampled differences on either side of 0, never below 1 / (resamples + 1).
    Raises UserError for fewer than two distinct queries."""
    _, index = np.unique(queries, return_inverse=True)
    sums, counts = np.bincount(index, weights=first - second), np.bincount(index).astype(float)
    if len(sums) < 2:
        raise UserError("a bootstrap over queries needs at least two distinct queries", "evaluate on more clicks")
    result = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // len(sums)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    spread = result.bootstrap_distribution
    side = min(np.count_nonzero(spread <= 0), np.count_nonzero(spread >= 0))
    p = min(1.0, 2 * (side + 1) / (resamples + 1))
    low, high = result.confidence_interval
    return Comparison(float(sums.sum() / counts.sum()), float(low), float(high), p)


def compare_pairs(first: Values, second: Values, queries: Notes, targets: Notes) -> Comparison:
    """Values, query note and target note of each pair: [n]; p and the 95 % interval are normal.

    Raises UserError for fewer than two distinct query notes."""
    if len(np.unique(queries)) < 2:
        raise UserError("a test over pairs needs at least two distinct query notes", "evaluate on more pairs")
    differences = first - second
    mean, error = float(differences.mean()), standard_error(differences, queries, targets)
    reach = REACH * error
    p = float(2 * stats.norm.sf(abs(mean) / error)) if error > 0 else float(mean == 0)
    return Comparison(mean, mean - reach, mean + reach, p)


def standard_error(values: Values, queries: Notes, targets: Notes) -> float:
    """Of the mean of values [n] over pairs, of which those with a common note, on whichever side, are not independent:
    A -> B and B -> A ask nearly the same. The variance is the dyadic cluster-robust one (Fafchamps and Gubert 2007;
    Aronow, Samii and Assenova 2015), the sum of u_p u_q over all pairs p, q with a common note, u the residuals; never
    below that of independent pairs."""
    n = len(values)
    residuals = values - values.mean()
    _, sides = np.unique(np.concatenate([queries, targets]), return_inverse=True)
    notes = int(sides.max()) + 1
    ends = np.sort(sides.reshape(2, n), axis=0)
    by_note = np.bincount(ends.reshape(-1), weights=np.tile(residuals, 2))
    _, both = np.unique(ends[0] * notes + ends[1], return_inverse=True)  # pairs with two common notes count once
    shared = np.sum(by_note**2) - np.sum(np.bincount(both, weights=residuals) ** 2)
    return float(np.sqrt(max(shared * notes / (notes - 1), np.sum(residuals**2)))) / n
