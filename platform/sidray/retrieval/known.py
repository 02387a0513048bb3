"""What a writer knows of the table: the content hash of every item, small enough for tens of millions.

    known = KnownItems.of(table_uri, version);  known.content("a1")   # None: there is no such item (any more)
    known.apply(rows)      # item_id, seq, deleted, content_hash, in any order, repeated rows included

24 bytes an item are kept: its seq, and 64-bit hashes of its id and of its content. Two ids of one hash (one chance in a
million among six million items) would share an entry; the latest writes are kept in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.retrieval import item_table

COLUMNS = ("item_id", "seq", "deleted", "content_hash")
RECENT = 50_000  # items that are kept in full
_ENTRY = np.dtype([("id", np.uint64), ("seq", np.int64), ("content", np.uint64)])
_DELETED = 0  # in place of a content
Row = tuple[str, int, int]  # item, seq, content


class KnownItems:
    """`_known`: entries with ascending ids; `_recent`: item -> (seq, content), which count before them."""

    def __init__(self, rows: pa.Table) -> None:
        """From one row of each item."""
        self._known = _entries(_rows(rows), len(rows))
        self._recent: dict[str, tuple[int, int]] = {}

    @classmethod
    def of(cls, uri: str, version: int) -> KnownItems:
        """The table's items at a version."""
        return cls(item_table.current(uri, version, COLUMNS, with_deleted=True))

    def content(self, item_id: str) -> int | None:
        """The hash of its content hash, as `fingerprint` makes it; None for an item that is not in the table."""
        return self._latest(item_id)[1] or None

    def apply(self, rows: pa.Table) -> None:
        for item_id, seq, content in _rows(rows):
            if seq >= self._latest(item_id)[0]:
                self._recent[item_id] = (seq, content)
        if len(self._recent) > RECENT:
            self._merge()

    def _latest(self, item_id: str) -> tuple[int, int]:
        """Its seq and content, or (0, _DELETED)."""
        if item_id in self._recent:
            return self._recent[item_id]
        own = np.uint64(fingerprint(item_id))
        place = int(np.searchsorted(self._known["id"], own))
        if place == len(self._known) or self._known["id"][place] != own:
            return 0, _DELETED
        entry = self._known[place]
        return int(entry["seq"]), int(entry["content"])

    def _merge(self) -> None:
        rows = ((item_id, seq, content) for item_id, (seq, content) in self._recent.items())
        new = _entries(rows, len(self._recent))
        kept = self._known[~np.isin(self._known["id"], new["id"])]
        self._known = np.insert(kept, np.searchsorted(kept["id"], new["id"]), new)
        self._recent = {}


def fingerprint(text: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _rows(table: pa.Table) -> Iterable[Row]:
    columns = (table[name].to_pylist() for name in COLUMNS)
    for item_id, seq, deleted, content_hash in zip(*columns, strict=True):
        yield item_id, seq, _DELETED if deleted else fingerprint(content_hash or "")


def _entries(rows: Iterable[Row], count: int) -> npt.NDArray[np.void]:
    """Of items that differ."""
    hashed = ((fingerprint(item_id), seq, content) for item_id, seq, content in rows)
    entries = np.fromiter(hashed, _ENTRY, count)
    return entries[np.argsort(entries["id"])]
