"""Item-to-item recall over pairs of related notes (NoteLLM-2 sections 2.3 and 4): where does the target of a pair stand
among all other notes when its query note searches? A note is an item.

    pairs = Pairs.of(catalogue, "test")
    ranks = pair_ranks(pairs, vectors)  # vectors [N, d], one for each item row
    evaluate_pairs(pairs, ranks, short=0.1)["rows"]["all pairs"]["recall@10"]
    save_pair_ranks("result.parquet", pairs, ranks)  # for seed_mean

The query note itself never competes, and partitions play no role. Every pair is ranked in two pools: the notes of the
split's pairs, and all notes that occur in any click or pair.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.errors import UserError
from sidray.evaluation.baselines import rank_scores, tokens
from sidray.evaluation.metrics import Ints, Ranks, Values, recall
from sidray.evaluation.protocol import Result, Subset
from sidray.evaluation.significance import REACH, standard_error
from sidray.retrieval.exact import Floats, check_finite, unit

ALL_PAIRS = "all pairs"
_SCORE_BLOCK = 2**22  # scores held at once

Scores = npt.NDArray[np.floating]
Scorer = Callable[[Ints], Scores]  # places [b] of notes in a pool -> a new array [b, P]: their scores with all P notes


@dataclass(frozen=True)
class Pairs:
    """`table`: the split's pairs [n], item_row (the query note) and related_row (its target); `rows`: the item rows of
    the split's pool [P] and `everything`: those of the large pool [E], both ascending."""

    catalogue: Catalogue
    table: pa.Table
    rows: Rows
    everything: Rows

    @classmethod
    def of(cls, catalogue: Catalogue, split: str) -> Pairs:
        """Raises UserError when the split has no pairs."""
        table, every = catalogue.pairs(split), catalogue.pairs()
        if not table.num_rows:
            remedy = f"choose another evaluation.split, or give data.pairs rows of the split {split!r}"
            raise UserError(f"the catalogue has no pairs of the split {split!r}", remedy)
        clicked = [catalogue.clicked_items] if catalogue.has("clicks") else []
        rows = np.union1d(_rows(table, "item_row"), _rows(table, "related_row"))
        everything = np.unique(np.concatenate([_rows(every, "item_row"), _rows(every, "related_row"), *clicked]))
        pairs = cls(catalogue, table, rows, everything)
        assert (pairs.queries != pairs.targets).all(), "the ingest sets aside an item paired with itself"
        return pairs

    @cached_property
    def queries(self) -> Rows:
        """[n] item row of each pair's query note."""
        return _rows(self.table, "item_row")

    @cached_property
    def targets(self) -> Rows:
        """[n] item row of each pair's target note."""
        return _rows(self.table, "related_row")


class PairRanks(NamedTuple):
    """Of each pair [n]: the rank of its target among the other notes of the split's pool, and among all notes."""

    pool: Ranks
    everything: Ranks


def pair_ranks(pairs: Pairs, vectors: Floats) -> PairRanks:
    """By cosine; vectors [N, d], one for each item row. A zero row has cosine 0 with every note."""
    return product_ranks(pairs, unit(vectors))


def product_ranks(pairs: Pairs, vectors: Floats) -> PairRanks:
    """By inner product; vectors [N, d], one for each item row. Raises UserError when one is not finite."""

    def scorer(rows: Rows) -> Scorer:
        notes = vectors[rows]  # [P, d]
        check_finite(notes, "item row", rows)
        return lambda places: notes[places] @ notes.T

    return rank_pairs(pairs, scorer)


def rank_pairs(pairs: Pairs, scorer: Callable[[Rows], Scorer]) -> PairRanks:
    """By any score: scorer(item rows [P] of a pool) scores notes of this pool against all of it."""
    return PairRanks(*(_ranks(pairs, rows, scorer(rows)) for rows in (pairs.rows, pairs.everything)))


