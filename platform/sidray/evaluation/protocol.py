"""The protocol of a report: which clicks make which row, and the numbers of each row (SMGR section 5.1, appendix C).

    frequency = query_frequency(test_clicks, all_clicks)
    result = evaluate(test_clicks, ranks, frequency)  # {"rows": {row: {metric: mean}}, "rules": {row: what it holds}}
    save_ranks("report/smgr.parquet", test_clicks, ranks)  # for significance.compare

Rows: all clicks; each `kind` of query; high-frequency queries; popular partitions (the paper's popular cities: those
that together hold the first half of the clicks) and the others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidray import storage
from sidray.errors import UserError
from sidray.evaluation.metrics import Ints, Ranks, Values, per_click

ALL_CLICKS = "all clicks"
HIGH_FREQUENCY = "high-frequency queries"
POPULAR, OTHER = "popular partitions", "other partitions"
WITH_INTERVAL = "recall@10"  # the metric that has a confidence interval in every row


class Result(TypedDict):
    """rows: row -> {"clicks": n, metric: mean, "recall@10_low", "recall@10_high"}; rules: row -> what it holds.

    Of several runs also `seeds`, how many, and of every metric `<metric>_sd`: see mean_result."""

    rows: dict[str, dict[str, float]]
    rules: dict[str, str]


class Subset(NamedTuple):
    mask: npt.NDArray[np.bool_]  # [n] clicks
    rule: str


def evaluate(clicks: pa.Table, ranks: Ranks, frequency: Ints, high_frequency: int = 100) -> Result:
    """Means of every metric in every row. clicks: query, query_id, partition, and kind if there is one; ranks and
    frequency [n] in the same order. Raises UserError without clicks."""
    if not clicks.num_rows:
        raise UserError("there are no clicks to evaluate", "choose another evaluation.split, or enlarge the test split")
    values = per_click(ranks)
    queries = clicks["query_id"].to_numpy()
    found = subsets(clicks, frequency, high_frequency)
    return {
        "rows": {name: _row(values, queries, subset.mask) for name, subset in found.items()},
        "rules": {name: subset.rule for name, subset in found.items()},
    }


def mean_result(results: Sequence[Result]) -> Result:
    """Of runs with several seeds: the mean of every value, and its standard deviation over the runs. One is itself."""
    if len(results) == 1:
        return results[0]
    rows = {}
    for name, first in results[0]["rows"].items():
        values = {key: [result["rows"][name][key] for result in results] for key in first}
        rows[name] = {key: float(np.mean(each)) for key, each in values.items()} | {"seeds": len(results)}
        rows[name] |= {f"{key}_sd": float(np.std(values[key], ddof=1)) for key in _metrics(first)}
    return {"rows": rows, "rules": results[0]["rules"]}


def _metrics(row: Mapping[str, float]) -> list[str]:
    """The metrics among a row's values."""
    return [name for name in row if "@" in name and not name.endswith(("_low", "_high", "_sd"))]


def subsets(clicks: pa.Table, frequency: Ints, high_frequency: int) -> dict[str, Subset]:
    """The rows of a report, in its order; a row without clicks, or with all of them, is left out."""
    found = {ALL_CLICKS: Subset(np.ones(clicks.num_rows, bool), "every click of the split")}
    if "kind" in clicks.column_names:
        kinds = pc.fill_null(clicks["kind"], "").to_pylist()
        of_kind = {kind: np.array([each == kind for each in kinds]) for kind in sorted(set(kinds))}
        found |= {f"kind: {kind}": Subset(mask, f"queries of kind {kind!r}") for kind, mask in of_kind.items()}
    found[HIGH_FREQUENCY] = _frequent(clicks["query_id"].to_numpy(), frequency, high_frequency)
    partitions = np.array(pc.fill_null(clicks["partition"], "").to_pylist())
    popular = popular_partitions(partitions)
    inside = np.isin(partitions, popular)
    found[POPULAR] = Subset(inside, f"the fewest partitions that hold half of the clicks: {_listed(popular)}")
    found[OTHER] = Subset(~inside, f"all partitions but {_listed(popular)}")
    return {name: each for name, each in found.items() if name == ALL_CLICKS or 0 < each.mask.mean() < 1}


def query_frequency(clicks: pa.Table, all_clicks: pa.Table) -> Ints:
    """For each click: the number of clicks of its query over all splits. int64 [n]."""
    counts = pc.value_counts(all_clicks["query"])
    place = pc.index_in(clicks["query"], counts.field("values"))
    return np.asarray(pc.fill_null(counts.field("counts").take(place), 0).to_numpy(), dtype=np.int64)


def popular_partitions(partitions: npt.NDArray[np.str_]) -> list[str]:
    """The fewest partitions that hold half of the clicks, most clicked first."""
    names, counts = np.unique(partitions, return_counts=True)
    order = np.lexsort((names, -counts))
    enough = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)) + 1
    return [str(name) for name in names[order][:enough]]


def interval(values: Values, queries: npt.NDArray[np.integer]) -> tuple[float, float]:
    """95 % confidence interval of the mean over clicks, whose clicks of one query are not independent: the normal one,
    with the variance of a ratio of sums over queries. It is what a bootstrap over queries converges to."""
    _, index = np.unique(queries, return_inverse=True)
    mean, n = float(values.mean()), len(values)
    residuals = np.bincount(index, weights=values - mean)  # [distinct queries]
    m = len(residuals)
    error = float(np.sqrt(np.sum(residuals**2) * m / max(1, m - 1)) / n)
    reach = NormalDist().inv_cdf(0.975) * error
    return max(0.0, mean - reach), min(1.0, mean + reach)


def save_ranks(uri: str, clicks: pa.Table, ranks: Ranks) -> None:
    """One row per click (click_row, query_id, greater, equal) as Parquet."""
    table = clicks.select(["click_row", "query_id"]).append_column("greater", pa.array(ranks.greater))
    sink = io.BytesIO()
    pq.write_table(table.append_column("equal", pa.array(ranks.equal)), sink)
    storage.write_bytes(uri, sink.getvalue())


def load_ranks(uri: str) -> pa.Table:
    """What save_ranks wrote."""
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def _row(values: dict[str, Values], queries: npt.NDArray[np.integer], mask: npt.NDArray[np.bool_]) -> dict[str, float]:
    row: dict[str, float] = {"clicks": int(mask.sum()), "queries": len(np.unique(queries[mask]))}
    row |= {name: float(each[mask].mean()) for name, each in values.items()}
    low, high = interval(values[WITH_INTERVAL][mask], queries[mask])
    return row | {f"{WITH_INTERVAL}_low": low, f"{WITH_INTERVAL}_high": high}


def _frequent(queries: npt.NDArray[np.integer], frequency: Ints, threshold: int) -> Subset:
    """Queries above the threshold; when there is none, the most frequent tenth, whole frequencies only."""
    if (frequency > threshold).any():
        return Subset(frequency > threshold, f"queries with more than {threshold} clicks over all splits")
    _, first = np.unique(queries, return_index=True)
    levels, counts = np.unique(frequency[first], return_counts=True)  # of distinct queries
    reached = np.cumsum(counts[::-1])[::-1]  # distinct queries at this level or above
    fits = levels[reached <= len(first) / 10]
    least = int(fits[0]) if len(fits) else int(levels[-1])
    rule = f"no query has more than {threshold} clicks: the most frequent tenth, those with at least {least}"
    return Subset(frequency >= least, rule)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
