"""Following the item table: what was appended since the last look, as replicas and the writer see it.

    reader = LogReader(uri, since=7, columns=["item_id", "seq", "deleted"])
    news = reader.read()   # None: nothing new; else a table in the log's order

An append costs a reader its own rows only. After a compaction rows come again: whoever applies them by `seq` is none
the wiser. A rollback takes rows away; it starts a new epoch (collection.py), in which everybody reads anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sidray.retrieval import item_table


class LogReader:
    """Reads forward from version `since`, whose rows count as known."""

    def __init__(self, uri: str, since: int, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._dataset: Any = item_table.open_version(uri)
        self._known = _ids(item_table.open_version(uri, since))
        self.version = since

    def read(self) -> pa.Table | None:
        """The rows of fragments that are new in the latest version. Raises OSError when the storage does not answer."""
        if self._dataset.latest_version == self.version:
            return None
        self._dataset.checkout_latest()
        fragments = self._dataset.get_fragments()
        new = [each for each in fragments if each.fragment_id not in self._known]
        rows = None
        if new:
            rows = self._dataset.scanner(columns=self._columns, fragments=new, scan_in_order=True).to_table()
        self.version, self._known = int(self._dataset.version), _ids(self._dataset)
        return rows


def _ids(dataset: Any) -> set[int]:
    return {fragment.fragment_id for fragment in dataset.get_fragments()}