def _ranks(pairs: Pairs, rows: Rows, score: Scorer) -> Ranks:
    """Ranks of the targets in one pool, blocks of pairs that share their query notes at a time."""
    queries, targets = np.searchsorted(rows, pairs.queries), np.searchsorted(rows, pairs.targets)  # places [n]
    ranks = Ranks(np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64))
    order = np.argsort(queries, kind="stable")
    block = max(1, _SCORE_BLOCK // len(rows))
    for start in range(0, len(order), block):
        members = order[start : start + block]
        asked, line = np.unique(queries[members], return_inverse=True)
        scores = score(asked)  # [asked, P]
        scores[np.arange(len(asked)), asked] = -np.inf  # n_i ranks the pool without n_i (section 2.1)
        ranks.greater[members], ranks.equal[members] = rank_scores(scores[line], targets[members])
    return ranks


def pair_subsets(pairs: Pairs, short: float) -> dict[str, Subset]:
    """The rows of a report (section 2.3, appendix E): all pairs, and those with a short or long query or target note.

    Short are the `short` shortest of the pool's notes (a fraction, the paper's .1), long as many of the longest, by
    words; notes of equal length stand together, so that both may be more. A row without pairs, or with all of them, is
    left out."""
    lengths = np.array([len(tokens(text)) for text in pairs.catalogue.texts(pairs.rows)])  # [P]
    few = int(np.quantile(lengths, short, method="inverted_cdf"))
    many = -int(np.quantile(-lengths, short, method="inverted_cdf"))
    bounds = {  # name: (whether the note is in it [P], what it says)
        "short": (lengths <= few, f"at most {_words(few)}: the shortest"),
        "long": (lengths >= many, f"at least {_words(many)}: the longest"),
    }
    pools = f"{len(pairs.rows):,} notes of the pool and {len(pairs.everything):,} of all"
    found = {ALL_PAIRS: Subset(np.ones(pairs.table.num_rows, bool), f"every pair of the split, among {pools}")}
    for side, rows in (("query", pairs.queries), ("target", pairs.targets)):
        for name, (inside, says) in bounds.items():
            share = f"{100 * short:.3g} % of the pool's notes, {100 * inside.mean():.3g} % with all of that length"
            rule = f"the {side} note has {says} {share}"
            found[f"{name} {side} pairs"] = Subset(inside[np.searchsorted(pairs.rows, rows)], rule)
    kept = {name: each for name, each in found.items() if name == ALL_PAIRS or 0 < each.mask.mean() < 1}
    return {name: Subset(mask, f"{_sizes(pairs, mask)}; {rule}") for name, (mask, rule) in kept.items()}


def evaluate_pairs(
    pairs: Pairs,
    ranks: PairRanks,
    short: float,
    recall_at: Sequence[int],
    recall_at_all: Sequence[int],
) -> Result:
    """For every row its numbers of pairs and of query notes, and the mean of each metric with its 95 % interval
    (<metric>_low, <metric>_high): `recall@K` in the split's pool, `all recall@K` in the large one."""
    metrics = [f"recall@{k}" for k in recall_at] + [f"all recall@{k}" for k in recall_at_all]
    values = {metric: pair_recall(ranks, metric) for metric in metrics}
    subsets = pair_subsets(pairs, short)
    return {
        "rows": {name: _row(values, pairs, subset.mask) for name, subset in subsets.items()},
        "rules": {name: subset.rule for name, subset in subsets.items()},
    }


def pair_recall(ranks: PairRanks, metric: str) -> Values:
    """`recall@K` or `all recall@K` of each pair, ties in expectation: float64 [n]."""
    pool, k = metric.split("recall@")
    return recall(*(ranks.everything if pool else ranks.pool), int(k))


def save_pair_ranks(uri: str, pairs: Pairs, ranks: PairRanks) -> None:
    """One row per pair (item_row, related_row, greater, equal, all_greater, all_equal) as Parquet; protocol.load_ranks
    reads it."""
    columns = {"item_row": pairs.queries, "related_row": pairs.targets} | ranks.pool._asdict()
    columns |= {f"all_{name}": values for name, values in ranks.everything._asdict().items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(uri, sink.getvalue())


def seed_mean(tables: Sequence[pa.Table], metric: str) -> Values:
    """`recall@K` or `all recall@K` of each pair, the mean over runs: float64 [n]. tables: of save_pair_ranks.

    Raises UserError when they are of different pairs."""
    keys = [table.select(["item_row", "related_row"]) for table in tables]
    if not all(key.equals(keys[0]) for key in keys):
        raise UserError("the runs were evaluated on different pairs", "evaluate all of them on the same split")
    values = np.stack([pair_recall(saved_ranks(table), metric) for table in tables])  # [runs, n]
    return np.asarray(values.mean(axis=0))


def saved_ranks(table: pa.Table) -> PairRanks:
    """The ranks in a table of save_pair_ranks."""
    names = (("greater", "equal"), ("all_greater", "all_equal"))
    return PairRanks(*(Ranks(*(np.asarray(table[name].to_numpy()) for name in pool)) for pool in names))


def _row(values: dict[str, Values], pairs: Pairs, mask: npt.NDArray[np.bool_]) -> dict[str, float]:
    queries, targets = pairs.queries[mask], pairs.targets[mask]
    row: dict[str, float] = {"pairs": int(mask.sum()), "queries": len(np.unique(queries))}
    for name, each in values.items():
        mean, reach = float(each[mask].mean()), REACH * standard_error(each[mask], queries, targets)
        row |= {name: mean, f"{name}_low": max(0.0, mean - reach), f"{name}_high": min(1.0, mean + reach)}
    return row


def _sizes(pairs: Pairs, mask: npt.NDArray[np.bool_]) -> str:
    return f"{mask.sum():,} pairs of {len(np.unique(pairs.queries[mask])):,} query notes"


def _words(count: int) -> str:
    return f"{count} word" if count == 1 else f"{count} words"


def _rows(table: pa.Table, column: str) -> Rows:
    return np.asarray(table[column].to_numpy(), dtype=np.int64)
