"""The item table as its one writer sees it: what each item's content is, and appending. Used by one thread.

log = TableLog(Collection.of(run))
known = log.contents(["a1"])     # known.fingerprints: of each item's content, None: no such item
version = log.append(rows)       # durable when it returns
log.epoch == known.epoch         # no rollback came in between
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.known import COLUMNS, KnownItems
from sidray.retrieval.log_reader import LogReader


class RollbackUnderWayError(OSError):
    """The table cannot be used at the moment, as when its storage is away."""


@dataclass(frozen=True)
class Contents:
    """A fingerprint of each item's content, None where there is no such item; in which version and in which epoch."""

    fingerprints: list[int | None]
    version: int
    epoch: int


class TableLog:
    """Reads anew after a rollback, and what others appended before each answer. `epoch`: in which it reads; one that
    is the same after an append as before says that no rollback came in between."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._open()

    def _open(self) -> None:
        """All of it or nothing: what was known before a rollback must not be taken for what is there behind it."""
        epoch = self._collection.pointer().epoch
        log = item_table.ItemLog(self._collection.table)
        version = int(item_table.open_version(self._collection.table).version)
        known = KnownItems.of(self._collection.table, version)
        reader = LogReader(self._collection.table, version, COLUMNS)
        self._log, self._known, self._reader, self.epoch = log, known, reader, epoch

    def contents(self, item_ids: Sequence[str]) -> Contents:
        """Raises OSError when the storage does not answer, and during a rollback."""
        pointer = self._collection.pointer()
        if not pointer.settled:
            raise RollbackUnderWayError("the table is being rolled back")
        if pointer.epoch != self.epoch:
            self._open()
        with self._reader.read() as news:
            if news is not None:
                self._known.apply(news)
        fingerprints = [self._known.content(item_id) for item_id in item_ids]
        return Contents(fingerprints, self._reader.version, self.epoch)

    def append(self, rows: pa.Table) -> int:
        """The version in which the rows are durable."""
        self.contents([])
        return self._log.append(rows)
