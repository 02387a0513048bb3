"""The clicks of a split and their candidates, the items that occur in clicks: only these are ever read.

clicks = Clicks.of(catalogue, "valid")
vector_ranks(clicks, Vectors(embed_uri))  # Ranks of every click's item
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.embedding.pool import read_vectors
from sidray.evaluation import baselines
from sidray.evaluation.baselines import Pool
from sidray.evaluation.metrics import Ranks
from sidray.retrieval.exact import top_k

Representation = Literal["vector", "text", "image"]
Vecs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clicks:
    """`table`: the split's clicks [n]; `rows`: the candidates' item rows [C], ascending; `pool` counts items by their
    place among the candidates."""

    catalogue: Catalogue
    table: pa.Table
    rows: Rows
    pool: Pool

    @classmethod
    def of(cls, catalogue: Catalogue, split: str) -> Clicks:
        rows = catalogue.clicked_items
        table = catalogue.clicks(split)
        partitions = catalogue.items(rows, ["partition"])["partition"]
        return cls(catalogue, table, rows, Pool.of(_placed(table, rows), partitions))

    @property
    def query_ids(self) -> Rows:
        return np.asarray(self.table["query_id"].to_numpy())

    def baseline_ranks(self) -> dict[str, Ranks]:
        """popularity, BM25 on the fields that the item prompt shows (whole, where prompts are cut), and the oracle."""
        catalogue = self.catalogue
        return {
            "popularity": baselines.popularity(self.pool, _placed(catalogue.clicks("train"), self.rows)["item_row"]),
            "BM25": baselines.bm25(self.pool, catalogue.texts(self.rows)),
            "oracle": baselines.oracle(self.pool, _placed(catalogue.clicks(), self.rows)),
        }

    def top(self, queries: Vecs, items: Vecs, positions: list[int], k: int) -> list[list[int]]:
        """Item rows of the k best candidates of the clicks at these positions, inside their partition.

        queries [n, d], one for each click; items [C, d], one for each candidate."""
        _, found = top_k(queries[positions], items, k, self.pool.item_codes, self.pool.query_codes[positions])
        return [self.rows[places[places >= 0]].tolist() for places in found]


@dataclass(frozen=True)
class Vectors:
    """Where query and item vectors lie: an embed step's folder, or the items' reconstructions from their `sids`."""

    embed: str
    kind: Representation = "vector"
    sids: str | None = None  # dataset URI

    def load(self, clicks: Clicks) -> tuple[Vecs, Vecs]:
        """Query vectors of the clicks [n, d] and vectors of the candidates [C, d]. Pictures and texts are found by h_q,
        as in pretraining, items by MLP_Q's vector."""
        query_column = "vector" if self.kind == "vector" else "text"
        asked, back = np.unique(clicks.query_ids, return_inverse=True)  # those of the split alone
        queries = read_vectors(storage.join(self.embed, "queries.lance"), query_column, asked)
        items, column = (self.sids, "quantised") if self.sids else (storage.join(self.embed, "items.lance"), self.kind)
        return queries[back], read_vectors(items, column, clicks.rows)


def vector_ranks(clicks: Clicks, vectors: Vectors) -> Ranks:
    """Exact ranks inside the partition, ties counted."""
    return baselines.vectors(clicks.pool, *vectors.load(clicks))


def _placed(clicks: pa.Table, rows: Rows) -> pa.Table:
    """The clicks with places among the candidates `rows` for item rows."""
    places = np.searchsorted(rows, clicks["item_row"].to_numpy())
    return clicks.set_column(clicks.schema.get_field_index("item_row"), "item_row", [places])
