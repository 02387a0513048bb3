"""The item table as its one writer sees it: what each item's content is, and appending. Used by one thread.

log = TableLog(Collection.of(run))
contents, version = log.contents(["a1"])      # fingerprint of the content, None: no such item
version = log.append(rows)                    # durable when it returns
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.known import COLUMNS, KnownItems
from sidray.retrieval.log_reader import LogReader


class RollbackUnderWayError(OSError):
    """The table cannot be used at the moment, as when its storage is away."""


class TableLog:
    """Reads anew after a rollback, and what others appended before each answer."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._open()

    def _open(self) -> None:
        self._epoch = self._collection.pointer().epoch
        self._log = item_table.ItemLog(self._collection.table)
        version = int(item_table.open_version(self._collection.table).version)
        self._known = KnownItems.of(self._collection.table, version)
        self._reader = LogReader(self._collection.table, version, COLUMNS)

    def contents(self, item_ids: Sequence[str]) -> tuple[list[int | None], int]:
        """Fingerprint of each item's content, None where there is no such item; and the table version. Raises OSError
        when the storage does not answer, and during a rollback."""
        pointer = self._collection.pointer()
        if not pointer.settled:
            raise RollbackUnderWayError("the table is being rolled back")
        if pointer.epoch != self._epoch:
            self._open()
        news = self._reader.read()
        if news is not None:
            self._known.apply(news)
        return [self._known.content(item_id) for item_id in item_ids], self._reader.version

    def append(self, rows: pa.Table) -> int:
        """The version in which the rows are durable."""
        self.contents([])
        return self._log.append(rows)
