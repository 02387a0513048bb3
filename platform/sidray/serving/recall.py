"""Recall: the nearest items of a vector in a live collection, within partitions and without excluded items.

A plain class; app.py makes it a Serve deployment. Replicas on a node share the index's pages: it is memory-mapped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sidray.errors import nearest
from sidray.finished import RunFolder
from sidray.metrics import histogram
from sidray.retrieval.collection import Collection
from sidray.retrieval.shards import WHOLE, Shard
from sidray.serving.follower import Follower
from sidray.serving.messages import Found, RecallQuery, Refusal, SimilarFound, SimilarQuery, Vector
from sidray.serving.schemas import Index
from sidray.serving.settings import RecallSettings
from sidray.serving.view import HIT, View

T = TypeVar("T")
_HINTS = 1000  # partitions among which the nearest name is looked for: it takes their number in time
_PICTURES = 4  # fetched at once
_WAIT_S = 2.0  # for min_table_version
_LOOK_S = 0.01


class Recall:
    """Serves the newest state that it knows of; each answer comes from one state and names it."""

    def __init__(self, run: RunFolder, settings: RecallSettings, shard: Shard = WHOLE) -> None:
        self._follower = Follower(Collection.of(run), settings.poll_ms / 1000, shard, settings.gpus > 0)
        self._fields = [*run.recipe.data.text_fields, "sids"]
        self._searchers = ThreadPoolExecutor(settings.threads, "search")
        self._pictures = ThreadPoolExecutor(_PICTURES, "picture")  # they are in the storage: no search waits for it
        self._checks = ThreadPoolExecutor(1, "check")
        self._checking: Future[None] | None = None
        self._check_every = settings.check_every
        self._searches = 0
        self._recall = histogram("sidray_search_recall")

    async def search(self, query: RecallQuery) -> Found | Refusal:
        """Refuses an unknown partition or field, another dimension, another model's vector, and a table version that
        does not come."""
        view = await self._view(query.min_table_version)
        if isinstance(view, Refusal):
            return view
        if refusal := self._refusal(view, query):
            return refusal
        found = await self._run(_search, view, query)
        self._searches += 1
        idle = self._checking is None or self._checking.done()  # a check may take longer than the next is away
        if self._searches % self._check_every == 0 and idle:
            self._checking = self._checks.submit(self._check, view, query, found)
        return found

    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal:
        """Searches from each item of a history, merged. Refuses as `search`, and 404 when all items are unknown."""
        view = await self._view(query.min_table_version)
        if isinstance(view, Refusal):
            return view
        if refusal := _misnamed(view, query, self._fields):
            return refusal
        gone = threading.Event()
        try:
            return await self._run(_similar, view, query, gone)
        finally:
            gone.set()

    async def vectors(self, item_ids: list[str], min_table_version: int) -> dict[str, Vector] | Refusal:
        """Of those items that are here: [d] of unit length."""
        view = await self._view(min_table_version)
        if isinstance(view, Refusal):
            return view
        found = await self._run(lambda: {item_id: view.vector_of(item_id) for item_id in item_ids})
        return {item_id: vector for item_id, vector in found.items() if vector is not None}

    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal:
        """Its metadata and the table version that they are of."""
        view = self._follower.view
        item = await self._run(View.item, view, item_id)
        if item is None:
            return _unknown_item(item_id)
        fields = {name: item[name] for name in self._fields}
        return {**{name: item[name] for name in HIT}, "fields": fields}, view.table_version

    async def thumbnail(self, item_id: str) -> bytes | Refusal:
        """The picture of an item. Refuses an unknown item and one without a picture."""
        view = self._follower.view
        item = await self._run(View.item, view, item_id)
        if item is None:
            return _unknown_item(item_id)
        picture = await asyncio.get_running_loop().run_in_executor(self._pictures, view.thumbnail, item)
        return picture or Refusal(404, "no_picture", f"item {item_id!r} has no picture", "item_id")

    async def describe(self) -> Index:
        view = self._follower.view
        return Index(
            **view.key.model_dump(),
            dimension=view.index.manifest.dimension,
            items=view.count,
            partitions=len(view.partition_names()),
            fields=self._fields,
            delta=len(view.delta),
            lag_seconds=round(self._follower.lag_s, 3),
        )

    def _check(self, view: View, query: RecallQuery, found: Found) -> None:
        """Holds an answer against an exact search of the same view."""
        exact = view.search(query.vector, query.k, query.partitions, query.exclude, exact=True)
        wanted = {item["item_id"] for item in exact}
        if wanted:
            self._recall.observe(len(wanted & {hit["item_id"] for hit in found.hits}) / len(wanted))

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._searchers, work, *args)

    async def _view(self, min_table_version: int) -> View | Refusal:
        """The newest view, of at least this table version."""
        until = time.monotonic() + _WAIT_S
        while self._follower.view.table_version < min_table_version:
            if time.monotonic() > until:
                message = f"table version {min_table_version} has not arrived; try again"
                return Refusal(503, "version_not_reached", message, "min_table_version")
            self._follower.poke()
            await asyncio.sleep(_LOOK_S)
        return self._follower.view

    def _refusal(self, view: View, query: RecallQuery) -> Refusal | None:
        key, dimension = view.key.model_key, view.index.manifest.dimension
        if query.model_key and query.model_key != key:
            message = f"the vector is of model {query.model_key}, the index of {key}; try again"
            return Refusal(503, "model_changed", message)
        if query.vector.shape != (dimension,):
            message = f"vector has {query.vector.size} values, the index has dimension {dimension}"
            return Refusal(422, "wrong_dimension", message, "vector")
        return _misnamed(view, query, self._fields)


def _search(view: View, query: RecallQuery) -> Found:
    found = view.search(query.vector, query.k, query.partitions, query.exclude)
    return Found([_hit(item, query.fields) for item in found], view.key)


def _similar(view: View, query: SimilarQuery, gone: threading.Event) -> SimilarFound | Refusal:
    """One search from each item of the history (NoteLLM-2, section 4.5); a score is the cosine times the weight
    recency^n of the n-th item, and of an item that several searches find the best one counts. No further search is
    begun once the caller has `gone`."""
    known = query.vectors
    vectors = {each: view.vector_of(each) if each not in known else known[each] for each in query.item_ids}
    unknown = [item_id for item_id, vector in vectors.items() if vector is None]
    if len(unknown) == len(vectors):
        return (
            _unknown_item(unknown[0])
            if len(unknown) == 1
            else Refusal(404, "unknown_items", f"none of the {len(unknown)} items is known", "item_ids")
        )
    seen = query.item_ids if query.exclude_seen else []
    best: dict[str, dict[str, Any]] = {}
    for position, vector in enumerate(vectors.values()):
        if gone.is_set():
            break
        for item in view.search(vector, query.k, query.partitions, seen) if vector is not None else []:
            score = item["score"] * query.recency**position
            found = best.get(item["item_id"])
            if found is None or score > found["score"]:
                best[item["item_id"]] = {**item, "score": score}
    ranked = sorted(best.values(), key=lambda item: -item["score"])[: query.k]
    return SimilarFound([_hit(item, query.fields) for item in ranked], view.key, unknown)


def _hit(item: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {**{name: item[name] for name in (*HIT, "score")}, "fields": {name: item[name] for name in fields}}


def _misnamed(view: View, query: RecallQuery | SimilarQuery, fields: Sequence[str]) -> Refusal | None:
    for name in query.partitions or ():
        if not view.has_partition(name):
            names = view.partition_names()
            hint = nearest(name, names) if len(names) <= _HINTS else ""
            return Refusal(404, "unknown_partition", f"no partition is called {name!r}{hint}", "partition")
    for name in query.fields:
        if name not in fields:
            message = f"no field is called {name!r}{nearest(name, fields)}; fields: {', '.join(fields)}"
            return Refusal(422, "unknown_field", message, "with_fields")
    return None


def _unknown_item(item_id: str) -> Refusal:
    return Refusal(404, "unknown_item", f"no item is called {item_id[:80]!r}", "item_id")
