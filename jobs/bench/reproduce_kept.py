"""What finished rows found, kept beside the report: ranks click by click, and what they cost and were made with.

    kept = Kept(folder, "smgr-hm");  kept.add("tiger", seed, ranks, about);  kept.find("tiger", seed, key)

So the report and its tests follow from what is committed, seeds of several machines stand in one report, and a row that
is kept is not computed again. One Parquet file for each seed; a row counts as long as its step's key is the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidray.evaluation.metrics import Ranks

LIMIT = 100  # ranks from here on are one: no metric of the report looks further
_ABOUT, _TIES = b"rows", " (ties)"


class KeptRow(NamedTuple):
    """`ranks`: of each click or pair; `about`: key, clicks, train_s, samples, seconds (of each step), made."""

    ranks: Ranks
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """The rows of one recipe in `folder`, in files that start with `name`."""

    folder: Path
    name: str
    _tables: dict[int, pa.Table] = field(default_factory=dict)

    def find(self, label: str, seed: int, key: str) -> KeptRow | None:
        """A row as it was added; None when it was not, or by a step of another key."""
        table = self._table(seed)
        about = _about(table).get(label, {})
        if about.get("key") != key:
            return None
        greater, equal = (table[name].to_numpy().astype(np.int64) for name in (label, label + _TIES))
        return KeptRow(Ranks(greater, equal), about)

    def add(self, label: str, seed: int, ranks: Ranks, about: Mapping[str, Any]) -> None:
        """In place of what was kept of the row; of all rows when there were more clicks or fewer then."""
        table = self._table(seed)
        if table.num_rows != len(ranks.greater):
            table = pa.table({})
        columns = {name: table[name] for name in table.column_names}
        columns[label] = pa.array(np.minimum(ranks.greater, LIMIT).astype(np.uint8))
        columns[label + _TIES] = pa.array(ranks.equal.astype(np.int32))
        metadata = {_ABOUT: json.dumps({**_about(table), label: dict(about)}).encode()}
        self._tables[seed] = pa.table(columns, metadata=metadata)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, schema = self._path(seed), self._tables[seed].schema
        with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as file:  # which is half as large
            file.write_table(self._tables[seed])
            file.add_key_value_metadata(metadata)

    def _table(self, seed: int) -> pa.Table:
        if seed not in self._tables:
            self._tables[seed] = pq.read_table(self._path(seed)) if self._path(seed).exists() else pa.table({})
        return self._tables[seed]

    def _path(self, seed: int) -> Path:
        return self.folder / f"{self.name}-{seed + 1}.parquet"


def _about(table: pa.Table) -> dict[str, Any]:
    return dict(json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}")))
