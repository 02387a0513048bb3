"""The writer: the only replica that appends to a collection's item table, many requests in one commit.

    put: unchanged items are recognised by their content hash -> the rest is embedded -> one commit -> acknowledged

A plain class; app.py makes it a Serve deployment of one replica. What it acknowledges is durable; a kill between any
two steps loses only what was not acknowledged, since a commit is there whole or not at all. It also appends events,
tidies the table now and then, and has the collection folded into a new generation, as a Ray task, when much was written
or some was long ago.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sidray import storage
from sidray.data.content import content_hash, thumbnail
from sidray.embedding.pool import vector_column
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.known import fingerprint
from sidray.serving.group_commit import GroupCommit
from sidray.serving.messages import EncodedItems, NewItem, Refusal
from sidray.serving.problems import ApiError
from sidray.serving.settings import WriterSettings
from sidray.serving.table_log import Contents, TableLog

_LOGGER = logging.getLogger("ray.serve")
Encode = Callable[[list[NewItem]], Awaitable[EncodedItems]]
T = TypeVar("T")
FOLD_AGAIN_S = 60.0  # after one that failed
TIDY_COMMITS = 256  # an append takes 5 ms after so many, 18 ms after 1,600
EVENTS = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "action": pa.string(),
        "ts": pa.timestamp("us", "UTC"),
        "query": pa.string(),
    }
)
_AWAY = (OSError, ValueError)  # what Lance and the filesystems raise
AWAY = Refusal(503, "storage_unavailable", "the item table cannot be written at the moment; try again")


class Writer:
    """`encode` computes vectors and SIDs of new items; `fold` starts a job that folds the collection."""

    def __init__(
        self, run: RunFolder, settings: WriterSettings, encode: Encode, fold: Callable[[RunFolder], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._run = run
        self._text_fields = list(run.recipe.data.text_fields)
        self._encode = encode
        self._fold = fold
        self._collection = Collection.of(run)
        self._thread = ThreadPoolExecutor(1, "table")  # the one that touches the table
        self._files = ThreadPoolExecutor(1, "events")  # beside it, so that items do not wait for them
        self._pictures = ThreadPoolExecutor(1, "thumbnail")
        self._log = self._thread.submit(TableLog, self._collection).result()
        self._commits = GroupCommit(self._log.append, self._thread, settings.commit_ms / 1000)
        self._upkeep: asyncio.Task[None] | None = None
        self._folded_at = time.monotonic()
        self._fold_from = 0.0  # not before
        self._seen = 0  # the last version when upkeep was last looked after: readers know it by now
        self._tidied = 0

    async def put(self, items: list[NewItem]) -> int | Refusal:
        """The table version in which all of them are durable, those that had not changed included: after a rollback
        meanwhile these may be gone, and all are looked at anew."""
        hashes = [content_hash(item.title, self._texts(item), item.partition, item.image) for item in items]
        while True:
            known = await self._contents([item.item_id for item in items])
            if isinstance(known, Refusal):
                return known
            changed = [n for n, own in enumerate(hashes) if fingerprint(own) != known.fingerprints[n]]
            if not changed:
                return known.version
            try:
                encoded = await self._encode([items[n] for n in changed])
            except ApiError as error:
                return error.refusal
            rows = await self._rows([items[n] for n in changed], [hashes[n] for n in changed], encoded)
            version = await self._write(rows)
            if isinstance(version, Refusal) or self._log.epoch == known.epoch:
                return version

    async def delete(self, item_id: str) -> int | Refusal:
        """The table version in which the item is gone. Refuses (404) one that is not there."""
        known = await self._contents([item_id])
        if isinstance(known, Refusal):
            return known
        if known.fingerprints[0] is None:
            return Refusal(404, "unknown_item", f"no item is called {item_id[:80]!r}", "item_id")
        return await self._write(item_table.tombstones([item_id]))

    async def append_events(self, rows: list[dict[str, Any]]) -> int | Refusal:
        """Writes them as a Parquet file of the contract's events, named by its content: a repeated call writes the same
        file. Returns their number."""
        written = await self._in(self._files, _write_events, rows, self._collection.events)
        return written if isinstance(written, Refusal) else len(rows)

    async def check_health(self) -> None:
        """Looks whether a fold or tidying is due: Serve calls this every few seconds."""
        seen, self._seen = self._seen, self._commits.version
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.create_task(self._look_after(seen))

    async def _look_after(self, seen: int) -> None:
        """Folds when that is due, whoever wrote the rows; else tidies when that is."""
        try:
            rows = await asyncio.to_thread(self._collection.pending)
        except (UserError, *_AWAY) as error:
            _LOGGER.warning("the item table does not say what was written: %s", error)
            return
        now = time.monotonic()
        late = now - self._folded_at > self._settings.fold_s
        if now >= self._fold_from and (rows >= self._settings.fold_rows or (rows > 0 and late)):
            await self._start_fold()
        elif seen - self._tidied >= TIDY_COMMITS:
            await self._tidy(seen)

    def _texts(self, item: NewItem) -> list[str]:
        return [item.fields.get(name) or "" for name in self._text_fields]

    async def _rows(self, items: list[NewItem], hashes: list[str], encoded: EncodedItems) -> pa.Table:
        loop = asyncio.get_running_loop()
        pictures = await loop.run_in_executor(self._pictures, lambda: [thumbnail(item.image) for item in items])
        columns = {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "partition": [item.partition for item in items],
            "content_hash": hashes,
            "model_key": [encoded.model_key] * len(items),
            **{name: [item.fields.get(name) for item in items] for name in self._text_fields},
        }
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        table = table.append_column("vector", vector_column(encoded.vectors))
        table = table.append_column("sids", pa.array(encoded.sids, pa.list_(pa.int32())))
        return table.append_column("thumbnail", pa.array(pictures, pa.binary()))

    async def _write(self, rows: pa.Table) -> int | Refusal:
        """Raises UserError for rows that do not fit the table: then the model has made something that is no vector."""
        try:
            return await self._commits.write(rows)
        except _AWAY as error:
            return _away(error)

    async def _contents(self, item_ids: list[str]) -> Contents | Refusal:
        return await self._in(self._thread, self._log.contents, item_ids)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T | Refusal:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work, *args)
        except _AWAY as error:
            return _away(error)

    async def _start_fold(self) -> None:
        try:
            await self._fold(self._run)
            self._folded_at = time.monotonic()
        except Exception as error:
            self._fold_from = time.monotonic() + FOLD_AGAIN_S
            _LOGGER.error("the collection could not be folded: %s", error)

    async def _tidy(self, until: int) -> None:
        self._tidied = until
        try:
            await asyncio.to_thread(self._collection.tidy, until)
        except (UserError, *_AWAY) as error:
            _LOGGER.warning("the item table could not be tidied: %s", error)


def _away(error: Exception) -> Refusal:
    _LOGGER.warning("the item table does not answer: %s", error)
    return AWAY


def _write_events(rows: list[dict[str, Any]], folder: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=EVENTS), sink)
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(folder, f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"), data)
