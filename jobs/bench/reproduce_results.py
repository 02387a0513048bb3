"""From a bench's rows to what the report holds of a table: values, tests, verdicts. Plain JSON values.

found = table_results(spec.tables["smgr-1"], spec.systems["smgr"], bench, seeds=3)
found["rows"]["TIGER"]["values"]["all queries, popular cities"]["R@10"]   # [%, of each seed]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from reproduce_rows import SEEDLESS, Bench
from reproduce_spec import Claim, Part, Row, System, Table

from sidray.evaluation.metrics import Values
from sidray.evaluation.significance import Comparison, compare_seeds

NOT_YET = "not computed yet"
ENOUGH_SEEDS = 3  # for a test over seeds
EQUAL = 1.0  # two rows are equal when the interval of their difference, in points, is within this
Found = dict[str, Any]


def table_results(table: Table, system: System, bench: Bench, seeds: int) -> Found:
    """rows: name -> {values, seeds, costs} or {not_run}, of the seeds that all have; claims: each with its tests."""
    there = [row.ours for row in table.rows.values() if row.ours and bench.done(row.ours, seeds)]
    common = _common(bench, there, seeds)
    rows = {name: _row(row, table, system, bench, seeds, common) for name, row in table.rows.items()}
    claims = [_claim(claim, table, system, bench, seeds) for claim in table.claims]
    return {"rows": rows, "claims": claims}


def _row(row: Row, table: Table, system: System, bench: Bench, seeds: int, common: list[int]) -> Found:
    if reason := _missing(row, bench, seeds):
        return {"not_run": reason}
    done = [0] if row.ours in SEEDLESS else common
    if not done:
        return {"not_run": NOT_YET}
    values: dict[str, dict[str, list[float]]] = {}
    for title, metric in system.metrics.items():
        found = [bench.values(row.ours, metric, seed) for seed in done]
        for part in table.parts:
            if (inside := bench.mask(part.ours)) is not None:
                values.setdefault(part.name, {})[title] = [float(100 * each[inside].mean()) for each in found]
    abouts = [bench.about(row.ours, seed) for seed in done]
    costs = {"train_s": float(np.median([about["train_s"] for about in abouts])), "samples": abouts[0]["samples"]}
    return {"ours": row.ours, "seeds": len(done), "values": values, **costs}


def made(tables: Iterable[Table], bench: Bench, seeds: int) -> Found:
    """What the rows of these tables were made with: each combination once; `wall_s`: of all steps behind them."""
    labels = dict.fromkeys(row.ours for table in tables for row in table.rows.values() if row.ours)
    rows = [bench.about(label, seed) for label in labels for seed in bench.done(label, seeds)]
    steps = {key: seconds for row in rows for key, seconds in row["seconds"].items()}
    each = {json.dumps(row["made"]): row["made"] for row in rows}
    return {"with": list(each.values()), "wall_s": round(sum(steps.values()), 1)}


def part_sizes(parts: list[Part], bench: Bench) -> dict[str, int]:
    """How many clicks or pairs are in each part that there is."""
    masks = {part.name: bench.mask(part.ours) for part in parts}
    return {name: int(mask.sum()) for name, mask in masks.items() if mask is not None}


def _missing(row: Row, bench: Bench, seeds: int) -> str:
    """Why a row has no numbers; "" when it has."""
    if row.not_run:
        return row.not_run
    if bench.step(row.ours, 0) is None:
        return f"the recipe has no row {row.ours!r}"
    return "" if bench.done(row.ours, seeds) else bench.failed.get(row.ours, NOT_YET)


def _claim(claim: Claim, table: Table, system: System, bench: Bench, seeds: int) -> Found:
    out: Found = {"says": claim.says, "first": claim.first, "second": claim.second, "expect": claim.expect}
    pair = [table.rows[claim.first], table.rows[claim.second]]
    if reasons := [reason for row in pair if (reason := _missing(row, bench, seeds))]:
        return out | {"not_tested": reasons[0]}
    labels = [row.ours for row in pair]
    if not _common(bench, labels, seeds):
        return out | {"not_tested": "no seed is done of both rows"}
    return out | {"tests": [_test(claim.expect, bench, labels, metric, seeds) for metric in system.tested]}


def _test(expect: str, bench: Bench, labels: list[str], metric: str, seeds: int) -> Found:
    """The first label against the second one."""
    values = _paired(bench, labels, metric, seeds)
    means = [np.mean(list(each.values()), axis=0) for each in values]
    test, over = _points(bench.compare(*means)), _over_seeds(values[0], values[1])
    out: Found = {"metric": metric, "means": [100 * float(mean.mean()) for mean in means], "test": test._asdict()}
    out |= {} if over is None else {"over_seeds": over._asdict()}
    return out | {"verdict": verdict(expect, test, over, len(values[0]))}


def _common(bench: Bench, labels: Iterable[str], seeds: int) -> list[int]:
    """The seeds that are done of all rows; those without a seed are the same for all."""
    done = [set(bench.done(label, seeds)) for label in labels if label not in SEEDLESS]
    return sorted(set.intersection(*done)) if done else [0]


def _paired(bench: Bench, labels: list[str], metric: str, seeds: int) -> list[dict[int, Values]]:
    """The values of both rows by the seeds that both have."""
    both = _common(bench, labels, seeds)
    return [{seed: bench.values(label, metric, 0 if label in SEEDLESS else seed) for seed in both} for label in labels]


def _points(test: Comparison) -> Comparison:
    """Differences in points of a per cent."""
    return Comparison(100 * test.difference, 100 * test.low, 100 * test.high, test.p)


def _over_seeds(first: dict[int, Values], second: dict[int, Values]) -> Comparison | None:
    """The paper's test, over runs of the same seed; None when there are too few."""
    if len(first) < ENOUGH_SEEDS:
        return None
    means = [[float(values.mean()) for values in each.values()] for each in (first, second)]
    return _points(compare_seeds(*means))


def verdict(expect: str, test: Comparison, over: Comparison | None = None, seeds: int = 1) -> str:
    """What the tests say of the claim: it follows from differences, intervals and p alone; in points. `test` is of the
    test split and knows nothing of other runs: `over` the seeds, where there are enough, must say so, too; with fewer
    the verdict says how many there are."""
    found = _on_the_split(expect, test)
    if not found:
        return found
    if over is None:
        return f"{found} (of {seeds} seed{'s' * (seeds > 1)})"
    if expect == "equal":
        sure = found != "holds" or (over.low > -EQUAL and over.high < EQUAL)
    else:
        sure = over.significant or not test.significant
    return found if sure else f"{found}, on this test split: runs of other seeds differ as much"


def _on_the_split(expect: str, test: Comparison) -> str:
    if expect == "number":
        return ""
    if expect == "equal":
        if test.low > -EQUAL and test.high < EQUAL:
            return "holds"
        return "does not hold" if test.significant else "is not decided: the interval is wider than a point"
    right = test.difference > 0 if expect == "above" else test.difference < 0
    if not test.significant:
        return "does not hold: no difference beyond chance"
    return "holds" if right else "does not hold: it is the other way round"
