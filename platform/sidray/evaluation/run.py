"""The evaluation steps: vectors of a run against the clicks of a split (appendix C), and the baselines beside them.

evaluate: result.json, result.parquet (ranks by click);  baselines: the same for popularity, BM25 and the oracle
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.datasets import open_dataset
from sidray.embedding.embed import picture_sample
from sidray.embedding.pool import read_vectors
from sidray.evaluation.clicks import Clicks, Representation, Vectors, vector_ranks
from sidray.evaluation.metrics import Ranks
from sidray.evaluation.protocol import ALL_CLICKS, evaluate, query_frequency, save_ranks
from sidray.evaluation.settings import EvaluationSettings
from sidray.retrieval.exact import top_k
from sidray.steps import Summary, Work

VERSION = 1
RESULT = "result"


def picture_recall(embed: str, rows: Any, candidates: Any) -> float | None:
    """Own-photo R@10: the share of items found among the 10 nearest candidates when their picture alone is the query;
    None when the embed step made no vectors of pictures alone.

    rows: item rows of the picture vectors; candidates: item rows that compete (they include `rows`)."""
    dataset, pictures = storage.join(embed, "items.lance"), storage.join(embed, "pictures.lance")
    if storage.exists(pictures):
        queries = read_vectors(pictures, "vector")
    elif "picture" in open_dataset(dataset).schema.names:
        queries = read_vectors(dataset, "picture", rows)
    else:
        return None
    places = np.searchsorted(candidates, rows)
    _, found = top_k(queries, read_vectors(dataset, "vector", candidates), 10)
    return float((found == places[:, None]).any(1).mean())


def evaluate_baselines(settings: EvaluationSettings, work: Work) -> Summary:
    """Inputs: catalogue. Writes <name>.json and <name>.parquet for popularity, BM25 and the oracle."""
    clicks = Clicks.of(Catalogue.open(work.inputs["catalogue"]), settings.split)
    return {name: _save(clicks, ranks, name, settings, work) for name, ranks in clicks.baseline_ranks().items()}


def evaluate_clicks(settings: EvaluationSettings, kind: Representation, work: Work) -> Summary:
    """Inputs: catalogue, embed, and sids where the reconstruction is evaluated in place of the item vectors."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    clicks = Clicks.of(catalogue, settings.split)
    sids = work.inputs.get("sids")
    vectors = Vectors(work.inputs["embed"], kind, storage.join(sids, "sids.lance") if sids else None)
    summary = _save(clicks, vector_ranks(clicks, vectors), RESULT, settings, work)
    rows = picture_sample(catalogue)
    if settings.split == "test" and kind == "vector" and not sids and len(rows):  # of test clicks: not to choose by
        own_photo = picture_recall(work.inputs["embed"], rows, clicks.rows)
        summary |= {} if own_photo is None else {"own-photo R@10": own_photo}
    return summary


def _save(clicks: Clicks, ranks: Ranks, name: str, settings: EvaluationSettings, work: Work) -> Summary:
    frequency = query_frequency(clicks.table, clicks.catalogue.clicks())
    result = evaluate(clicks.table, ranks, frequency, settings.high_frequency)
    storage.write_json(work.path(f"{name}.json"), result)
    save_ranks(work.path(f"{name}.parquet"), clicks.table, ranks)
    overall = result["rows"][ALL_CLICKS]
    return {metric: overall[metric] for metric in ("recall@1", "recall@10", "ndcg@10")}
