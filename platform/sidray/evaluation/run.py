"""The evaluation steps: vectors of a run against the clicks of a split (appendix C), and the baselines beside them.

evaluate: result.json, result.parquet (ranks by click);  baselines: the same for popularity, BM25 and the oracle
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.cluster import on_cluster
from sidray.data.catalogue import Catalogue
from sidray.embedding.embed import picture_sample
from sidray.embedding.pool import read_vectors
from sidray.evaluation import baselines
from sidray.evaluation.baselines import Pool
from sidray.evaluation.metrics import Ranks
from sidray.evaluation.protocol import ALL_CLICKS, Result, evaluate, query_frequency, save_ranks
from sidray.evaluation.settings import EvaluationSettings
from sidray.retrieval.exact import ALL, top_k
from sidray.steps import Summary, Work

VERSION = 1
RESULT = "result"
Representation = Literal["vector", "text", "image"]


@dataclass(frozen=True)
class Clicks:
    """The clicks of a split, their pool of candidates and the frequency of their queries."""

    catalogue: Catalogue
    table: pa.Table
    pool: Pool
    settings: EvaluationSettings

    @classmethod
    def of(cls, catalogue: Catalogue, settings: EvaluationSettings) -> Clicks:
        table = catalogue.clicks(settings.split)
        partitions = catalogue.items(None, ["partition"])["partition"]
        return cls(catalogue, table, Pool.of(table, partitions, catalogue.clicked_items), settings)

    def result(self, ranks: Ranks) -> Result:
        frequency = query_frequency(self.table, self.catalogue.clicks())
        return evaluate(self.table, ranks, frequency, self.settings.high_frequency)

    @property
    def query_ids(self) -> Any:
        return self.table["query_id"].to_numpy()


@dataclass(frozen=True)
class Vectors:
    """Where query and item vectors lie: an embed step's folder, or item vectors of another dataset and column."""

    embed: str
    kind: Representation = "vector"
    items: str | None = None  # dataset URI in place of the embed step's items.lance
    column: str | None = None

    def load(self) -> tuple[Any, Any]:
        """Query vectors by query_id [Q, d] and item vectors by row [N, d]."""
        query_column = "vector" if self.kind == "vector" else "text"
        queries = read_vectors(storage.join(self.embed, "queries.lance"), query_column)
        items = read_vectors(self.items or storage.join(self.embed, "items.lance"), self.column or self.kind)
        return queries, items


def vector_ranks(clicks: Clicks, vectors: Vectors) -> Ranks:
    """Exact ranks inside the partition, ties counted."""
    queries, items = vectors.load()
    return baselines.vectors(clicks.pool, queries[clicks.query_ids], items)


def baseline_ranks(clicks: Clicks) -> dict[str, Ranks]:
    """popularity, BM25 on the same text that the item prompt shows, and the oracle."""
    catalogue = clicks.catalogue
    train = catalogue.clicks("train")["item_row"].to_numpy()
    columns = ["title", *catalogue.text_fields]
    rows = catalogue.items(None, columns).to_pylist()
    texts = [" ".join(row[column] or "" for column in columns) for row in rows]
    return {
        "popularity": baselines.popularity(clicks.pool, train),
        "BM25": baselines.bm25(clicks.pool, texts),
        "oracle": baselines.oracle(clicks.pool, catalogue.clicks()),
    }


def picture_recall(embed: str, rows: Any, candidates: Any, k: int = 10) -> float:
    """Own-photo R@k: the share of items found among the k nearest candidates when their picture alone is the query.

    rows: item rows of the picture vectors; candidates: item rows that compete (they include `rows`)."""
    items = read_vectors(storage.join(embed, "items.lance"), "vector", candidates)
    pictures = storage.join(embed, "pictures.lance")
    if storage.exists(pictures):
        queries = read_vectors(pictures, "vector")
    else:
        queries = read_vectors(storage.join(embed, "items.lance"), "picture", rows)
    places = np.searchsorted(candidates, rows)
    _, found = top_k(queries, items, k)
    return float((found == places[:, None]).any(1).mean())


def top_rows(clicks: Clicks, vectors: Vectors, positions: list[int], k: int) -> list[list[int]]:
    """Item rows of the k best candidates of the clicks at these positions, inside their partition."""
    queries, items = vectors.load()
    pool = clicks.pool
    out = []
    for position in positions:
        code = pool.query_codes[position]
        allowed = np.flatnonzero(pool.candidates & ((pool.item_codes == code) | (code == ALL)))
        _, found = top_k(queries[clicks.query_ids[position]][None], items[allowed], min(k, len(allowed)))
        out.append(allowed[found[0]].tolist())
    return out


def baseline_step(settings: EvaluationSettings, work: Work) -> Summary:
    """Inputs: catalogue. Writes <name>.json and <name>.parquet for popularity, BM25 and the oracle."""
    return on_cluster(_baselines, settings, work)


def _baselines(settings: EvaluationSettings, work: Work) -> Summary:
    clicks = Clicks.of(Catalogue.open(work.inputs["catalogue"]), settings)
    return {name: _save(clicks, ranks, name, work) for name, ranks in baseline_ranks(clicks).items()}


def evaluate_step(settings: EvaluationSettings, kind: Representation, work: Work) -> Summary:
    """Inputs: catalogue, embed, and sids where the reconstruction is evaluated in place of the item vectors."""
    return on_cluster(_evaluate, settings, kind, work)


def _evaluate(settings: EvaluationSettings, kind: Representation, work: Work) -> Summary:
    catalogue = Catalogue.open(work.inputs["catalogue"])
    clicks = Clicks.of(catalogue, settings)
    sids = work.inputs.get("sids")
    vectors = Vectors(
        work.inputs["embed"],
        kind,
        items=storage.join(sids, "sids.lance") if sids else None,
        column="quantised" if sids else None,
    )
    summary = _save(clicks, vector_ranks(clicks, vectors), RESULT, work)
    rows = picture_sample(catalogue)
    if kind == "vector" and not sids and len(rows) and has_pictures(work.inputs["embed"]):
        summary["own-photo R@10"] = picture_recall(work.inputs["embed"], rows, catalogue.clicked_items)
    return summary


def has_pictures(embed: str) -> bool:
    """Whether the embed step made vectors of pictures alone."""
    if storage.exists(storage.join(embed, "pictures.lance")):
        return True
    import lance

    return "picture" in lance.dataset(storage.join(embed, "items.lance")).schema.names


def _save(clicks: Clicks, ranks: Ranks, name: str, work: Work) -> Summary:
    result = clicks.result(ranks)
    storage.write_json(work.path(f"{name}.json"), result)
    save_ranks(work.path(f"{name}.parquet"), clicks.table, ranks)
    overall = result["rows"][ALL_CLICKS]
    return {metric: overall[metric] for metric in ("recall@1", "recall@10", "ndcg@10")}
