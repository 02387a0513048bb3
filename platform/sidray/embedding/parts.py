"""The Parquet files of a batch embedding: each written whole, so that a killed run finds again what it had.

    parts = Parts(folder, number=3);  parts.missing(shards)   # of this attempt
    parts.write(shard, table, refused)                         # part-00003-00017.parquet
    parts.earlier(model_key)                                   # what earlier attempts made, to be taken over

A part holds a shard of consecutive rows of the catalogue. Rows that were refused, and how many were taken over, stand
in its metadata: they come and go with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidray import storage
from sidray.embedding.kept import Kept

COLUMNS = ["item_id", "vector", "sids", "model_key", "content_hash"]
_NAME = re.compile(r"part-(\d{5})-(\d{5,})\.parquet")
_META = b"sidray"


@dataclass(frozen=True)
class Made:
    """Of a part: `rows` in it, `kept` of them taken over from an earlier attempt, and (item_id, reason) of the refused,
    which are not in it."""

    rows: int
    kept: int
    refused: list[tuple[str, str]]


class Parts:
    def __init__(self, folder: str, number: int) -> None:
        self.folder = folder
        self.number = number

    @staticmethod
    def last(folder: str) -> int:
        """The highest number of an attempt that has a part here; 0 for none."""
        return max((number for number, _ in _listed(folder).values()), default=0)

    def uri(self, shard: int) -> str:
        return storage.join(self.folder, f"part-{self.number:05d}-{shard:05d}.parquet")

    def missing(self, shards: int) -> npt.NDArray[np.int64]:
        done = {shard for number, shard in _listed(self.folder).values() if number == self.number}
        return np.array([shard for shard in range(shards) if shard not in done], np.int64)

    def write(self, shard: int, table: pa.Table, kept: int, refused: list[tuple[str, str]]) -> None:
        note = json.dumps({"rows": table.num_rows, "kept": kept, "refused": refused})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_META: note.encode()}), sink)
        storage.write_bytes(self.uri(shard), sink.getvalue().to_pybytes())

    def made(self, shards: int) -> list[Made]:
        """Of every shard: all must be written."""
        return [_made(self.uri(shard)) for shard in range(shards)]

    def earlier(self, model_key: str) -> Earlier:
        """What other attempts made with this model."""
        own = [name for name, (number, _) in _listed(self.folder).items() if number != self.number]
        return Earlier.read([storage.join(self.folder, name) for name in own], model_key)

    def delete_others(self) -> None:
        for name, (number, _) in _listed(self.folder).items():
            if number != self.number:
                storage.delete(storage.join(self.folder, name))


@dataclass(frozen=True)
class Earlier:
    """Rows of earlier parts, found by id and content. `starts`: positions of each part's first row, and the end."""

    uris: list[str]
    starts: npt.NDArray[np.int64]
    kept: Kept

    @classmethod
    def read(cls, uris: list[str], model_key: str) -> Earlier:
        tables = [_read(uri, ["item_id", "content_hash", "model_key"]) for uri in uris]
        kept = Kept.of(_of_model(table, model_key) for table in tables)
        return cls(uris, np.cumsum([0, *(table.num_rows for table in tables)]), kept)

    def take(self, positions: npt.NDArray[np.int64]) -> pa.Table:
        """COLUMNS of the rows at these positions (one at least), in their order."""
        owners = np.searchsorted(self.starts, positions, side="right") - 1
        tables, order = [], []
        for owner in np.unique(owners):
            own = np.flatnonzero(owners == owner)
            tables.append(_part(self.uris[owner]).take(pa.array(positions[own] - self.starts[owner])))
            order.append(own)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))


def _of_model(table: pa.Table, model_key: str) -> pa.Table:
    """The same rows; those of another model without content_hash, so that they are never found."""
    own = pc.equal(table["model_key"], model_key)
    hashes = pc.if_else(own, table["content_hash"], pa.scalar(None, pa.string()))
    return pa.table({"item_id": table["item_id"], "content_hash": hashes})


def _listed(folder: str) -> dict[str, tuple[int, int]]:
    """Name of each part in the folder -> attempt, shard; in the order of the names."""
    found = {name: _NAME.fullmatch(name) for name in storage.list_names(folder)}
    return {name: (int(match[1]), int(match[2])) for name, match in found.items() if match}


def _made(uri: str) -> Made:
    filesystem, path = storage.open_uri(uri)
    with filesystem.open_input_file(path) as stream:
        note = json.loads(pq.read_metadata(stream).metadata[_META])
    return Made(note["rows"], note["kept"], [(item_id, reason) for item_id, reason in note["refused"]])


def _read(uri: str, columns: list[str]) -> pa.Table:
    filesystem, path = storage.open_uri(uri)
    with filesystem.open_input_file(path) as stream:
        return pq.read_table(stream, columns=columns)


@lru_cache(maxsize=8)  # neighbouring shards are in the same few parts
def _part(uri: str) -> pa.Table:
    return _read(uri, COLUMNS).replace_schema_metadata(None)
