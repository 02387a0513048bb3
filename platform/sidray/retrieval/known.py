"""What a writer knows of the table: the content hash of every item, small enough for tens of millions.

    known = KnownItems.of(table_uri, version);  known.content("a1")   # None: there is no such item (any more)
    known.apply(rows)      # item_id, seq, deleted, content_hash, in any order, repeated rows included

Of the table at the start 16 bytes an item are kept: 64-bit hashes of its id and of its content. Two ids of one hash
(one chance in a million among six million items) would share an entry; what is written later is kept in full.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.retrieval import item_table

COLUMNS = ("item_id", "seq", "deleted", "content_hash")
Hashes = npt.NDArray[np.uint64]


@dataclass
class KnownItems:
    """`ids` ascending; `contents` beside them. `recent`: item -> (seq, hash of its content, or None: deleted)."""

    ids: Hashes
    contents: Hashes
    recent: dict[str, tuple[int, int | None]]

    @classmethod
    def of(cls, uri: str, version: int) -> KnownItems:
        """The table's items at a version."""
        rows = item_table.current(uri, version, ["item_id", "content_hash"])
        ids = _hashes(rows["item_id"])
        order = np.argsort(ids)
        return cls(ids[order], _hashes(rows["content_hash"])[order], {})

    def content(self, item_id: str) -> int | None:
        """The hash of its content hash, as `fingerprint` makes it; None for an item that is not in the table."""
        if item_id in self.recent:
            return self.recent[item_id][1]
        own = np.uint64(fingerprint(item_id))
        place = int(np.searchsorted(self.ids, own))
        return int(self.contents[place]) if place < len(self.ids) and self.ids[place] == own else None

    def apply(self, rows: pa.Table) -> None:
        columns = (rows[name].to_pylist() for name in COLUMNS)
        for item_id, seq, deleted, content_hash in zip(*columns, strict=True):
            if seq >= self.recent.get(item_id, (0, None))[0]:
                self.recent[item_id] = (seq, None if deleted else fingerprint(content_hash or ""))


def fingerprint(text: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _hashes(column: pa.ChunkedArray) -> Hashes:
    return np.fromiter((fingerprint(value or "") for value in column.to_pylist()), np.uint64, len(column))
