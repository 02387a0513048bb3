"""The evaluation steps of pairs: vectors of a run against the pairs of a split (NoteLLM-2 section 2.3), and what they
are compared with.

pair_evaluate, zero_shot: result.json, result.parquet (ranks by pair);  pair_baselines: the same for popularity and BM25
"""

from __future__ import annotations

from collections.abc import Sequence

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import read_vectors
from sidray.evaluation.pair_baselines import bm25, popularity, zero_shot
from sidray.evaluation.pairs import ALL_PAIRS, PairRanks, Pairs, evaluate_pairs, pair_ranks, save_pair_ranks
from sidray.evaluation.run import RESULT
from sidray.evaluation.settings import EvaluationSettings
from sidray.steps import Summary, Work

VERSION = 2


def evaluate_baselines(settings: EvaluationSettings, work: Work) -> Summary:
    """Inputs: catalogue. Writes <name>.json and <name>.parquet for popularity and BM25."""
    pairs = _pairs(settings, work)
    scorers = {"popularity": popularity, "BM25": bm25}
    return {name: _save(pairs, scorer(pairs), name, settings, work) for name, scorer in scorers.items()}


def evaluate_vectors(settings: EvaluationSettings, work: Work) -> Summary:
    """Inputs: catalogue, embed, whose items.lance has a column `vector`."""
    pairs = _pairs(settings, work)
    vectors = read_vectors(storage.join(work.inputs["embed"], "items.lance"), "vector")
    return _save(pairs, pair_ranks(pairs, vectors), RESULT, settings, work)


def evaluate_zero_shot(settings: EvaluationSettings, kinds: Sequence[str], work: Work) -> Summary:
    """Inputs: catalogue, embed, whose items.lance has the columns `kinds`: text, image or both."""
    pairs = _pairs(settings, work)
    parts = [read_vectors(storage.join(work.inputs["embed"], "items.lance"), kind) for kind in kinds]
    return _save(pairs, zero_shot(pairs, parts), RESULT, settings, work)


def _pairs(settings: EvaluationSettings, work: Work) -> Pairs:
    return Pairs.of(Catalogue.open(work.inputs["catalogue"]), settings.split)


def _save(pairs: Pairs, ranks: PairRanks, name: str, settings: EvaluationSettings, work: Work) -> Summary:
    result = evaluate_pairs(pairs, ranks, settings.short, settings.recall_at, settings.recall_at_all)
    storage.write_json(work.path(f"{name}.json"), result)
    save_pair_ranks(work.path(f"{name}.parquet"), pairs, ranks)
    return {
        metric: value for metric, value in result["rows"][ALL_PAIRS].items() if not metric.endswith(("_low", "_high"))
    }
