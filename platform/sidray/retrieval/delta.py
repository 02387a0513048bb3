"""What was written since an index was built: the latest row of each item, searched exactly, in memory.

    delta = Delta.empty(index)      # of one shard of the table: Delta.empty(index, Shard(0, of=4))
    delta = delta.plus(rows)        # rows of the log; the old delta goes on serving whoever holds it
    delta.hidden                    # rows of the index that were replaced or deleted
    scores, rows = delta.search(vector, partitions);  delta.items[row]

A row counts when its seq is above that of the item's row in the index and in the delta, so that rows may come twice and
late. An item that moves to a partition of another shard is gone from this one. `plus` costs what it adds, and a copy of
some small maps: vectors and items are shared with the delta before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.retrieval.exact import Floats, Ints, unit
from sidray.retrieval.index import PartitionedIndex
from sidray.retrieval.shards import WHOLE, Shard

_NOT_FIELDS = ("vector", "deleted", "model_key", "content_hash", "updated_at")
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Latest:
    """Of an item: its seq and its row in the delta, -1 when it is deleted."""

    seq: int
    row: int


@dataclass(frozen=True)
class Delta:
    index: PartitionedIndex
    latest: dict[str, _Latest]
    items: list[dict[str, Any]]  # shared: a delta sees its first `len(vectors)` entries
    vectors: Floats  # [m, d] of unit length, a view of a larger buffer
    partitions: dict[str, Rows]  # the live rows of each partition that the delta has ever had
    hidden: Ints  # ascending rows of the index
    shard: Shard

    @classmethod
    def empty(cls, index: PartitionedIndex, shard: Shard = WHOLE) -> Delta:
        vectors, hidden = np.zeros((0, index.manifest.dimension), np.float32), np.zeros(0, np.int64)
        return cls(index, {}, [], vectors, {}, hidden, shard)

    def __len__(self) -> int:
        """Items that were changed or deleted, in all shards."""
        return len(self.latest)

    def plus(self, rows: pa.Table) -> Delta:
        """With these rows of the log: item_id, seq, deleted, partition, vector, model_key, title, sids, ..."""
        fresh = self._fresh(rows)
        if not fresh:
            return self
        latest, partitions = dict(self.latest), dict(self.partitions)
        gone: dict[str, set[int]] = {}
        for item_id in fresh:
            if (old := latest.get(item_id)) and old.row >= 0:
                gone.setdefault(self.items[old.row]["partition"], set()).add(old.row)
        live = [number for number in fresh.values() if self._is_live(rows, number)]
        added, vectors = self._append(rows.take(pa.array(live, pa.int64())))
        for item_id, number in fresh.items():
            latest[item_id] = _Latest(rows["seq"][number].as_py(), -1)
        for row in added:
            item = self.items[row]
            latest[item["item_id"]] = _Latest(item["seq"], row)
        _move(partitions, gone, [(self.items[row]["partition"], row) for row in added])
        own = self.index.rows_of(list(fresh))
        hidden = np.union1d(self.hidden, own[own >= 0])
        return Delta(self.index, latest, self.items, vectors, partitions, hidden, self.shard)

    def search(self, vector: Floats, partitions: Sequence[str] | None) -> tuple[Floats, Ints]:
        """Cosines and rows of all live items in these partitions (None: everywhere), in no order."""
        names = self.partitions if partitions is None else dict.fromkeys(partitions)
        chosen = [self.partitions[name] for name in names if name in self.partitions]
        rows = np.concatenate([np.zeros(0, np.int64), *chosen])
        return self.vectors[rows] @ vector, rows

    def row_of(self, item_id: str) -> int | None:
        """The item's row, -1 when it is deleted, None when the delta knows nothing of it."""
        found = self.latest.get(item_id)
        return None if found is None else found.row

    def _fresh(self, rows: pa.Table) -> dict[str, int]:
        """Item -> number of its winning row among `rows`; rows of another model are left out."""
        columns = ("item_id", "seq", "deleted", "model_key")
        ids, seqs, deleted, keys = (rows[name].to_pylist() for name in columns)
        best: dict[str, int] = {}
        for number, item_id in enumerate(ids):
            ours = deleted[number] or keys[number] == self.index.manifest.model_key
            if ours and (item_id not in best or seqs[number] >= seqs[best[item_id]]):
                best[item_id] = number
        known = dict(zip(best, self._known_seqs(list(best)), strict=True))
        return {item_id: number for item_id, number in best.items() if seqs[number] > known[item_id]}

    def _known_seqs(self, item_ids: list[str]) -> list[int]:
        rows = self.index.rows_of(item_ids)
        seqs = self.index.column("seq", rows)
        pairs = zip(item_ids, rows, seqs, strict=True)
        return [
            self.latest[item_id].seq if item_id in self.latest else int(seq) if row >= 0 else -1
            for item_id, row, seq in pairs
        ]

    def _is_live(self, rows: pa.Table, number: int) -> bool:
        return not rows["deleted"][number].as_py() and self.shard.has(rows["partition"][number].as_py())

    def _append(self, rows: pa.Table) -> tuple[range, Floats]:
        """Their numbers in the delta, and the vectors of all rows."""
        start, dimension = len(self.vectors), self.index.manifest.dimension
        del self.items[start:]  # left by a sibling that was thrown away
        self.items.extend(rows.drop_columns([name for name in _NOT_FIELDS if name in rows.column_names]).to_pylist())
        new = unit(rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dimension))
        return range(start, start + len(new)), _extended(self.vectors, new)


def _extended(vectors: Floats, new: Floats) -> Floats:
    """[m + n, d]: in place behind `vectors` where its buffer has room, else in a buffer twice as large."""
    buffer, size = vectors.base, len(vectors) + len(new)
    if not isinstance(buffer, np.ndarray) or len(buffer) < size:
        buffer = np.empty((max(1024, 2 * size), vectors.shape[1]), np.float32)
        buffer[: len(vectors)] = vectors
    buffer[len(vectors) : size] = new
    return buffer[:size]


def _move(partitions: dict[str, Rows], gone: dict[str, set[int]], added: Iterable[tuple[str, int]]) -> None:
    """Updates the live rows of the partitions concerned; an emptied one stays, with no rows."""
    changed = {name: [row for row in partitions[name].tolist() if row not in rows] for name, rows in gone.items()}
    for name, row in added:
        changed.setdefault(name, partitions.get(name, np.zeros(0, np.int64)).tolist()).append(row)
    partitions.update({name: np.array(rows, np.int64) for name, rows in changed.items()})
