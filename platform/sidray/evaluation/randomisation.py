"""Is one model better than another on pairs? Fisher's paired randomisation test over query notes.

    first = seed_mean([load_ranks(uri) for uri in runs], "recall@10")  # [n], the mean over the runs' seeds
    randomisation(first, second, pairs.queries)  # Comparison: difference, low, high, p

Under the null hypothesis the two models could change names on every query note: the sign of the note's difference is
flipped at random, and p is the share of flips whose difference is at least as large as what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from sidray.errors import UserError
from sidray.evaluation.metrics import Values
from sidray.evaluation.pairs import pair_recall, saved_ranks
from sidray.evaluation.significance import Comparison

_BATCH = 2**22  # signs held at once
_ROUNDING = 1e-9  # sums of the same numbers in another order count as equal


def seed_mean(tables: Sequence[pa.Table], metric: str) -> Values:
    """`recall@K` or `all recall@K` of each pair, the mean over runs: float64 [n]. tables: of save_pair_ranks.

    Raises UserError when they are of different pairs."""
    keys = [table.select(["item_row", "related_row"]) for table in tables]
    if not all(key.equals(keys[0]) for key in keys):
        raise UserError("the runs were evaluated on different pairs", "evaluate all of them on the same split")
    values = np.stack([pair_recall(saved_ranks(table), metric) for table in tables])  # [runs, n]
    return np.asarray(values.mean(axis=0))


def randomisation(
    first: Values, second: Values, queries: npt.NDArray[np.integer], rounds: int = 10_000, seed: int = 0
) -> Comparison:
    """Two-sided; values and query note of each pair: [n]. The pairs of one query note stand or fall together.

    p = (1 + flips with |sum| >= the measured one) / (rounds + 1). The interval is that of protocol.interval, of a ratio
    of sums over query notes. Raises UserError for fewer than two distinct query notes."""
    _, index = np.unique(queries, return_inverse=True)
    differences = first - second
    sums = np.bincount(index, weights=differences)  # [distinct query notes]
    if len(sums) < 2:
        raise UserError("a randomisation test needs at least two distinct query notes", "evaluate on more pairs")
    p = (1 + _as_large(sums[sums != 0], rounds, np.random.default_rng(seed))) / (rounds + 1)
    mean = float(differences.mean())
    residuals = sums - mean * np.bincount(index)
    error = float(np.sqrt(np.sum(residuals**2) * len(sums) / (len(sums) - 1))) / len(differences)
    reach = float(stats.norm.ppf(0.975)) * error
    return Comparison(mean, mean - reach, mean + reach, p)


def _as_large(sums: Values, rounds: int, rng: np.random.Generator) -> int:
    """How many of `rounds` random flips of the signs give at least the measured |sum|."""
    measured = abs(sums.sum()) - _ROUNDING * np.abs(sums).sum()
    block, count = max(1, _BATCH // max(1, len(sums))), 0
    for start in range(0, rounds, block):
        size = (min(block, rounds - start), len(sums))
        positive = rng.integers(0, 2, size, dtype=np.int8).astype(np.float64)  # [block, query notes]
        count += int(np.count_nonzero(np.abs(2 * (positive @ sums) - sums.sum()) >= measured))
    return count
