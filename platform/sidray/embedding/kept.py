"""Which items have their vector already: found by id and content, at 16 bytes an item, so that tens of millions fit.

kept = Kept.of(tables)                     # item_id, content_hash
kept.find(["a1"], [content_hash(...)])     # [1]: its position in the tables, -1: new or changed
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]


class Kept:
    """`keys`: 64-bit hashes of id and content, ascending; `places`: of each its position. Two items share a key once in
    10^11 lookups among a hundred million: whoever has the row at hand compares it."""

    def __init__(self, keys: npt.NDArray[np.uint64], places: Ints) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> Kept:
        """Positions count on from one table to the next; a row without content_hash is never found."""
        keys, places, start = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
        for table in tables:
            known = [hashed is not None for hashed in table["content_hash"].to_pylist()]
            rows = table.filter(pa.array(known, pa.bool_()))
            keys.append(_keys(rows["item_id"].to_pylist(), rows["content_hash"].to_pylist()))
            places.append(start + np.flatnonzero(known))
            start += table.num_rows
        return cls(np.concatenate(keys), np.concatenate(places))

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, item_ids: Sequence[str], hashes: Sequence[str]) -> Ints:
        """[n]: positions, -1 where there is no such content of the item."""
        wanted = _keys(item_ids, hashes)
        at = np.searchsorted(self._keys, wanted)
        found = np.full(len(wanted), -1, np.int64)
        inside = np.flatnonzero(at < len(self._keys))
        equal = inside[self._keys[at[inside]] == wanted[inside]]
        found[equal] = self._places[at[equal]]
        return found


def _keys(item_ids: Sequence[str], hashes: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = b"".join(
        hashlib.blake2b(f"{len(hashed)} {hashed}{item_id}".encode(), digest_size=8).digest()
        for item_id, hashed in zip(item_ids, hashes, strict=True)
    )
    return np.frombuffer(digests, np.uint64)
