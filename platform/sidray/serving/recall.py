"""Recall: the nearest items of a vector in a run's index, within partitions and without excluded items.

A plain class; app.py makes it a Serve deployment. Replicas on a node share the index's pages: it is memory-mapped.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sidray import storage
from sidray.errors import nearest
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.index import PartitionedIndex
from sidray.serving.messages import Found, RecallQuery, Refusal
from sidray.serving.schemas import Index, IndexKey
from sidray.serving.settings import RecallSettings

_OF_EVERY_HIT = ("item_id", "title", "partition")
_HINTS = 1000  # partitions among which the nearest name is looked for: it takes their number in time


class Recall:
    """Holds one generation: the run's index step."""

    def __init__(self, run: RunFolder, settings: RecallSettings) -> None:
        self._index = PartitionedIndex.load(run.output("index"), threads=1)
        self._table = storage.join(run.output("table"), "items.lance")
        self._text_fields = list(run.recipe.data.text_fields)
        self._partitions = frozenset(self._index.partitions)
        manifest = self._index.manifest
        self._key = IndexKey(
            model_key=manifest.model_key, generation=run.steps["index"], table_version=manifest.table_version
        )
        self._searchers = ThreadPoolExecutor(settings.threads, "search")

    async def search(self, query: RecallQuery) -> Found | Refusal:
        """Exact search. Refuses an unknown partition or field, another dimension, and another model's vector."""
        if refusal := self._refusal(query):
            return refusal
        return await asyncio.get_running_loop().run_in_executor(self._searchers, self._search, query)

    async def describe(self) -> Index:
        manifest = self._index.manifest
        lag_s = await asyncio.get_running_loop().run_in_executor(self._searchers, self._lag_s)
        return Index(
            **self._key.model_dump(),
            dimension=manifest.dimension,
            items=manifest.count,
            partitions=len(manifest.partitions),
            fields=self._fields,
            lag_seconds=lag_s,
        )

    @property
    def _fields(self) -> list[str]:
        return [*self._text_fields, "sids"]

    def _refusal(self, query: RecallQuery) -> Refusal | None:
        if query.model_key and query.model_key != self._key.model_key:
            message = f"the vector is of model {query.model_key}, the index of {self._key.model_key}; try again"
            return Refusal(503, "model_changed", message)
        if query.vector.shape != (self._index.manifest.dimension,):
            message = f"vector has {query.vector.size} values, the index has dimension {self._index.manifest.dimension}"
            return Refusal(422, "wrong_dimension", message, "vector")
        for name in query.partitions or ():
            if name not in self._partitions:
                hint = nearest(name, self._partitions) if len(self._partitions) <= _HINTS else ""
                message = f"no partition is called {name!r}{hint}"
                return Refusal(404, "unknown_partition", message, "partition")
        for name in query.fields:
            if name not in self._fields:
                message = f"no field is called {name!r}{nearest(name, self._fields)}; fields: {', '.join(self._fields)}"
                return Refusal(422, "unknown_field", message, "with_fields")
        return None

    def _search(self, query: RecallQuery) -> Found:
        excluded = self._index.rows_of(query.exclude)
        excluded = np.unique(excluded[excluded >= 0])
        scores, rows = self._index.search(query.vector[None], query.k + len(excluded), query.partitions)
        kept = (rows[0] >= 0) & ~np.isin(rows[0], excluded)
        best = rows[0][kept][: query.k]
        hits = [
            {name: item[name] for name in _OF_EVERY_HIT}
            | {"score": float(score), "fields": {name: item[name] for name in query.fields}}
            for item, score in zip(self._index.fields(best), scores[0][kept], strict=False)
        ]
        return Found(hits, self._key)

    def _lag_s(self) -> float:
        """Seconds since the first table version that this index lacks."""
        table: Any = item_table.open_version(self._table)
        newer = [
            each["timestamp"].timestamp() for each in table.versions() if each["version"] > self._key.table_version
        ]
        return max(0.0, time.time() - min(newer)) if newer else 0.0
