"""Hard negatives of the train clicks: relevant by our own score, never clicked for that query in train (SMGR, 4.3).

negatives.lance, by click row: negatives (item rows, best first; empty for clicks outside train). Only train items of
the click's partition are candidates. A click that brings its own hard negatives keeps those.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.embedding.pool import Encoder, encode_rows, read_vectors, write_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.steps import Summary, Work

VERSION = 1


def mine(count: int, embedding: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, embed. `count` negatives at most for each click."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    make = functools.partial(_miner, catalogue, work.inputs["embed"], count)
    total = write_rows(
        work.path("negatives.lance"), encode_rows("negatives", catalogue.clicks().num_rows, make, embedding)
    )
    return {"clicks": total}


def _miner(catalogue: Catalogue, embed: str, count: int) -> Encoder:
    clicks = catalogue.clicks()
    queries = read_vectors(storage.join(embed, "queries.lance"), "vector")
    train = catalogue.train_items
    items = read_vectors(storage.join(embed, "items.lance"), "vector", train)
    partition = np.array(catalogue.items(train, ["partition"])["partition"].to_pylist())
    in_partition = {name: np.flatnonzero(partition == name) for name in np.unique(partition)}
    known = catalogue.train_clicks_of_query()
    given = clicks["hard_negatives"] if "hard_negatives" in clicks.column_names else None

    def encode(rows: Any) -> pa.Table:
        asked = clicks.take(pa.array(rows))
        lists: list[list[int]] = [[] for _ in rows]
        names, splits = asked["partition"].to_pylist(), asked["split"].to_pylist()
        query_ids = asked["query_id"].to_numpy()
        for name in set(names):
            own = np.arange(len(train)) if name == "" else in_partition.get(name, np.zeros(0, np.int64))
            members = [i for i, at in enumerate(zip(names, splits, strict=True)) if at == (name, "train")]
            asking = query_ids[members]
            found = top(queries[asking], items[own], train[own], asking, known, count)
            for i, negatives in zip(members, found, strict=True):
                lists[i] = negatives
        if given is not None:
            theirs = given.take(pa.array(rows)).to_pylist()
            lists = [list(brought) if brought else mined for brought, mined in zip(theirs, lists, strict=True)]
        return pa.table({"negatives": pa.array(lists, pa.list_(pa.int64()))})

    return encode


def top(
    queries: Any, items: Any, item_rows: Rows, query_ids: Rows, known: tuple[Rows, Rows], count: int
) -> list[list[int]]:
    """For each query [n, d] the `count` best of the items [m, d], without those it led to in train (CSR `known`)."""
    if not len(item_rows) or not len(queries):
        return [[] for _ in queries]
    offsets, clicked = known
    scores = queries @ items.T  # [n, m]
    for i, query in enumerate(query_ids):
        scores[i, np.isin(item_rows, clicked[offsets[query] : offsets[query + 1]], assume_unique=True)] = -np.inf
    count = min(count, len(item_rows))
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(scores, best, 1).argsort(1)[:, ::-1]
    best = np.take_along_axis(best, order, 1)
    finite = np.isfinite(np.take_along_axis(scores, best, 1))
    return [item_rows[row[ok]].tolist() for row, ok in zip(best, finite, strict=True)]
